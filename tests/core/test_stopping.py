"""The system's signal ends work at once, or where the work has saved its state, and a command says so."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import pytest

from holdfast.cli import tell
from holdfast.cli.app import main
from holdfast.core.stopping import Stopped, listening, saving


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_work_that_saves_nothing_ends_at_once() -> None:
    with pytest.raises(Stopped), listening():
        ask_to_stop()


def test_work_that_saves_is_asked_first_and_a_second_signal_changes_nothing() -> None:
    def work() -> None:
        with saving() as asked_to_stop:
            assert not asked_to_stop()
            ask_to_stop()
            ask_to_stop()
            assert asked_to_stop()
            done.append("saved")
            raise Stopped

    done: list[str] = []
    with pytest.raises(Stopped), listening():
        work()
    assert done == ["saved"]


def test_a_signal_that_comes_after_the_last_step_ends_the_work_too() -> None:
    with pytest.raises(Stopped), listening(), saving(), saving():
        ask_to_stop()


def test_what_ends_first_is_done_in_peace() -> None:
    def work() -> None:
        try:
            ask_to_stop()
        finally:
            ask_to_stop()
            done.append("closed")

    done: list[str] = []
    with pytest.raises(Stopped), listening():
        work()
    assert done == ["closed"]


def test_the_signal_is_the_systems_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening(signal.SIGUSR2):
        assert signal.getsignal(signal.SIGUSR2) is signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_the_system_stops_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: object) -> NoReturn:
        ask_to_stop()
        raise AssertionError

    monkeypatch.setattr(tell, "load_plugins", stopped)
    assert main(["list", "suites"]) == 143
    assert capsys.readouterr().err == "holdfast: stopped by the system; run the same command again to go on\n"
