"""Every verb that prints or writes text, on names and records that someone else wrote: the text is shown and does nothing."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from holdfast.cli import documents
from holdfast.cli.app import main
from holdfast.core.escape import for_terminal
from holdfast.core.findings import Cut, Findings, RunTogether
from holdfast.core.records import CellResult
from holdfast.core.types import Score
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.report.plots import drawing, name_of, svg
from holdfast.report.studies.drawing import drawn
from holdfast.runs.evaluate import Evaluated
from holdfast.runs.stages import Recipe
from tests.core.test_escape import CONTROLS
from tests.hostile_text import EVERYTHING, FRAGMENTS, TEXTS
from tests.report.synthetic import cell, plan, write

ROLES = {"base": "undefended", "tar": "defended"}

NAMES = TEXTS.map(lambda text: re.sub("[/\0]", "", text).encode("utf-8", "replace").decode()[:60])
"""as a file may be named"""


def campaign(folder: Path, text: str, failed: bool = True) -> Path:
    """Two models under one attack, where every text that is anyone's to choose ends in `text`."""

    def marked(result: CellResult) -> CellResult:
        records = [
            replace(one, evaluation=one.evaluation if one.evaluation == "hazard" else one.evaluation + text)
            for one in result.records
        ]
        return replace(
            result, model=result.model + text, reason=text, family=text, stopped=text, records=records,
            attack=result.attack if result.attack == "none" else result.attack + text,
            attack_config={**result.attack_config, text: text}, environment={text: text},
        )  # fmt: skip

    results = [cell(model, "none", hazard={0: 0.9}, ability={0: 0.9}, attack_config={}) for model in ROLES]
    results += [cell(model, hazard={0: 0.3, 8: 0.4}, ability={0: 0.9, 8: 0.9}) for model in ROLES]
    if failed:
        results.append(cell("tar", seed=1, hazard={0: 0.3}, status="failed", records=[]))
    marked_results = [marked(result) for result in results]
    plain = plan(marked_results, {label + text: role for label, role in ROLES.items()})
    told = {"path": text, "digest": text, "stages": [text], "seconds": 1.0}
    details = {
        "command": f"holdfast {text}", "notes": [text], "searched": [text], "environment": {text: text},
        "models": {label + text: told for label in ROLES},
    }  # fmt: skip
    return write(
        folder,
        replace(plain, title=text, domain=text, suite=text, details=details),
        marked_results,
    )


