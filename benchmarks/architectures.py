"""What works on which family of models: every family of the installed transformers, small and untrained, under a few plug-ins.

python -m benchmarks.architectures > table.md

The table and the reasons go into docs/architectures.md as they are printed. A cell says "yes" where a plug-in changed what it
says it changes, with finite losses, and the saved model gave the same logits again; "no" where the plug-in refused the family in
one sentence; "FAULT" for anything else.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
import transformers

from tests.families.small import FAMILIES
from tests.families.trial import COLUMNS, Family, Outcome, tokenizer, tried, write_domain

CELLS = {"works": "yes", "refused": "no", "broken": "FAULT"}


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    outcomes: dict[str, dict[str, Outcome]] = {}
    unbuilt: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        domain, words = write_domain(Path(folder) / "domain"), tokenizer()
        for name in FAMILIES:
            try:
                family = Family(name, domain, words)
            except Exception as error:  # a small configuration that names alone do not give
                unbuilt[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
                continue
            outcomes[name] = {plugin: tried(family, plugin, Path(folder) / "model") for plugin in COLUMNS}
            for plugin, outcome in outcomes[name].items():
                if outcome.verdict == "broken":
                    print(f"{name}, {plugin}: {outcome.says}", file=sys.stderr)
    print(f"transformers {transformers.__version__}: {len(outcomes)} of {len(FAMILIES)} families\n")
    print("\n".join(table(outcomes)))
    print("\n".join(reasons(outcomes)))
    print(
        "\nFamilies that were not built, with the default configuration of the class made small: "
        + listed(unbuilt)
        + "."
    )


def table(outcomes: dict[str, dict[str, Outcome]]) -> list[str]:
    """One row a family."""
    lines = ["| family | " + " | ".join(f"`{plugin}`" for plugin in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for name, row in sorted(outcomes.items()):
        lines.append(f"| `{name}` | " + " | ".join(CELLS[row[plugin].verdict] for plugin in COLUMNS) + " |")
    works = [sum(row[plugin].verdict == "works" for row in outcomes.values()) for plugin in COLUMNS]
    return [*lines, f"| **works on, of {len(outcomes)}** | " + " | ".join(map(str, works)) + " |"]


def reasons(outcomes: dict[str, dict[str, Outcome]]) -> list[str]:
    """Why plug-ins refuse, with the families, most families first."""
    families: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, row in outcomes.items():
        for plugin, outcome in row.items():
            if outcome.verdict == "refused":
                families[plugin, general(outcome.says)].append(name)
    merged: defaultdict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (plugin, says), names in families.items():
        merged[says, tuple(names)].append(plugin)
    lines = ["", "| refused by | because | families |", "|---|---|---|"]
    for (says, names), plugins in sorted(merged.items(), key=lambda item: -len(item[0][1])):
        lines.append(f"| {listed(plugins)} | {says} | {listed(names)} |")
    return lines


def general(sentence: str) -> str:
    """A refusal without the names of classes, tensors, folders and numbers."""
    sentence = re.sub(r"<class '[\w.]+'>|\b[A-Z]\w*[a-z]\w*[A-Z]\w*\b", "…", sentence)
    sentence = re.sub(r"/\S+|\b\w+(\.\w+)+\b", "…", sentence)
    sentence = re.sub(r"nothing tells what \S+ of", "nothing tells what … of", sentence)
    return re.sub(r"\b\d[\d.e-]*\b", "…", sentence).replace("|", "/")


def listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
