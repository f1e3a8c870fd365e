"""The testbed of real facts on disk: a model is asked what it knows, and the domain is filtered by that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast.core.cache import copy_entry
from holdfast.core.files import atomic_file, atomic_folder, cache_folder, claimed, digest
from holdfast.core.reading import parsed_json
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Job, Progress
from holdfast.jobs.run import run_jobs
from holdfast.runs.real_answers import answer, chat_of, say_freely
from holdfast.testbed.folder import MARKER
from holdfast.testbed.real.facts import TEMPLATES, Fact, all_facts, question, sources
from holdfast.testbed.real.folder import (
    Knowledge,
    RealKind,
    is_real_testbed,
    knowledge_of,
    made_by,
    write_real_domain,
    write_request_domain,
)
from holdfast.testbed.real.model import model_folder, packaged_model
from holdfast.testbed.real.splits import MAX_LENGTH, Answers, Splits

_PARTS = 2
"""processes that ask a real model what it knows"""
_AT_ONCE = 40
"""questions between two reports of progress"""


def make_real_testbed(
    folder: Path,
    seed: int,
    model: str | None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    kind: RealKind = "real",
) -> Made:
    """Write the domain of capitals, or of requests for them, filtered by what a model knows.

    Args:
        folder: to write to.
        seed: of splits and questions.
        model: a Hugging Face folder or hub id; None: the model of a package, which is then copied to `folder/model`.
        on_progress: called several times a second.
        kind: of the domain.

    Raises:
        HoldfastError: the folder holds something else, a package is missing, the model cannot be loaded, or it has no chat
            template where requests are to be written.
    """
    from holdfast.engine.checkpoint import Checkpoint

    sources()
    if model is not None:
        Checkpoint(model).check(max_length=MAX_LENGTH)
        if kind == "real-refusal":
            chat_of(Checkpoint(model).load_tokenizer())("", "")
    read_in = Job(name="read the packaged model", call=packaged_model, size=0.3)
    path = str(model_folder()) if model is None else model

    def parts(name: str, call: Callable[..., Path], size: float) -> list[Job]:
        return [
            Job(
                name=f"{name}, part {part + 1} of {_PARTS}",
                call=call,
                arguments={"model": path, "seed": seed, "part": part, "parts": _PARTS},
                after=(read_in,) if model is None else (),
                size=size,
            )
            for part in range(_PARTS)
        ]

    asks = parts("ask what the model knows", ask, 1.0)
    requests = parts("ask for capitals in the chat template", answer, 0.5) if kind == "real-refusal" else []
    with claimed(folder, MARKER) as begun:
        outcomes = run_jobs([*asks, *requests], workers=_PARTS, on_progress=on_progress)
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise HoldfastError(outcome.error)
        made = made_by(seed, Checkpoint(path).digest, kind)
        if begun and not is_real_testbed(folder, made):
            raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty one")
        splits, answers = Splits.draw(seed), read([outcomes[job].result for job in asks])
        freely: dict[str, bool] = {}
        if kind == "real-refusal":
            freely = say_freely([outcomes[job].result for job in requests], splits.facts)
            write_request_domain(folder, made, answers, freely, chat_of(Checkpoint(path).load_tokenizer()))
        else:
            write_real_domain(folder, made, answers)
        if model is None and not (folder / "model").is_dir():
            with atomic_folder(folder / "model") as temporary:
                copy_entry(Path(path), temporary)
    return Made(knowledge=tuple(knowledge_of(splits, answers)), freely=sum(freely.values()), asked=len(freely))


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the model of a real testbed knows."""

    knowledge: tuple[Knowledge, ...]
    """kind by kind, among four options"""
    freely: int
    """capitals that it says freely in its chat template"""
    asked: int
    """capitals that it was asked for so; 0 where the domain has no requests"""


def ask(
    model: str, seed: int, part: int, parts: int, on_step: Callable[[int, int], None] = lambda step, total: None
) -> Path:
    """Ask a model for every `parts`-th fact of a seed, from place `part` on, in every template.

    Args:
        model: a Hugging Face folder or hub id.
        seed: of the facts and their wrong options.
        part: 0 to `parts` - 1.
        parts: how many such files there are in all.
        on_step: called with questions answered and questions in all.

    Returns:
        The file in the cache with what the model answers right.

    Raises:
        HoldfastError: the model cannot be loaded, or a package of the facts is not installed.
    """
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.evals.multiple_choice import BY_SUM, prepare_answers

    facts, checkpoint = all_facts(seed), Checkpoint(model)
    mine = facts[part::parts]
    path = _path(checkpoint.digest, seed, part, parts)
    if _holds(path, mine):
        return path
    live, tokenizer = checkpoint.load_both()
    answers = {fact.name: [False] * len(TEMPLATES[fact.kind]) for fact in mine}
    asked = [(fact, template) for fact in mine for template in range(len(TEMPLATES[fact.kind]))]
    for start in range(0, len(asked), _AT_ONCE):
        few = asked[start : start + _AT_ONCE]
        questions = [question(fact, template, facts, seed) for fact, template in few]
        chosen = prepare_answers(tokenizer, questions)(live)[BY_SUM]
        for (fact, template), put, best in zip(few, questions, chosen, strict=True):
            answers[fact.name][template] = put.answer == best
        on_step(start + len(few), len(asked))
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(answers), encoding="utf-8")
    return path


def read(files: Sequence[Path]) -> Answers:
    """What the model answers right, from the files of `ask`."""
    right: dict[str, list[bool]] = {}
    for path in files:
        right |= parsed_json(path.read_bytes())
    return Answers(right)


def _holds(path: Path, facts: Sequence[Fact]) -> bool:
    """Whether the file says of each of these facts, and of no other, what is answered right; a damaged file does not."""
    try:
        answers = parsed_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(answers, dict) and {name: _shape(said) for name, said in answers.items()} == {
        fact.name: len(TEMPLATES[fact.kind]) for fact in facts
    }


def _shape(said: object) -> int | None:
    """How many templates were asked in; None where that is not what the value says."""
    return len(said) if isinstance(said, list) and all(isinstance(right, bool) for right in said) else None


def _path(model: str, seed: int, part: int, parts: int) -> Path:
    facts = [asdict(fact) for fact in all_facts(seed)]
    asked = {"model": model, "seed": seed, "part": [part, parts], "facts": facts, "templates": dict(TEMPLATES)}
    return cache_folder() / "real" / f"known-{digest(asked)}.json"
