"""Plug-ins as data: what is found, shown, described and set."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacks.finetune import FineTune
from holdfast.core.files import digest
from holdfast.core.presets import (
    SOURCE,
    Field,
    added,
    collect,
    describe,
    families,
    fields,
    label_of,
    pick,
    preset_of,
    restore,
)
from holdfast.core.settings import with_settings
from holdfast.core.source import code_digest
from holdfast.core.types import HoldfastError
from holdfast.testing import small

PACKAGES = ("holdfast.attacks", "holdfast.safeguards", "holdfast.evals")
EVERY_PRESET = [(package, name) for package in PACKAGES for name in collect(package)]
every_preset = pytest.mark.parametrize(("package", "name"), EVERY_PRESET)


def modules_with_presets(package: str) -> list[str]:
    folder = Path(str(sys.modules[package].__file__)).parent
    return sorted(path.stem for path in folder.glob("*.py") if "\nPRESETS" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_preset_of_every_file_of_the_folder_is_found(package: str) -> None:
    modules = [sys.modules[f"{package}.{name}"] for name in modules_with_presets(package)]
    assert modules
    found = {name: preset for module in modules for name, preset in module.PRESETS.items()}
    if "benign-learning" in found:
        found["benign-learning"] = small(found["benign-learning"])  # as all tests have it (`learn_little`)
    assert collect(package) == found


def test_the_parts_that_safeguards_share_are_no_plugins() -> None:
    folder = Path(str(sys.modules["holdfast.safeguards"].__file__)).parent / "parts"
    parts = sorted(path.stem for path in folder.glob("*.py"))
    assert len(parts) > 1
    for part in parts:
        module = importlib.import_module(f"holdfast.safeguards.parts.{part}".removesuffix(".__init__"))
        assert not hasattr(module, "PRESETS")
    assert not any("Parts that safeguards share" in title for title in families("holdfast.safeguards"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package that nobody has imported yet."""
    folder = tmp_path / f"gadgets_of_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def test_a_file_put_into_the_folder_is_all_that_a_plugin_needs(package: Path) -> None:
    (package / "one.py").write_text("PRESETS = {'big': 1, 'small': 2}\n")
    (package / "two.py").write_text("PRESETS = {'other': 3}\n")
    (package / "helper.py").write_text("NOTHING = 0\n")
    assert collect(package.name) == {"big": 1, "small": 2, "other": 3}


def test_two_presets_of_one_name_are_refused_and_both_places_named(package: Path) -> None:
    for module in ("one", "two"):
        (package / f"{module}.py").write_text("PRESETS = {'same': object()}\n")
    with pytest.raises(HoldfastError, match=rf"'same' stands in both {package.name}\.one and {package.name}\.two"):
        collect(package.name)


def test_names_are_unique_over_the_kinds_too_so_that_list_knows_which_is_meant() -> None:
    names = [name for _, name in EVERY_PRESET]
    assert len(names) == len(set(names))


@every_preset
def test_a_preset_is_picked_by_its_name(package: str, name: str) -> None:
    assert pick(package, name) is collect(package)[name]


