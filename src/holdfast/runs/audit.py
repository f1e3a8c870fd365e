"""An audit: a model under test, its peers and its controls, under every attack of a suite.

1. The model, its peers, the reference and the never-exposed model go through every attack; the undefended and a destroyed model
   through one canonical attack, the destroyed one also through low rates and benign rows where the suite has them.
2. Those two then go through the attack that did most to the model under test as well, which is only known now.

Both are one campaign in one folder, so an audit that was stopped goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Model, label_of, named_attacks
from holdfast.campaign.run import called_by_content, check_campaign, claimed_campaign, run_held
from holdfast.core.converted import Converted, as_text
from holdfast.core.domain import Domain
from holdfast.core.options import Options
from holdfast.core.records import FOREIGN, plain_attack, read_campaign
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.base import Evaluation
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Outcome, Progress
from holdfast.runs.fitting import suite_for
from holdfast.runs.reproducible import write_reproduction
from holdfast.runs.suites import attacks_of, called, canonical_of, repairs_of, suites
from holdfast.stats.summary import summarise

if TYPE_CHECKING:
    from holdfast.engine.likeness import Likeness

CONTROLS = ("undefended", "destroyed")
"""Roles of the models that go through the canonical and the worst attack only."""


def _paths(given: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(os.fspath(one) for one in given)


def _path(given: str | os.PathLike[str] | None) -> str | None:
    return None if given is None else os.fspath(given)


def _named(given: Mapping[str, Attack] | Iterable[str | tuple[str, Attack]]) -> Mapping[str, Attack]:
    return dict(named_attacks(given))


@dataclass(frozen=True, kw_only=True, repr=False)
class Audit:
    """The plan of an audit: models, attacks and settings."""

    model: Converted[str | os.PathLike[str], str] = Converted(as_text)
    """under test: a Hugging Face folder or a hub id, as the models below are"""
    undefended: Converted[str | os.PathLike[str], str] = Converted(as_text)
    """the model before any safeguard"""
    domain: Converted[str | os.PathLike[str], Path] = Converted(Path)
    reference: Converted[str | os.PathLike[str] | None, str | None] = Converted(_path, default=None)
    """a shallow safeguard to compare with"""
    never_exposed: Converted[str | os.PathLike[str] | None, str | None] = Converted(_path, default=None)
    """a control that never learned the hazard"""
    peers: Converted[Iterable[str | os.PathLike[str]], tuple[str, ...]] = Converted(_paths, default=())
    """other safeguarded models"""
    suite: str = ""
    """a suite, a TOML file, or a folder that a search wrote; empty: that for the model's size, unless attacks are given"""
    attacks: Converted[Mapping[str, Attack] | Iterable[str | tuple[str, Attack]], Mapping[str, Attack]] = Converted(
        _named, default=()
    )
    """by name; of a preset the name is enough. Empty: those of the suite"""
    canonical: str = ""
    """the attack that every control goes through; empty: the suite's, else the first"""
    seeds: int = 5
    milestones: tuple[int, ...] | None = None
    stop_after_breach: int | None = None
    base: bool = True
    """whether the attacker has the undefended model; without it the attacks that read it are left out"""
    sibling: Converted[str | os.PathLike[str] | None, str | None] = Converted(_path, default=None)
    """a model that the attacker holds in place of the undefended one: an earlier revision, another fine-tune or a quantised copy
    of it. Attacks that read the original read the sibling"""
    also: tuple[tuple[str, Evaluation], ...] = ()
    """evaluations beside those of the domain"""
    options: Options = Options()

    def __post_init__(self) -> None:
        suite = self.suite or ("" if self.attacks else suite_for(self.model))
        attacks = self.attacks or attacks_of(suite)
        canonical = self.canonical or (canonical_of(suite, attacks) if suite else next(iter(attacks)))
        if self.sibling and not self.base:
            raise HoldfastError(
                "an attacker who holds a sibling has a model from before the safeguard; leave base as it is"
            )
        for name, value in (("suite", suite), ("attacks", attacks), ("canonical", canonical)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Audit({label_of(self.model)}; {self.called}; {self.seeds} seeds)"

    @property
    def called(self) -> str:
        """What the attacks are called together in a report."""
        return called(self.suite, self.attacks) if self.suite else called_by_content(self.attacks)

    @property
    def searched(self) -> list[str]:
        """Classes of attacks that a search chose, whoever it was that searched: those are not blind."""
        chosen = self.suite.startswith("adaptive") or (self.suite and self.suite not in suites())
        return sorted({type(attack).__name__ for attack in self.attacks.values()}) if chosen else []

    @cached_property
    def compared(self) -> Mapping[str, Likeness]:
        """The models under test beside the undefended model, by label."""
        from holdfast.engine.likeness import likeness

        domain, undefended = Domain.open(self.domain), Checkpoint(self.undefended)
        return {
            model.label: likeness(Checkpoint(model.path), undefended, domain, self.options.trust_remote_code)
            for model in self.models()
            if model.role in ("defended", "peer")
        }

    def models(self) -> tuple[Model, ...]:
        """The model under test, its peers and its controls, in the order of reading."""
        models = models_of(self.model, self.undefended, self.reference, self.never_exposed, self.peers)
        return (*models, Model(label="destroyed", path=self.undefended, role="destroyed"))

    def check(self) -> None:
        """Read the audit's input early.

        Raises:
            HoldfastError: something that is read is missing or malformed, or two of the models have the same weights, so that
                their runs could not be told apart.
        """
        check_campaign(self.campaign())
        seen: dict[str, str] = {}
        for model in self.models():
            if model.role == "destroyed":
                continue
            digest = Checkpoint(model.path).digest
            if digest in seen:
                raise HoldfastError(f"{seen[digest]} and {model.path} have the same weights; give a model once only")
            seen[digest] = model.path

    def campaign(self, worst: str | None = None) -> Campaign:
        """The cells of the audit; controls go through the worst attack only once that attack is known."""
        models = self.models()
        controlled = tuple(dict.fromkeys((self.canonical, *((worst,) if worst else ()))))
        repairs = repairs_of(self.suite, self.attacks)
        return Campaign(
            models=models,
            domain=self.domain,
            attacks=tuple(self.attacks.items()),
            seeds=tuple(range(self.seeds)),
            milestones=self.milestones,
            only={
                model.label: (*controlled, *(repairs if model.role == "destroyed" else ()))
                for model in models
                if model.role in CONTROLS
            },
            dense=self.milestones is None,
            stop_after_breach=self.stop_after_breach,
            also=self.also,
            options=self.options,
            base=(self.sibling or self.undefended) if self.base else "",
            tokenizers={label: self.undefended for label, beside in self.compared.items() if beside.differing},
        )

    def planned(self) -> Campaign:
        """The cells as they will be, with some attack standing in for the worst attack."""
        others = (name for name, attack in self.attacks.items() if name != self.canonical and not attack.uses_base)
        return self.campaign(next(others, None))

    def run(
        self,
        out: Path | str,
        workers: Workers = 2,
        *,
        suite: str = "",
        command: str = "",
        title: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Run the cells that have no record: every attack, then the worst attack on the controls; write `reproduce.json`.

        Args:
            out: the folder.
            workers: processes of this machine at a time, or an executor.
            suite: what the attacks are called together; empty: `called`.
            command: for the record.
            title: of the report; empty: it names the model.
            on_progress: called with how the cells stand.

        Returns:
            How each cell's job ended.

        Raises:
            HoldfastError: as `check`, or the folder holds something else.
        """
        original = Checkpoint(self.undefended).digest
        out, title = Path(out), title or f"Audit of {label_of(self.model)}"
        details: dict[str, Any] = {
            "searched": self.searched,
            "canonical": self.canonical,
            "uses_base": [name for name, attack in self.attacks.items() if attack.uses_base],
            # The card of a model names the original, whatever the attacker holds.
            **({"sibling": Checkpoint(self.sibling).digest, "base": original} if self.sibling else {}),
            "compared": {label: asdict(beside) for label, beside in self.compared.items()},
            "stop_after_breach": self.stop_after_breach,
            **({"milestones": list(self.milestones)} if self.milestones is not None else {}),
        }

        def run(campaign: Campaign, **more: Any) -> list[Outcome]:
            return run_held(
                campaign, out, workers,
                title=title, suite=suite or self.called, command=command, on_progress=on_progress, **details, **more,
            )  # fmt: skip

        with claimed_campaign(self.campaign(), out, title):
            self.check()
            outcomes = run(self.campaign())
            worst = self.worst(out)
            if worst is not None and worst != self.canonical:
                outcomes += run(self.campaign(worst), worst=worst, after=self.campaign())
            write_reproduction(out)
            return outcomes

    def worst(self, out: Path) -> str | None:
        """The attack with the greatest hazard on the model under test, among attacks that the controls can go through."""
        summary = summarise(*read_campaign(out))
        open_to_all = [name for name, attack in self.attacks.items() if not attack.uses_base]
        pairs = [summary.pair(label_of(self.model), name) for name in open_to_all]
        pairs += [summary.pair(label_of(self.model), name + FOREIGN) for name in open_to_all]
        hazards = {pair.attack: summary.hazard.sign * pair.peak.mean for pair in pairs if pair and pair.peak}
        worst = max(hazards, key=lambda name: hazards[name], default=None)
        return None if worst is None else plain_attack(worst)


def models_of(
    model: str, undefended: str, reference: str | None, never_exposed: str | None, peers: Sequence[str] = ()
) -> tuple[Model, ...]:
    """A model under test, its peers and its given controls, in the order of reading.

    Raises:
        HoldfastError: two of them have one name.
    """
    models = [Model(label="undefended", path=undefended, role="undefended")]
    if reference:
        models.append(Model(label=label_of(reference), path=reference, role="reference"))
    models += [Model(label=label_of(peer), path=peer, role="peer") for peer in peers]
    models.append(Model(label=label_of(model), path=model, role="defended"))
    if never_exposed:
        models.append(Model(label="never-exposed", path=never_exposed, role="never-exposed"))
    labels = [*(model.label for model in models), "destroyed"]
    if len(set(labels)) < len(labels):
        raise HoldfastError(
            f"two of the models have one name ({', '.join(labels)}); rename a folder, so that the report can tell them apart"
        )
    return tuple(models)
