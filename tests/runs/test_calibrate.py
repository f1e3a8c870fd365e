"""Calibration: what it measures of terms, updates and sinks, what it proposes, and that a safeguard takes the proposal."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.app import main
from holdfast.core.presets import pick
from holdfast.core.settings import read_listing, stages_toml
from holdfast.engine.activations import activations
from holdfast.engine.data import Data
from holdfast.runs.calibrate import Calibrator, Change, Measured, Trial, balanced, next_rate
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.random_mapping import RandomMapping
from tests.conftest import SmallTestbed

MAPPING = RandomMapping(outer_steps=20, forget_batch_size=4, retain_batch_size=4)


def term(name: str, pull: float, *, keeps: bool) -> Measured:
    return Measured(name=name, setting=name, weight=10.0, keeps=keeps, loss=1.0, gradient=pull / 10)


@pytest.mark.parametrize(
    ("pull", "kept", "proposed"),
    [(2.0, 2.0, {}), (0.1, 2.0, {}), (0.6, 2431.0, {"forget": 12000.0}), (300.0, 1.0, {"forget": 0.01})],
)
def test_weights_are_scaled_where_terms_pull_very_unlike(pull: float, kept: float, proposed: dict[str, float]) -> None:
    assert balanced([term("forget", pull, keeps=False), term("retain", kept, keeps=True)]) == proposed


def test_a_term_of_no_pull_is_not_scaled() -> None:
    assert balanced([term("forget", 0.0, keeps=False), term("retain", 1.0, keeps=True)]) == {}
    assert balanced([term("forget", 1.0, keeps=False)]) == {}
    assert balanced([]) == {}


def trial(rate: float | None, *, moved: bool, broke: bool) -> Trial:
    same = Change(name="l", before=1.0, after=1.0)
    return Trial(
        settings={}, rate=rate, updates=12, first=0.1, all=0.1, losses=(same,), text=same, moved=moved, broke=broke
    )


def test_the_rate_goes_up_where_nothing_moved_and_down_where_the_model_broke() -> None:
    still, broken, good = (trial(1e-4, moved=False, broke=False), trial(1e-4, moved=True, broke=True),
                           trial(1e-4, moved=True, broke=False))  # fmt: skip
    assert next_rate([still]) == 3e-4
    assert next_rate([broken]) == 3.3e-5
    assert next_rate([good]) is None
    assert next_rate([still, trial(3e-4, moved=True, broke=True)]) is None, "no rate is tried twice"
    assert next_rate([trial(None, moved=False, broke=False)]) is None


def massive(model: Any) -> Any:
    """The model with a first token whose state is a thousand times as long, from the first layer on."""

    def lengthen(module: Any, inputs: Any, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[:, 0] = states[:, 0] * 1000
        return (states, *output[1:]) if isinstance(output, tuple) else states

    model.model.layers[0].register_forward_hook(lengthen)
    return model


def test_sinks_are_found_where_they_are(tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    rows = next(Data.defender(tiny_testbed.domain, tokenizer).stream("retain", batch_size=6, seed=0))
    assert not any(layer.sinks for layer in activations(model, rows))
    embedding, first, *_ = activations(massive(tiny_testbed.model.load()), rows)
    assert embedding.sinks == 0
    assert (first.layer, first.positions) == (1, (0,))
    assert first.sinks == pytest.approx(float(6 / rows.mask.sum()))
    assert first.ratio > 100


def test_of_a_model_with_sinks_the_safeguard_s_own_settings_for_them_are_tried(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.engine.checkpoint import Checkpoint

    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self, *options: massive(load(self, *options)))
    [found] = (
        Calibrator(model=tiny_testbed.model, domain=tiny_testbed.folder).run([("random-mapping", MAPPING)]).safeguards
    )
    assert found.proposed["spare_sinks"] is True
    assert found.proposed["retain.representations"] == "relative"
    raw, relative = ({t.name: t for t in terms} for terms in (found.terms, found.adapted))
    assert raw["retain: hidden states, l2"].gradient > 20 * relative["retain: hidden states, relative"].gradient


def test_terms_updates_and_losses_are_measured(tiny_testbed: SmallTestbed) -> None:
    said: list[str] = []
    preset = replace(MAPPING, retain=RetainLoss(representations="relative"))
    calibration = Calibrator(model=tiny_testbed.model, domain=tiny_testbed.folder).run([("it", preset)], said.append)
    [found] = calibration.safeguards
    assert [(t.name, t.setting, t.keeps) for t in found.terms] == [
        ("mapping loss", "forget_weight", False),
        ("retain: language model", "retain.language_model_weight", True),
        ("retain: hidden states, relative", "retain.representation_weight", True),
    ]
    assert found.terms == found.adapted
    assert all(t.gradient > 0 for t in found.terms)
    first = found.trials[0]
    assert (first.rate, first.updates) == (1.5e-3, 12)
    assert 0 < first.first < first.all
    # AdamW's first update moves every weight with a gradient by its rate.
    model = tiny_testbed.model.load()
    size = (
        sum(p.numel() for p in model.parameters()) ** 0.5
        * 1.5e-3
        / sum(float(p.detach().square().sum()) for p in model.parameters()) ** 0.5
    )
    assert first.first == pytest.approx(float(size), rel=0.15)
    assert first.moved
    assert {loss.name for loss in first.losses} == {t.name for t in found.terms}
    assert said[:2] == ["it: the gradient of every term", "it: 12 updates at 0.0015"]


@pytest.mark.slow
def test_a_rate_at_which_nothing_moves_is_raised_and_one_that_breaks_is_lowered(tiny_testbed: SmallTestbed) -> None:
    calibrator = Calibrator(model=tiny_testbed.model, domain=tiny_testbed.folder)
    [slow, fast] = calibrator.run(
        [("slow", replace(MAPPING, learning_rate=1e-5)), ("fast", replace(MAPPING, learning_rate=0.3))]
    ).safeguards
    assert slow.trials[0].moved is False
    assert slow.proposed["learning_rate"] > 1e-5
    assert slow.chosen.moved
    assert fast.trials[0].broke
    assert fast.chosen.rate is not None
    assert fast.chosen.rate < 0.3


def test_a_toml_of_stages_comes_back_as_it_was(tmp_path: Path) -> None:
    tar = pick("holdfast.safeguards", "tar")
    adversary = replace(tar.adversaries[0], learning_rates=(1e-4, 2e-4))
    stages = [
        ("random-mapping", replace(MAPPING, spare_sinks=True, retain=RetainLoss(representations="relative"))),
        ("tar", replace(tar, adversaries=(adversary, *tar.adversaries[1:]), normalise_schedule=False)),
        ("rmu", pick("holdfast.safeguards", "rmu")),
    ]
    path = tmp_path / "stages.toml"
    path.write_text(stages_toml(stages))
    assert list(read_listing(path, "stages").plugins.values()) == [plugin for _, plugin in stages]


def test_what_calibrate_writes_safeguard_takes(
    tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "calibrated.toml"
    where = ["--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder)]
    small = ["--set", "random-mapping.forget_batch_size=4", "--set", "random-mapping.retain_batch_size=4",
             "--set", "random-mapping.outer_steps=3"]  # fmt: skip
    command = ["calibrate", "random-mapping", *where, "--out", str(toml), *small, "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "No token is an attention sink" in said.err
    assert "weight × gradient" in said.err
    [stage] = tomllib.loads(toml.read_text())["stages"]
    assert (stage["preset"], stage["outer_steps"], stage["forget_batch_size"]) == ("random-mapping", 3, 4)
    document = json.loads(said.out)
    assert (document["kind"], document["file"]) == ("calibrated", str(toml))
    assert document["safeguards"][0]["trials"][0]["updates"] == 3
    assert len(document["layers"]) == 4, "the embedding and three layers"
    assert main(["safeguard", str(toml), *where, "--out", str(tmp_path / "made")]) == 0
    card = json.loads((tmp_path / "made" / "holdfast.json").read_text())
    assert card["stages"][0]["config"]["outer_steps"] == 3
    toml.write_text("somebody else's")
    assert main(command) == 2
    assert "is there already and is no earlier result" in capsys.readouterr().err
