"""Logits that are computed in parts give the losses and the gradients of whole logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.engine import predictions as engine
from holdfast.engine.costs import flops_of
from holdfast.engine.data import UNLABELLED
from holdfast.engine.lean import keep_gradients_whole
from holdfast.engine.lens import lens
from holdfast.engine.losses import (
    clamped_cross_entropy,
    completion_log_probability,
    distillation_loss,
    inverse_cross_entropy,
    negative_entropy,
    next_token_loss,
    surprise_of_rows,
)
from holdfast.engine.predictions import Deferred, Logits, predictions
from holdfast.engine.session import open_session
from holdfast.engine.stream import hidden_states
from holdfast.engine.walk import drive
from tests.conftest import SmallTestbed
from tests.families.small import build

WORDS = 40
IDS = torch.randint(WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[0, :3] = LABELS[1, 5:] = LABELS[2] = UNLABELLED
MASK = torch.ones_like(IDS).bool()
MASK[1, 5:] = False

LOSSES: Mapping[str, Callable[[Logits], torch.Tensor]] = {
    "next token": lambda logits: next_token_loss(logits, LABELS, 3.0),
    "clamped": lambda logits: clamped_cross_entropy(logits, LABELS, 3.0),
    "entropy": lambda logits: negative_entropy(logits, LABELS, 3.0),
    "inverse": lambda logits: inverse_cross_entropy(logits, LABELS, 3.0, -4.0),
    "of rows": lambda logits: completion_log_probability(logits, LABELS) @ torch.tensor([1.0, 2.0, 3.0]).double(),
    "surprise": lambda logits: surprise_of_rows(logits, LABELS) @ torch.tensor([1.0, 2.0, 3.0]).double(),
}


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switch on parts of three tokens for any batch, or switch them off."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(engine, "LOGITS_AT_ONCE", 0 if on else 2**27)
        monkeypatch.setattr(engine, "_PARTS", {"cpu": 3 * WORDS})

    return switch


def value_and_gradients(
    model: PreTrainedModel, loss: Callable[[Logits], torch.Tensor], kind: type
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    logits = predictions(model, IDS)
    assert isinstance(logits, kind)
    value = loss(logits)
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("gemma2", {"final_logit_softcapping": 0.3}),
        ("gpt2", {}),
    ],
)
def test_losses_and_gradients_in_parts_are_those_of_whole_logits(
    family: str, changes: dict[str, Any], in_parts: Callable[[bool], None]
) -> None:
    model, teacher = (build(family, WORDS, **changes).double() for _ in range(2))
    with torch.no_grad():
        for weight in teacher.requires_grad_(False).parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    def divergence(logits: Logits) -> torch.Tensor:
        with torch.no_grad():
            theirs = predictions(teacher, IDS)
        return distillation_loss(logits, theirs, MASK, 5.0)

    for name, loss in {**LOSSES, "divergence": divergence}.items():
        in_parts(False)
        whole, expected = value_and_gradients(model, loss, torch.Tensor)
        in_parts(True)
        value, gradients = value_and_gradients(model, loss, Deferred)
        torch.testing.assert_close(value, whole, rtol=1e-12, atol=0, msg=name)
        assert expected.keys() == gradients.keys()
        for weight, gradient in expected.items():
            torch.testing.assert_close(gradients[weight], gradient, rtol=1e-9, atol=1e-14, msg=f"{name}: {weight}")


def test_the_residual_stream_and_the_lens_defer_logits_too(in_parts: Callable[[bool], None]) -> None:
    model = build("gemma2", WORDS, final_logit_softcapping=0.3).double()
    whole, states = hidden_states(model, IDS)
    _, _, end = lens(model, IDS)
    expected = [next_token_loss(logits, LABELS, 3.0) for logits in (whole, end(states[1]))]
    in_parts(True)
    later, same = hidden_states(model, IDS)
    _, _, end = lens(model, IDS)
    assert isinstance(later, Deferred)
    assert isinstance(end(states[1]), Deferred)
    assert all(torch.equal(left, right) for left, right in zip(states, same, strict=True))
    found = [next_token_loss(logits, LABELS, 3.0) for logits in (later, end(states[1]))]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_an_end_that_mixes_tokens_is_not_cut(in_parts: Callable[[bool], None]) -> None:
    model = build("llama", WORDS)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output - output.mean(1, keepdim=True))
    in_parts(True)
    assert isinstance(predictions(model, IDS), torch.Tensor)


def test_trying_the_end_changes_nothing(in_parts: Callable[[bool], None]) -> None:
    model, drawn = build("llama", WORDS, attention_dropout=0.5).train(), torch.get_rng_state()
    model.model.layers[0].train(False)
    in_parts(True)
    assert engine.body_of(model) is model.model
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].mlp.training


def test_frozen_weights_get_no_gradient(in_parts: Callable[[bool], None]) -> None:
    model = build("llama", WORDS, tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    in_parts(True)
    _, gradients = value_and_gradients(model, LOSSES["next token"], Deferred)
    assert "lm_head.weight" not in gradients
    assert gradients["model.layers.0.mlp.up_proj.weight"].abs().sum() > 0


def test_what_the_backward_pass_computes_again_is_not_counted(in_parts: Callable[[bool], None]) -> None:
    model, every = build("llama", WORDS), LABELS.clone().fill_(1)

    def step() -> None:
        next_token_loss(predictions(model, IDS), every, 1.0).backward()  # type: ignore[no-untyped-call]

    whole = flops_of(step)
    in_parts(True)
    step()  # tries the end
    left_out = len(IDS)  # tokens that predict nothing, whose logits are not computed
    assert flops_of(step) == whole - 3 * 2 * left_out * WORDS * model.config.hidden_size


def test_gradients_of_bfloat16_weights_add_up_in_float32(in_parts: Callable[[bool], None]) -> None:
    model = build("llama", WORDS, tie_word_embeddings=False)
    exact = value_and_gradients(model, LOSSES["next token"], torch.Tensor)[1]["lm_head.weight"]
    model.zero_grad()
    keep_gradients_whole(model.bfloat16())
    in_parts(True)
    gradient = value_and_gradients(model, LOSSES["next token"], Deferred)[1]["lm_head.weight"]
    assert gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.bfloat16().float())  # a sum of more than one rounded gradient
    assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("preset", ["tar-distilled", "npo", "rep-noise", "tar-refusal"])
def test_a_safeguard_in_parts_takes_the_same_way(
    preset: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed, in_parts: Callable[[bool], None]
) -> None:
    plain = pick("holdfast.safeguards", preset)
    sizes = {"retain_batch_size": 4, "outer_steps": 2, "inner_steps": 4, "tamper_resistance_batch_size": 4}
    safeguard = replace(plain, **{name: size for name, size in sizes.items() if hasattr(plain, name)})
    bench = tiny_refusal_testbed if "refusal" in preset else tiny_testbed

    def losses() -> list[dict[str, float]]:
        session = open_session(bench.model, bench.domain, "defender", 3, Options(), base=bench.never_exposed)
        steps = safeguard.steps(session.model, session.data, session.run)
        return [dict(here) for _, here in drive(steps, session.run)]

    whole = losses()
    in_parts(True)
    for here, there in zip(losses(), whole, strict=True):
        assert here == pytest.approx(there, rel=1e-4)


def test_mixed_precision_and_low_rank_attacks_go_with_parts(
    tiny_testbed: SmallTestbed, in_parts: Callable[[bool], None]
) -> None:
    attack = FineTune(lora_rank=4, max_steps=3, batch_size=4)

    def losses() -> list[float]:
        options = Options(precision="mixed")
        session = open_session(
            tiny_testbed.model, tiny_testbed.domain, "attacker", 3, options, prepare=[attack.prepare]
        )
        return [loss for _, loss in drive(attack.steps(session.model, session.data, session.run), session.run)]

    whole = losses()
    in_parts(True)
    assert losses() == pytest.approx(whole, rel=1e-3)
