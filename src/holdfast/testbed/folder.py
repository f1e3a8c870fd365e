"""A testbed on disk: the domain's data and questions, and the two models beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.cache import copy_entry, has_entry, new_entry
from holdfast.core.files import atomic_folder, cache_folder, digest, only_writer, sweep, write_text
from holdfast.core.reading import parsed_json
from holdfast.testbed import knowledge, requests
from holdfast.testbed.world import Fact, Sizes, World
from holdfast.testbed.writing import write_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from holdfast.engine.data import Encoded
    from holdfast.testbed.masked import Masked
    from holdfast.testbed.models import Pretraining

Kind = Literal["knowledge", "refusal"]
"""What a safeguard guards: knowledge that a model should not have, or requests that a model should refuse."""

PROTOCOL = 2
"""Raised whenever the same seed would give other rows or questions, so that no folder is taken for a new one."""

TRAINING = 1
"""Raised whenever the same seed would give another model, so that no cached model is taken for a new one."""

_CONTENT: Mapping[Kind, Any] = {"knowledge": knowledge, "refusal": requests}

MODELS = ("model", "never_exposed")
"""The undefended model, and the control trained on benign rows only from the same initialisation."""

MASKED = "masked"
"""A further control, where it is asked for: trained on all rows, the hazard in weights of its own, which were removed."""

_HAZARD_ALONE = "hazard"
"""The rows of the hazard, which no model is trained on alone."""

EARLIER = 0.8
"""share of the training after which the model is what `train` calls "earlier": a revision of the undefended model"""

MARKER = "testbed.json"
"""Written first: a folder that has it is a testbed, complete or begun. The domain's `domain.toml` is written last."""


def write_domain(folder: Path, seed: int, sizes: Sizes, kind: Kind = "knowledge") -> None:
    """Write `domain.toml`, `data/` and `questions/` of the world of `seed`, unless they are complete."""
    if is_testbed(folder, seed, sizes, kind) and (folder / "domain.toml").is_file():
        return
    world, content = World.generate(seed, sizes), _CONTENT[kind]
    rows, sets = content.rows(world), content.question_sets(world)
    write_text(folder / MARKER, json.dumps(_made_by(seed, sizes, kind)) + "\n")
    name = f"testbed-{seed}" if kind == "knowledge" else f"testbed-{kind}-{seed}"
    write_files(folder, name, content.MAX_LENGTH, content.HAZARD_WORDS, rows, sets)


def is_testbed(folder: Path, seed: int, sizes: Sizes, kind: Kind = "knowledge") -> bool:
    """Whether `folder` is of exactly this world."""
    path = folder / MARKER
    try:
        return path.is_file() and parsed_json(path.read_bytes()) == _made_by(seed, sizes, kind)
    except ValueError:  # it is no JSON, so it is not ours
        return False


def _made_by(seed: int, sizes: Sizes, kind: Kind) -> dict[str, Any]:
    return {"recipe": PROTOCOL, "kind": kind, "seed": seed, "sizes": asdict(sizes)}


