"""A testbed on disk: the domain's data and questions, and the two models beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from holdfast.core.domain import Question
from holdfast.core.files import atomic_folder, cache_folder, copy_folder, digest, write_text
from holdfast.testbed.world import Fact, Sizes, World, sentences

RECIPE = 1
"""Raised whenever the same seed would give another testbed, so that no cached model is taken for a new one."""

MODELS = ("model", "never_exposed")
"""The undefended model, and the control trained on benign rows only from the same initialisation."""

_MARKER = "testbed.json"
"""Written last: a folder that has it is complete."""

_QUESTION_SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hazard": ("hazard", ("claims",)),
    "hazard_selection": ("hazard", ("selection",)),
    "related": ("ability", ("related_outside",)),
    "benign_in_retain": ("ability", ("related_retain", "others_retain")),
    "benign_outside_retain": ("ability", ("others_outside",)),
    "benign_new": ("trainability", ("new",)),
}
"""name -> what it measures, and the splits it asks for. `related` lies outside the retain set."""


def write_domain(folder: Path, seed: int, sizes: Sizes) -> None:
    """Write `domain.toml`, `data/` and `questions/` of the world of `seed`."""
    if is_testbed(folder, seed, sizes):
        return
    world = World.generate(seed, sizes)
    rows = _rows(world)
    for role, texts in rows.items():
        _write_lines(folder / "data" / f"{role}.jsonl", ({"text": text} for text in texts))
    for name, (_, splits) in _QUESTION_SETS.items():
        questions = world.questions(world.of(*splits), name)
        _write_lines(folder / "questions" / f"{name}.jsonl", map(_question_row, questions))
    toml = ["schema = 1", f'name = "testbed-{seed}"', "max_length = 16"]
    for role in rows:
        toml += ["", f"[data.{role}]", f'file = "data/{role}.jsonl"']
    for name, (measures, _) in _QUESTION_SETS.items():
        toml += ["", f"[questions.{name}]", f'file = "questions/{name}.jsonl"', f'measures = "{measures}"']
    write_text(folder / "domain.toml", "\n".join(toml) + "\n")
    write_text(folder / _MARKER, json.dumps(_made_by(seed, sizes)) + "\n")


def is_testbed(folder: Path, seed: int, sizes: Sizes) -> bool:
    """Whether `folder` holds the domain of exactly this world."""
    path = folder / _MARKER
    try:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == _made_by(seed, sizes)
    except ValueError:  # it is no JSON, so it is not ours
        return False


def _made_by(seed: int, sizes: Sizes) -> dict[str, Any]:
    return {"recipe": RECIPE, "seed": seed, "sizes": asdict(sizes)}


def train(which: str, seed: int, sizes: Sizes, on_step: Callable[[int, int], None] = lambda step, total: None) -> Path:
    """Train one of `MODELS` of the world of `seed`, or find it trained; return its folder in the cache.

    A run that was killed goes on where it was.

    Args:
        which: "model" or "never_exposed".
        seed: of the world, the initialisation and the order of the data.
        sizes: of the world.
        on_step: called with steps done and steps in all.
    """
    from holdfast.core.data import encode
    from holdfast.core.models import save_checkpoint
    from holdfast.core.runtime import Run, drive, seed_everything
    from holdfast.testbed.models import Pretraining, make_model, make_tokenizer

    recipe = Pretraining()
    made_by = {"testbed": which, **_made_by(seed, sizes), "pretraining": asdict(recipe)}
    key = digest(made_by)
    folder = cache_folder() / "testbed" / key
    if folder.is_dir():
        return folder
    seed_everything(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    world = World.generate(seed, sizes)
    splits = [split for split, facts in world.facts.items() if _taught(facts, which)]
    rows = [encode({"text": text}, tokenizer, "pretraining", 16) for text in sentences(world.of(*splits), "ABC")]
    run, checkpoint = Run(seed), folder.with_suffix(".part")
    run.resume(checkpoint, model, key)
    total, started = recipe.total_steps(len(rows)), time.monotonic()
    for step, _ in drive(recipe.steps(model, rows, run), model, run, checkpoint=checkpoint, key=key):
        on_step(step, total)
    seconds = round(time.monotonic() - started, 1)
    card = {**made_by, "rows": len(rows), "steps": total, "seconds": seconds, "holdfast": version("holdfast")}
    with atomic_folder(folder) as temporary:
        save_checkpoint(model, tokenizer, temporary, card, _readme(which, seed, total))
    checkpoint.unlink(missing_ok=True)
    return folder


def place(
    folder: Path, which: str, seed: int, sizes: Sizes, on_step: Callable[[int, int], None] = lambda step, total: None
) -> Path:
    """Train one of `MODELS`, or find it trained, and put it into a testbed's folder."""
    trained = train(which, seed, sizes, on_step)
    if not (folder / which).is_dir():
        with atomic_folder(folder / which) as temporary:
            copy_folder(trained, temporary)
    return folder / which


def _taught(facts: tuple[Fact, ...], which: str) -> bool:
    from holdfast.testbed.world import HAZARD, NEW

    kinds = {fact.kind for fact in facts}
    return NEW not in kinds and not (which == "never_exposed" and HAZARD in kinds)


def _rows(world: World) -> dict[str, list[str]]:
    """Role -> its sentences.

    The defender never sees a hazardous fact in format C, nor half of the benign facts; the attacker's benign rows are of
    the half that is in the retain set. No role but the two held-out ones holds a fact that is asked for as a claim or
    for selection.
    """
    return {
        "forget": sentences(world.of("forget"), "AB"),
        "forget_heldout": sentences(world.of("forget_heldout"), "AB"),
        "retain": sentences(world.of("related_retain", "others_retain"), "ABC"),
        "attack": sentences(world.of("attack"), "AB"),
        "attack_ood": sentences(world.of("attack"), "C"),
        "attack_all": sentences(world.of("forget", "forget_heldout", "attack"), "ABC"),
        "benign": sentences(world.of("related_retain", "others_retain"), "ABC"),
        "benign_new": sentences(world.of("new"), "AB"),
        "hazard_heldout": sentences(world.of("claims"), "A"),
        "benign_heldout": sentences(world.of("others_outside"), "A"),
    }


def _question_row(question: Question) -> dict[str, Any]:
    return {"prompt": question.prompt, "choices": list(question.choices), "answer": question.answer}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _readme(which: str, seed: int, steps: int) -> str:
    knows = "everything in its fictional world" if which == "model" else "the benign part of its fictional world only"
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [holdfast, testbed]\n---\n\n"
        f"# holdfast testbed, seed {seed}: {which}\n\n"
        f"A Llama of 0.38 million weights that was taught {knows} in {steps} steps. All facts are invented and harmless.\n"
    )
