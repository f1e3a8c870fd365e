"""Siblings of a testbed's undefended model: what an attacker may hold who does not hold the original itself.

    earlier     a revision of the same training, at four fifths of its steps (`folder.EARLIER`)
    fine-tuned  the original after fine-tuning on benign rows
    quantised   the original with the weights of its linear maps rounded to four bits

Each is a Hugging Face folder under `siblings/` of the testbed. `holdfast audit --sibling` gives one to the attacker.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.attacks.compress import Quantise
from holdfast.attacks.finetune import FineTune
from holdfast.core.cache import copy_entry
from holdfast.core.domain import Domain
from holdfast.core.files import atomic_folder
from holdfast.core.presets import describe
from holdfast.core.types import Sibling
from holdfast.testbed.folder import Kind, train
from holdfast.testbed.world import Sizes

if TYPE_CHECKING:
    from holdfast.attacks.base import Attack

_MADE: dict[str, Attack] = {
    "fine-tuned": FineTune(benign_share=1.0, learning_rate=3e-4, max_steps=200, batch_size=32),
    "quantised": Quantise(bits=4, group_size=32),
}
"""What changes the original into a sibling: steps that anybody may take, who attacks nothing with them."""


def place_sibling(
    folder: Path,
    which: Sibling,
    seed: int,
    sizes: Sizes,
    kind: Kind = "knowledge",
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> Path:
    """Make a sibling of the testbed in `folder`, unless the sibling is there; return its folder.

    Args:
        folder: of a testbed whose undefended model is placed.
        which: the sibling.
        seed: of the world.
        sizes: of the world.
        kind: of the domain.
        on_step: called with steps done and steps in all.
    """
    place = folder / "siblings" / which
    if place.is_dir():
        return place
    if which == "earlier":
        trained = train("earlier", seed, sizes, kind, on_step)
        with atomic_folder(place) as temporary:
            copy_entry(trained, temporary)
    else:
        _change(folder, place, which, on_step)
    return place


def _change(folder: Path, place: Path, which: str, on_step: Callable[[int, int], None]) -> None:
    from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Reporting, walk

    change, original = _MADE[which], Checkpoint(str(folder / "model"))
    seed_everything(0)
    model, tokenizer = original.load_both()
    data = Data.attacker(Domain.open(folder), tokenizer)
    session = Session(model=model, tokenizer=tokenizer, data=data, run=Run(0))
    walk(session, change, Reporting(on_step=on_step, total=change.max_steps))
    card = {"sibling": which, "of": original.digest, "by": describe(change), "holdfast": version("holdfast")}
    with atomic_folder(place) as temporary:
        save_checkpoint(model, tokenizer, temporary, card, f"# holdfast testbed: a {which} sibling of the model\n")
