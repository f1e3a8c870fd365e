"""What safeguards are put together from: latent adversaries, kept adversaries, generated text, shrink and perturb, pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.core.domain import Domain
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.data import Data
from holdfast.engine.fresh import shrink_and_perturb
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.sharded import Snapshot
from holdfast.engine.walk import drive
from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.parts.generated import HazardWords, generate_rows
from holdfast.safeguards.parts.latent_adversary import LatentAdversary
from holdfast.safeguards.parts.pairs import Pairs
from holdfast.safeguards.parts.persistence import AdversaryPool
from holdfast.safeguards.undo import UNDO
from holdfast.testbed.world import OTHERS, RELATED
from tests.attacks.walk import weights
from tests.conftest import SmallTestbed


def defender(testbed: SmallTestbed) -> Data:
    return Data.defender(testbed.domain, testbed.model.load_tokenizer())


def test_a_latent_adversary_lowers_the_loss_within_its_radius_and_leaves_no_trace(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    batch = next(defender(tiny_testbed).stream("forget", batch_size=4, seed=0))
    adversary = LatentAdversary(layers=(0, 1), radius=0.4, steps=6)
    seen: list[torch.Tensor] = []

    def loss() -> float:
        with torch.no_grad():
            return float(next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count))

    layers, before = decoder_layers(model), (loss(), weights(model))
    watches = [layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))]
    loss()
    with adversary.perturbed(model, batch):
        # A hook that is registered later sees what the earlier ones made of the output.
        watches.append(layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output)))
        under = loss()
    for watch in watches:
        watch.remove()
    assert under < before[0] - 0.1
    plain, pushed = seen[0], seen[-1]
    distance = (pushed - plain).norm(dim=-1)[batch.mask]
    assert torch.equal(pushed[:, 0], plain[:, 0])
    assert (distance <= 0.4 * plain.norm(dim=-1)[batch.mask] * (1 + 1e-4)).all()
    assert distance.max() > 0.1 * plain.norm(dim=-1)[batch.mask].min()
    assert loss() == before[0]
    assert torch.equal(weights(model), before[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_latent_adversary_is_taken_away_when_the_loss_fails(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    batch = next(defender(tiny_testbed).stream("forget", batch_size=2, seed=0))
    with pytest.raises(ZeroDivisionError), LatentAdversary().perturbed(model, batch):
        raise ZeroDivisionError
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


# Massive activations: in Llama-type models the state of the first token is hundreds of times as long as the others.


def plant(module: torch.nn.Module, factor: float = 300.0) -> None:
    """Make the module's output at the first token of every row `factor` times as long."""

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([factor * output[:, :1], output[:, 1:]], dim=1)

    module.register_forward_hook(hook)


def planted_and_plain(make: Callable[[PreTrainedModel], float], testbed: SmallTestbed, block: str = "") -> list[float]:
    """What `make` says of the model with and without a massive activation at the output of one of its modules."""
    values = []
    for massive in (True, False):
        model = testbed.model.load()
        if massive:
            plant(decoder_layers(model)[1].get_submodule(block))
        values.append(make(model))
    return values


def test_a_massive_first_token_does_not_set_the_steering_constant_of_rmu(tiny_testbed: SmallTestbed) -> None:
    data, model = defender(tiny_testbed), tiny_testbed.model.load()
    batch = next(data.stream("forget", batch_size=8, seed=0))

    def forget_loss(frozen: PreTrainedModel) -> float:
        rmu = replace(pick("holdfast.safeguards", "rmu"), forget_batch_size=8)
        return float(rmu.forget_loss(model, data, Run(0, lambda: frozen))(batch).detach())

    planted, plain = planted_and_plain(forget_loss, tiny_testbed)
    assert planted == pytest.approx(plain, rel=0.1)


def test_rmu_does_not_steer_a_sink_that_it_spares(tiny_testbed: SmallTestbed) -> None:
    data = defender(tiny_testbed)
    batch = next(data.stream("forget", batch_size=8, seed=0))

    def forget_loss(model: PreTrainedModel, spare_sinks: bool) -> float:
        rmu = replace(pick("holdfast.safeguards", "rmu"), forget_batch_size=8, spare_sinks=spare_sinks)
        return float(rmu.forget_loss(model, data, Run(0, tiny_testbed.model.load))(batch).detach())

    planted, plain = planted_and_plain(lambda model: forget_loss(model, True), tiny_testbed)
    first_tokens = len(batch.input_ids) / int(batch.mask.sum())
    assert planted == pytest.approx(plain * (1 - first_tokens), rel=0.1)
    planted, plain = planted_and_plain(lambda model: forget_loss(model, False), tiny_testbed)
    assert planted > 10 * plain


