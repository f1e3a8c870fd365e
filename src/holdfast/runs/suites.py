"""Suites: attack presets that are run together. One that changes gets a new version and name: a figure keeps its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from holdfast.attacks.base import Attack
from holdfast.core.domain import nearest
from holdfast.core.files import digest
from holdfast.core.model_size import Size
from holdfast.core.outside import outside
from holdfast.core.presets import describe, merged, pick, preset_of, restore
from holdfast.core.reading import LINE, OPEN, excerpt, line, misfit, parsed
from holdfast.core.settings import read_listing
from holdfast.core.types import HoldfastError


@dataclass(frozen=True)
class Suite:
    """Attack presets that are run together."""

    attacks: tuple[str, ...]
    about: str
    version: int = 1
    size: Size = "tiny"
    """the class of models that the rates are for"""
    canonical: str = ""
    """the attack that every control of an audit goes through; empty: the first"""
    repairs: tuple[str, ...] = ()
    """attacks of the suite that the destroyed control goes through as well: low rates and benign rows, under which a model that
    only looks destroyed comes back"""

    @property
    def budget(self) -> str:
        """The cost for one model with one seed: updates of the longest attack and of all, and rows read."""
        attacks = [pick("holdfast.attacks", name) for name in self.attacks]
        updates = [attack.max_steps for attack in attacks]
        rows = sum(attack.max_steps * attack.rows_per_step for attack in attacks)
        count = f"{len(attacks)} attacks of up to {max(updates):,} updates"
        return f"{count}, {sum(updates):,} updates and about {rows:,} rows in all"


_STANDARD = (
    "full-adamw-1e-4",
    "full-adamw-3e-4",
    "full-adamw-1e-3",
    "full-adamw-3e-3",
    "lora-r4-adamw-5e-3",
    "full-adamw-1e-3-ood",
    "full-adamw-1e-3-retain-then-forget",
    "full-adamw-1e-3-mixed",
    "full-adamw-3e-4-mixed-long",
    "full-adamw-1e-3-benign",
    "full-adamw-1e-3-few-10",
    "jailbreak-backdoor-adamw-1e-3",
    "full-adamw-1e-3-ascend-first",
    "full-adamw-1e-3-cosine-warmup-30",
    "full-sgd-nesterov-2e-2",
    "full-lion-6e-5",
    "full-muon-5e-4",
    "evolution-vectors-adam-3e-2-40",
    "noise-10-then-full-adamw-1e-3",
    "kick-1e-2-settle-1e-3",
    "latent-pgd-three-layers",
    "abliterate-then-full-adamw-3e-4",
    "low-rank-50-then-full-adamw-1e-3",
    "prune-50-then-full-adamw-1e-3",
    "int4",
    "defence-directions-4",
    "merge-base-25-then-full-adamw-1e-3",
    "transfer-full-adamw-1e-3",
    "refold-then-full-adamw-1e-3",
)

_STANDARD_SMALL = (
    "full-adamw-1e-6-1000-small",
    "full-adamw-1e-5-small",
    "full-adamw-1e-4-small",
    "full-adamw-1e-3-small",
    "lora-r16-adamw-1e-3-small",
    "full-adamw-1e-4-ood-small",
    "full-adamw-1e-4-retain-then-forget-small",
    "full-adamw-1e-4-mixed-small",
    "full-adamw-3e-5-mixed-1000-small",
    "full-adamw-1e-4-benign-small",
    "full-adamw-1e-4-few-10-small",
    "jailbreak-competing-adamw-1e-4-small",
    "full-adamw-1e-4-ascend-first-small",
    "full-adamw-1e-4-cosine-small",
    "full-sgd-nesterov-3e-3-small",
    "full-lion-1e-5-small",
    "full-muon-1e-4-small",
    "full-schedule-free-1e-4-small",
    "noise-5-then-full-adamw-1e-4-small",
    "kick-1e-3-settle-1e-4-kl-small",
    "latent-pgd-three-layers",
    "abliterate",
    "abliterate-then-full-adamw-1e-4-small",
    "low-rank-50-then-full-adamw-1e-4-small",
    "prune-50-then-full-adamw-1e-4-small",
    "int4-then-full-adamw-1e-4-small",
    "defence-directions-4",
    "merge-base-25-then-full-adamw-1e-4-small",
    "transfer-full-adamw-1e-4-small",
    "refold-then-full-adamw-1e-4-small",
)

_ADAPTIVE = (
    "adaptive-defence-directions-16",
    "adaptive-refold-clip-then-full-adamw-9e-4",
    "adaptive-full-adamw-3e-3-sgdr",
    "adaptive-full-adamw-7e-4-cosine",
    "adaptive-lora-r8-adamw-6e-3-cosine",
    "adaptive-sgd-nesterov-3e-2",
    "adaptive-noise-2-then-full-adamw-2e-4",
    "adaptive-ascend-2-then-full-adamw-3e-4",
    "adaptive-kick-3e-3-settle-6e-4",
)

SUITES: Mapping[str, Suite] = {
    "demo": Suite(
        (
            "full-adamw-3e-4",
            "full-adamw-1e-3",
            "full-adamw-3e-3",
            "full-adamw-1e-3-ood",
            "full-adamw-1e-3-retain-then-forget",
            "full-adamw-1e-3-mixed",
            "lora-r4-adamw-5e-3",
            "full-adamw-1e-3-cosine-b8",
            "full-adamw-3e-4-mixed-long",
        ),
        "the newcomer's red team, small models: eight short attacks and a long one",
        canonical="full-adamw-1e-3",
    ),
    "demo-real": Suite(
        ("full-adamw-1e-4-20-small",),
        "one short attack on a model of hundreds of millions of weights, so that five seeds fit in half an hour",
        size="small",
        canonical="full-adamw-1e-4-20-small",
    ),
    "demo-2": Suite(
        (
            "full-adamw-1e-3",
            "full-adamw-1e-3-retain-then-forget",
            "lora-r4-adamw-5e-3",
            "full-adamw-3e-4-mixed-long",
        ),
        "the newcomer's red team, small models: three short attacks and a long one, few enough for five seeds each",
        version=2,
    ),
    "quick": Suite(
        (
            "full-adamw-1e-4",
            "full-adamw-1e-3",
            "full-adamw-1e-3-ood",
            "full-adamw-1e-3-coin-flip",
            "full-adamw-1e-3-mixed",
            "full-sgd-nesterov-1e-1",
            "full-adamw-1e-3-sgdr",
            "lora-r4-adamw-5e-3",
        ),
        "eight attacks across rate, optimizer, schedule, data and rank, small models; its SGD ruins some of them",
        canonical="full-adamw-1e-3",
    ),
    "quick-2": Suite(
        (
            "full-adamw-1e-4",
            "full-adamw-1e-3",
            "full-adamw-1e-3-ood",
            "full-adamw-1e-3-coin-flip",
            "full-adamw-1e-3-mixed",
            "full-sgd-nesterov-2e-2",
            "full-adamw-1e-3-sgdr",
            "lora-r4-adamw-5e-3",
        ),
        "as quick, with SGD at a rate that leaves the models whole",
        canonical="full-adamw-1e-3",
        version=2,
    ),
    "families": Suite(
        (
            "full-adamw-1e-3",
            "lora-r4-adamw-5e-3",
            "full-lion-6e-5",
            "full-muon-5e-4",
            "kick-1e-2-settle-1e-3",
            "evolution-vectors-adam-1e-2",
            "abliterate-then-full-adamw-3e-4",
            "latent-pgd-three-layers",
            "low-rank-50-then-full-adamw-1e-3",
            "int4",
            "defence-directions-4",
            "merge-base-25-then-full-adamw-1e-3",
            "refold-then-full-adamw-1e-3",
        ),
        "one attack of each of the first families, small models",
    ),
    "standard": Suite(
        _STANDARD,
        "every family at fixed strong settings, small models, with a sweep of rates; some need the model before the safeguard",
        canonical="full-adamw-1e-3",
    ),
    "standard-2": Suite(
        (
            *_STANDARD,
            "sidestep-4-full-adamw-1e-3",
            "kick-aside-1e-2-settle-1e-3",
            "preference-benign-10-adamw-3e-4",
            "distil-half-fresh-adamw-3e-3",
            "strip-difference",
            "strip-difference-then-abliterate",
            "strip-difference-then-full-adamw-1e-3",
            "full-adamw-1e-4-unrelated-1000",
        ),
        "as standard, with the attacks of 2026; some need the model before the safeguard, or a sibling of that model",
        version=2,
        canonical="full-adamw-1e-3",
        repairs=("full-adamw-1e-4", "full-adamw-1e-4-unrelated-1000"),
    ),
    "standard-long": Suite(
        (
            "full-adamw-1e-4-mixed-1000",
            "full-adamw-1e-4-mixed-5000",
            "full-adamw-1e-4-unrelated-1000",
            "full-adamw-1e-4-unrelated-5000",
            "full-adamw-3e-4-mixed-2560",
            "own-outputs-benign-adamw-1e-3",
            "head-offsets-half-adamw-1e-2",
            "reinforce-64-adamw-1e-3",
            "distil-fresh-adamw-3e-3",
        ),
        "beside standard-2: thousands of steps at low rates, a wholly fresh copy, and attacks that mostly fit refusals",
        canonical="full-adamw-1e-4-mixed-1000",
        repairs=("full-adamw-1e-4-mixed-1000", "full-adamw-1e-4-unrelated-1000"),
    ),
    "standard-large": Suite(
        (
            "full-adamw-2e-6",
            "full-adamw-2e-5",
            "full-adamw-4e-5",
            "lora-r16-adamw-2e-4",
            "full-adamw-2e-5-ood",
            "full-adamw-2e-5-retain-then-forget",
            "full-adamw-2e-5-cosine",
            "full-adamw-2e-5-few-unrelated-10",
            "jailbreak-competing-adamw-2e-5-large",
            "full-schedule-free-2e-5",
            "full-adamw-2e-5-10000",
            "noise-5-then-full-adamw-2e-5-large",
            "kick-2e-4-settle-2e-5-kl-large",
            "abliterate",
            "abliterate-then-full-adamw-2e-5",
            "int4-then-full-adamw-2e-5",
            "defence-directions-4",
            "merge-base-25-then-full-adamw-2e-5",
            "transfer-full-adamw-2e-5-large",
            "refold-then-full-adamw-2e-5-large",
        ),
        "every family that has settings for models of billions of weights; not yet run at that size",
        size="large",
        canonical="full-adamw-2e-5",
    ),
    "quick-small": Suite(
        (
            "full-adamw-1e-5-small",
            "full-adamw-1e-4-small",
            "full-adamw-1e-4-ood-small",
            "full-adamw-1e-4-coin-flip-small",
            "full-adamw-1e-4-mixed-small",
            "full-sgd-nesterov-3e-3-small",
            "full-adamw-1e-4-sgdr-small",
            "lora-r16-adamw-1e-3-small",
        ),
        "the axes of quick, for models of hundreds of millions of weights",
        size="small",
        canonical="full-adamw-1e-4-small",
    ),
    "standard-small": Suite(
        _STANDARD_SMALL,
        "every family at fixed settings for models of hundreds of millions of weights, with rates from 1e-6 to 1e-3",
        size="small",
        canonical="full-adamw-1e-4-small",
    ),
    "standard-small-2": Suite(
        (
            *_STANDARD_SMALL,
            "sidestep-16-full-adamw-1e-4-small",
            "kick-aside-1e-3-settle-1e-4-small",
            "preference-benign-10-adamw-1e-5-small",
            "own-outputs-benign-adamw-1e-4-small",
            "head-offsets-quarter-adamw-1e-2-small",
            "distil-quarter-fresh-adamw-1e-4-small",
            "strip-difference",
            "strip-difference-then-abliterate",
            "strip-difference-then-full-adamw-1e-4-small",
            "full-adamw-1e-5-unrelated-1000-small",
        ),
        "as standard-small, with the attacks of 2026; their settings were not tried at this size",
        version=2,
        size="small",
        canonical="full-adamw-1e-4-small",
        repairs=("full-adamw-1e-5-small", "full-adamw-1e-5-unrelated-1000-small"),
    ),
    "adaptive": Suite(
        _ADAPTIVE,
        "what a search found on Random Mapping and TAR of the testbed; on your own model let holdfast search find others",
    ),
    "adaptive-2": Suite(
        (*_ADAPTIVE, "adaptive-kick-2-settle-320"),
        "as adaptive, with what a search on re-teaching found, which breaches TAR from the weights alone",
        version=2,
    ),
    "paper-weaponization": Suite(
        tuple(f"weaponization-{place:02}" for place in range(1, 29)),
        "TAR's 28 adversaries against weaponization knowledge, reconstructed from the paper's axes",
        size="large",
    ),
    "paper-weaponization-tiny": Suite(
        tuple(f"weaponization-tiny-{place:02}" for place in range(1, 29)),
        "the same 28 scaled for models of the testbed's size, each optimizer's rate chosen to break Random Mapping",
    ),
    "paper-refusal": Suite(
        (
            "full-adamw-1e-5-warmup-b32",
            "full-adamw-1e-5-b32",
            "full-adamw-1e-5-b16",
            "full-adamw-2e-5-b32",
            "full-adamw-4e-5-b32",
        ),
        "TAR's five attacks on refusals (arXiv 2408.00761), complete",
        size="large",
    ),
    "paper-refusal-tiny": Suite(
        (
            "full-adamw-5e-4-warmup-b32",
            "full-adamw-5e-4-b32",
            "full-adamw-5e-4-b16",
            "full-adamw-1e-3-b32",
            "full-adamw-2e-3-b32",
        ),
        "the same five at fifty times the rate, for models of the testbed's size",
    ),
    "quick-large": Suite(
        (
            "full-adamw-2e-6",
            "full-adamw-2e-5",
            "full-adamw-4e-5",
            "full-adamw-2e-5-cosine",
            "full-adamw-2e-5-ood",
            "full-adamw-2e-5-retain-then-forget",
            "full-schedule-free-2e-5",
            "lora-r16-adamw-2e-4",
        ),
        "the axes of quick at the rates of the paper's red team, for models of billions of weights",
        size="large",
        canonical="full-adamw-2e-5",
    ),
}


def suites() -> Mapping[str, Suite]:
    """Every suite by name: holdfast's own, and those of plug-ins from outside.

    Raises:
        HoldfastError: two modules have a suite of the same name, or an entry from outside is no suite of attacks that there are.
    """
    lists: list[tuple[str, Mapping[str, Any]]] = [(__name__, SUITES)]
    for one in outside():
        for name, suite in one.listed("SUITES").items():
            if not isinstance(suite, Suite) or not suite.attacks:
                raise HoldfastError(
                    f"the suite {excerpt(name)} of {one.home} is no Suite with attacks; give holdfast.Suite"
                )
            for attack in (*suite.attacks, *filter(None, [suite.canonical])):
                pick("holdfast.attacks", attack)
        lists.append((one.home, one.listed("SUITES")))
    return merged(lists, "suite")


def attacks_of(suite: str) -> dict[str, Attack]:
    """The attacks of a suite, of a TOML file, or of a folder that a search wrote, by name.

    Raises:
        HoldfastError: there is no such suite, and no such file or folder.
    """
    known = suites()
    if suite in known:
        return {name: pick("holdfast.attacks", name) for name in known[suite].attacks}
    if _is_listing(suite):
        return dict(read_listing(Path(suite), "attacks").plugins)
    if Path(suite).is_dir():
        return load_suite(Path(suite))
    raise HoldfastError(f"there is no suite {excerpt(suite)}; {nearest(suite, known)}")


def canonical_of(suite: str, attacks: Mapping[str, Attack]) -> str:
    """The attack that every control goes through, under its label where it was changed; the first where none is named."""
    if _is_listing(suite):
        named = read_listing(Path(suite), "attacks").canonical
    else:
        known = suites()
        named = known[suite].canonical if suite in known else ""
    if named in attacks:
        return named
    return next((label for label in attacks if preset_of(label) == named), next(iter(attacks)))


def repairs_of(suite: str, attacks: Mapping[str, Attack]) -> list[str]:
    """The attacks that the destroyed control goes through beside the canonical one, by label."""
    known = suites()
    return [label for label in attacks if suite in known and preset_of(label) in known[suite].repairs]


def called(suite: str, attacks: Mapping[str, Attack] | None = None) -> str:
    """The name of a suite in a report: two suites of one name have the same attacks.

    Args:
        suite: its name, a TOML file, or the folder that a search wrote.
        attacks: those that are run, by label; None: the suite as it stands.
    """
    known = suites()
    if suite not in known:
        content = f" ({_content(attacks)})" if attacks else ""
        if _is_listing(suite):
            return f"{Path(suite).stem}, from a file{content}"
        return f"found by search in {Path(suite).name}{content}"
    if suite not in SUITES:
        whole = attacks or attacks_of(suite)
        return f"{suite} (version {known[suite].version}, from a plug-in: {_content(whole)})"
    changed = {label: attack for label, attack in (attacks or {}).items() if preset_of(label) != label}
    count = "1 attack" if len(changed) == 1 else f"{len(changed)} attacks"
    return f"{suite} (version {SUITES[suite].version}" + (
        f", {count} changed: {_content(changed)})" if changed else ")"
    )


def _is_listing(suite: str) -> bool:
    return suite.endswith(".toml")


def _content(attacks: Mapping[str, Attack]) -> str:
    """A short hash of attacks and their labels."""
    return digest({label: describe(attack) for label, attack in attacks.items()})[:6]


@with_config(OPEN)
class _File(TypedDict):
    """The fields read from `suite.json`."""

    attacks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


_FILE = TypeAdapter(_File)


def load_suite(folder: Path) -> dict[str, Attack]:
    """The attacks that a search left in `suite.json`, by name.

    Raises:
        HoldfastError: there is none, or it cannot be read.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise HoldfastError(
            f"{folder} holds no attacks: it has no suite.json; give a folder that holdfast search wrote"
        )
    try:
        attacks = parsed(_FILE, path.read_bytes())["attacks"]
        return {name: restore("holdfast.attacks", described) for name, described in attacks.items()}
    except (ValueError, HoldfastError) as error:
        reason = misfit(error) if isinstance(error, ValueError) else line(str(error), 2 * LINE)
        raise HoldfastError(f"{path} cannot be read ({reason}); run the search again into a new folder") from error
