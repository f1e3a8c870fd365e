"""The testbed of real facts on disk: a model is asked what it knows, and the domain is filtered by that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from holdfast.core.cache import copy_entry
from holdfast.core.files import atomic_file, atomic_folder, cache_folder, claimed, digest
from holdfast.core.reading import parsed_json
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Job, Progress
from holdfast.jobs.local import run_jobs
from holdfast.testbed.folder import MARKER
from holdfast.testbed.real.facts import all_facts, question, sources
from holdfast.testbed.real.folder import is_real_testbed, knowledge_of, made_by, write_real_domain
from holdfast.testbed.real.model import model_folder, packaged_model
from holdfast.testbed.real.splits import FILTER, MAX_LENGTH, Splits

_PARTS = 2
"""processes that ask a real model what it knows"""
_AT_ONCE = 40
"""questions between two reports of progress"""


def make_real_testbed(
    folder: Path,
    seed: int,
    model: str | None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, tuple[int, int]]:
    """Write the domain of capitals, filtered by what a model knows.

    Args:
        folder: to write to.
        seed: of splits and questions.
        model: a Hugging Face folder or hub id; None: the model of a package, which is then copied to `folder/model`.
        on_progress: called several times a second.

    Returns:
        Kind of fact -> how many of them the model knows, and how many there are.

    Raises:
        HoldfastError: the folder holds something else, a package is missing, or the model cannot be loaded.
    """
    from holdfast.engine.checkpoint import Checkpoint

    sources()
    if model is not None:
        Checkpoint(model).check(max_length=MAX_LENGTH)
    read_in = Job(name="read the packaged model", call=packaged_model, size=0.3)
    path = str(model_folder()) if model is None else model
    asks = [
        Job(
            name=f"ask what the model knows, part {part + 1} of {_PARTS}",
            call=ask,
            arguments={"model": path, "seed": seed, "part": part, "parts": _PARTS},
            after=(read_in,) if model is None else (),
        )
        for part in range(_PARTS)
    ]
    with claimed(folder, MARKER) as begun:
        outcomes = run_jobs(asks, workers=_PARTS, on_progress=on_progress)
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise HoldfastError(outcome.error)
        made = made_by(seed, Checkpoint(path).digest)
        if begun and not is_real_testbed(folder, made):
            raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty one")
        known = read([outcomes[job].result for job in asks])
        write_real_domain(folder, made, known)
        if model is None and not (folder / "model").is_dir():
            with atomic_folder(folder / "model") as temporary:
                copy_entry(Path(path), temporary)
    return knowledge_of(Splits.draw(seed), known)


def ask(
    model: str, seed: int, part: int, parts: int, on_step: Callable[[int, int], None] = lambda step, total: None
) -> Path:
    """Ask a model for every `parts`-th fact of a seed, from place `part` on; return the file in the cache with what it knows.

    Args:
        model: a Hugging Face folder or hub id.
        seed: of the facts and their wrong options.
        part: 0 to `parts` - 1.
        parts: how many such files there are in all.
        on_step: called with questions answered and questions in all.

    Raises:
        HoldfastError: the model cannot be loaded, or a package of the facts is not installed.
    """
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.evals.multiple_choice import BY_SUM, prepare_answers

    facts, checkpoint = all_facts(seed), Checkpoint(model)
    asked = facts[part::parts]
    path = _path(checkpoint.digest, seed, part, parts)
    if _holds(path, [fact.name for fact in asked]):
        return path
    live, tokenizer = checkpoint.load_both()
    known: dict[str, bool] = {}
    for start in range(0, len(asked), _AT_ONCE):
        few = asked[start : start + _AT_ONCE]
        questions = [question(fact, FILTER, facts, seed) for fact in few]
        answers = prepare_answers(tokenizer, questions)(live)[BY_SUM]
        known |= {fact.name: put.answer == best for fact, put, best in zip(few, questions, answers, strict=True)}
        on_step(len(known), len(asked))
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(known), encoding="utf-8")
    return path


def read(files: Sequence[Path]) -> Mapping[str, bool]:
    """The name of a fact -> whether the model knows it, from the files of `ask`."""
    known: dict[str, bool] = {}
    for path in files:
        known |= parsed_json(path.read_bytes())
    return known


def _holds(path: Path, names: Sequence[str]) -> bool:
    """Whether the file says of each of these facts, and of no other, whether it is known; a damaged file does not."""
    try:
        known = parsed_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known.keys() == set(names) and all(isinstance(v, bool) for v in known.values())


def _path(model: str, seed: int, part: int, parts: int) -> Path:
    facts = [asdict(fact) for fact in all_facts(seed)]
    asked = {"model": model, "seed": seed, "part": [part, parts], "facts": facts, "template": FILTER}
    return cache_folder() / "real" / f"known-{digest(asked)}.json"