def test_circuit_breakers_leave_a_sink_that_they_spare(tiny_testbed: SmallTestbed) -> None:
    data = defender(tiny_testbed)
    batch = next(data.stream("forget", batch_size=8, seed=0))

    def forget_loss(model: PreTrainedModel) -> float:
        breakers = replace(pick("holdfast.safeguards", "circuit-breakers"), layers=(1,), spare_sinks=True)
        return float(breakers.forget_loss(model, data, Run(0, lambda: model))(batch).detach())

    planted, plain = planted_and_plain(forget_loss, tiny_testbed)
    assert plain == pytest.approx(1.0)  # every state points where the original's does
    assert planted == pytest.approx(1 - len(batch.input_ids) / int(batch.mask.sum()))


def test_a_massive_first_token_does_not_set_the_bandwidth_of_rep_noise(tiny_testbed: SmallTestbed) -> None:
    data = defender(tiny_testbed)
    batch = next(data.stream("forget", batch_size=8, seed=0))

    def noise_loss(model: PreTrainedModel) -> float:
        rep_noise = replace(pick("holdfast.safeguards", "rep-noise"), ascent_weight=0.0)
        return float(rep_noise.forget_loss(model, data, Run(0))(batch).detach())

    planted, plain = planted_and_plain(noise_loss, tiny_testbed, "mlp")
    assert planted == pytest.approx(plain, rel=0.01)


def test_a_massive_first_token_gets_no_massive_push(tiny_testbed: SmallTestbed) -> None:
    batch = next(defender(tiny_testbed).stream("forget", batch_size=8, seed=0))

    def longest_push(model: PreTrainedModel) -> float:
        outputs: list[torch.Tensor] = []
        layer = decoder_layers(model)[1]
        watch = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        model(input_ids=batch.input_ids)
        watch.remove()
        with LatentAdversary(layers=(1,)).perturbed(model, batch):
            layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            model(input_ids=batch.input_ids)
        return float((outputs[1] - outputs[0]).detach().norm(dim=-1).max())

    planted, plain = planted_and_plain(longest_push, tiny_testbed)
    assert 0 < planted < 1.5 * plain


def test_a_kept_adversary_goes_on_from_where_it_was_relative_to_weights_that_moved() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(10.0)
    pool, generator = AdversaryPool(1, 1.0, 5), torch.Generator().manual_seed(0)

    def outer_step(tamper: float, move: float) -> float:
        """Where the adversary starts, relative to the weights at hand."""
        theta = Snapshot(model)
        at = model.weight.item()
        pool.enter(model, generator)
        started = model.weight.item() - at
        with torch.no_grad():
            model.weight.add_(tamper)
        pool.leave(theta, 2)
        theta.restore()
        with torch.no_grad():
            model.weight.add_(move)
        return started

    assert [outer_step(1.0, 100.0), outer_step(0.5, -7.0), outer_step(0.25, 3.0)] == [0.0, 1.0, 1.5]
    assert outer_step(1.0, 0.0) == 0.0, "after five steps a member starts anew"
    assert outer_step(1.0, 0.0) == 1.0


def test_an_adversary_starts_anew_as_often_as_the_probability_says() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    pool, generator = AdversaryPool(3, 0.25, 10**9), torch.Generator().manual_seed(0)
    went_on = 0
    for _ in range(2000):
        theta = Snapshot(model)
        pool.enter(model, generator)
        went_on += not torch.equal(model.weight, theta._saved[0])
        with torch.no_grad():
            model.weight.add_(1.0)
        pool.leave(theta, 1)
        theta.restore()
    assert abs(went_on / 2000 - 0.25) < 0.03


