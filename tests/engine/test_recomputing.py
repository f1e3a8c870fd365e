"""Activation checkpointing keeps less and changes no number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.latent import LatentPGD
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.engine import recomputing
from holdfast.engine.costs import flops_of
from holdfast.engine.losses import next_token_loss
from holdfast.engine.recomputing import recompute_layers
from holdfast.engine.session import open_session
from holdfast.engine.walk import drive
from tests.conftest import SmallTestbed
from tests.families.small import build

IDS = torch.arange(3, 31).view(4, 7)


def kept_between(model: PreTrainedModel) -> tuple[int, dict[str, torch.Tensor]]:
    """Values that wait for the backward pass, weights left out; and the gradients."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = next_token_loss(model(input_ids=IDS, use_cache=False).logits, IDS, 24.0)
    before = sum(kept.values())
    loss.backward()  # type: ignore[no-untyped-call]
    return before, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation mode", "training mode"])
def test_gradients_are_the_same_and_less_is_kept(training: bool) -> None:
    """In training mode dropout draws the same numbers again; attacks train in evaluation mode."""
    model = build("llama", 40, attention_dropout=0.3, num_hidden_layers=4).train(training)
    kept, gradients = kept_between(model)
    recompute_layers(model)
    less, same = kept_between(model)
    assert gradients.keys() == same.keys()
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert less < 0.6 * kept
    assert flops_of(lambda: kept_between(model)) == flops_of(
        lambda: kept_between(build("llama", 40, num_hidden_layers=4))
    )


def test_a_copy_of_a_model_computes_its_own_layers() -> None:
    model = build("llama", 40)
    recompute_layers(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
        assert float(other(input_ids=IDS).logits.abs().max()) == 0
        assert float(model(input_ids=IDS).logits.abs().max()) > 0


def _safeguard(preset: str) -> Any:
    plain = pick("holdfast.safeguards", preset)
    sizes = {"retain_batch_size": 4, "forget_batch_size": 4, "outer_steps": 2, "inner_steps": 4}
    return replace(plain, **{name: size for name, size in sizes.items() if hasattr(plain, name)})


_RUNS: dict[str, Callable[[], Any]] = {
    "full": lambda: FineTune(max_steps=2, batch_size=4),
    "low rank": lambda: FineTune(max_steps=2, batch_size=4, lora_rank=4, lora_dropout=0.3),
    "latent": lambda: LatentPGD(max_steps=2, batch_size=4),
    "tar": lambda: _safeguard("tar"),
    "rep-noise": lambda: _safeguard("rep-noise"),
    "circuit-breakers": lambda: _safeguard("circuit-breakers"),
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(
            pytest.param(name, "float32", marks=() if name in ("low rank", "latent") else pytest.mark.slow)
            for name in _RUNS
        ),
        *(pytest.param(name, "mixed", marks=() if name in ("full", "tar") else pytest.mark.slow) for name in _RUNS),
    ],
)
def test_a_run_takes_the_same_way(
    name: str, precision: Any, tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, calls = _RUNS[name](), 0
    view: Any = "defender" if hasattr(plugin, "outer_steps") else "attacker"

    def losses(checkpointing: bool) -> list[Any]:
        session = open_session(
            tiny_testbed.model, tiny_testbed.domain, view, 3, Options(checkpointing=checkpointing, precision=precision),
            prepare=[plugin.prepare] if view == "attacker" else [], base=tiny_testbed.never_exposed,
        )  # fmt: skip
        return [here for _, here in drive(plugin.steps(session.model, session.data, session.run), session.run)]

    plain = losses(False)
    inner = recomputing.checkpoint

    def counted(*inputs: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(*inputs, **named)

    monkeypatch.setattr(recomputing, "checkpoint", counted)
    assert losses(True) == plain
    assert calls > 0, "no layer was computed again"
