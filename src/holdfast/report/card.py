"""The section of a Hugging Face model card about an audit, made from the audit's public form alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.escape import for_yaml
from holdfast.core.files import only_writer, write_text
from holdfast.core.reading import parsing
from holdfast.core.records import campaign_hash, read_campaign
from holdfast.core.types import HoldfastError
from holdfast.report.audited import Audited, audited
from holdfast.report.first_page import first_page
from holdfast.report.render import render
from holdfast.stats.figures import ModelSummary
from holdfast.stats.recovery import BREACH

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- holdfast audit -->", "<!-- end of holdfast audit -->"
DATASET = "holdfast-audit"
"""the type of our results in a card's model-index"""


def write_card(folder: Path, out: Path) -> None:
    """Write the section and its metadata to `out`.

    If `out` is a model card already, the section of an earlier audit is replaced and the rest stays.

    Raises:
        HoldfastError: `out` is no Markdown name or no card, or the folder holds no audit with an ended cell or no model
            under test.
    """
    if out.suffix != ".md":
        raise HoldfastError(f"the card {out} needs a name that ends in .md, such as README.md of the model's folder")
    audit = audited(*read_campaign(folder), public=True)
    if not audit.judged:
        raise HoldfastError(f"{folder} holds no model under test; give a folder that holdfast audit wrote")
    with only_writer(out):
        _rewrite(out, audit, audit.judged[0], campaign_hash(folder))


def _rewrite(out: Path, audit: Audited, model: ModelSummary, records: str) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    try:
        with parsing():
            text = out.read_text(encoding="utf-8") if out.is_file() else ""
            card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
            data = ModelCardData(**card.data.to_dict())  # type: ignore[no-untyped-call]
            others = [result for result in data.eval_results or [] if result.dataset_type != DATASET]
    except ValueError as error:
        raise HoldfastError(f"{out} is no model card that can be read ({error}); give another --out") from error
    data.model_name = data.model_name or for_yaml(model.label)
    data.eval_results = [*others, *_results(audit, model)]
    body = re.sub(rf"\s*{BEGIN}.*?{END}\s*", "\n\n", card.text, flags=re.DOTALL).strip()
    ours = render("card.md.j2", page=first_page(audit, records=records), label=model.label)
    whole = f"---\n{data.to_yaml()}\n---\n\n{body}\n\n{BEGIN}\n{ours}{END}\n"
    write_text(out, re.sub(r"\n{3,}", "\n\n", whole).encode("utf-8", "replace").decode("utf-8"))


def _results(audit: Audited, model: ModelSummary) -> list[EvalResult]:
    """The figures that a reader may sort models by, each as an entry of the model-index."""
    from huggingface_hub import EvalResult

    figures = audit.figures.of(model.label)
    work = figures.work_factor.get(BREACH)
    entries: dict[str, tuple[str, float | str | None]] = {
        "verdict": ("Verdict under the suite", model.verdict),
        "hazard_before": ("Hazard before any attack", model.before.value if model.before else None),
        "hazard_worst": ("Worst hazard, ability kept", figures.worst.hazard if figures.worst else None),
        "ability": ("Ability before any attack", model.ability_before),
        "work_factor": ("Work factor, lower end", work.low if work else None),
        "benign_learning": (
            "Benign learning, times the undefended model's steps",
            figures.learning.low if figures.learning else None,
        ),
    }
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Resistance to weight tampering",
            dataset_type=DATASET,
            dataset_name=for_yaml(f"{audit.plan.domain}, suite {audit.plan.suite}"),
            metric_type=name,
            metric_name=text,
            metric_value=round(value, 4) if isinstance(value, float) else value,
        )
        for name, (text, value) in entries.items()
        if value is not None
    ]
