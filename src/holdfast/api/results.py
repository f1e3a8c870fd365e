"""What came of a run: values that show themselves, and as data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.export import rows
from holdfast.core.records import CampaignPlan, CellResult, read_campaign
from holdfast.core.shown import frame, html
from holdfast.core.types import Score
from holdfast.report.page import Report, build_report, shown
from holdfast.report.section import Section, section

if TYPE_CHECKING:
    import pandas

    from holdfast.runs.evaluate import Evaluated


class Results:
    """The results of an audit, of another campaign or of a single attack, read from its folder."""

    def __init__(self, folder: Path | str) -> None:
        """Read the records.

        Raises:
            HoldfastError: the folder holds no campaign with an ended cell.
        """
        self.folder = Path(folder)
        self.plan: CampaignPlan
        """what was to be done"""
        self.cells: list[CellResult]
        """the runs that have ended, with their records"""
        self.plan, self.cells = read_campaign(self.folder)

    @property
    def verdicts(self) -> Mapping[str, str]:
        """The verdict on each model under test: label -> "breached", "not recovered", "undecided" or "not estimable"."""
        return {finding.model: finding.verdict for finding in self._section.findings}

    @property
    def failed(self) -> list[str]:
        """Why runs failed, a sentence a run."""
        return [cell.reason for cell in self.cells if cell.status == "failed"]

    def report(self, out: Path | str | None = None, *, public: bool = False) -> Report:
        """Write the report; by default beside the records.

        Args:
            out: the HTML file; the same goes beside it as .md and .json.
            public: name families of attack and budgets, no settings and no command.

        Raises:
            HoldfastError: as `build_report`.
        """
        return build_report(self.folder, out or self.folder / "report.html", public=public)

    def to_pandas(self) -> pandas.DataFrame:
        """Every record as a data frame, a row a measured value; docs/records.md has the columns.

        Raises:
            HoldfastError: pandas is not installed.
        """
        return frame(rows(self.folder))

    @cached_property
    def _section(self) -> Section:
        return section(self.plan, self.cells, "c1")

    def __repr__(self) -> str:
        said = ", ".join(f"{model} {verdict}" for model, verdict in self.verdicts.items()) or "no verdict"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Results({str(self.folder)!r}: {said}; {len(self.cells)} runs{failed})"

    def _repr_html_(self) -> str:
        return shown(self._section)


@dataclass(frozen=True, repr=False)
class Scores(Sequence["Evaluated"]):
    """What a model as it is scored: the evaluations in order."""

    model: str
    evaluated: tuple[Evaluated, ...]

    def __getitem__(self, place: Any) -> Any:
        """An evaluation by its place."""
        return self.evaluated[place]

    def __iter__(self) -> Iterator[Evaluated]:
        return iter(self.evaluated)

    def __len__(self) -> int:
        return len(self.evaluated)

    def score(self, evaluation: str, metric: str | None = None) -> Score:
        """One score by the name of its evaluation.

        Args:
            evaluation: such as "hazard".
            metric: None: the first.

        Raises:
            KeyError: there is none.
        """
        for one in self.evaluated:
            for score in one.scores if one.evaluation == evaluation else ():
                if metric in (None, score.metric):
                    return score
        raise KeyError(evaluation if metric is None else (evaluation, metric))

    def to_pandas(self) -> pandas.DataFrame:
        """A row a score.

        Raises:
            HoldfastError: pandas is not installed.
        """
        return frame(
            {"evaluation": one.evaluation, "measures": one.measures, **asdict(score)}
            for one in self.evaluated
            for score in one.scores
        )

    def __repr__(self) -> str:
        said = (f"{one.evaluation} {one.scores[0].value:.3g}" for one in self.evaluated if one.scores)
        return f"Scores({self.model}: {', '.join(said)})"

    def _repr_html_(self) -> str:
        lines = [
            (
                one.evaluation, one.measures, score.metric, f"{score.value:.3g}",
                "" if score.stderr is None else f"{score.stderr:.2g}", str(score.n),
                "" if score.chance is None else f"{score.chance:.3g}",
            )
            for one in self.evaluated
            for score in one.scores
        ]  # fmt: skip
        return html(
            f"{self.model} as it is", ("evaluation", "measures", "metric", "value", "± s.e.", "n", "chance"), lines
        )
