"""What `--memory` turns, in which order, and that the same command goes on with the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs import knobs, memory
from holdfast.runs.knobs import Room, lean_instead, most_rows, needed, room_on, too_large, turn
from holdfast.runs.memory import MemoryPlan
from holdfast.runs.stages import Recipe
from tests.conftest import SmallTestbed

GB = 10**9


def plan(options: Options) -> list[MemoryPlan]:
    """Ten gigabytes that stay (five in lean precision), and one for each of 16 rows: a quarter of this with checkpointing."""
    activations = (options.micro_batch or 16) * GB // (4 if options.checkpointing else 1)
    weights = (5 if options.precision == "lean" else 10) * GB
    return [MemoryPlan(label="it", device={}, host={"weights": weights, "activations": activations})]


def turned(gigabytes: float, options: Options = Options(), earlier: int | None = None) -> tuple[str, ...]:  # noqa: B008
    room = Room(device="cpu", here=int(gigabytes * GB), host=None)
    return turn(plan, options, 16, room, earlier).knobs


def test_what_changes_no_number_is_turned_first_and_no_more_than_is_needed() -> None:
    assert turned(29) == ()
    assert turned(16) == ("--checkpointing",)
    assert turned(14) == ("--checkpointing", "--micro-batch 8")
    assert turned(12.2) == ("--checkpointing", "--micro-batch 4")
    assert turned(11.4) == ("--checkpointing", "--micro-batch 1")


def test_what_the_user_has_set_stays() -> None:
    assert turned(11.4, Options(micro_batch=4)) == ("--checkpointing",)
    assert turned(20, Options(checkpointing=True)) == ()


def test_an_earlier_choice_of_rows_stands_while_it_fits() -> None:
    assert turned(29, earlier=4) == ("--micro-batch 4",)
    assert turned(13, earlier=4) == ("--micro-batch 4", "--checkpointing")
    assert turned(11.4, earlier=4)[-1] == "--micro-batch 1"
    assert turned(29, Options(micro_batch=8), earlier=4) == ()


def test_a_knob_that_takes_no_less_or_does_not_go_is_left_alone() -> None:
    def stubborn(options: Options) -> list[MemoryPlan]:
        if options.checkpointing:
            raise HoldfastError("no list of layers")
        return [MemoryPlan(label="it", device={}, host={"weights": 10 * GB})]

    assert turn(stubborn, Options(), 16, Room(device="cpu", here=GB, host=None)).knobs == ()


def test_lean_precision_is_named_where_it_would_fit_and_is_never_turned() -> None:
    for gigabytes, expected in (
        (7, needed(plan(Options(precision="lean", micro_batch=1, checkpointing=True)))),
        (2, None),
    ):
        room = Room(device="cpu", here=gigabytes * GB, host=None)
        found = turn(plan, Options(), 16, room)
        assert found.options.precision == "float32"
        assert lean_instead(plan, found, room) == expected


def test_the_host_has_to_hold_its_part_too() -> None:
    plans = [MemoryPlan(label="it", device={"weights": GB}, host={"sum of gradients": 3 * GB})]
    assert Room(device="cuda", here=2 * GB, host=3 * GB).holds(plans)
    assert not Room(device="cuda", here=2 * GB, host=2 * GB).holds(plans)
    assert not Room(device="cuda", here=GB, host=3 * GB).holds(plans)


def test_sizes_of_memory_are_read() -> None:
    assert room_on("cpu", "24GB").here == 24 * GB
    assert room_on("cpu", "1.5 GiB").here == 3 * 2**29
    for wrong in ("24", "lots", "-1GB", "0GB", "1e400GB", ""):
        with pytest.raises(HoldfastError, match="is no amount of memory; give auto, or a size such as 24GB"):
            room_on("cpu", wrong)


def test_the_largest_batch_of_a_plug_in_is_found() -> None:
    assert most_rows([pick("holdfast.safeguards", "tar")]) == 24
    assert most_rows([pick("holdfast.safeguards", "tar-paper-bio"), pick("holdfast.attacks", "full-adamw-1e-3")]) == 64


def test_only_a_model_that_is_large_for_its_device_is_looked_at(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(options: Options) -> list[MemoryPlan]:
        return [MemoryPlan(label="it", device={}, host={"weights": 3 * GB})]

    def unknown(options: Options) -> list[MemoryPlan]:
        raise HoldfastError("cannot be foretold")

    def at(free: int, plan: Callable[[Options], list[MemoryPlan]]) -> tuple[int, int] | None:
        monkeypatch.setattr(knobs, "free", lambda device: free)
        return too_large(plan, Options(), tiny_testbed.model.path)

    monkeypatch.setattr(knobs, "resident", lambda: 0)
    assert at(2 * GB, looked) is None
    assert at(10**6, looked) == (3 * GB, 10**6)
    assert at(10**6, unknown) is None


def test_the_command_turns_knobs_and_goes_on_with_the_same_run(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "plan_of_stages", lambda recipe: plan(recipe.options))
    out, safeguard = (
        tmp_path / "out",
        replace(pick("holdfast.safeguards", "grad-diff"), outer_steps=1, retain_batch_size=16),
    )
    words = ["safeguard", "grad-diff", "--set", "grad-diff.outer_steps=1", "--set", "grad-diff.retain_batch_size=16"]
    words += ["--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder), "--out", str(out)]
    given = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=[("it", safeguard)])
    chosen = replace(given, options=Options(micro_batch=4))

    def said(*more: str, status: int = 0) -> str:
        assert main([*words, *more]) == status
        printed = capsys.readouterr()
        return " ".join((printed.out + printed.err).split())

    with_both = "With --checkpointing and --micro-batch 4 the command needs 12.10 GB on this machine"
    assert with_both in said("--memory", "12.2GB", "--plan")
    assert not out.exists()
    assert with_both in said("--memory", "12.2GB")
    assert Checkpoint(str(out)).card["key"] == chosen.keys()[-1] != given.keys()[-1]
    assert "it was there already" in said("--memory", "40GB"), "much is free, and the rows stay"
    assert "give --precision lean, with which it needs 5.78 GB" in said("--memory", "8GB", "--seed", "1", status=2)
    assert "free 3.77 GB more" in said("--memory", "2GB", "--precision", "lean", "--seed", "1", status=2)


def test_an_attack_turns_the_same_knobs(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "plan_of_attack", lambda *given, options, **named: plan(options)[0])
    words = ["attack", "full-adamw-1e-3", "--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--memory", "12.2GB", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["turned"] == ["--checkpointing", "--micro-batch 4"]
    for name in ("free", "resident"):
        monkeypatch.setattr(knobs, name, lambda device="": 10**6)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "does not fit into the 0.0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
