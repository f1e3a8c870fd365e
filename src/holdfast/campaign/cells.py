"""Cells: one attack (or none) on one model with one seed, and the campaigns that they make up.

A cell's identity is the content of all that its numbers depend on; a cell whose record file exists is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from holdfast.attacks.base import Attack
from holdfast.core.converted import Converted, as_text
from holdfast.core.domain import ATTACKER_ROLES, ATTACKER_VIEW, Domain
from holdfast.core.escape import short
from holdfast.core.files import digest
from holdfast.core.options import Options
from holdfast.core.presets import collect, describe, pick
from holdfast.core.records import FOREIGN
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.base import Evaluation

PROTOCOL = 6
"""Raised whenever the same cell would give other numbers, so that no old record is taken for a new one."""


Role = Literal["undefended", "reference", "defended", "peer", "never-exposed", "destroyed"]
"""What a model is in a campaign. `destroyed` is made of the undefended model when it is loaded: its weights out of order."""


UNTOUCHED = "none"
"""The attack's name in a cell that measures a model as it is."""


CHOOSING = ("hazard_selection", "compliance_selection")
"""Asked where something is chosen, never in a campaign."""


_WITHOUT_BASE = ("undefended", "never-exposed", "destroyed")
"""Roles of models that no safeguard was put into: there is no model before it to merge with."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model under test."""

    path: Converted[str | os.PathLike[str], str] = Converted(as_text)
    """a Hugging Face folder or a hub id"""
    label: str = ""
    """empty: `label_of` the path"""
    role: Role = "defended"

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", label_of(self.path))


def label_of(model: str) -> str:
    """A model's name in an audit: its folder's, or its hub id's last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model.rpartition("/")[2]


def named_attacks(given: Mapping[str, Attack] | Iterable[str | tuple[str, Attack]]) -> tuple[tuple[str, Attack], ...]:
    """Attacks with their names; of a preset the name is enough.

    Raises:
        HoldfastError: there is no such preset.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((one, pick("holdfast.attacks", one)) if isinstance(one, str) else one for one in pairs)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack (or none) on one model with one seed."""

    model: Model
    domain: Path
    attack_name: str
    attack: Attack | None
    seed: int
    milestones: tuple[int, ...]
    """steps after which the model is measured; the first is 0, the last the attack's last"""
    evaluations: tuple[tuple[str, Evaluation], ...]
    hazard_milestones: tuple[int, ...] = ()
    """steps after which hazard alone is measured, so that the cost of a breach is known closely"""
    stop_after_breach: int | None = None
    """end the attack so many milestones after a breach; None: never before its last step"""
    options: Options = Options()
    """how the cell is run; of these, the precision and the kind of device change its numbers"""
    probe: str = ""
    """the evaluation that the cell is for, where the untouched model is asked nothing else"""
    base: str = ""
    """the model before any safeguard, for an attack that reads it; empty: nobody has it"""
    tokenizer: str = ""
    """the model whose tokenizer is used; empty: the attacked model's own"""

    @property
    def words(self) -> Checkpoint:
        """The model whose tokenizer is used."""
        return Checkpoint(self.tokenizer or self.model.path)

    @property
    def name(self) -> str:
        return f"{self.model.label} · {self.probe or self.attack_name} · seed {self.seed}"

    def identity(self) -> dict[str, Any]:
        """The content that the numbers depend on. Paths, labels and logging are no part of it.

        The kind of device is part of it, since its kernels give other last bits; which of its kind is not.
        """
        domain, checkpoint = Domain.open(self.domain), Checkpoint(self.model.path)
        roles = [role for role in ATTACKER_ROLES if domain.has(role)]
        # What a cell did not always have stands here only where it is set, so that what was recorded before stays known.
        more: dict[str, Any] = {}
        if self.hazard_milestones:
            more["hazard_milestones"] = list(self.hazard_milestones)
        if self.stop_after_breach is not None:
            more["stop_after_breach"] = self.stop_after_breach
        if self.attack is not None and self.attack.uses_base and self.base:
            more["base"] = Checkpoint(self.base).digest
        return {
            **more,
            **checkpoint.runs_code(self.options.trust_remote_code),
            "protocol": PROTOCOL,
            "model": f"{checkpoint.digest}, out of order" if self.model.role == "destroyed" else checkpoint.digest,
            "tokenizer": self.words.tokenizer_digest,
            "data": domain.digest(*roles) if self.attack else {},
            "max_length": domain.max_length,
            "attack": describe(self.attack) if self.attack else None,
            "evaluations": {
                name: [describe(evaluation), evaluation.content(domain)] for name, evaluation in self.evaluations
            },
            "milestones": list(self.milestones),
            "seed": self.seed,
            **(self.options if self.attack else replace(self.options, micro_batch=None)).arithmetic,
        }

    @property
    def id(self) -> str:
        return digest(self.identity())[:16]


