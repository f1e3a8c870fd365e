"""The section of a Hugging Face model card that tells what an audit found, made from its public form alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.files import write_text
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.report.markdown import escape, render_table
from holdfast.report.section import Section, section
from holdfast.report.wording import judged
from holdfast.stats.recovery import BREACH
from holdfast.stats.summary import ModelSummary

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- holdfast audit -->", "<!-- end of holdfast audit -->"
DATASET = "holdfast-audit"
"""the type of our results in a card's model-index"""


def write_card(folder: Path, out: Path) -> None:
    """Write the section and its metadata to `out`.

    Where `out` is a model card already, what an earlier audit left in it is replaced and the rest stays.

    Raises:
        HoldfastError: `out` is no Markdown name or no card, or the folder holds no audit with an ended cell or no model
            under test.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if out.suffix != ".md":
        raise HoldfastError(f"the card {out} needs a name that ends in .md, such as README.md of the model's folder")
    held = section(*read_campaign(folder), "card", public=True)
    if not judged(held.summary):
        raise HoldfastError(f"{folder} holds no model under test; give a folder that holdfast audit wrote")
    model = judged(held.summary)[0]
    try:
        text = out.read_text(encoding="utf-8") if out.is_file() else ""
        card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
        data = ModelCardData(**card.data.to_dict())  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise HoldfastError(f"{out} is no model card that can be read ({error}); give another --out") from error
    others = [result for result in data.eval_results or [] if result.dataset_type != DATASET]
    data.model_name = data.model_name or model.label
    data.eval_results = [*others, *_results(held, model)]
    body = re.sub(rf"\s*{BEGIN}.*?{END}\s*", "\n\n", card.text, flags=re.DOTALL).strip()
    whole = f"---\n{data.to_yaml()}\n---\n\n{body}\n\n{_text(held, model)}"
    write_text(out, re.sub(r"\n{3,}", "\n\n", whole).encode("utf-8", "replace").decode("utf-8"))


def _results(held: Section, model: ModelSummary) -> list[EvalResult]:
    """The figures that a reader may sort models by, each as an entry of the model-index."""
    from huggingface_hub import EvalResult

    own = held.figures.of(model.label)
    factor = own.work_factor.get(BREACH)
    figures: dict[str, tuple[str, float | str | None]] = {
        "verdict": ("Verdict under the suite", model.verdict),
        "hazard_before": ("Hazard before any attack", model.before.value if model.before else None),
        "hazard_worst": ("Worst hazard, ability kept", own.frontier[-1].hazard if own.frontier else None),
        "ability": ("Ability before any attack", model.ability_before),
        "work_factor": ("Work factor, lower end", factor.low if factor else None),
        "benign_learning": (
            "Benign learning, times the undefended model's steps",
            own.learning.low if own.learning else None,
        ),
    }
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Resistance to weight tampering",
            dataset_type=DATASET,
            dataset_name=f"{held.domain}, suite {held.suite}",
            metric_type=name,
            metric_name=told,
            metric_value=round(value, 4) if isinstance(value, float) else value,
        )
        for name, (told, value) in figures.items()
        if value is not None
    ]


def _text(held: Section, model: ModelSummary) -> str:
    page = held.release
    lines = [BEGIN, "## Resistance to weight tampering", ""]
    for finding in page.findings:
        lines += [f"**{escape(finding.headline)}** {escape(finding.grounds)}", ""]
    lines += [f"- **{escape(fact.term)}**: {escape(fact.value)}" for fact in page.facts]
    lines += ["", *render_table(page.models)]
    for title, told in (
        ("Threat model and budget", page.threat),
        ("What would falsify this", page.falsifiers),
        ("Flags", page.flags),
        ("Not tested", page.untested),
    ):
        if told:
            lines += [f"### {title}", "", *(f"- {escape(sentence)}" for sentence in told), ""]
    lines += [*(f"- {escape(fact.term)}: {escape(fact.value)}" for fact in page.identity), ""]
    lines += [
        "Measured with holdfast. Resistance is not absence: the figures hold for the attacks, the budget and the weights named "
        f"here, and {escape(model.label)} may be broken by others.",
        END,
        "",
    ]
    return "\n".join(lines)
