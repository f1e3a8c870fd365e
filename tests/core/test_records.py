"""What measurements leave behind is read back as it was written, or refused in one sentence."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.export import write_records
from holdfast.core.records import (
    SCHEMA,
    CampaignPlan,
    CellResult,
    Record,
    Status,
    cell_path,
    read_campaign,
    select,
)
from holdfast.core.types import HoldfastError, Measure
from holdfast.stats.progress import read_progress
from holdfast.stats.summary import summarise

finite = st.floats(-1e39, 1e39)
amounts = st.floats(0, 1e39)
counts = st.integers(0, 2**63 - 1)
seeds = st.integers(1 - 2**63, 2**63 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(words, plain, max_size=3)
shares = st.floats(0, 1)
records = st.builds(
    Record,
    cell=st.just("c0"),
    step=counts,
    evaluation=words,
    metric=words,
    measures=st.sampled_from(get_args(Measure)),
    value=shares,
    stderr=st.none() | amounts,
    n=counts,
    chance=shares,
    complete=st.booleans(),
) | st.builds(
    Record,
    cell=st.just("c0"),
    step=counts,
    evaluation=words,
    metric=st.sampled_from(["nats", "steps"]),
    measures=st.sampled_from(get_args(Measure)),
    value=finite,
    stderr=st.none() | amounts,
    n=counts,
)
results = st.builds(
    CellResult,
    cell=st.just("c0"),
    model=words,
    model_digest=words,
    attack=words,
    attack_config=tables,
    seed=seeds,
    status=st.sampled_from(get_args(Status)),
    reason=words,
    milestones=st.lists(counts, max_size=4),
    losses=st.lists(st.tuples(counts, finite), max_size=4),
    first_loss=st.none() | finite,
    last_loss=st.none() | finite,
    seen_in_training=st.booleans(),
    seconds=amounts,
    evaluation_seconds=amounts,
    identity=tables,
    environment=tables,
    records=st.lists(records, max_size=4),
)
plans = st.builds(
    CampaignPlan,
    title=words,
    domain=words,
    suite=words,
    models=st.dictionaries(words, words, max_size=3),
    cells=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1), max_size=3),
    attacks=st.lists(words, max_size=3),
    seeds=st.lists(seeds, max_size=3),
    details=tables,
)
MODEST = settings(max_examples=60, deadline=None)


@MODEST
@given(result=results)
def test_a_cell_is_read_as_it_was_written(result: CellResult, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "c0.jsonl"
    result.write(path)
    assert CellResult.read(path) == result


@MODEST
@given(plan=plans)
def test_a_plan_is_read_as_it_was_written(plan: CampaignPlan, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "plan"
    plan.write(folder)
    assert CampaignPlan.read(folder) == plan


def record(**changes: Any) -> Record:
    return replace(
        Record(
            cell="c0", step=0, evaluation="hazard", metric="accuracy", measures="hazard", value=0.5, stderr=0.1, n=9
        ),
        **changes,
    )


def result(cell: str = "c0", **changes: Any) -> CellResult:
    made = CellResult(
        cell=cell,
        model="tar",
        model_digest="d",
        attack="a",
        attack_config={"learning_rate": 1e-3},
        seed=0,
        status="finished",
        losses=[(1, 2.5)],
        records=[record(cell=cell), record(cell=cell, step=5)],
    )
    return replace(made, **changes)


def plan(**changes: Any) -> CampaignPlan:
    made = CampaignPlan(title="t", domain="d", suite="s", models={"tar": "defended"}, cells=["c0"])
    return replace(made, **changes)


def test_a_cell_s_file_is_a_header_and_then_a_line_a_record(tmp_path: Path) -> None:
    result().write(tmp_path / "cell")
    header, *rest = [json.loads(line) for line in (tmp_path / "cell").read_text().splitlines()]
    assert (header["kind"], header["schema"], header["cell"]) == ("cell", SCHEMA, "c0")
    assert "records" not in header
    assert [(line["kind"], line["step"], line["schema"]) for line in rest] == [
        ("record", 0, SCHEMA),
        ("record", 5, SCHEMA),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [True, False])
def test_a_number_that_is_none_is_never_written(bad: float, before: bool, tmp_path: Path) -> None:
    path = tmp_path / "c0"
    if before:
        result().write(path)
    spoilt = [
        result(records=[record(value=bad)]),
        result(records=[record(stderr=bad)]),
        result(losses=[(1, bad)]),
        result(last_loss=bad),
        result(attack_config={"learning_rate": bad}),
    ]
    for one in spoilt:
        with pytest.raises(ValueError, match="not JSON compliant"):
            one.write(path)
    assert [held.name for held in tmp_path.iterdir()] == ["c0"] * before
    if before:
        assert CellResult.read(path) == result()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_plan_without_a_number_is_never_written_either(bad: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        plan(details={"seconds": bad}).write(tmp_path)
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, line: int, **changes: Any) -> None:
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def test_a_newer_cell_is_refused_by_its_schema_whatever_else_is_new_in_it(tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    result().write(path)
    rewrite(path, 0, schema=SCHEMA + 1, invented_later=1)
    says = rf"c0\.jsonl has records of schema {SCHEMA + 1}; this holdfast reads up to {SCHEMA}$"
    with pytest.raises(HoldfastError, match=says):
        CellResult.read(path)


def test_a_newer_plan_is_refused_by_its_schema_whatever_else_is_new_in_it(tmp_path: Path) -> None:
    plan().write(tmp_path)
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1, "invented_later": 1}))
    says = rf"campaign\.json has schema {SCHEMA + 1}; this holdfast reads up to {SCHEMA}$"
    with pytest.raises(HoldfastError, match=says):
        CampaignPlan.read(tmp_path)


def whole() -> str:
    lines = [asdict(replace(result(), records=[])), asdict(record())]
    lines[0].pop("records")
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_the_file_that_is_damaged_below_was_whole(tmp_path: Path) -> None:
    (tmp_path / "c0").write_text(whole())
    assert CellResult.read(tmp_path / "c0").records == [record()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        whole().encode()[:-20],
        whole().encode()[:100],
        whole().splitlines()[1].encode(),
        b"[]\n",
        b"3\n",
        b"null\n",
        b'"text"\n',
        b"\xff\xfe\x00",
        b"not json\n",
        whole().replace('"seed"', '"sead"').encode(),
        whole().replace(f'"schema": {SCHEMA}', '"schema": "one"', 1).encode(),
        whole().replace('"losses": [[1, 2.5]]', '"losses": [[1]]').encode(),
        whole().replace('"losses": [[1, 2.5]]', '"losses": 3').encode(),
        whole().replace('"metric"', '"meter"').encode(),
        (whole() + "[]\n").encode(),
    ],
)
def test_a_damaged_cell_is_refused_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c0").write_bytes(content)
    with pytest.raises(HoldfastError, match=r"c0 is not a holdfast record file \(.*\); remove it"):
        CellResult.read(tmp_path / "c0")


WRONG = ("text", 7, -1, 1.5, True, None, [], ["text"], {}, {"text": [None]}, [[1, "text"]], 10**30)
"""What a field may hold by mistake."""


def spoilt(table: Any) -> Iterator[tuple[str, Any]]:
    """A table with one of its values replaced, at any depth, and the path to that value."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        for wrong in WRONG:
            changed = copy.deepcopy(table)
            changed[key] = wrong
            yield str(key), changed
        if isinstance(value, (dict, list)):
            for path, inner in spoilt(value):
                changed = copy.deepcopy(table)
                changed[key] = inner
                yield f"{key}.{path}", changed