@dataclass(frozen=True, kw_only=True, repr=False)
class Campaign:
    """Attacks on models, in one domain."""

    models: Converted[Iterable[Model], tuple[Model, ...]] = Converted(tuple)
    domain: Converted[str | os.PathLike[str], Path] = Converted(Path)
    attacks: Converted[Mapping[str, Attack] | Iterable[str | tuple[str, Attack]], tuple[tuple[str, Attack], ...]] = (
        Converted(named_attacks)
    )
    """with their names; of a preset the name is enough"""
    seeds: Converted[Iterable[int], tuple[int, ...]] = Converted(tuple, default=(0,))
    milestones: tuple[int, ...] | None = None
    """None: each attack's own, log-spaced"""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """label -> names of the attacks it is put through; a label that is missing is put through all"""
    also: tuple[tuple[str, Evaluation], ...] = ()
    """evaluations beside those of the domain"""
    dense: bool = False
    """measure hazard between the milestones too, at steps no more than a quarter apart (`dense_steps`)"""
    stop_after_breach: int | None = None
    """end an attack so many milestones after a breach; None: never before its last step"""
    probes: bool = True
    """examine the untouched models for signs of a safeguard that masks, and for how fast they learn"""
    options: Options = Options()
    """how the cells are run"""
    base: str = ""
    """the model before any safeguard; empty: the attacker has none, and attacks that read it are left out"""
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    """label -> the model whose tokenizer every attack is run with too, beside the labelled model's own"""

    def __repr__(self) -> str:
        models = ", ".join(model.label for model in self.models)
        return f"Campaign({models}; {len(self.attacks)} attacks; seeds {', '.join(map(str, self.seeds))})"

    def cells(self) -> Iterator[Cell]:
        """List the cells: every model without attack, each attack with each seed, and the probes of untouched models.

        A probe is a cell of its own: one that fails, for lack of memory or at a diverging rate, takes nothing else with it.
        """
        domain = Domain.open(self.domain)
        evaluations, probes = self.evaluations()
        for model in self.models:
            yield self._untouched(model, evaluations)
        for model in self.models:
            for name, attack in self.attacks:
                if name not in self.only.get(model.label, (name,)) or name in self.left_out:
                    continue
                if attack.uses_base and model.role in _WITHOUT_BASE:
                    continue
                milestones = milestones_up_to(attack.max_steps, self.milestones)
                between = set(dense_steps(attack.max_steps)) - {*milestones} if self.dense else ()
                foreign = self.tokenizers.get(model.label)
                for tokenizer in ("", foreign) if foreign else ("",):
                    for seed in self.seeds if attack.draws else self.seeds[:1]:
                        yield Cell(
                            model=model,
                            domain=self.domain,
                            attack_name=name + FOREIGN if tokenizer else name,
                            attack=attack,
                            seed=seed,
                            milestones=milestones,
                            evaluations=asked_by(attack, evaluations, domain),
                            hazard_milestones=tuple(sorted(between)),
                            stop_after_breach=self.stop_after_breach,
                            options=self.options,
                            base=self.base if attack.uses_base else "",
                            tokenizer=tokenizer,
                        )
        for model in self.models:
            if self.probes and model.role != "destroyed":
                yield from (self._untouched(model, (probe,), name=probe[0]) for probe in probes)

    def evaluations(self) -> tuple[Evaluations, Evaluations]:
        """The evaluations along an attack, those that the user named among them, and those of the untouched model alone."""
        along, probes = evaluations_of(Domain.open(self.domain))
        return (*along, *self.also), probes

    @property
    def left_out(self) -> tuple[str, ...]:
        """The attacks that read a model which nobody has."""
        return () if self.base else tuple(name for name, attack in self.attacks if attack.uses_base)

    def _untouched(self, model: Model, evaluations: Evaluations, name: str = "") -> Cell:
        return Cell(
            model=model, domain=self.domain, attack_name=UNTOUCHED, attack=None, seed=self.seeds[0], milestones=(0,),
            evaluations=evaluations, options=self.options, probe=name,
        )  # fmt: skip

    def check(self) -> None:
        """Read the data of the attacks early, so that a campaign does not fail in its last hour.

        Raises:
            HoldfastError: a role that an attack asks for is missing or malformed, or nothing can be measured.
        """
        domain = Domain.open(self.domain)
        for _, attack in self.attacks:
            for name in attack.reads():
                domain.rows(ATTACKER_VIEW[name])
        evaluations, _ = self.evaluations()
        for _, evaluation in evaluations:
            evaluation.content(domain)
        if not any(evaluation.measures(domain) == "hazard" for _, evaluation in evaluations):
            raise HoldfastError(
                f"{self.domain} has neither hazard questions nor rows of hazard_heldout, so no attack can be measured; "
                'add [questions.hazard] with measures = "hazard"'
            )