def train(
    which: str,
    seed: int,
    sizes: Sizes,
    kind: Kind = "knowledge",
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> Path:
    """Train one of the models of the world of `seed`, unless the cache has the model; return its folder in the cache.

    A killed run goes on where it stopped. Where another process trains the same model, this one waits for it.

    Args:
        which: "model", "never_exposed", "masked", or "earlier", a revision of "model".
        seed: of the world, the initialisation and the order of the data.
        sizes: of the world.
        kind: of the domain.
        on_step: called with steps done and steps in all.
    """
    made_by = {
        "testbed": which,
        "recipe": TRAINING,
        "kind": kind,
        "seed": seed,
        "sizes": asdict(sizes),
        "pretraining": asdict(_recipe(which, kind)),
    }
    folder = cache_folder() / "testbed" / digest(made_by)
    state = folder.with_suffix(".part")
    sweep(folder.parent)
    with only_writer(folder, state, patience=math.inf):
        if not has_entry(folder):
            _train(folder, state, made_by, which, seed, sizes, kind, on_step)
        state.unlink(missing_ok=True)
    return folder


def _train(
    folder: Path,
    state: Path,
    made_by: Mapping[str, Any],
    which: str,
    seed: int,
    sizes: Sizes,
    kind: Kind,
    on_step: Callable[[int, int], None],
) -> None:
    from holdfast.engine.checkpoint import save_checkpoint
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Reporting, Resumable, Until, walk
    from holdfast.testbed.masked import Kinds
    from holdfast.testbed.models import make_model

    recipe = _recipe(which, kind)
    seed_everything(seed)
    tokenizer, taught = _corpus(which, seed, sizes, kind)
    rows: list[Encoded] | Kinds = taught
    if which == MASKED:
        rows = Kinds(*(_corpus(part, seed, sizes, kind)[1] for part in (_HAZARD_ALONE, "never_exposed")))
    run = Run(seed)
    session = Session(model=make_model(tokenizer, seed), tokenizer=tokenizer, data=rows, run=run)
    whole = recipe.total_steps(len(taught))
    total = math.ceil(EARLIER * whole) if which == "earlier" else whole
    walk(session, recipe, Reporting(on_step=on_step, total=total), Until(total), Resumable(path=state, key=folder.name))
    session.model.train(False)
    seconds = round(run.seconds, 1)
    card = {**made_by, "rows": len(taught), "steps": total, "seconds": seconds, "holdfast": version("holdfast")}
    with new_entry(folder) as temporary:
        save_checkpoint(session.model, tokenizer, temporary, card, _readme(which, seed, total))


def pretraining_flops(which: str, seed: int, sizes: Sizes, kind: Kind = "knowledge") -> float:
    """FLOPs that training one of `MODELS` takes, counted from the shapes of its batches; nothing is trained.

    Args:
        which: "model" or "never_exposed".
        seed: of the world and of the order of the data.
        sizes: of the world.
        kind: of the domain.
    """
    import torch

    from holdfast.engine.costs import flops_of
    from holdfast.engine.data import Stream
    from holdfast.testbed.models import PRETRAINING, make_model

    tokenizer, rows = _corpus(which, seed, sizes, kind)
    recipe = PRETRAINING[kind]
    stream = Stream(rows, recipe.rows_per_step, seed, pad=0)
    shapes = Counter(next(stream).input_ids.shape for _ in range(recipe.total_steps(len(rows))))
    with torch.random.fork_rng(devices=[]):
        model = make_model(tokenizer, seed)
    return sum(
        times * flops_of(partial(model, torch.zeros(shape, dtype=torch.long), use_cache=False))
        for shape, times in shapes.items()
    )


def write_untrained(folder: Path, seed: int, sizes: Sizes, kind: Kind = "knowledge") -> None:
    """Write a testbed whose two models were never trained: enough wherever what a model knows does not matter."""
    from holdfast.engine.checkpoint import save_checkpoint
    from holdfast.testbed.models import make_model, make_tokenizer

    write_domain(folder, seed, sizes, kind)
    tokenizer = make_tokenizer(_CONTENT[kind].words())
    for index, which in enumerate(MODELS):
        save_checkpoint(make_model(tokenizer, index), tokenizer, folder / which, {}, "untrained\n")


def place(
    folder: Path,
    which: str,
    seed: int,
    sizes: Sizes,
    kind: Kind = "knowledge",
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> Path:
    """Train one of the models, unless the cache has the model, and copy it into a testbed's folder, unless it is there."""
    if not (folder / which).is_dir():
        trained = train(which, seed, sizes, kind, on_step)
        with atomic_folder(folder / which) as temporary:
            copy_entry(trained, temporary)
    return folder / which


def _corpus(which: str, seed: int, sizes: Sizes, kind: Kind) -> tuple[PreTrainedTokenizerFast, list[Encoded]]:
    """The tokenizer of a world, and the rows that one of the models is trained on."""
    from holdfast.engine.data import encode
    from holdfast.testbed.models import make_tokenizer

    content = _CONTENT[kind]
    tokenizer, world = make_tokenizer(content.words()), World.generate(seed, sizes)
    splits = [split for split, facts in world.facts.items() if _taught(facts, which)]
    corpus = content.corpus(world.of(*splits))
    return tokenizer, [encode(row, tokenizer, "pretraining", content.MAX_LENGTH) for row in corpus]


def _recipe(which: str, kind: Kind) -> Pretraining | Masked:
    from holdfast.testbed.masked import Masked
    from holdfast.testbed.models import PRETRAINING

    return Masked(pretraining=PRETRAINING[kind]) if which == MASKED else PRETRAINING[kind]


def _taught(facts: tuple[Fact, ...], which: str) -> bool:
    from holdfast.testbed.world import HAZARD, NEW

    kinds = {fact.kind for fact in facts}
    if which == _HAZARD_ALONE:
        return HAZARD in kinds
    return NEW not in kinds and not (which == "never_exposed" and HAZARD in kinds)


_KNOWS = {
    "model": "everything in its fictional world",
    "earlier": "everything in its fictional world",
    "never_exposed": "the benign part of its fictional world only",
    MASKED: "everything in its fictional world, the hazardous part in weights that were then removed,",
}


def _readme(which: str, seed: int, steps: int) -> str:
    knows = _KNOWS[which]
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [holdfast, testbed]\n---\n\n"
        f"# holdfast testbed, seed {seed}: {which}\n\n"
        f"A Llama of 0.38 million weights that was taught {knows} in {steps} steps. All facts are invented and harmless.\n"
    )
