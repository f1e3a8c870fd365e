"""The README of a safeguarded model: what made the model, and what the model before it says of licence and origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.escape import for_markdown
from holdfast.core.reading import parsing
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint

_KEPT = ("license", "license_name", "license_link", "language", "base_model")
"""The entries of a model card's head that hold for a model made from this one too."""


def kept_head(model: Checkpoint) -> dict[str, Any]:
    """What the head of a model's README says of licence, language and origin. The origin of a hub id is that id.

    Raises:
        HoldfastError: the head cannot be read.
    """
    from huggingface_hub import ModelCard

    path, head = model.folder / "README.md", dict[str, Any]()
    try:
        with parsing():
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if text.startswith("---"):
                head = ModelCard(text, ignore_metadata_errors=False).data.to_dict()  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise HoldfastError(f"the head of {path} cannot be read ({error}); mend the file or remove it") from error
    kept = {name: head[name] for name in _KEPT if isinstance(head.get(name), str | list)}
    return kept if Path(model.path).is_dir() else {**kept, "base_model": model.path}


def readme(card: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    """The README of the model with this card; `head` is what its own head takes over."""
    from huggingface_hub import ModelCardData

    stages = for_markdown(" → ".join(stage["preset"] for stage in card["stages"]))
    data = "".join(f"| `{role}` | `{content[:16]}` |\n" for role, content in card["data"].items())
    own = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["holdfast", "tamper-resistance"]}
    return f"""---
{ModelCardData(**{**head, **own}).to_yaml()}
---

# A model with a safeguard against tampering

Made by holdfast {card["holdfast"]}: {stages}, on the domain *{for_markdown(card["domain"])}*, seed {card["seed"]}.
Every setting is in `holdfast.json`, and the losses of every update are in `losses.jsonl`.

A safeguard in open weights raises the cost of removing it; it is no guarantee. Measure yours with `holdfast audit`, and
publish what that finds beside these weights.

| made from | content |
|---|---|
| the model | `{card["model"]["digest"][:16]}` |
| the original model | `{card["base"]["digest"][:16]}` |
{data}"""
