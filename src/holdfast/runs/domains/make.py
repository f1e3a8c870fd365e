"""A ready domain on disk: rows, questions, `domain.toml`, and where all of it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.core.domain import nearest
from holdfast.core.escape import for_markdown
from holdfast.core.files import claimed, write_text
from holdfast.core.reading import excerpt, parsed_json
from holdfast.core.types import HoldfastError
from holdfast.runs.domains import refusals, tofu, wmdp
from holdfast.runs.domains.preparing import Chat, Prepared, ReadyDomain, Sizes
from holdfast.runs.domains.sources import Given, Opened
from holdfast.testbed.writing import write_files

DOMAINS: Mapping[str, ReadyDomain] = {**wmdp.DOMAINS, **tofu.DOMAINS, **refusals.DOMAINS}

MARKER = "made.json"
"""Written first: a folder that has it is a ready domain, complete or begun. The domain's `domain.toml` is written last."""

PROTOCOL = 1
"""Raised whenever the same sources, sizes and template would give other rows or questions."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a domain folder holds."""

    opened: Sequence[Opened]
    rows: Mapping[str, int]
    """role -> its rows"""
    questions: Mapping[str, int]
    """name of a set -> its questions"""


def make_domain(
    name: str,
    folder: Path,
    places: Mapping[str, str],
    without: Sequence[str] = (),
    model: str | None = None,
    sizes: Sizes | None = None,
) -> Made:
    """Prepare the public sets of a ready domain, or copies of them, as a domain folder.

    Args:
        name: of the ready domain.
        folder: to write to.
        places: role, or owner/name of a public set -> a path, or another set on the hub, in its place.
        without: roles of optional sources that are left out.
        model: whose chat template requests are written in, where the domain has requests.
        sizes: how large it is.

    Raises:
        HoldfastError: a name is not known, a set is gated, absent, out of reach or malformed, or the folder holds something else.
    """
    ready, sizes = _known(name, DOMAINS, "ready domain"), sizes or Sizes()
    known = [*ready.sources, *(source.hub for sources in ready.sources.values() for source in sources if source.hub)]
    for role in places:
        _known(role, dict.fromkeys(known), "source")
    for role in without:
        if role not in ready.optional:
            left_out = ", ".join(ready.optional) or "none"
            raise HoldfastError(f"the source {excerpt(role)} cannot be left out of {name}; these can: {left_out}")
    chat = _chat(ready, name, model)
    given = Given({role: source for role, source in ready.sources.items() if role not in without}, places)
    with claimed(folder, MARKER, *(Path(place) for place in places.values() if Path(place).exists())) as begun:
        prepared = ready.prepare(given, sizes, chat)
        made = {
            "recipe": PROTOCOL, "domain": name, "sizes": asdict(sizes), "without": sorted(without),
            "template": _template(model), "sources": [asdict(opened) for opened in given.opened],
        }  # fmt: skip
        if begun and _marker(folder) != _without_places(made):
            raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty one")
        write_text(folder / MARKER, json.dumps(made, indent=1) + "\n")
        write_text(folder / "README.md", _readme(name, ready, given, prepared))
        write_files(folder, name, prepared.max_length, (), prepared.rows, prepared.sets, prepared.said)
    return Made(
        opened=given.opened,
        rows={role: len(rows) for role, rows in prepared.rows.items()},
        questions={title: len(asked) for title, (_, asked) in prepared.sets.items()},
    )


def _known(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name not in known:
        raise HoldfastError(f"there is no {what} {excerpt(name)}; {nearest(name, known)}")
    return known[name]


def _chat(ready: ReadyDomain, name: str, model: str | None) -> Chat | None:
    if not ready.chat:
        if model is not None:
            raise HoldfastError(f"{name} has no requests, so it is written in no model's template; leave --model out")
        return None
    if model is None:
        raise HoldfastError(f"{name} is written in the chat template of a model; name the model with --model")
    from holdfast.engine.chat import TODAY, exchange
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.engine.template import try_template

    tokenizer = Checkpoint(model).load_tokenizer()
    before = [{"role": "system", "content": ready.system}] if ready.system else []
    if tokenizer.chat_template is not None:
        try_template(tokenizer, [[*before, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])

    def chat(message: str, answer: str) -> tuple[str, str]:
        prompt, answered = exchange(tokenizer, [*before, {"role": "user", "content": message}], answer)
        return (prompt.replace(TODAY.strftime("%d %b %Y"), ready.date, 1) if ready.date else prompt), answered

    chat("a", "b")
    return chat


def _template(model: str | None) -> str | None:
    if model is None:
        return None
    from holdfast.engine.checkpoint import Checkpoint

    return Checkpoint(model).tokenizer_digest


def _marker(folder: Path) -> Any:
    try:
        return _without_places(parsed_json((folder / MARKER).read_bytes()))
    except (ValueError, OSError):
        return None


def _without_places(made: Any) -> Any:
    """What a folder is, wherever its sources lay when they were read."""
    if not isinstance(made, dict) or not isinstance(made.get("sources"), list):
        return None
    contents = [source.get("content") if isinstance(source, dict) else None for source in made["sources"]]
    return {**made, "sources": contents}


def _readme(name: str, ready: ReadyDomain, given: Given, prepared: Prepared) -> str:
    lines = [
        f"# {name}",
        "",
        f"A domain of {ready.about}, prepared by holdfast from these sources:",
        "",
        "| source | set | rows | licence |",
        "|---|---|---|---|",
        *(f"| {one.role} | {for_markdown(one.place)} | {one.rows} | {one.licence} |" for one in given.opened),
        "",
        *prepared.notes,
        "",
        "| rows | |",
        "|---|---|",
        *(f"| `{role}` | {len(rows)} |" for role, rows in prepared.rows.items()),
        "",
        "| questions | measure | |",
        "|---|---|---|",
        *(f"| `{title}` | {measures} | {len(asked)} |" for title, (measures, asked) in prepared.sets.items()),
    ]
    return "\n".join(lines) + "\n"
