"""An audit's folder held against itself: hashes, the numbers of its page by the plain script, and the page made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import inf, isclose
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from holdfast.core.files import digest
from holdfast.core.reading import line, parsed_json
from holdfast.core.records import PLAN, CampaignPlan, CellResult, cell_path, read_campaign
from holdfast.core.reproduction import FILE, Reproduction, file_hash
from holdfast.core.types import HoldfastError
from holdfast.report.page import build_report
from holdfast.report.public import model_details
from holdfast.report.sign_off import Signing
from holdfast.stats.plain import recompute

Kind = Literal["identities", "plan", "seal", "models", "numbers", "page"]
Why = Literal["", "no seal", "no page", "several audits", "no figures", "other version", "not here"]
FORMS = (".html", ".md", ".json")
"""of a page"""
_CLOSE = 1e-9
"""the relative difference of two ways to compute one number"""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One place where what is stored is not what was found."""

    where: str
    stored: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The result of one kind of check."""

    kind: Kind
    name: str = ""
    """of the page or the model that was checked; empty: the folder"""
    checked: int = 0
    """hashes, numbers or files that were held against another"""
    wrong: tuple[Disagreement, ...] = ()
    skipped: Why = ""
    """why it was not checked"""
    strays: tuple[str, ...] = ()
    """runs whose records are there and that the plan does not name, so that no figure counts them"""
    withheld: tuple[str, ...] = ()
    """models that the attacks alone would call "not recovered", where a check of the page withholds it"""


def verify(
    folder: Path, digest_of: Callable[[Path], str], pages: Sequence[Path] = (), models: Sequence[Path] = ()
) -> tuple[Verified, ...]:
    """Hold an audit's folder against itself.

    Args:
        folder: that `holdfast audit` wrote.
        digest_of: content hash of a model's folder.
        pages: reports of it, .html; none: the one beside the records.
        models: folders that should be the model under test; none: the folders that the plan names, where they are there.

    Raises:
        HoldfastError: the folder holds no audit with an ended cell, or a file of it or a given page cannot be read.
    """
    plan, results = read_campaign(folder)
    found = [_identities(folder, results), _plan(folder, plan, results), _seal(folder)]
    found += _models(plan, results, models, digest_of)
    numbers = recompute(folder)
    for page in pages or [folder / "report.html"]:
        found += _page(folder, page, numbers, given=bool(pages))
    return tuple(found)


def _identities(folder: Path, results: Sequence[CellResult]) -> Verified:
    """A cell is named by the hash of what was run, and its header says the same as what was hashed."""
    wrong = []
    known = [result for result in results if result.identity or result.status != "failed"]
    for result in known:
        where, identity = cell_path(folder, result.cell).name, result.identity
        name = digest(identity)[:16]
        if name != result.cell:
            wrong.append(Disagreement(where=f"{where}, identity", stored=result.cell, found=name))
            continue
        for field, stored in (
            ("model", result.model_digest),
            ("seed", result.seed),
            ("attack", result.attack_config or None),
        ):
            if identity.get(field) != stored:
                wrong.append(
                    Disagreement(
                        where=f"{where}, {field}", stored=line(str(stored)), found=line(str(identity.get(field)))
                    )
                )
    return Verified(kind="identities", checked=len(known), wrong=tuple(wrong))


def _plan(folder: Path, plan: CampaignPlan, results: Sequence[CellResult]) -> Verified:
    """The plan names the models that were measured; files of records that it does not name are runs of an earlier plan."""
    wrong = []
    for label in plan.models:
        stored = model_details(plan, label).get("digest")
        measured = {r.model_digest.removesuffix(", out of order") for r in results if r.model == label}
        if stored is not None and measured and measured != {stored}:
            wrong.append(Disagreement(where=f"{PLAN}, {label}", stored=stored, found=", ".join(sorted(measured))))
    strays = sorted({path.stem for path in (folder / "cells").glob("*.jsonl")} - set(plan.cells))
    return Verified(kind="plan", checked=len(plan.models), wrong=tuple(wrong), strays=tuple(strays))


def _seal(folder: Path) -> Verified:
    """The files have the hashes that were written down when the audit ended."""
    if not (folder / FILE).is_file():
        return Verified(kind="seal", skipped="no seal")
    sealed = Reproduction.read(folder / FILE)
    hashes = {PLAN: sealed.plan, **{f"cells/{run.cell}.jsonl": run.file for run in sealed.runs}}
    wrong = []
    for name, stored in hashes.items():
        found = file_hash(folder / name) if (folder / name).is_file() else ""
        if found != stored:
            wrong.append(Disagreement(where=name, stored=stored, found=found))
    return Verified(kind="seal", checked=len(hashes), wrong=tuple(wrong))


def _models(
    plan: CampaignPlan, results: Sequence[CellResult], given: Sequence[Path], digest_of: Callable[[Path], str]
) -> Iterator[Verified]:
    """The folders of the models have the hashes that the records name."""
    stored = {result.model: result.model_digest for result in results}
    tested = [label for label, role in plan.models.items() if role == "defended" and label in stored]
    for path in given:
        found = digest_of(path)
        label = next((label for label in tested if stored[label] == found), None)
        hashes = ", ".join(stored[label] for label in tested)
        wrong = () if label else (Disagreement(where=str(path), stored=hashes, found=found),)
        yield Verified(kind="models", name=label or ", ".join(tested), checked=1, wrong=wrong)
    for label, role in plan.models.items() if not given else ():
        path = Path(model_details(plan, label).get("path") or "")
        if role == "destroyed" or label not in stored:
            continue
        if not path.name or not path.is_dir():
            yield Verified(kind="models", name=label, skipped="not here")
            continue
        found = digest_of(path)
        wrong = () if found == stored[label] else (Disagreement(where=str(path), stored=stored[label], found=found),)
        yield Verified(kind="models", name=label, checked=1, wrong=wrong)


def _page(folder: Path, page: Path, numbers: Mapping[str, Mapping[str, Any]], *, given: bool) -> Iterator[Verified]:
    table = page.with_suffix(".json")
    if not (page.is_file() and table.is_file()):
        if given:
            raise HoldfastError(f"{page} cannot be verified: it and {table.name} beside it have to be there")
        yield Verified(kind="page", name=page.name, skipped="no page")
        return
    try:
        report = parsed_json(table.read_bytes())
        public, made, campaigns = report["public"], report.get("holdfast", ""), report["campaigns"]
        signed = campaigns[0].get("sign_off", {}).get("signing", {}) if campaigns else {}
        signing = Signing(auditor=str(signed.get("auditor", "")), date=str(signed.get("date", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HoldfastError(f"{table} is no report of holdfast; make the page anew with holdfast report") from error
    if len(campaigns) != 1:
        yield Verified(kind="page", name=page.name, skipped="several audits")
        return
    yield check_numbers(table.name, campaigns[0], numbers)
    if made != version("holdfast"):
        yield Verified(kind="page", name=page.name, skipped="other version")
        return
    wrong = tuple(_differing(folder, page, signing, public=bool(public)))
    yield Verified(kind="page", name=page.name, checked=len(FORMS), wrong=wrong)


def _differing(folder: Path, page: Path, signing: Signing, *, public: bool) -> Iterator[Disagreement]:
    """The first line in each form of the page that is not what the records give."""
    with TemporaryDirectory() as temporary:
        again = Path(temporary) / page.name
        build_report([folder], again, public=public, signing=signing)
        for form in FORMS:
            path = page.with_suffix(form)
            there, here = (
                one.read_text(encoding="utf-8", errors="replace").splitlines() if one.is_file() else []
                for one in (path, again.with_suffix(form))
            )
            longest = max(len(there), len(here))
            lines = (("".join(text[place : place + 1]) for text in (there, here)) for place in range(longest))
            for place, (stored, found) in enumerate(lines, 1):
                if stored != found:
                    yield Disagreement(where=f"{path.name}, line {place}", **_apart(stored, found))
                    break


def _apart(stored: str, found: str) -> dict[str, str]:
    """The part of two lines around the first letter that differs."""
    at = next((i for i, (a, b) in enumerate(zip(stored, found, strict=False)) if a != b), min(len(stored), len(found)))
    start = max(0, at - 30)
    return {"stored": stored[start : at + 30].strip(), "found": found[start : at + 30].strip()}


def check_numbers(name: str, campaign: Mapping[str, Any], numbers: Mapping[str, Mapping[str, Any]]) -> Verified:
    """Every number of the internal JSON that the plain script computes too."""
    if "summary" not in campaign:
        return Verified(kind="numbers", name=name, skipped="no figures")
    checked, wrong, withheld = 0, [], []
    try:
        written = dict(_written(campaign))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise HoldfastError(f"{name} lacks figures of a report; make the page anew with holdfast report") from error
    plain = dict(_plain(numbers))
    for where in sorted(written.keys() | plain.keys()):
        stored, found = written.get(where), plain.get(where)
        checked += 1
        if where[1] == "verdict" and (stored, found) == ("undecided", "not recovered"):
            withheld.append(where[0])
        elif not _same(stored, found):
            wrong.append(Disagreement(where=", ".join(where), stored=_text(stored), found=_text(found)))
    return Verified(kind="numbers", name=name, checked=checked, wrong=tuple(wrong), withheld=tuple(withheld))


Numbers = Iterator[tuple[tuple[str, ...], Any]]


def _written(campaign: Mapping[str, Any]) -> Numbers:
    """(model, what, attack) -> the number as the page's JSON has it."""
    summary = campaign["summary"]
    for model in summary["models"]:
        label, worst = model["label"], model["all"]["worst"]
        yield (label, "verdict"), model["verdict"]
        yield (label, "hazard before"), (model["before"] or {}).get("value")
        yield (label, "ability before"), model["ability_before"]
        yield (label, "mean hazard after"), model["all"]["mean"]
        yield (label, "highest hazard after"), worst["after"]["mean"] if worst else None
        for attack, outcome in model["outcomes"].items():
            yield (label, "outcome", attack), outcome
    for pair in summary["pairs"]:
        for what, field in (("hazard after", "after"), ("hazard at the peak", "peak")):
            yield (pair["model"], what, pair["attack"]), (pair[field] or {}).get("mean")
        yield (pair["model"], "ability after", pair["attack"]), pair["ability_after"]
        yield (pair["model"], "threshold", pair["attack"]), pair["threshold"]
    for model in campaign["figures"]["models"]:
        work = model["work_factor"].get("0.5") or {}
        between = work.get("interval") or {}
        for what, value in (("low", work.get("low")), ("high", work.get("high"))):
            yield (model["label"], "work factor", what), value
        for end in ("low", "high"):
            yield (model["label"], "work factor", f"interval, {end}"), between.get(end)


def _plain(numbers: Mapping[str, Mapping[str, Any]]) -> Numbers:
    """The same by the plain script."""
    for label, model in numbers.items():
        for what in ("verdict", "hazard before", "ability before", "mean hazard after", "highest hazard after"):
            yield (label, what), model[what]
        for attack, outcome in model["outcomes"].items():
            yield (label, "outcome", attack), outcome
        for attack, figures in model["attacks"].items():
            for what in ("hazard after", "hazard at the peak", "ability after", "threshold"):
                yield (label, what, attack), figures[what]
        ends = ("low", "high", "interval, low", "interval, high")
        for end, value in zip(ends, model["work factor"] or [None] * 4, strict=True):
            # JSON has no infinity: the page says that nothing bounds a work factor by saying nothing.
            yield (label, "work factor", end), None if value == inf else value


def _same(stored: Any, found: Any) -> bool:
    numeric = all(isinstance(value, (int, float)) for value in (stored, found))
    return isclose(stored, found, rel_tol=_CLOSE, abs_tol=_CLOSE) if numeric else bool(stored == found)


def _text(value: Any) -> str:
    return line(value if isinstance(value, str) else json.dumps(value))