Evaluations = tuple[tuple[str, Evaluation], ...]


def evaluations_of(domain: Domain) -> tuple[Evaluations, Evaluations]:
    """The evaluations along an attack, and those of the untouched model alone, as (name, evaluation) pairs."""
    from holdfast.evals.multiple_choice import MultipleChoice

    presets: dict[str, Evaluation] = {
        name: preset
        for name, preset in collect("holdfast.evals").items()
        if not preset.only_by_name and preset.available(domain)
    }
    unnamed = {
        name: MultipleChoice(questions=name)
        for name in domain.question_sources
        # Requests have evaluations of their own; a refusal is no option among others.
        if name not in presets and domain.question_sources[name].get("measures") != "refusal"
    }
    measured = [
        (name, evaluation)
        for name, evaluation in {**presets, **unnamed}.items()
        if name not in (*CHOOSING, "benign_new")
    ]
    probes = tuple((name, probe) for name, probe in measured if probe.measures(domain) in ("trainability", "masking"))
    return tuple(pair for pair in measured if pair not in probes), probes


def check_positions(
    checkpoint: Checkpoint, domain: Domain, evaluations: Evaluations, trust_remote_code: bool = False
) -> None:
    """Hold the longest text of every evaluation against the positions that a model has.

    Raises:
        HoldfastError: a question, or what is written after one, goes past the model's table of positions.
    """
    positions = checkpoint.positions(trust_remote_code)
    if positions is None:
        return
    tokenizer = checkpoint.load_tokenizer(trust_remote_code)
    for name, evaluation in evaluations:
        needed = evaluation.positions(tokenizer, domain)
        if needed > positions:
            raise HoldfastError(
                f"{name} reads up to {needed} tokens, a question and what follows it, and the model in {checkpoint.path} has "
                f"only {positions} positions; shorten or leave out its longest questions in {domain.folder}"
            )


def asked_by(attack: Attack, evaluations: Evaluations, domain: Domain) -> Evaluations:
    """The evaluations as this attacker asks them: hazard questions wear the disguise of the attacker's rows, if any."""
    if attack.disguise is None:
        return evaluations
    return tuple(
        (name, evaluation.wearing(attack.disguise) if evaluation.measures(domain) == "hazard" else evaluation)
        for name, evaluation in evaluations
    )


def milestones_up_to(last: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Step 0, the wanted steps (by default 5, 10, 20, 40 and so on) below `last`, and the last step."""
    steps = wanted if wanted is not None else [5 * 2**i for i in range(64)]
    return tuple(sorted({0, last, *(step for step in steps if 0 <= step <= last)}))


def dense_steps(last: int) -> tuple[int, ...]:
    """Steps 1, 2, 3, 4 and on by at most a quarter, so that the cost of a breach is known to a quarter."""
    steps = [1]
    while steps[-1] < last:
        steps.append(max(steps[-1] + 1, steps[-1] * 5 // 4))
    return tuple(step for step in steps if step < last)


def untouched_undefended(cells: Sequence[Cell]) -> Cell | None:
    """The cell of the untouched undefended model."""
    return next((c for c in cells if c.model.role == "undefended" and c.attack is None and not c.probe), None)


def parse_milestones(text: str) -> tuple[int, ...]:
    """Milestones from the command line: "0,8,64,512".

    Raises:
        HoldfastError: it is not a list of whole numbers.
    """
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = (-1,)
    if any(step < 0 for step in steps):
        raise HoldfastError(f"--milestones {short(text)} is not a list of step counts such as 0,8,64,512")
    return steps