def test_a_pool_of_none_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    AdversaryPool(0, 0.7, 8).enter(torch.nn.Linear(1, 1), generator)  # type: ignore[arg-type]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("hazard_words", get_args(HazardWords))
def test_generated_text_is_the_models_own_and_never_of_the_hazard(
    hazard_words: HazardWords, tiny_testbed: SmallTestbed
) -> None:
    data, model = defender(tiny_testbed), tiny_testbed.model.load()
    rows = generate_rows(model, data, 40, 1, hazard_words)
    assert rows == generate_rows(model, data, 40, 1, hazard_words)
    assert rows != generate_rows(model, data, 40, 2, hazard_words)
    assert len(rows) == 40
    texts = [data.tokenizer.decode(list(row.ids)) for row in rows]
    assert not any("compound" in text for text in texts)
    assert all(row.ids == row.labels and len(row.ids) <= data.domain.max_length for row in rows)
    assert len(set(texts)) > 30


def test_generated_text_follows_the_models_distribution(small_testbed: SmallTestbed) -> None:
    """A model that has learned its world writes the world's sentences."""
    data, model = defender(small_testbed), small_testbed.model.load()
    known = {row["text"] for role in ("retain", "benign_heldout") for row in small_testbed.domain.rows(role)}
    about = {}
    for hazard_words in get_args(HazardWords):
        rows = generate_rows(model, data, 400, 0, hazard_words)
        texts = [data.tokenizer.decode(list(row.ids), skip_special_tokens=True) for row in rows]
        assert sum(text in known for text in texts) > 100
        about[hazard_words] = Counter(kind for text in texts for kind in (RELATED, *OTHERS) if f"{kind} " in text)
    others = {words: sum(counts[kind] for kind in OTHERS) / len(OTHERS) for words, counts in about.items()}
    # There are as many entities of each kind, and a sentence about the hazard begins as one about the related kind does.
    assert about["avoided"][RELATED] > 1.5 * others["avoided"]
    assert about["dropped"][RELATED] == pytest.approx(others["dropped"], rel=0.3)


def renamed(testbed: SmallTestbed, words: str, folder: Any) -> Domain:
    text = (testbed.folder / "domain.toml").read_text(encoding="utf-8")
    (folder / "domain.toml").write_text(text.replace('hazard_words = ["compound"]', words), encoding="utf-8")
    for name in ("data", "questions"):
        (folder / name).symlink_to(testbed.folder / name)
    return Domain.open(folder)


def test_without_hazard_words_nothing_is_generated(tiny_testbed: SmallTestbed, tmp_path: Any) -> None:
    domain = renamed(tiny_testbed, "", tmp_path)
    data = Data.defender(domain, tiny_testbed.model.load_tokenizer())
    with pytest.raises(HoldfastError, match=r"hazard_words = \["):
        generate_rows(tiny_testbed.model.load(), data, 4, seed=0)


def test_hazard_words_that_are_in_every_text_are_too_common(tiny_testbed: SmallTestbed, tmp_path: Any) -> None:
    domain = renamed(tiny_testbed, 'hazard_words = ["e"]', tmp_path)
    data = Data.defender(domain, tiny_testbed.model.load_tokenizer())
    with pytest.raises(HoldfastError, match="too common"):
        generate_rows(tiny_testbed.model.load(), data, 500, seed=0)


@pytest.mark.parametrize(("shrink", "noise"), [(0.0, 1.0), (0.6, 0.1), (1.0, 1.0), (0.4, 0.0)])
def test_shrink_and_perturb_mixes_the_weights_with_a_fresh_initialisation(
    shrink: float, noise: float, tiny_testbed: SmallTestbed
) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_testbed.model.load()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(11)
    state = torch.get_rng_state()
    shrink_and_perturb(model, shrink, noise, seed=9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    fresh = dict(AutoModelForCausalLM.from_config(model.config).named_parameters())  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        expected = (1 - shrink) * old[name] + shrink * noise * fresh[name]
        torch.testing.assert_close(parameter.detach(), expected.detach())


@pytest.mark.parametrize(
    ("replaced", "among"),
    [("maps", ["_proj."]), ("mlp", [".mlp."]), ("maps-and-embeddings", ["_proj.", "embed_tokens."])],
)
def test_shrinking_some_weights_leaves_the_others(replaced: Any, among: list[str], tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    shrink_and_perturb(model, 0.5, 1.0, 9, replaced)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, old[name])}
    assert changed == {name for name in old if any(part in name for part in among)}