def told(words: Sequence[object], encoding: str = "utf-8") -> str:
    """What a command that succeeds prints, on a stream of this encoding that refuses all else."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    with redirect_stdout(out), redirect_stderr(out):
        status = main([str(word) for word in words])
    out.seek(0)
    printed = out.read()
    assert status == 0, printed
    assert "Traceback" not in printed
    assert not CONTROLS.search(printed), words
    return printed


def assert_page_is_inert(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not CONTROLS.search(text), path.name

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "iframe", "object", "embed", "link", "form", "base"), (path.name, tag)
            for name, value in attrs:
                assert not name.startswith("on"), (path.name, name)
                assert name not in ("href", "src", "xlink:href") or (value or "").startswith("#"), (path.name, value)

    Reader().feed(text)
    for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(figure)


def assert_markdown_is_inert(path: Path) -> str:
    """Assert that nothing in a Markdown file links, embeds or runs; return its YAML."""
    text = path.read_text(encoding="utf-8")
    assert not CONTROLS.search(text), path.name
    yaml, body = ("", text) if not text.startswith("---\n") else text[4:].split("\n---\n", 1)
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    page = page.replace("<!-- holdfast audit -->", "").replace("<!-- end of holdfast audit -->", "")
    tags = set(re.findall(r"<(\w+|!)", page))
    assert tags <= {
        "h1", "h2", "h3", "p", "em", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"
    }, (path.name, tags)  # fmt: skip
    assert not re.search(r"https?://evil|www\.evil", body), "a bare address is a link on GitHub"
    return yaml


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
@example(text=EVERYTHING)
def test_what_is_told_of_records(text: str) -> None:
    with TemporaryDirectory() as folder:
        where = Path(folder)
        audit = campaign(where / "audit", text)
        shown = for_terminal(text.encode("utf-8", "replace").decode())
        assert shown in told(["audit", "--status", audit])
        told(["report", audit, "--out", where / "r.html"])
        told(["report", audit, "--public", "--out", where / "p.html"])
        assert shown in told(["compare", audit, audit, "--out", where / "c.html"])
        (where / "README.md").write_text("# Mine\n\nkeep this\n", encoding="utf-8")
        for _ in range(2):
            told(["card", audit, "--out", where / "README.md"])
        told(["records", audit, "--out", where / "x.jsonl"])
        for page in where.glob("*.html"):
            assert_page_is_inert(page)
        for page in where.glob("*.md"):
            assert_markdown_is_inert(page)
        card = (where / "README.md").read_text(encoding="utf-8")
        assert card.count("## Resistance to weight tampering") == 1
        assert "keep this" in card
        for table in where.glob("*.json"):
            json.loads(table.read_text(encoding="utf-8"))


Stub = Callable[[pytest.MonkeyPatch, Path, str], None]


def _attack(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    def attacked(*given: Any, on_progress: Callable[[Progress], None] | None = None, **_: Any) -> list[Outcome]:
        campaign(out, text, failed=False)
        outcomes = [Outcome(job=Job(name=text, call=print), error=error) for error in (None, text)]
        (on_progress or given[-1])(Progress(done=outcomes, running={text: 0.5}))
        return outcomes

    patch.setattr("holdfast.runs.attack.run_attack", attacked)
    patch.setattr("holdfast.cli.measure.cost_sentence", lambda out, attack: text)
    patch.setattr("holdfast.runs.audit.Audit.run", attacked)
    patch.setattr("holdfast.recipes.run.run_demo", attacked)


def _audit(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    """The verbs that end like `attack`; the page takes its time."""
    _attack(patch, out, text)
    for verbs in ("make", "measure"):
        patch.setattr(f"holdfast.cli.{verbs}.finish", lambda *_: documented(out, text))
        patch.setattr(f"holdfast.cli.{verbs}.check_cells", lambda _: None)


def documented(out: Path, text: str) -> documents.Audit:
    """An audit as `finish` returns it, in which every text is `text`."""
    verdict = documents.VerdictLine(
        model=text, verdict="breached", word=text, headline=text, grounds=text, attacks=text
    )
    return documents.Audit(
        title=text, folder=str(out), report=text, hazard_metric=text, ability_metric=text, verdicts=[verdict], models=[],
        noticed=[text], failed=[],
    )  # fmt: skip


def _testbed(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    patch.setattr("holdfast.runs.testbed.make_testbed", lambda *_: None)


def _safeguard(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    patch.setattr("holdfast.core.domain.Domain.open", lambda folder: SimpleNamespace(max_length=8))
    patch.setattr("holdfast.campaign.cells.evaluations_of", lambda *_, **__: ((), ()))
    patch.setattr("holdfast.campaign.cells.check_positions", lambda *_: None)
    patch.setattr(Recipe, "keys", lambda self: ["key"])
    patch.setattr(Recipe, "cuts", lambda self: [Cut(role=text, rows=2, cut=1, empty=0)])
    patch.setattr("holdfast.engine.checkpoint.Checkpoint.check", lambda *_: None)
    patch.setattr("holdfast.engine.checkpoint.Checkpoint.card", {})
    patch.setattr("holdfast.runs.stages.build", lambda recipe, out, on_step, on_losses: on_step(1, 2))
    patch.setattr("holdfast.runs.effect.effect", lambda recipe, out: None)
    patch.setattr("holdfast.report.words.effect.effect_sentences", lambda _: [text])


def _evaluate(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    scores = (Score(metric=text, value=0.5, stderr=None, n=4),)
    measured = [Evaluated(evaluation=text, measures="hazard", scores=scores)]
    patch.setattr("holdfast.runs.evaluate.evaluate", lambda *_: measured)
    findings = Findings(run_together=[RunTogether(questions=text, count=1, of=1)])
    patch.setattr("holdfast.runs.evaluate.noticed", lambda *_: findings)


def _study(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    def studied(*_: Any) -> list[Outcome]:
        out.mkdir(exist_ok=True)
        (out / "tables.md").write_text(f"# {text}\n", encoding="utf-8", errors="replace")
        (out / "tables.json").write_text(json.dumps({text: text}), encoding="utf-8")
        return []

    patch.setattr("holdfast.recipes.run.run_study", studied)


def _search(patch: pytest.MonkeyPatch, out: Path, text: str) -> None:
    trial = SimpleNamespace(family=text, hazard=0.5, ability=0.5, feasible=True, steps=1, tokens=1, flops=1.0)
    outcome = SimpleNamespace(trials=[trial], best={text: trial}, description={"ended_by": text})
    patch.setattr("holdfast.runs.search.attacker.search_and_confirm", lambda *_, **__: outcome)
    patch.setattr("holdfast.runs.search.search.usable_families", lambda *_: ("full",))
    patch.setattr("holdfast.engine.checkpoint.Checkpoint.size", "tiny")
    patch.setattr("holdfast.report.studies.search_plot.draw_search", lambda *_: None)
    patch.setattr("holdfast.report.page.build_report", lambda *_: None)
    patch.setattr("holdfast.cli.explore.confirmed_sentence", lambda _: text)
    patch.setattr("holdfast.cli.explore.failures", lambda _: [])
    patch.setattr("holdfast.cli.explore.check_cells", lambda _: None)


VERBS: dict[str, tuple[Stub, Callable[[Path, Path], Sequence[object]]]] = {
    "attack": (_attack, lambda at, out: ["attack", "full-adamw-1e-3", "--model", at, "--domain", at, "--out", out]),
    "audit": (
        _audit, lambda at, out: ["audit", "--model", at, "--undefended", at, "--domain", at, "--out", out]
    ),
    "demo": (_audit, lambda at, out: ["demo", "--out", out]),
    "testbed": (_testbed, lambda at, out: ["testbed", out]),
    "safeguard": (
        _safeguard, lambda at, out: ["safeguard", "random-mapping", "--model", at, "--domain", at, "--out", out]
    ),
    "evaluate": (_evaluate, lambda at, out: ["evaluate", "--model", at, "--domain", at]),
    "study": (_study, lambda at, out: ["study", "claims", "--out", out]),
    "search": (_search, lambda at, out: ["search", "--model", at, "--undefended", at, "--domain", at, "--out", out]),
}  # fmt: skip
"""Verb -> what stands for its work, and its words in a folder of a hostile name."""


@contextmanager
def stubbed(verb: str, out: Path, text: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "4000")
        VERBS[verb][0](patch, out, text)
        yield


@pytest.mark.situation("hostile input", "text that would act on a terminal, a page or a card")
@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, name=NAMES, encoding=st.sampled_from(["utf-8", "latin-1", "ascii"]))
@example(text=EVERYTHING, name="[red]x", encoding="utf-8")
@example(text=EVERYTHING, name="a[∕b]c :smile: é🦀", encoding="ascii")
@example(text="", name="\"'>\x1f", encoding="utf-8")
@example(text="", name="\"'>", encoding="utf-8")
@example(text="[/red]", name="x\x1b]0;owned\x07y\nz", encoding="latin-1")
def test_what_a_verb_says_of_names(verb: str, text: str, name: str, encoding: str) -> None:
    with TemporaryDirectory() as folder:
        at, out = Path(folder) / f"in{name}", Path(folder) / f"out{name}"
        at.mkdir()
        with stubbed(verb, out, text):
            printed = told(VERBS[verb][1](at, out), encoding)
    [suggested] = [line for line in printed.splitlines() if line.startswith("Next: ")]
    if encoding == "utf-8" and verb not in ("study",):
        as_quoted = name.replace("'", "'\"'\"'")
        assert for_terminal(name) in printed or "$'" in suggested or as_quoted in suggested, (
            "a path is printed as it is"
        )


@pytest.mark.situation("hostile input", "text that would act on a terminal, a page or a card")
@pytest.mark.parametrize("text", FRAGMENTS)
def test_a_picture_holds_any_label(text: str, tmp_path: Path) -> None:
    with drawing("name", width=5, height=1) as (figure, axes):
        axes.set_yticks([0], [name_of(text)])
        ElementTree.fromstring(svg(figure, "name", text))
    with drawn(tmp_path / "x.svg", "title", 5, 1) as figure:
        figure.subplots().set_yticks([0], [name_of(text)])
    ElementTree.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))


def test_the_words_of_a_command_do_not_act(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["\x1b[31mnonsense"],
        ["list", "\x1b[2J[/red]"],
        ["list", "--\x1b[2J"],
        ["audit", "--seeds", "\x1b[2J"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("holdfast: ")
        assert not CONTROLS.search(said)
        assert len(said.splitlines()) == 1


def test_nothing_is_printed_but_through_the_terminal() -> None:
    """A string that rich prints by itself may hold markup and control characters."""
    source = Path(sys.modules["holdfast"].__file__ or "").parent
    for path in (*source.rglob("cli/*.py"), *source.rglob("recipes/*.py")):
        if path.name != "terminal.py":
            printed = re.findall(r"console\.print\((.*)", path.read_text(encoding="utf-8"))
            assert all(re.match(r"(table|grid|Padding\(attacks.*|Padding\(literal\(.*)\)", what) for what in printed), (
                path
            )
