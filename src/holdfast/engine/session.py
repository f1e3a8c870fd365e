"""A model made ready to be walked. Only this module knows devices, precision and whether the model is split over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.domain import Domain
from holdfast.core.options import Options
from holdfast.engine.checkpoint import Checkpoint, check_fit
from holdfast.engine.data import Data
from holdfast.engine.differentiable import check_differentiable
from holdfast.engine.left_to_right import check_left_to_right
from holdfast.engine.matmul import multiply_with_onednn
from holdfast.engine.mixed import exact
from holdfast.engine.recomputing import recompute_layers
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.splitting import load

Rows = TypeVar("Rows")

_VIEWS = {"attacker": Data.attacker, "defender": Data.defender}


@dataclass(frozen=True, kw_only=True)
class Session(Generic[Rows]):
    """A live model and what a plug-in needs beside it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Rows
    """what the plug-in reads: `Data` by role, or a corpus"""
    run: Run


def open_session(
    checkpoint: Checkpoint,
    domain: Domain,
    view: Literal["attacker", "defender"],
    seed: int,
    options: Options,
    *,
    prepare: Sequence[Callable[[PreTrainedModel], None]] = (),
    base: Checkpoint | None = None,
    initial: Checkpoint | None = None,
    tokenizer: Checkpoint | None = None,
) -> Session[Data]:
    """Seed everything, load the model and its tokenizer, change its architecture, split it over the ranks, open the data.

    Args:
        checkpoint: the model to be walked.
        domain: where the rows come from.
        view: whose rows the plug-in may read.
        seed: of the run and of torch's global generator.
        options: device, precision, library of products, rows at once, checkpointing, remote code.
        prepare: changes of the model before the first update, in order.
        base: the model before any safeguard, loaded when a plug-in asks for it.
        initial: the model before the run, likewise; None: `base`.
        tokenizer: whose tokenizer is used; None: the model's own.

    Raises:
        HoldfastError: the model cannot be loaded, does not read from left to right, has no gradient, or a change does not fit its
            architecture.
        NonFinite: a weight is not finite.
    """
    seed_everything(seed)
    thaw = (_thaw,) if view == "attacker" else ()
    recompute = (recompute_layers,) if options.checkpointing else ()
    model = _load(checkpoint, options, (*thaw, *prepare, *recompute))
    words = (tokenizer or checkpoint).load_tokenizer(options.trust_remote_code)
    check_fit(model, words, checkpoint.folder)
    with exact(model):
        check_left_to_right(model)
        check_differentiable(model)
    return Session(
        model=model,
        tokenizer=words,
        data=_VIEWS[view](domain, words, options.device),
        run=Run(seed, _loader(base, options), _loader(initial, options), options.micro_batch, options.aside),
    )


def _loader(checkpoint: Checkpoint | None, options: Options) -> Callable[..., Any] | None:
    """Loads a model on the device that it is given, or on that of the options."""
    if checkpoint is None:
        return None
    return lambda device=options.device: _load(checkpoint, replace(options, device=device))


def _load(
    checkpoint: Checkpoint, options: Options, prepare: Sequence[Callable[[PreTrainedModel], None]] = ()
) -> PreTrainedModel:
    multiply = (multiply_with_onednn,) if options.matmul == "onednn" else ()
    return load(checkpoint, options.device, options.precision, options.trust_remote_code, (*multiply, *prepare))


def _thaw(model: PreTrainedModel) -> None:
    """Let every weight be trained: a model whose code freezes some of them would keep an attack from moving them."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.requires_grad_(True)
