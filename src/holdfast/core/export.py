"""Records in the ecosystem's formats: an audit as one flat table, and the JSON Schema of its files.

The schema is made from the dataclasses: `python -m holdfast.core.export docs/records.schema.json` writes it anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.core.files import atomic_file, only_writer, write_text
from holdfast.core.outputs import claim_file
from holdfast.core.records import SCHEMA, CellResult, Record, read_campaign
from holdfast.core.types import HoldfastError

COLUMNS: dict[str, tuple[type, str]] = {
    "title": (str, "of the campaign"),
    "domain": (str, "what was asked about"),
    "suite": (str, "the attacks, with their version"),
    "cell": (str, "identity of the run: 16 hexadecimal digits"),
    "model": (str, "the model's label"),
    "role": (str, "undefended, reference, defended, peer, never-exposed or destroyed"),
    "model_digest": (str, "content hash of its weights"),
    "attack": (str, 'preset name; "none" for the untouched model'),
    "family": (str, "of the attack, in words; empty in records of schema 1 and 2"),
    "attack_config": (str, "the attack's settings as JSON"),
    "seed": (int, "of the attack"),
    "draws": (bool, "whether its path depends on the seed"),
    "status": (str, "finished, diverged or failed"),
    "stopped": (str, "the rule that ended it early; empty: none did"),
    "seen_in_training": (bool, "the safeguard was trained against an adversary of this kind"),
    "family_in_training": (bool, "the safeguard was trained against an adversary of this family"),
    "step": (int, "updates so far"),
    "tokens": (int, "read by the attack so far; null where they were not counted"),
    "flops": (float, "taken by the attack so far; null where they were not counted"),
    "evaluation": (str, "what was asked"),
    "metric": (str, "accuracy and other shares from 0 to 1, nats, steps, and the like"),
    "measures": (str, "hazard, ability, refusal, degeneracy, trainability or masking"),
    "value": (float, "in the metric's unit"),
    "stderr": (float, "standard error over questions; null where there is none"),
    "n": (int, "questions, texts or rows"),
    "chance": (float, "what guessing gives; null where that means nothing"),
    "complete": (bool, "false where only a fixed sample of the questions was asked"),
    "schema": (int, "version of the records"),
}
"""Column -> its type and what it holds, in order; only those that say so may be null."""

_TABLE = re.compile(rb'^\{"title": "[^\n]*"attack_config": |PAR1.*holdfast\.schema.*PAR1$', re.DOTALL)
"""A table of records in each of its two forms."""


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each record, with the facts of its run beside it.

    Raises:
        HoldfastError: the folder holds no campaign with an ended cell.
    """
    plan, results = read_campaign(folder)
    for result in results:
        costs = {0: (0, 0.0), **{step: (tokens, flops) for step, tokens, flops in result.costs}}
        run = {
            "title": plan.title,
            "domain": plan.domain,
            "suite": plan.suite,
            "role": plan.models.get(result.model, ""),
            "attack_config": json.dumps(result.attack_config, sort_keys=True),
            **{
                name: getattr(result, name)
                for name in ("model", "model_digest", "attack", "family", "seed", "draws", "status", "stopped")
            },
            "seen_in_training": result.seen_in_training,
            "family_in_training": result.family_in_training,
        }
        for record in result.records:
            tokens, flops = costs.get(record.step, (None, None))
            columns = {**run, **vars(record), "cell": result.cell, "tokens": tokens, "flops": flops}
            yield {name: columns[name] for name in COLUMNS}


def write_records(folder: Path, out: Path) -> int:
    """Write every record of an audit to `out`: .jsonl, or .parquet with typed columns. Returns how many rows it has.

    Raises:
        HoldfastError: `out` has another suffix or may not be written, or the folder holds no campaign with an ended cell.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise HoldfastError(f"records can be written as .jsonl or .parquet; {out} has neither suffix")
    claim_file(out, _TABLE)
    table = list(rows(folder))
    with only_writer(out):
        if out.suffix == ".jsonl":
            write_text(out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in table))
        else:
            _write_parquet(table, out)
    return len(table)


def _write_parquet(table: list[dict[str, Any]], out: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    fields = [
        pyarrow.field(name, types[kind], metadata={"description": description})
        for name, (kind, description) in COLUMNS.items()
    ]
    schema = pyarrow.schema(fields, metadata={"holdfast.schema": str(SCHEMA)})
    with atomic_file(out) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_encodable(table), schema=schema), temporary)


def _encodable(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts as UTF-8 can hold them; a label read from JSON may carry half a character."""
    return [
        {
            name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for name, value in row.items()
        }
        for row in table
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a line of a cell's file: first the header, then its records."""
    from pydantic import TypeAdapter

    def described(kind: type, line: str, without: str = "") -> dict[str, Any]:
        made = TypeAdapter(kind).json_schema()
        made.pop("$defs", None)
        made["properties"].pop(without, None)
        return {**made, "title": line, "required": ["kind", *made["required"]]}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"holdfast records, schema {SCHEMA}",
        "description": "A line of cells/<cell>.jsonl: the first is of kind cell, all others of kind record.",
        "oneOf": [described(CellResult, "cell", without="records"), described(Record, "record")],
    }


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), json.dumps(json_schema(), indent=2) + "\n")
