"""Settings as text, and the TOML files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacks.finetune import FineTune
from holdfast.core.presets import describe, pick
from holdfast.core.settings import read_listing, with_settings
from holdfast.core.types import HoldfastError
from holdfast.safeguards.parts.objective import RetainLoss

RUN: Mapping[str, Any] = {
    "attack": FineTune(),
    "tar": pick("holdfast.safeguards", "tar"),
    "full-adamw-1e-3": FineTune(),
    "dotted.name": FineTune(),
    "hazard": pick("holdfast.evals", "hazard"),
}


def in_place(changed: Mapping[str, Any]) -> dict[str, Any]:
    """The plug-ins of `RUN` after settings, under their old names."""
    return dict(zip(RUN, changed.values(), strict=True))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attack.max_steps=7", 7),
        ("attack.max_steps=1_000", 1000),
        ("attack.learning_rate=3e-4", 3e-4),
        ("attack.learning_rate=1", 1.0),
        ("attack.weight_decay=0", 0.0),
        ("attack.max_grad_norm=0.5", 0.5),
        ("attack.max_grad_norm=None", None),
        ("attack.restart_every=8", 8),
        ("attack.optimizer=sgd-nesterov", "sgd-nesterov"),
        ("attack.hazard=hazard_ood", "hazard_ood"),
        ("tar.normalise_schedule=false", False),
        ("tar.normalise_schedule=True", True),
        ("hazard.sample=None", None),
        ("hazard.questions=a=b", "a=b"),
        ("full-adamw-1e-3.batch_size=4", 4),
        ("dotted.name.batch_size=4", 4),
    ],
)
def test_a_setting_changes_one_field_of_one_preset(setting: str, value: Any) -> None:
    name, _, field = setting.partition("=")[0].rpartition(".")
    changed = in_place(with_settings(RUN, [setting]))
    held = getattr(changed[name], field)
    assert (held, type(held)) == (value, type(value))
    assert changed[name] == replace(RUN[name], **{field: value})
    assert {**changed, name: RUN[name]} == RUN


@dataclass(frozen=True, kw_only=True)
class Odd:
    rates: tuple[float, ...] = ()
    pair: tuple[float, float] | None = None
    held: RetainLoss = RetainLoss()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rates=(1e-3, 2e-3)", (1e-3, 2e-3)),
        ("rates=(1,)", (1.0,)),
        ("rates=()", ()),
        ("pair=(1, 0.5)", (1.0, 0.5)),
        ("pair=None", None),
    ],
)
def test_tuples_are_given_as_python_writes_them(setting: str, value: Any) -> None:
    [odd] = with_settings({"odd": Odd()}, [f"odd.{setting}"]).values()
    held = getattr(odd, setting.partition("=")[0])
    assert held == value
    assert describe(Odd(rates=(1.0,)))["rates"] == [1.0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("attack.max_steps", "not of the form PRESET.FIELD=VALUE"),
        ("max_steps=3", "not of the form PRESET.FIELD=VALUE"),
        ("atack.max_steps=3", "'atack' is not in this run; did you mean attack?"),
        ("attack.max_step=3", "attack has no field 'max_step'; did you mean max_steps?"),
        ("attack.benign_rows=3", "attack has no field 'benign_rows'"),
        ("attack.max_steps=many", "valid integer"),
        ("attack.max_steps=2.5", "valid integer"),
        ("attack.max_steps=", "valid integer"),
        ("attack.max_steps=true", "valid integer"),
        ("attack.max_steps=None", "valid integer"),
        ("attack.learning_rate=fast", "valid number"),
        ("attack.learning_rate=inf", "valid number"),
        ("attack.learning_rate=1e999", "finite number"),
        ("attack.weight_decay=nan", "valid number"),
        ("attack.optimizer=adamww", "input should be 'adamw', 'adam'"),
        ("attack.optimizer=3", "input should be 'adamw', 'adam'"),
        ("attack.learning_rate=-1", "learning_rate must be above 0"),
        ("hazard.questions=3", "valid string"),
        ("tar.normalise_schedule=maybe", "valid boolean"),
        ("tar.normalise_schedule=1", "valid boolean"),
        ("tar.retain=None", "tar has no field 'retain'; did you mean retain."),
        ("tar.adversaries=({'weight': 2.0},)", "tar has no field 'adversaries'"),
        ("odd.pair=(1.0,)", "odd.pair: 1: field required"),
        ("odd.rates=0.5", "valid tuple"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(setting: str, says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        with_settings({**RUN, "odd": Odd()}, [setting])


def test_settings_are_applied_in_order_and_the_presets_themselves_stay() -> None:
    before = dict(RUN)
    changed = in_place(with_settings(RUN, ["attack.max_steps=3", "attack.batch_size=2", "attack.max_steps=4"]))
    assert changed["attack"] == FineTune(max_steps=4, batch_size=2)
    assert before == RUN


@given(value=st.floats(min_value=1e-300, max_value=1e300, allow_nan=False))
def test_any_number_is_read_back_as_it_was_written(value: float) -> None:
    [changed] = with_settings({"attack": FineTune()}, [f"attack.learning_rate={value!r}"]).values()
    assert changed.learning_rate == value


def test_a_path_leads_into_nested_plugins() -> None:
    tar = pick("holdfast.safeguards", "tar")
    settings = ["tar.retain.representations=relative", "tar.adversaries.0.weight=7.5", "tar.outer_steps=7"]
    [(label, changed)] = with_settings({"tar": tar}, settings).items()
    assert changed.retain == replace(tar.retain, representations="relative")
    assert changed.adversaries[0] == replace(tar.adversaries[0], weight=7.5)
    assert changed.adversaries[1:] == tar.adversaries[1:]
    assert changed.outer_steps == 7
    assert label.startswith("tar+3-fields-")
    [label] = with_settings({"tar": tar}, settings[:1])
    assert label == "tar+retain.representations=relative"


def test_settings_that_only_fit_each_other_come_in_any_order() -> None:
    rmu = pick("holdfast.safeguards", "rmu")
    settings = ["rmu.layer=2", "rmu.retain.layers=(3,)"]
    [there], [back] = (with_settings({"rmu": rmu}, order).values() for order in (settings, settings[::-1]))
    assert there == back
    assert (there.layer, there.retain.layers) == (2, (3,))


def test_a_path_that_leads_nowhere_is_told_the_right_one() -> None:
    with pytest.raises(HoldfastError, match=r"did you mean retain[.]layers"):
        with_settings({"rmu": pick("holdfast.safeguards", "rmu")}, ["rmu.retain.layer=3"])
    with pytest.raises(HoldfastError, match=r"rmu\.retain\.layers: .*valid tuple"):
        with_settings({"rmu": pick("holdfast.safeguards", "rmu")}, ["rmu.retain.layers=3"])


def write(folder: Path, text: str) -> Path:
    (folder / "listed.toml").write_text(text)
    return folder / "listed.toml"


def test_a_file_lists_presets_with_settings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        canonical = "full-adamw-1e-3"
        [[attacks]]
        preset = "full-adamw-1e-3"
        max_steps = 1000
        [[attacks]]
        preset = "full-adamw-1e-3"
        [[stages]]
        preset = "tar"
        "adversaries.0.weight" = 7.5
        retain = { representations = "relative", layers = [1, 2] }
        """,
    )
    suite = read_listing(path, "attacks")
    plain = pick("holdfast.attacks", "full-adamw-1e-3")
    assert suite.plugins == {
        "full-adamw-1e-3+max_steps=1000": replace(plain, max_steps=1000),
        "full-adamw-1e-3": plain,
    }
    assert next(iter(suite.plugins)) != suite.canonical == "full-adamw-1e-3"
    [tar] = read_listing(path, "stages").plugins.values()
    assert (tar.adversaries[0].weight, tar.retain.representations, tar.retain.layers) == (7.5, "relative", (1, 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stages = 3", "stages: input should be a valid list"),
        ("[[stages]]", "needs a line preset"),
        ("[[stages]]\npreset = 3", "needs a line preset"),
        ('[[stages]]\npreset = "tarr"', "no safeguard 'tarr'; did you mean tar"),
        ('[[stages]]\npreset = "tar"\nsteps = 3', "tar has no field 'steps'; did you mean"),
        ('[[stages]]\npreset = "tar"\nouter_steps = "many"', "tar.outer_steps: .*valid integer"),
        ('[[stages]]\npreset = "tar"\n[[stages]]\npreset = "tar"', "lists tar twice"),
        ('[[stage]]\npreset = "tar"', "stage: no such field"),
        ('[[attacks]]\npreset = "full-adamw-1e-3"', "lists no stages"),
        ('about = "mine"\n[[stages]]\npreset = "tar"', "about: no such field"),
        ("stages = [", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=says) as refused:
        read_listing(write(tmp_path, text), "stages")
    assert "\n" not in str(refused.value)


def test_the_canonical_attack_of_a_file_is_one_of_its_attacks(tmp_path: Path) -> None:
    path = write(tmp_path, 'canonical = "full"\n[[attacks]]\npreset = "full-adamw-1e-3"')
    with pytest.raises(HoldfastError, match="canonical attack is not among those listed; known: full-adamw-1e-3"):
        read_listing(path, "attacks")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"nowhere\.toml cannot be read: No such file"):
        read_listing(tmp_path / "nowhere.toml", "stages")
