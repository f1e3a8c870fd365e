"""What shells propose, by the words that they hand over; and the version."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.presets import collect
from holdfast.recipes.names import STUDIES
from holdfast.runs.suites import SUITES

CASES = {
    "holdfast aud": {"audit"},
    "holdfast attack full-lion-": {name for name in collect("holdfast.attacks") if name.startswith("full-lion-")},
    "holdfast safeguard random-mapping ta": {name for name in collect("holdfast.safeguards") if name.startswith("ta")},
    "holdfast audit --suite standard": {name for name in SUITES if name.startswith("standard")},
    "holdfast audit --suite runs/": set(),
    "holdfast list suit": {"suites"},
    "holdfast list benign-le": {"benign-learning"},
    "holdfast list ": {"attacks", "evaluations", "safeguards", "suites", *collect("holdfast.attacks")},
    "holdfast study red": {name for name in STUDIES if name.startswith("red")},
    "holdfast search --families full,low-rank-l": {"full,low-rank-large"},
    "holdfast report x --fail-on breached,un": {"breached,undecided"},
    "holdfast attack x --precision mi": {"mixed"},
    "holdfast safeguard x --save-dtype bf": {"bfloat16"},
    "holdfast safeguard tar --set tar.inner_st": {"tar.inner_steps="},
    "holdfast safeguard tar --set tar.adversaries.0.learning": {"tar.adversaries.0.learning_rates="},
    "holdfast audit --fail": {"--fail-on"},
}


def proposed(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setenv("_HOLDFAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert main([]) == 0
    return set(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", CASES)
def test_names_complete(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = proposed(words, capsys, monkeypatch)
    assert found >= CASES[words] if words.endswith(" ") else found == CASES[words]


def test_asking_for_a_status_is_not_done_while_a_word_is_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (f"holdfast audit --status {tmp_path} --sui", f"holdfast audit {tmp_path / 'none.toml'} --json --sui"):
        assert proposed(words, capsys, monkeypatch) == {"--suite"}


def test_completing_loads_no_torch() -> None:
    program = (
        "import sys; from holdfast.cli.app import main\n"
        "assert main([]) == 0; assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    words = {"_HOLDFAST_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "holdfast audit --suite quick"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **words}, check=True, capture_output=True, text=True
    )
    assert "quick-2" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_HOLDFAST_COMPLETE", f"source_{shell}")
    assert main([]) == 0
    assert f"_HOLDFAST_COMPLETE=complete_{shell}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"holdfast {version('holdfast')}\n"