def used(folder: Path) -> None:
    """What every command does with a folder first."""
    read_campaign(folder)
    read_progress(folder)
    write_records(folder, folder / "records.jsonl")
    summarise(*read_campaign(folder))


FULL = {
    "command": "holdfast audit", "protocol": 2, "searched": ["FineTune"], "uses_base": [],
    "without_control": [], "canonical": "a", "worst": "a",
    "notes": ["n"], "models": {"tar": {"path": "p", "digest": "d", "stages": ["tar"], "seconds": 1, "flops": 1e9, "seed": 0}},
}  # fmt: skip


@pytest.mark.situation("damaged file", "a field of another type")
def test_a_field_of_another_type_is_read_or_refused_in_one_sentence_that_names_it(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every field of a plan, of a cell and of a record in turn, at any depth."""
    refused = tried = 0
    plan(details=FULL, attacks=["a"], seeds=[0]).write(tmp_path)
    whole = result(costs=[(5, 10, 1e9)], gradient_norms=[(1, 0.5)], milestones=[0, 5], identity={"model": {"x": [1]}})
    cell_file = cell_path(tmp_path, "c0")
    whole.write(cell_file)
    used(tmp_path)
    lines = [json.loads(line) for line in cell_file.read_text().splitlines()]
    table = json.loads((tmp_path / "campaign.json").read_text())
    for file, number, content in (
        (tmp_path / "campaign.json", 0, table),
        (cell_file, 1, lines[0]),
        (cell_file, 2, lines[1]),
    ):
        before = file.read_text()
        for path, changed in spoilt(content):
            rest = before.splitlines()
            rest[number - 1] = json.dumps(changed)
            file.write_text("\n".join(rest) if number else json.dumps(changed))
            tried += 1
            try:
                used(tmp_path)
            except HoldfastError as error:
                refused += 1
                says = str(error)
                assert file.name in says or "has ended yet" in says, (path, says)
                assert path.split(".")[0] in says or "has ended yet" in says or path == "kind", (path, says)
                assert "\n" not in says
        file.write_text(before)
    record_property("situations", tried)
    assert refused > 300


@pytest.mark.parametrize(
    ("field", "wrong", "says"),
    [
        ("value", "high", r"line 2, value: input should be a valid number, not \"high\""),
        ("step", 1.5, "line 2, step: input should be a valid integer, not 1.5"),
        ("measures", "danger", "line 2, measures: input should be 'hazard', .*, not \"danger\""),
        ("invented", 1, "line 2, invented: no such field is known"),
        ("value", 1.5, "line 2, value: an accuracy is from 0 to 1, not 1.5"),
        ("value", -0.1, "line 2, value: an accuracy is from 0 to 1, not -0.1"),
        ("cell", "c1", "line 2, cell: the file is named after cell c0, not c1"),
    ],
)
def test_a_line_that_does_not_fit_is_described(field: str, wrong: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    result().write(path)
    rewrite(path, 1, **{field: wrong})
    with pytest.raises(HoldfastError, match=says):
        CellResult.read(path)


def test_a_share_with_a_chance_is_held_to_its_range_whatever_its_metric_is_called(tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    result(records=[record(metric="compliance", value=1.2, chance=0.0)]).write(path)
    with pytest.raises(HoldfastError, match=r"an accuracy is from 0 to 1, not 1\.2"):
        CellResult.read(path)
    result(records=[record(metric="nats", value=1.2)]).write(path)
    assert CellResult.read(path).records[0].value == 1.2


def test_a_file_under_the_name_of_another_cell_is_refused(tmp_path: Path) -> None:
    plan(cells=["c1"]).write(tmp_path)
    result("c0").write(cell_path(tmp_path, "c1"))
    with pytest.raises(
        HoldfastError, match=r"c1\.jsonl is not .*line 1, cell: the file is named after cell c1, not c0"
    ):
        read_campaign(tmp_path)


@pytest.mark.parametrize("field", ["attack_config", "identity"])
def test_a_number_that_is_none_is_never_read_even_where_anything_may_stand(field: str, tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    result(**{field: {"learning_rate": 0.125}}).write(path)
    path.write_text(path.read_text().replace("0.125", "NaN"))
    with pytest.raises(HoldfastError, match="NaN is no number"):
        CellResult.read(path)


def test_half_a_character_in_a_label_is_read_as_a_question_mark(tmp_path: Path) -> None:
    plan(models={"half \ud800": "defended"}).write(tmp_path)
    result(model="half \ud800").write(cell_path(tmp_path, "c0"))
    campaign, [cell] = read_campaign(tmp_path)
    assert list(campaign.models) == [cell.model] == ["half ?"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b'{"title": "t"}', b"\xff\xfe", b'{"schema": "one"}', b'{"schema": 1, "a": 1}'],
)
def test_a_damaged_plan_is_refused_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "campaign.json").write_bytes(content)
    with pytest.raises(HoldfastError, match=r"cannot be read .*; run the audit again into a new folder"):
        CampaignPlan.read(tmp_path)


def test_a_folder_without_a_plan_holds_no_audit(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"holds no audit: it has no campaign\.json"):
        read_campaign(tmp_path)


def test_cells_are_read_in_the_plan_s_order_and_those_to_come_are_left_out(tmp_path: Path) -> None:
    cells = ["c3", "c1", "missing", "c2"]
    plan(cells=cells).write(tmp_path)
    for name in ("c1", "c2", "c3", "of another plan"):
        result(name).write(cell_path(tmp_path, name))
    held, ended = read_campaign(tmp_path)
    assert held.cells == cells
    assert [one.cell for one in ended] == ["c3", "c1", "c2"]


def test_a_campaign_none_of_whose_cells_has_ended_is_no_result(tmp_path: Path) -> None:
    plan().write(tmp_path)
    with pytest.raises(HoldfastError, match=r"no cell of the campaign in .* has ended yet"):
        read_campaign(tmp_path)


def test_one_damaged_cell_is_named_rather_than_left_out(tmp_path: Path) -> None:
    plan(cells=["c0", "c1"]).write(tmp_path)
    result("c0").write(cell_path(tmp_path, "c0"))
    cell_path(tmp_path, "c1").write_text("half a li")
    with pytest.raises(HoldfastError, match=r"c1\.jsonl is not a holdfast record file"):
        read_campaign(tmp_path)


def test_results_are_selected_by_all_of_the_wanted_fields() -> None:
    held = [result("a"), result("b", seed=1), result("c", seed=1, status="diverged")]
    assert [one.cell for one in select(held, seed=1)] == ["b", "c"]
    assert [one.cell for one in select(held, seed=1, status="diverged")] == ["c"]
    assert select(held) == held
    assert [one.diverged for one in held] == [False, False, True]


def test_an_attack_with_another_tokenizer_is_one_of_the_plans(tmp_path: Path) -> None:
    from holdfast.core.records import FOREIGN
    from tests.report.synthetic import audited, write

    campaign, results = audited(1, diverged=False)
    foreign = [replace(r, attack=r.attack + FOREIGN) if r.attack == "mixed-1e-3" else r for r in results]
    _, read = read_campaign(write(tmp_path, campaign, foreign))
    assert "mixed-1e-3" + FOREIGN in {result.attack for result in read}
