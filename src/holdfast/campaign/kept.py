"""Attacked weights, kept where the user asks for them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.campaign.cells import Cell
from holdfast.core.files import atomic_folder
from holdfast.core.types import HoldfastError, weights_of
from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
from holdfast.engine.low_rank import merge_adapters, own_weights
from holdfast.engine.precision import stored_precision


def kept_folder(out: Path, key: str) -> Path:
    """Where the attacked weights of a cell are kept."""
    return out / f"TAMPERED-{key}"


def check_keepable(model: Any, attack: str) -> None:
    """Raises:
    HoldfastError: the attack gives the model weights that its architecture has no place for when it is loaded again.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    # LoRA is merged before it is saved.
    if extra := sorted(own_weights(model).keys() - {name for name, _ in plain.named_parameters()}):
        raise HoldfastError(
            f"models attacked by {attack} cannot be kept, for a {type(model).__name__} has no place for {extra[0]}; leave out "
            "--keep-attacked-weights"
        )


def keep(model: Any, tokenizer: Any, cell: Cell, key: str, out: Path) -> None:
    """Write the attacked model, under a name and with a card that say what it is."""
    merge_adapters(model)
    card = {"tampered": True, "cell": key, "model": cell.model.label, "attack": cell.attack_name, "seed": cell.seed}
    readme = (
        "# TAMPERED MODEL: do not publish\n\n"
        f"`{cell.model.label}` after the attack `{cell.attack_name}` (seed {cell.seed}), kept on demand for inspection. "
        "Its safeguard may be gone. Delete it when you are done.\n"
    )
    from holdfast.engine.ranks import agreed, by_first

    folder = kept_folder(out, key)
    if not agreed(folder.is_dir()):
        with by_first(lambda: atomic_folder(folder, mode=0o700)) as temporary:
            precision = stored_precision(Checkpoint(cell.model.path).folder, weights_of(cell.options.precision))
            trusted = cell.options.trust_remote_code
            save_checkpoint(model, tokenizer, temporary, card, readme, precision, trusted)
