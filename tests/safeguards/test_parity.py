"""Every safeguard's own loss against a plain transcription of its source's formula, value and gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.core.presets import pick
from holdfast.engine.data import Batch, Data, Stream
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.safeguards.mlac import MLAC
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.outer_loop import OuterLoop
from holdfast.safeguards.parts.outer_terms import tamper_resistance_loss
from holdfast.safeguards.parts.pairs import Pairs, dpo
from tests.conftest import SmallTestbed
from tests.reference import safeguards as reference

SEED = 3


class Scene:
    """A model, its different origins and a batch of rows of unequal length."""

    def __init__(self, testbed: SmallTestbed) -> None:
        self.model, tokenizer = testbed.model.load_both()
        for layer in self.model.get_decoder().layers:  # far from the frozen ones
            layer.mlp.down_proj.weight.data.mul_(20.0)
        self.base, self.initial = testbed.never_exposed.load(), testbed.never_exposed.load()
        with torch.no_grad():
            for parameter in self.initial.parameters():
                parameter.mul_(1.5)
        self.data = Data.defender(testbed.domain, tokenizer)
        self.run = Run(SEED, lambda: self.base, lambda: self.initial)
        self.batch = next(self.data.stream("forget", batch_size=4, seed=SEED))
        self.rows = reference.rows_of(self.batch)

    def gradient(self, loss: torch.Tensor) -> list[torch.Tensor]:
        slopes = torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True, retain_graph=True)
        return [
            torch.zeros_like(p) if slope is None else slope
            for p, slope in zip(self.model.parameters(), slopes, strict=True)
        ]

    def agree(self, ours: torch.Tensor, plain: torch.Tensor) -> None:
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
        largest = 0.0
        for left, right in zip(self.gradient(ours), self.gradient(plain), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
            largest = max(largest, float(left.abs().max()))
        assert largest > 1e-5, "nothing to compare"


@pytest.fixture
def scene(tiny_testbed: SmallTestbed) -> Scene:
    return Scene(tiny_testbed)


def small(name: str) -> Any:
    return replace(pick("holdfast.safeguards", name), forget_batch_size=4)


PLAIN: dict[str, Callable[[Scene], torch.Tensor]] = {
    "max-entropy": lambda s: reference.negative_entropy(s.model, s.rows),
    "min-posterior": lambda s: reference.min_posterior(s.model, s.rows, -15.0),
    "grad-diff": lambda s: -reference.cross_entropy(s.model, s.rows),
    "npo": lambda s: reference.npo(s.model, s.initial, s.rows, 0.1),
    "simnpo": lambda s: reference.simnpo(s.model, s.rows, 0.1, 0.0),
    "booster": lambda s: reference.cross_entropy(s.model, s.rows),
    "circuit-breakers": lambda s: reference.rerouting(s.model, s.base, s.rows, (1, 2)),
    "random-mapping": lambda s: reference.random_mapping(
        s.model, s.rows, torch.randn(255, 96, generator=torch.Generator().manual_seed(SEED))
    ),
    "rmu": lambda s: reference.rmu(
        s.model, s.rows, 1, reference.rmu_target(s.base, s.rows, 1, SEED, small("rmu").steering).detach()
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_forget_loss_is_the_sources(name: str, scene: Scene) -> None:
    safeguard = small(name)
    assert isinstance(safeguard, Forgetting)
    loss = safeguard.forget_loss(scene.model, scene.data, scene.run)
    scene.agree(loss(scene.batch), PLAIN[name](scene))


def test_min_posterior_leaves_out_what_is_negligible(scene: Scene) -> None:
    log_p = [held[0] for row in reference.token_log_probabilities(scene.model, scene.rows) for held in row]
    middle = float(torch.stack(log_p).detach().median())
    loss = replace(small("min-posterior"), negligible=middle).forget_loss(scene.model, scene.data, scene.run)
    scene.agree(loss(scene.batch), reference.min_posterior(scene.model, scene.rows, middle))
    whole = small("min-posterior").forget_loss(scene.model, scene.data, scene.run)(scene.batch)
    assert float(loss(scene.batch).detach()) < float(whole.detach())


def test_simnpo_fades_around_its_margin(scene: Scene) -> None:
    loss = replace(small("simnpo"), beta=2.0, margin=1.5).forget_loss(scene.model, scene.data, scene.run)
    scene.agree(loss(scene.batch), reference.simnpo(scene.model, scene.rows, 2.0, 1.5))
    halves = torch.stack([loss(part) for part in scene.batch.split(3)]).sum()
    torch.testing.assert_close(halves, loss(scene.batch), rtol=1e-4, atol=1e-5)


def test_llmu_learns_the_labels_of_other_rows_at_hazardous_positions(scene: Scene) -> None:
    safeguard = small("llmu")
    ours = safeguard.forget_loss(scene.model, scene.data, scene.run)(scene.batch)
    other = reference.rows_of(next(scene.data.stream("retain", batch_size=4, seed=SEED + 2)))
    terms, count = [], 0
    for (ids, labels), (_, wanted) in zip(scene.rows, other, strict=True):
        logits = scene.model(input_ids=torch.tensor([ids])).logits[0]
        for t in range(len(ids) - 1):
            if labels[t + 1] != -100:
                count += 1
                if t + 1 < len(wanted) and wanted[t + 1] != -100:
                    terms.append(-torch.log_softmax(logits[t], 0)[wanted[t + 1]])
    mismatch = torch.stack(terms).sum() / count
    plain = safeguard.mismatch_weight * mismatch - reference.cross_entropy(scene.model, scene.rows)
    scene.agree(ours, plain)


def test_rep_noise_s_ascent_and_noise(scene: Scene) -> None:
    loss = replace(small("rep-noise"), noise_weight=0.0, ascent_weight=0.7).forget_loss(
        scene.model, scene.data, scene.run
    )
    plain = -0.7 * torch.log(1 + reference.layer_losses(scene.model, scene.rows).mean())
    scene.agree(loss(scene.batch), plain)

    outputs: list[torch.Tensor] = []
    for layer in scene.model.get_decoder().layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    noisy = replace(small("rep-noise"), noise_weight=2.0, ascent_weight=0.0)
    ours = noisy.forget_loss(scene.model, scene.data, Run(SEED, lambda: scene.base))(scene.batch)
    generator, completion = torch.Generator().manual_seed(SEED), (scene.batch.labels != -100)[..., None]
    completion[:, 0] = False
    plain_terms = []
    for output in outputs[: len(scene.model.get_decoder().layers)]:
        noise = torch.randn(output.shape, generator=generator)
        flat = [(held * completion).flatten(1) for held in (output, noise)]
        plain_terms.append(reference.discrepancy(*flat))
    scene.agree(ours, 2.0 * torch.stack(plain_terms).mean())


def test_the_preference_loss_is_the_sources(tiny_refusal_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_refusal_testbed)
    pairs = next(Pairs(scene.data, "forget", 4, SEED, scene.initial))
    plain = reference.dpo(
        scene.model, scene.initial, reference.rows_of(pairs.chosen), reference.rows_of(pairs.rejected), 0.1
    )
    scene.agree(dpo(scene.model, pairs, 0.1), plain)
    halves = torch.stack([dpo(scene.model, part, 0.1) for part in pairs.split(3)]).sum()
    torch.testing.assert_close(halves, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("tar", reference.negative_entropy),
        ("mlac-ar", lambda model, rows: -reference.cross_entropy(model, rows, most=math.log(255))),
        ("sophon-ar", reference.min_posterior),
    ],
)
def test_the_tamper_resistance_loss_is_the_sources(name: str, plain: Any, scene: Scene) -> None:
    kind = pick("holdfast.safeguards", name).tamper_resistance
    scene.agree(tamper_resistance_loss(kind, scene.model, scene.batch, 0.1), plain(scene.model, scene.rows))


@pytest.mark.parametrize(
    ("learns", "plain"),
    [
        ("teacher", lambda scene: reference.kl_divergence(scene.base, scene.model, scene.rows)),
        ("text", lambda scene: reference.cross_entropy(scene.model, scene.rows)),
    ],
)
def test_distillation_learns_the_teacher_or_the_text(learns: Any, plain: Any, scene: Scene) -> None:
    from holdfast.engine.sharded import GradientSum
    from holdfast.safeguards.parts.distillation import Distillation

    gradients, distillation = GradientSum(scene.model), Distillation(learns=learns, weight=3.0)
    value = distillation.take(gradients, 0.5, scene.model, scene.base, scene.batch, 2)
    expected = plain(scene)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(expected, list(scene.model.parameters()), allow_unused=True)
    gradients.give()
    for parameter, slope in zip(scene.model.parameters(), slopes, strict=True):
        assert slope is not None
        torch.testing.assert_close(parameter.grad, 1.5 * slope, rtol=1e-4, atol=1e-6)


def step_of(safeguard: Any, scene: Scene) -> list[torch.Tensor]:
    """What one outer step of SGD at rate 1 subtracts from the weights: its gradient."""
    seed_everything(0)
    model = scene.model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in drive(safeguard.steps(model, scene.data, scene.run), scene.run):
        break
    return [old - parameter.detach() for old, parameter in zip(before, model.parameters(), strict=True)]


def pooled_batch(scene: Scene, side: Any = None) -> Batch:
    pooled = scene.data.renamed(forget=("forget", "forget_heldout"))
    return next(pooled.stream("forget", batch_size=4, seed=SEED, side=side))


def plain_gradient(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    slopes = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if slope is None else slope for p, slope in zip(model.parameters(), slopes, strict=True)
    ]


def moved(model: PreTrainedModel, direction: list[torch.Tensor], length: float) -> PreTrainedModel:
    """A copy of the model, `length` further along the direction."""
    there = copy.deepcopy(model)
    norm = torch.stack([held.square().sum() for held in direction]).sum().sqrt()
    with torch.no_grad():
        for parameter, held in zip(there.parameters(), direction, strict=True):
            parameter.add_(held, alpha=float(length / norm))
    return there


_ONE_STEP: dict[str, Any] = {"outer_steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "retain_batch_size": 4}


def test_booster_subtracts_what_a_normalised_harmful_step_leaves_of_the_gradient(
    tiny_refusal_testbed: SmallTestbed,
) -> None:
    scene = Scene(tiny_refusal_testbed)
    origin, harmful = copy.deepcopy(scene.model), reference.rows_of(pooled_batch(scene))
    booster = replace(small("booster"), harmful_step=0.3, forget_weight=2.0, **_ONE_STEP)
    without = step_of(replace(booster, forget_weight=0.0), Scene(tiny_refusal_testbed))
    ours = [a - b for a, b in zip(step_of(booster, scene), without, strict=True)]
    here = plain_gradient(origin, reference.cross_entropy(origin, harmful))
    stepped = moved(origin, here, -0.3)
    there = plain_gradient(stepped, reference.cross_entropy(stepped, harmful))
    for left, a, b in zip(ours, here, there, strict=True):
        torch.testing.assert_close(left, 2.0 * (a - b), rtol=1e-2, atol=1e-4)


def test_npo_with_sam_takes_the_gradient_uphill(tiny_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_testbed)
    origin, rows = copy.deepcopy(scene.model), reference.rows_of(pooled_batch(scene))
    sam = replace(small("npo-sam"), sam_radius=0.2, forget_weight=1.5, **_ONE_STEP)
    without = step_of(replace(sam, forget_weight=0.0), Scene(tiny_testbed))
    ours = [a - b for a, b in zip(step_of(sam, scene), without, strict=True)]
    here = plain_gradient(origin, reference.npo(origin, scene.initial, rows, 0.1))
    uphill = moved(origin, here, 0.2)
    there = plain_gradient(uphill, reference.npo(uphill, scene.initial, rows, 0.1))
    for left, right in zip(ours, there, strict=True):
        torch.testing.assert_close(left, 1.5 * right, rtol=1e-2, atol=1e-4)


def test_refusal_training_learns_refusals_with_the_prompt_masked(tiny_refusal_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_refusal_testbed)
    loss = small("refusal-sft").forget_loss(scene.model, scene.data, scene.run)
    batch = pooled_batch(scene, "chosen")
    scene.agree(loss(batch), reference.cross_entropy(scene.model, reference.rows_of(batch)))
    tokenizer = tiny_refusal_testbed.model.load_tokenizer()
    for labels in batch.labels:
        text = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        assert text in {"sorry i will not say that", "no that is not for me to say", "i can not help with that"}


@pytest.mark.parametrize(
    ("optimizer", "rate", "first_step"),
    [("sgd", 0.1, lambda slope: slope), ("adam", 1e-3, lambda slope: slope / (slope.abs() + 1e-8))],
)
def test_sophon_makes_two_updates_with_an_optimizer_each(
    optimizer: str, rate: float, first_step: Callable[[torch.Tensor], torch.Tensor], tiny_testbed: SmallTestbed
) -> None:
    settings: dict[str, Any] = {
        "outer_steps": 1, "inner_steps": 2, "every": 1, "outer_optimizer": optimizer, "outer_learning_rate": rate,
        "outer_warmup_steps": 0, "tamper_resistance_batch_size": 4, "retain_batch_size": 4,
    }  # fmt: skip
    sophon = replace(pick("holdfast.safeguards", "sophon-ar"), **settings)
    scene = Scene(tiny_testbed)
    retain = reference.rows_of(next(scene.data.stream("retain", batch_size=4, seed=SEED + 1)))
    # The first update alone, by TAR's loop without a retain loss, then plain training with a fresh optimizer from there.
    first = Scene(tiny_testbed)
    shared = {field.name: getattr(sophon, field.name) for field in fields(OuterLoop)}
    step_of(MLAC(**{**shared, "retain_weight": 0.0}), first)
    slopes = plain_gradient(first.model, reference.cross_entropy(first.model, retain))
    step_of(sophon, scene)
    for ours, start, slope in zip(scene.model.parameters(), first.model.parameters(), slopes, strict=True):
        clear = slope.abs() > 1e-5  # else rounding decides Adam's sign
        expected = start.detach() - rate * first_step(slope)
        torch.testing.assert_close(ours.detach()[clear], expected[clear], rtol=1e-4, atol=1e-6)


def test_a_stream_of_both_sides_gives_the_same_pairs(tiny_refusal_testbed: SmallTestbed) -> None:
    data = Scene(tiny_refusal_testbed).data
    streams: list[Stream] = [data.stream("forget", batch_size=5, seed=1, side=side) for side in ("chosen", "rejected")]
    for _ in range(8):
        chosen, rejected = map(next, streams)
        for a, b in zip(reference.rows_of(chosen), reference.rows_of(rejected), strict=True):
            prompts = [[t for t, label in zip(*row, strict=True) if label == -100] for row in (a, b)]
            assert prompts[0] == prompts[1]