@pytest.mark.parametrize(
    ("package", "typed", "says"),
    [
        ("holdfast.attacks", "full-adamw-1e3", "there is no attack 'full-adamw-1e3'; did you mean full-adamw-1e-3"),
        ("holdfast.safeguards", "TAR", "there is no safeguard 'TAR'; known: .*random-mapping"),
        ("holdfast.safeguards", "random-maping", "did you mean random-mapping"),
        ("holdfast.evals", "hazzard", "there is no eval 'hazzard'; did you mean hazard"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(package: str, typed: str, says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        pick(package, typed)


def nested(plugin: Any) -> Iterator[Any]:
    """A plug-in and those it holds."""
    yield plugin
    for field in dataclasses.fields(plugin):
        held = getattr(plugin, field.name)
        for value in held if isinstance(held, tuple) else (held,):
            if dataclasses.is_dataclass(value):
                yield from nested(value)


@every_preset
def test_every_field_says_what_it_is(package: str, name: str) -> None:
    for plugin in nested(pick(package, name)):
        shown = fields(plugin)
        assert [field.name for field in shown] == [field.name for field in dataclasses.fields(plugin)]
        assert [field.value for field in shown] == [getattr(plugin, field.name) for field in shown]
        assert not [field.name for field in shown if len(field.doc) < 3 or "\n" in field.doc]
        assert all(field.type for field in shown)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Not a field's text."""

    first: int = 1
    """the first,
    over two lines"""
    silent: float = 2.0
    second: str = "x"
    """the second"""


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    second: str = "y"
    """told anew"""
    third: tuple[int, ...] = ()
    """the third"""


def test_texts_are_inherited_and_a_field_without_one_borrows_none() -> None:
    assert fields(Child(first=5)) == [
        Field("first", "int", 5, "the first, over two lines"),
        Field("silent", "float", 2.0, ""),
        Field("second", "str", "y", "told anew"),
        Field("third", "tuple[int, ...]", (), "the third"),
    ]


def other(value: Any) -> Any:
    """Any other value; whether the plug-in would accept it does not matter here."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, 1)
        case None:
            return 0
    raise AssertionError(f"no other value for {value!r}")


def put(plugin: Any, field: str, value: Any) -> Any:
    changed = copy.copy(plugin)
    object.__setattr__(changed, field, value)
    return changed


def variants(plugin: Any) -> Iterator[tuple[str, Any]]:
    """The plug-in with each of its fields changed, one at a time, those of nested plug-ins too."""
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        if dataclasses.is_dataclass(value):
            for name, changed in variants(value):
                yield f"{field.name}.{name}", put(plugin, field.name, changed)
            continue
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    for name, changed in variants(item):
                        yield f"{field.name}.{i}.{name}", put(plugin, field.name, put_item(value, i, changed))
        if "apart" not in field.metadata:
            yield field.name, put(plugin, field.name, other(value))


def put_item(items: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*items[:index], value, *items[index + 1 :])


@every_preset
def test_a_description_is_json_and_differs_for_every_field_changed(package: str, name: str) -> None:
    plugin = pick(package, name)
    described = describe(plugin)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert describe(copy.deepcopy(plugin)) == described
    digests = {"": digest(described)}
    for path, changed in variants(plugin):
        digests[path] = digest(describe(changed))
    assert len(digests) > len([field for field in dataclasses.fields(plugin) if "apart" not in field.metadata])
    assert len(set(digests.values())) == len(digests)


def test_a_description_names_the_class_so_that_equal_fields_of_two_kinds_differ() -> None:
    child = Child(second="x")
    assert describe(child)["class"] == "Child"
    assert describe(child) != {**describe(Parent()), "third": []}


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A plug-in that gained a field."""

    old: int = 1
    """there from the start"""
    new: int = added(2)
    """came later"""


def test_a_field_that_was_added_stands_in_a_description_only_where_it_is_set() -> None:
    source = {SOURCE: code_digest(Grown)}
    assert describe(Grown()) == {"class": "Grown", "old": 1, **source}
    assert describe(Grown(new=3)) == {"class": "Grown", "old": 1, "new": 3, **source}
    assert [field.value for field in fields(Grown())] == [1, 2]


NAME = "full-adamw-1e-3"


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ([], NAME),
        (["learning_rate=1e-5"], f"{NAME}+learning_rate=1e-05"),
        (["max_steps=7", "learning_rate=0.5"], f"{NAME}+max_steps=7+learning_rate=0.5"),
        (["learning_rate=0.5", "max_steps=7"], f"{NAME}+max_steps=7+learning_rate=0.5"),
        (["max_steps=9", "max_steps=7"], f"{NAME}+max_steps=7"),
        ([f"learning_rate={FineTune().learning_rate}"], NAME),
        (["max_grad_norm=0.5"], f"{NAME}+max_grad_norm=0.5"),
        (["lora_rank=4"], f"{NAME}+lora_rank=4"),
    ],
)
def test_a_changed_preset_is_called_after_its_changes(settings: list[str], label: str) -> None:
    plain = FineTune()
    [(made, changed)] = with_settings({NAME: plain}, [f"{NAME}.{setting}" for setting in settings]).items()
    assert made == label
    assert preset_of(made) == NAME
    assert (made == NAME) == (changed == plain)


def test_many_changes_are_counted_and_hashed() -> None:
    settings = ["learning_rate=1e-5", "max_steps=7", "batch_size=3", "weight_decay=0.25"]
    [label] = with_settings({NAME: FineTune()}, [f"{NAME}.{setting}" for setting in settings])
    [other] = with_settings({NAME: FineTune()}, [f"{NAME}.{setting}" for setting in [*settings, "batch_size=4"]])
    assert re.fullmatch(rf"{NAME}\+4-fields-[0-9a-f]{{6}}", label)
    assert label != other
    assert preset_of(label) == NAME


@dataclass(frozen=True, kw_only=True)
class Odd:
    rates: tuple[float, ...] = ()


@pytest.mark.parametrize("rates", ["(1.0, 2.0)", "(1e-3,)"])
def test_a_value_that_a_shell_would_read_is_hashed(rates: str) -> None:
    [label] = with_settings({"odd": Odd()}, [f"odd.rates={rates}"])
    assert re.fullmatch(r"odd\+1-field-[0-9a-f]{6}", label)


TEXTS = st.text(max_size=20) | st.sampled_from(["a b", "../x", "$(x)", "a|b", "*", "`x`"])


@given(text=TEXTS)
def test_a_label_is_safe_in_a_shell_a_path_and_a_table(text: str) -> None:
    label = label_of("parent", Parent(), Parent(second=text))
    assert shlex.quote(label).strip("'") == label
    assert not {"*", "`", "|", "[", "<", "/", "\\"} & set(label)
    assert len(label) < 70


@every_preset
def test_no_preset_is_called_as_a_changed_one_is(package: str, name: str) -> None:
    assert preset_of(name) == name


@pytest.mark.parametrize("package", ["holdfast.attacks", "holdfast.evals"])
def test_what_was_described_is_restored(package: str) -> None:
    for preset in collect(package).values():
        assert restore(package, json.loads(json.dumps(describe(preset)))) == preset


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": "many"}, 'max_steps of FineTune: .*valid integer, not "many"'),
        ({"max_steps": True}, "valid integer, not true"),
        ({"optimizer": 3}, "input should be 'adamw'"),
        ({"learning_rate": None}, "valid number, not null"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"invented": 3}, "FineTune has no field 'invented'"),
        ({"class": ["FineTune"]}, "there is no class"),
        ({"class": "Fine"}, "there is no class 'Fine'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        restore("holdfast.attacks", {**describe(FineTune()), **changes})
