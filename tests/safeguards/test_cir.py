"""CIR and MCU against a plain transcription, token by token, and no weight but those of the MLPs below is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.safeguards.cir import CIR, leading, without
from holdfast.safeguards.parts.objective import RetainLoss
from tests.conftest import SmallTestbed
from tests.families.small import build
from tests.reference import safeguards as reference

Rows = list[tuple[list[int], list[int]]]
LAYERS = (0, 1)


def test_what_is_taken_out_is_the_mean_and_then_the_largest_components() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(200, 6) * torch.tensor([9.0, 5.0, 1.0, 0.8, 0.6, 0.4]) + torch.tensor([0, 0, 4.0, 0, 0, 0])
    directions = leading(vectors, 3, 0)
    assert directions.shape == (3, 6)
    torch.testing.assert_close(directions[0], vectors.mean(0) / vectors.mean(0).norm())
    _, _, right = torch.linalg.svd(vectors - vectors.mean(0))
    torch.testing.assert_close((directions[1:] @ right[:2].mT).abs(), torch.eye(2), atol=1e-3, rtol=0.0)
    left = without(vectors, directions)
    assert float(left.std(0)[:2].max()) < 0.5 < float(left.std(0)[3:5].min())
    assert leading(vectors, 0, 0).shape == (0, 6)
    assert torch.equal(without(vectors, leading(vectors, 0, 0)), vectors)


@pytest.mark.parametrize("offset", [0.0, 1e-7])
def test_a_mean_of_nothing_but_rounding_has_no_direction(offset: float) -> None:
    """So it is with the gradients of the last layer in MCU's first updates."""
    torch.manual_seed(0)
    vectors = torch.randn(50, 6)
    vectors = vectors - vectors.mean(0) + offset
    first, *rest = leading(vectors, 3, 0)
    assert not first.any()
    torch.testing.assert_close(torch.stack(rest).norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(without(vectors, leading(vectors, 1, 0)), vectors)


def project_out(vectors: torch.Tensor, directions: list[torch.Tensor]) -> torch.Tensor:
    for direction in directions:
        vectors = vectors - (vectors @ direction)[:, None] * direction
    return vectors


class Plain:
    """The model read row by row, with what enters and leaves every map of the MLPs."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = [layer.mlp for layer in model.model.layers[: max(LAYERS) + 1]]
        self.maps = [linear for mlp in self.blocks for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]

    def outputs(self, rows: Rows) -> list[torch.Tensor]:
        """Of each broken layer: the MLP's outputs at all tokens but the first of a row."""
        kept: list[list[torch.Tensor]] = [[] for _ in LAYERS]
        hooks = [
            self.blocks[layer].register_forward_hook(lambda m, i, o, place=place: kept[place].append(o[0, 1:]))
            for place, layer in enumerate(LAYERS)
        ]
        for ids, _ in rows:
            self.model(input_ids=torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        return [torch.cat(parts) for parts in kept]

    def loss(self, rows: Rows, old: list[torch.Tensor], shared: list[Any], lengths: list[float]) -> torch.Tensor:
        terms = []
        for now, before, directions, length in zip(self.outputs(rows), old, shared, lengths, strict=True):
            pairs = zip(project_out(now, directions), project_out(before, directions), strict=True)
            terms += [torch.relu(a @ b) / length**2 for a, b in pairs]
        return torch.stack(terms).mean()

    def vectors(self, loss: Any, rows: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each map: inputs and gradients by outputs, at all tokens but the first of a row."""
        seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in self.maps]

        def watch(place: int) -> Any:
            def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
                output.retain_grad()
                seen[place][0].append(inputs[0][0, 1:].detach())
                seen[place][1].append(output)

            return hook

        hooks = [linear.register_forward_hook(watch(place)) for place, linear in enumerate(self.maps)]
        loss(rows).backward()
        for hook in hooks:
            hook.remove()
        found = []
        for inputs, outputs in seen:
            slopes = [output.grad[0, 1:] for output in outputs if output.grad is not None]
            found.append((torch.cat(inputs), torch.cat(slopes)))
        self.model.zero_grad(set_to_none=True)
        return found


@pytest.mark.parametrize(("name", "outputs"), [("cir", 0), ("mcu", 3)])
def test_an_update_is_the_sources(name: str, outputs: int, tiny_testbed: SmallTestbed) -> None:
    plugin = pick("holdfast.safeguards", name)
    assert isinstance(plugin, CIR)
    assert bool(plugin.output_directions) is bool(outputs)
    plugin = replace(
        plugin, outer_steps=1, learning_rate=0.05, input_directions=3, gradient_directions=2, sample_rows=12,
        output_directions=outputs, forget_batch_size=5, retain_batch_size=4, optimizer="sgd", retain_learning_rate=0.1,
        retain=RetainLoss(representations=None), layers=LAYERS,
    )  # fmt: skip
    model, tokenizer = tiny_testbed.model.load_both()
    data = Data.defender(tiny_testbed.domain, tokenizer)
    start = {key: weight.clone() for key, weight in model.state_dict().items()}
    [losses] = list(plugin.steps(model, data, Run(5, tiny_testbed.model.load)))

    plain = Plain(tiny_testbed.model.load())
    pooled = data.renamed(forget=("forget", "forget_heldout"))
    sample = reference.rows_of(next(pooled.stream("forget", batch_size=12, seed=7)))
    batch = reference.rows_of(next(pooled.stream("forget", batch_size=5, seed=5)))
    benign = reference.rows_of(next(data.stream("retain", batch_size=4, seed=6)))
    with torch.no_grad():
        old = plain.outputs(sample)
        shared = [list(leading(layer, outputs, 5)) for layer in old]
        lengths = [
            float(project_out(layer, taken).norm(dim=-1).mean()) for layer, taken in zip(old, shared, strict=True)
        ]
        old_of_batch = plain.outputs(batch)
    measured = plain.vectors(lambda rows: plain.loss(rows, old, shared, lengths), sample)
    directions = [(list(leading(inputs, 3, 5)), list(leading(gradients, 2, 5))) for inputs, gradients in measured]
    breaking = float(plain.loss(batch, old_of_batch, shared, lengths).detach())
    assert losses["breaking loss"] == pytest.approx(breaking, rel=1e-4)
    updates = [
        project_out(gradients, out).mT @ project_out(inputs, into)
        for (inputs, gradients), (into, out) in zip(
            plain.vectors(lambda rows: plain.loss(rows, old_of_batch, shared, lengths), batch), directions, strict=True
        )
    ]
    length = torch.stack([update.norm() for update in updates]).norm()
    size = torch.stack([linear.weight.detach().norm() for linear in plain.maps]).norm()
    with torch.no_grad():
        for linear, update in zip(plain.maps, updates, strict=True):
            linear.weight -= 0.05 * size / length * update
    loss = reference.cross_entropy(plain.model, benign)
    assert losses["retain loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
    slopes = torch.autograd.grad(loss, [linear.weight for linear in plain.maps])
    with torch.no_grad():
        for linear, slope in zip(plain.maps, slopes, strict=True):
            linear.weight -= 0.1 * slope
    for key, weight in plain.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], weight, rtol=1e-3, atol=2e-5)
    changed = {key for key, weight in model.state_dict().items() if not torch.equal(weight, start[key])}
    assert changed == {f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up", "down")}


def test_experts_in_one_tensor_are_refused_in_one_sentence(tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = build("qwen3_moe", 300), tiny_testbed.model.load_tokenizer()
    data = Data.defender(tiny_testbed.domain, tokenizer)
    with pytest.raises(HoldfastError, match=r"holds the maps of several experts.*take rep-select"):
        next(iter(CIR(layers=(0,)).steps(model, data, Run(1, lambda: model))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"input_directions": 0}, "must"), ({"learning_rate": 0.0}, "must"), ({"layers": ()}, "names no layer")],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        replace(CIR(), **changes)
