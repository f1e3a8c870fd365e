"""The command that goes on with a run, made anew from what the run's folder says was given.

The folder may be anybody's, and what stands under "Next" is what people paste: the stored command is read with the verbs' own
options, and only what they take is written down again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.cli.options import RENAMED

_VERBS = ("attack", "audit", "demo", "search", "study")
_OF_PARTS = ("demo", "search", "study")
"""Verbs that work in folders of folders: the run is that of the next folder above that is claimed for one."""
_LEFT_OUT = ("status", "plan", "estimate", "as_json", "trust_remote_code", "judge_url", "judge_model")
"""Options that only ask, the permission to run a model's code, and where replies and a key are sent: none is given by pasting."""


def again(command: str, folder: Path, verbs: Mapping[str, Any]) -> str | None:
    """The command that goes on with the run in `folder`; None where what is stored is no command that works in a folder.

    Args:
        command: as the folder says it was given.
        folder: asked about.
        verbs: holdfast's commands by name; their options are the grammar.
    """
    from holdfast.runs.standing import MARKER

    try:
        program, verb, *words = shlex.split(command)
    except ValueError:
        return None
    words = [f"--{RENAMED[word[2:]]}" if word[:2] == "--" and word[2:] in RENAMED else word for word in words]
    if program != "holdfast" or verb not in _VERBS or not all(word.isprintable() for word in words):
        return None
    known = verbs[verb]
    try:
        values, rest, _ = known.make_parser(known.context_class(known)).parse_args(words)
    except Exception:  # the parser has many ways to refuse
        return None
    places = [folder, *folder.parents] if verb in _OF_PARTS else []
    out = next((place for place in places if (place / MARKER).is_file()), None if places else folder)
    # A command is noted with the options that stood in a file, so one that names a file is none of ours.
    if (
        out is None
        or rest
        or values.get("file")
        or any(option.required and option.name not in values for option in known.params)
    ):
        return None
    made = ["holdfast", verb]
    for option in sorted(known.params, key=lambda option: option.param_type_name != "argument"):
        value: Any = str(out) if option.name == "out" else values.get(option.name)
        if value is None or option.name in _LEFT_OUT:
            continue
        if option.name in ("plugins", "evaluations"):  # code that came with the folder is not run by pasting
            value = [word for word in value if not _place(word).is_relative_to(out.resolve())]
        for word in value if option.multiple or isinstance(value, tuple) else [value]:
            made += [option.opts[0]] if option.param_type_name == "option" else []
            made += [] if word is True else [word]
    return shlex.join(made)


def _place(word: str) -> Path:
    """Where the code of a plug-in or of a folder of tasks lies, if it is a path."""
    return Path(word.removeprefix("lm-eval:")).resolve()
