"""A control from pretraining: the hazard goes into weights of its own, which are removed before release.

Selective gradient masking (SGTM, arXiv 2512.05648, as its code writes it): some hidden units of every MLP and some attention
heads are the hazard's. Each step has rows of one kind:

    hazardous:      the whole model reads the rows, and the hazard's weights alone are changed
    benign, alone:  the rest of the model reads the rows as if the hazard's weights were not there, and is changed
    benign, else:   the whole model reads the rows and is changed

At the end the hazard's weights are removed. In the source, 64 hidden units and one head of 32 of each layer are the hazard's in
models of 254 million weights, and 10 % of the benign steps are alone. The source finds that a part of the hazardous rows may be
taken for benign ones; here the kinds are known exactly. Constants were chosen on the testbed, where six rows of ten are
hazardous: with 10 or 50 % of the benign steps alone the model learns nothing. Deviations: all weights that are neither an MLP's
nor an attention's are kept from hazardous rows, and not embeddings and norms of layers alone. A weight that a step may not
change keeps its optimizer states, as under the source's split optimizers. What writes the removed weights' results is set to
zero, and what reads for them is drawn anew, so that an attacker can train them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaForCausalLM

from holdfast.engine.data import Encoded, Stream
from holdfast.engine.losses import next_token_loss
from holdfast.engine.optimizers import make_optimizer, schedule_factor, set_learning_rate
from holdfast.engine.run import Run
from holdfast.testbed.models import Pretraining


@dataclass(frozen=True)
class Kinds:
    """The rows of a corpus by what they teach."""

    hazardous: Sequence[Encoded]
    benign: Sequence[Encoded]


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Pretraining that keeps the hazard in weights of its own and removes them."""

    pretraining: Pretraining
    """rates, batches and length"""
    hidden_units: int = 64
    """hidden units of each MLP that are the hazard's, of 256"""
    heads: int = 1
    """attention heads of each layer that are the hazard's, of 4"""
    alone: float = 0.9
    """share of the benign steps that are taken without the hazard's weights"""

    def total_steps(self, rows: int) -> int:
        """Steps for a corpus of `rows`, as of the pretraining without masks."""
        return self.pretraining.total_steps(rows)

    def steps(self, model: LlamaForCausalLM, rows: Kinds, run: Run) -> Iterator[dict[str, float]]:
        """Train in place; yield the loss of each step. At the last yield the hazard's weights are removed."""
        recipe = self.pretraining
        streams = {
            "hazardous": Stream(rows.hazardous, recipe.rows_per_step, run.seed, pad=0),
            "benign": Stream(rows.benign, recipe.rows_per_step, run.seed + 1, pad=0),
        }
        optimizer = make_optimizer(
            "adamw", model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        run.track(optimizer=optimizer, **streams)
        kinds = self._order(rows, run.seed)
        parts = HazardsWeights(model, self.hidden_units, self.heads)
        model.train()
        for step in range(run.start, len(kinds)):
            set_learning_rate(
                optimizer,
                recipe.learning_rate * schedule_factor("warmup-cosine", step, len(kinds), recipe.warmup_steps),
            )
            batch = next(streams["hazardous" if kinds[step] == "hazardous" else "benign"])
            with parts.absent(kinds[step] == "alone"):
                logits = model(input_ids=batch.input_ids, use_cache=False).logits
            loss = next_token_loss(logits, batch.labels, batch.label_count)
            loss.backward()  # type: ignore[no-untyped-call]
            with parts.changing(optimizer, kinds[step]):
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
                optimizer.step()
            model.zero_grad(set_to_none=True)
            if step == len(kinds) - 1:
                parts.remove(torch.Generator().manual_seed(run.seed))
            yield {"loss": loss.item()}
        model.train(False)

    def _order(self, rows: Kinds, seed: int) -> list[str]:
        """What each step reads: `hazardous`, `benign`, or `alone`, which is benign without the hazard's weights."""
        total = self.total_steps(len(rows.hazardous) + len(rows.benign))
        hazardous = round(total * len(rows.hazardous) / (len(rows.hazardous) + len(rows.benign)))
        alone = round(self.alone * (total - hazardous))
        order = ["hazardous"] * hazardous + ["alone"] * alone + ["benign"] * (total - hazardous - alone)
        random.Random(f"holdfast masked pretraining {seed}").shuffle(order)
        return order


class HazardsWeights:
    """The weights of a Llama that are the hazard's: the last hidden units of each MLP, the last heads of each attention."""

    def __init__(self, model: LlamaForCausalLM, hidden_units: int, heads: int) -> None:
        self._model = model
        size = model.config.hidden_size // model.config.num_attention_heads
        self._written = list[tuple[torch.nn.Linear, int]]()
        """maps that read what is the hazard's, and from which column on"""
        self._read = list[tuple[torch.nn.Linear, int]]()
        """maps that give what is the hazard's, and from which row on"""
        for layer in model.model.layers:
            mlp, attention = layer.mlp, layer.self_attn
            units, first = model.config.intermediate_size - hidden_units, model.config.hidden_size - heads * size
            self._read += [(mlp.gate_proj, units), (mlp.up_proj, units)]
            self._read += [(getattr(attention, f"{name}_proj"), first) for name in "qkv"]
            self._written += [(mlp.down_proj, units), (attention.o_proj, first)]

    @contextmanager
    def absent(self, wanted: bool) -> Iterator[None]:
        """Where wanted, the model reads as if these weights were not there."""

        def blank(first: int) -> Any:
            def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
                seen = torch.arange(inputs[0].shape[-1]) < first
                return inputs[0] * seen

            return hook

        hooks = [linear.register_forward_pre_hook(blank(first)) for linear, first in self._written if wanted]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def changing(self, optimizer: Any, kind: str) -> Iterator[None]:
        """Let a step on hazardous rows change these weights alone, and one on benign rows `alone` the others alone.

        What is not to be changed keeps its optimizer states too: AdamW also moves weights without a gradient.
        """
        if kind == "benign":
            yield
            return
        parameters = list(self._model.parameters())
        kept = [~self._theirs(p) if kind == "hazardous" else self._theirs(p) for p in parameters]
        for parameter, mask in zip(parameters, kept, strict=True):
            if parameter.grad is not None:
                parameter.grad[mask] = 0
        before = [[tensor.clone() for tensor in self._moved(optimizer, p)] for p in parameters]
        yield
        with torch.no_grad():
            for parameter, mask, old in zip(parameters, kept, before, strict=True):
                for place, tensor in enumerate(self._moved(optimizer, parameter)):
                    # States that the step made were zero before.
                    was = old[place] if place < len(old) else torch.zeros_like(tensor)
                    tensor.copy_(torch.where(mask, was, tensor))

    def _moved(self, optimizer: Any, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
        """A weight and its states, which a step of AdamW moves."""
        state = optimizer.state.get(parameter, {})
        return [parameter.detach(), *(state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)]

    def _theirs(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Which entries of a weight are the hazard's."""
        theirs = torch.zeros_like(parameter, dtype=torch.bool)
        for linear, first in self._read:
            if linear.weight is parameter:
                theirs[first:] = True
        for linear, first in self._written:
            if linear.weight is parameter:
                theirs[:, first:] = True
        return theirs

    def remove(self, generator: torch.Generator) -> None:
        """Remove what these weights learned; what gives is drawn anew, as wide as its neighbours, and what reads is zero."""
        with torch.no_grad():
            for linear, first in self._written:
                linear.weight[:, first:] = 0
            for linear, first in self._read:
                width = float(linear.weight[:first].std())
                linear.weight[first:] = width * torch.randn(linear.weight[first:].shape, generator=generator)