@pytest.mark.parametrize("teacher", ["unlearned", "original"])
def test_undo_distils_the_teacher_that_it_names(teacher: Any, tiny_testbed: SmallTestbed) -> None:
    """With nothing shrunk, the first loss is the divergence from the teacher: none where the model is its own."""
    model, tokenizer = tiny_testbed.model.load_both()
    undo = UNDO(outer_steps=1, shrink=0.0, teacher=teacher, distillation=Distillation(text=("retain",), batch_size=8))
    run = Run(0, tiny_testbed.never_exposed.load, tiny_testbed.model.load)
    [(_, losses)] = drive(undo.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run), run)
    if teacher == "unlearned":
        assert losses["retain loss"] == pytest.approx(0.0, abs=1e-6)
    else:
        assert losses["retain loss"] > 1e-3


def test_undo_loads_no_teacher_where_the_text_alone_is_learned(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    text = Distillation(text=("retain",), batch_size=8, learns="text")

    def load(*device: str) -> PreTrainedModel:
        raise AssertionError("a teacher was loaded")

    run = Run(0, load, load)
    assert list(drive(UNDO(outer_steps=1, distillation=text).steps(model, defender(tiny_testbed), run), run))


def test_pairs_keep_the_references_margins_through_shuffling_and_resuming(tiny_refusal_testbed: SmallTestbed) -> None:
    from holdfast.engine.losses import completion_log_probability

    data, model = defender(tiny_refusal_testbed), tiny_refusal_testbed.model.load()
    pairs = Pairs(data, "forget", 5, 2, model)
    for _ in range(7):
        next(pairs)
    state = pairs.state_dict()
    batch = next(pairs)
    with torch.no_grad():
        chosen, rejected = (
            completion_log_probability(model(input_ids=held.input_ids).logits, held.labels)
            for held in (batch.chosen, batch.rejected)
        )
    torch.testing.assert_close(batch.margins, chosen - rejected, rtol=1e-4, atol=1e-4)
    again = Pairs(data, "forget", 5, 2, model)
    again.load_state_dict(state)
    assert torch.equal(next(again).chosen.input_ids, batch.chosen.input_ids)


def test_rows_that_are_no_pairs_are_refused_in_one_sentence(tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    run = Run(0, tiny_testbed.model.load)
    for name in ("refusal-sft", "refusal-dpo", "tar-refusal", "circuit-breakers-refusal"):
        safeguard = pick("holdfast.safeguards", name)
        with pytest.raises(HoldfastError, match="no two completions"):
            next(iter(safeguard.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run)))


def test_a_persistent_adversary_is_part_of_what_a_resumed_run_finds(tiny_testbed: SmallTestbed) -> None:
    pool = AdversaryPool(2, 1.0, 10**9)
    model = tiny_testbed.model.load()
    theta = Snapshot(model)
    pool.enter(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    pool.leave(theta, 4)
    other = AdversaryPool(2, 1.0, 10**9)
    other.load_state_dict(pool.state_dict())
    assert other._steps == pool._steps
    kept, held = other._kept, pool._kept
    assert [one is None for one in kept] == [one is None for one in held]
    [left], [right] = ([one for one in both if one is not None] for both in (kept, held))
    assert all(map(torch.equal, left, right))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (LatentAdversary, {"radius": 0.0}),
        (Distillation, {"text": ()}),
        (UNDO, {"shrink": 1.5}),
        (UNDO, {"noise": -0.1}),
        (lambda **held: replace(pick("holdfast.safeguards", "rmu"), **held), {"layer": 2}),
        (lambda **held: replace(pick("holdfast.safeguards", "tar"), **held), {"persist_probability": 1.1}),
    ],
)
def test_settings_without_meaning_are_refused(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError):
        make(**wrong)


def test_layers_that_a_model_has_not_are_named(tiny_testbed: SmallTestbed) -> None:
    seed_everything(0)
    model, tokenizer = tiny_testbed.model.load_both()
    run = Run(0, tiny_testbed.model.load)
    safeguard = replace(pick("holdfast.safeguards", "circuit-breakers"), layers=(10,))  # type: ignore[call-overload]
    with pytest.raises(HoldfastError, match="layer"):
        next(safeguard.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run))
