"""Records as a table, and the schema that says what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.export import COLUMNS, json_schema, write_records
from holdfast.core.records import SCHEMA, CellResult, Record, read_campaign
from holdfast.core.types import HoldfastError
from tests.report.synthetic import audited, cell, plan, record, write

ROOT = Path(__file__).parents[2]
SCHEMA_FILE = ROOT / "docs" / "records.schema.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    campaign, results = audited(2)
    costed = [replace(r, costs=[(s, 10 * s, 1e6 * s) for s in r.milestones if s], draws=r.seed == 0) for r in results]
    return write(tmp_path_factory.mktemp("records") / "audit", campaign, costed)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_formats_hold_every_record_once_and_the_same(folder: Path, tmp_path: Path) -> None:
    _, results = read_campaign(folder)
    count = sum(len(result.records) for result in results)
    for name in ("records.jsonl", "records.parquet"):
        assert write_records(folder, tmp_path / name) == count
    table = pyarrow.parquet.read_table(tmp_path / "records.parquet")
    assert table.to_pylist() == lines(tmp_path / "records.jsonl")
    assert table.schema.names == list(COLUMNS)
    assert table.schema.metadata[b"holdfast.schema"] == str(SCHEMA).encode()
    keys = [(row["cell"], row["evaluation"], row["metric"], row["step"]) for row in table.to_pylist()]
    assert len(set(keys)) == len(keys)


def test_a_row_tells_what_its_run_was_and_had_cost(folder: Path, tmp_path: Path) -> None:
    write_records(folder, tmp_path / "records.jsonl")
    rows = [row for row in lines(tmp_path / "records.jsonl") if (row["model"], row["attack"]) == ("tar", "mixed-1e-3")]
    assert {row["role"] for row in rows} == {"defended"}
    assert {json.loads(row["attack_config"])["lr"] for row in rows} == {1e-3}
    for row in rows:
        assert (row["tokens"], row["flops"]) == (10 * row["step"], 1e6 * row["step"])
    assert {row["draws"] for row in rows} == {True, False}


def test_an_empty_column_keeps_its_type(tmp_path: Path) -> None:
    results = [cell("tar", hazard={0: 0.3, 8: 0.4}, first_loss=None)]
    results = [replace(r, records=[replace(x, stderr=None, chance=None) for x in r.records]) for r in results]
    write_records(write(tmp_path / "a", plan(results), results), tmp_path / "records.parquet")
    schema = pyarrow.parquet.read_table(tmp_path / "records.parquet").schema
    assert [schema.field(name).type for name in ("stderr", "chance", "flops")] == [pyarrow.float64()] * 3
    assert schema.field("tokens").type == pyarrow.int64()


@settings(max_examples=25, deadline=None)
@given(name=st.text(min_size=1), value=st.floats(0, 1))
def test_any_name_goes_through_both(name: str, value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("any")
    results = [cell(name, name, hazard={0: value}, family=name, attack_config={name: name})]
    held = write(place / "a", plan(results, {name: "defended"}, title=name, suite=name), results)
    for file in ("r.jsonl", "r.parquet"):
        write_records(held, place / file)
    [row], [other] = lines(place / "r.jsonl"), pyarrow.parquet.read_table(place / "r.parquet").to_pylist()
    assert row["value"] == other["value"] == value
    assert other["model"] == name.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_older_schemas_still_read_and_export(version: int, tmp_path: Path) -> None:
    old = Path(__file__).parent / "records" / f"schema-{version}"
    campaign, results = read_campaign(old)
    assert {result.schema for result in results} == {version}
    assert {record.schema for result in results for record in result.records} == {version}
    attacked = next(result for result in results if result.attack != "none")
    assert (attacked.costs, attacked.family, attacked.draws, attacked.stopped) == ([], "", True, "")
    assert attacked.flops == (None if version == 1 else 3.5e9)
    assert write_records(old, tmp_path / "records.parquet") == sum(len(result.records) for result in results)
    assert campaign.models == {"undefended": "undefended", "tar": "defended"}


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == json_schema(), (
        "run python -m holdfast.core.export docs/records.schema.json"
    )


def test_what_is_written_is_valid_and_what_is_broken_is_not(folder: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    valid = jsonschema.Draft202012Validator(json_schema())
    for path in sorted((folder / "cells").iterdir())[:12]:
        header, *records = lines(path)
        assert header["kind"] == "cell"
        for line in (header, *records):
            valid.validate(line)
        for broken in ({**header, "status": "well"}, {**header, "invented": 1}, {**header, "kind": "record"}):
            assert not valid.is_valid(broken)
        for broken in ({**records[0], "value": "high"}, {**records[0], "schema": SCHEMA + 1}, {"kind": "record"}):
            assert not valid.is_valid(broken)


def test_the_schema_and_its_page_tell_of_every_field() -> None:
    header, line = json_schema()["oneOf"]
    assert set(header["properties"]) == {"kind", *(field.name for field in fields(CellResult))} - {"records"}
    assert set(line["properties"]) == {"kind", *(field.name for field in fields(Record))}
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    for name in (*header["properties"], *line["properties"], *COLUMNS):
        assert f"`{name}`" in page, f"docs/records.md does not tell of {name}"


def test_errors_are_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"\.jsonl or \.parquet"):
        write_records(folder, tmp_path / "records.csv")
    with pytest.raises(HoldfastError, match=r"no campaign\.json"):
        write_records(tmp_path, tmp_path / "records.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_records_are_written_without_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from holdfast.core.export import write_records;"
        f"write_records(Path({str(folder)!r}), Path({str(tmp_path / 'r.parquet')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_record_made_by_hand_fits_its_schema() -> None:
    made = {"kind": "record", **vars(record("hazard", 8, 0.5))}
    jsonschema.Draft202012Validator(json_schema()).validate(made)
