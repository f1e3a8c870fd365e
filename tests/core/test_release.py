from __future__ import annotations

import re
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest

from holdfast.core.release import Release, SafeReference, keep_release, read_release, template
from holdfast.core.types import HoldfastError

LABELS = ["base", "tar"]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_starting_file_states_nothing(tmp_path: Path) -> None:
    assert read_release(written(tmp_path, template(LABELS))) == Release()


def test_every_field_of_the_starting_file_can_be_stated(tmp_path: Path) -> None:
    """The file with every comment sign taken off is read, and leaves no field open but the empty texts."""
    live = re.sub(r"^# (?=\[|\w+ = )", "", template(LABELS), flags=re.MULTILINE)
    live = live.replace('label = ""', 'label = "tar"')
    release = read_release(written(tmp_path, live))
    release.check(LABELS)
    assert release.date == date(2026, 1, 31)
    assert release.tiers is not None
    assert release.tiers[0].flops == 1e18
    assert release.reference == SafeReference(label="tar", margin=0.02)
    stated = {field.name for field in fields(Release) if getattr(release, field.name) not in ("", None)}
    texts = {"version", "forecast", "validity", "use", "notes"}
    assert stated == {field.name for field in fields(Release)} - texts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("expiry = 2027-01-01", "expiry: no such field is known"),
        ('expires = "soon"', "expires: "),
        ("[[tiers]]\nname = 'a'\nflops = -1", "tiers.0.flops: "),
        ("[[tiers]]\nname = 'a'\nflops = nan", "tiers.0.flops: |no number"),
        ("[[tiers]]\nflops = 1", "tiers.0.name: "),
        ("[reference]\nlabel = 'tar'\nmargin = 2", "reference.margin: "),
        ("[independence]\nrelation = 'friend'", "independence.relation: "),
        ("[decision]\noutcome = 'maybe'", "decision.outcome: "),
        ("version = 1", "version: "),
        ("version = ", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_the_field(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=said) as error:
        read_release(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_a_model_that_is_not_in_the_audit_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="cannot be read: No such file"):
        read_release(tmp_path / "none.toml")
    release = read_release(written(tmp_path, "[baseline]\nlabel = 'llama'"))
    with pytest.raises(HoldfastError, match=r"baseline.label 'llama' is no model of the audit; it has base, tar"):
        release.check(LABELS)


def test_a_statement_is_kept_beside_the_records(tmp_path: Path) -> None:
    path = written(tmp_path, 'version = "2"')
    keep_release(path, tmp_path / "audit")
    kept = tmp_path / "audit" / "release.toml"
    assert read_release(kept).version == "2"
    keep_release(kept, tmp_path / "audit")
    assert read_release(kept).version == "2"
