"""An audit made again from `reproduce.json`: whether the inputs are those of the first audit, and the audit itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import PROTOCOL, evaluations_of
from holdfast.core.domain import Domain
from holdfast.core.files import environment
from holdfast.core.options import PURE, Options
from holdfast.core.presets import describe, restore
from holdfast.core.reproduction import Reproduction
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.base import Evaluation
from holdfast.runs.audit import Audit
from holdfast.runs.reproducible import option

Input = Literal["model", "sibling", "tokenizer", "rows", "questions", "max_length", "protocol"]


@dataclass(frozen=True, kw_only=True)
class OtherInput:
    """Something that is not as it was in the first audit."""

    kind: Input
    name: str
    there: str
    here: str
    """empty: there is none"""


def needed(first: Reproduction) -> list[str]:
    """The options that name the models of the first audit, one a model."""
    models = [option(model.role) for model in first.models if model.role != "destroyed"]
    return [*models, option("sibling")] if first.sibling else models


def audit_again(
    first: Reproduction,
    *,
    model: str,
    undefended: str,
    domain: Path,
    reference: str | None = None,
    never_exposed: str | None = None,
    sibling: str | None = None,
    peers: Sequence[str] = (),
    device: str | None = None,
    ranks: int = 1,
) -> Audit:
    """The first audit, of models and a domain of this machine.

    Raises:
        HoldfastError: a model is missing or too many, an attack is unknown to this holdfast, or the precision is refused.
    """
    if first.precision in PURE:
        raise HoldfastError(
            f"the first audit was made in pure {first.precision}, which loses small updates and is refused now; audit the models "
            "anew with holdfast audit --precision lean"
        )
    given = {"--reference": bool(reference), "--never-exposed": bool(never_exposed), "--sibling": bool(sibling)}
    for name, there in given.items():
        if (name in needed(first)) != there:
            state = "has no such model; leave it out" if there else "has one; give its folder"
            raise HoldfastError(f"{name}: the first audit {state}")
    if (count := needed(first).count("--peer")) != len(peers):
        raise HoldfastError(f"--peer: the first audit has {count} of them; give each")
    attacks: dict[str, Attack] = {
        name: restore("holdfast.attacks", described) for name, described in first.attacks.items()
    }
    if not attacks:
        raise HoldfastError("the first audit has no attack that ended, so there is nothing to make again")
    return Audit(
        model=model,
        undefended=undefended,
        reference=reference,
        never_exposed=never_exposed,
        sibling=sibling,
        peers=tuple(peers),
        domain=domain,
        attacks=attacks,
        canonical=first.canonical if first.canonical in attacks else next(iter(attacks)),
        seeds=len(first.seeds),
        milestones=tuple(first.milestones) if first.milestones else None,
        stop_after_breach=first.stop_after_breach,
        base=first.with_base,
        also=tuple(_named(first, Domain.open(domain))),
        options=Options(
            device=device or first.device,
            precision=first.precision,  # type: ignore[arg-type]
            micro_batch=first.micro_batch,
            matmul=first.matmul,
            ranks=ranks,
            trust_remote_code=first.trust_remote_code,
        ),
    )


def _named(first: Reproduction, domain: Domain) -> Iterator[tuple[str, Evaluation]]:
    """The evaluations that the first audit asked by name. One that cannot be made here is missing, and `other_inputs` says so."""
    asked = {name for group in evaluations_of(domain) for name, _ in group}
    for name, (described, _) in first.evaluations.items():
        if name not in asked:
            with contextlib.suppress(HoldfastError):
                yield name, restore("holdfast.evals", described)


def other_inputs(first: Reproduction, audit: Audit) -> list[OtherInput]:
    """What is not as it was in the first audit: empty where every input has its hash.

    Raises:
        HoldfastError: a model or the domain cannot be read.
    """
    return [*_other_models(first, audit), *_other_data(first, Domain.open(audit.domain), dict(audit.also))]


def _other_models(first: Reproduction, audit: Audit) -> Iterator[OtherInput]:
    here = [(model.role, Checkpoint(model.path)) for model in audit.models() if model.role != "destroyed"]
    for old in first.models:
        if old.role == "destroyed":
            continue
        same = [checkpoint for role, checkpoint in here if role == old.role]
        match = next((checkpoint for checkpoint in same if checkpoint.digest == old.digest), None)
        if match is None:
            yield OtherInput(kind="model", name=old.label, there=old.digest, here=same[0].digest if same else "")
        elif old.tokenizer and match.tokenizer_digest != old.tokenizer:
            yield OtherInput(kind="tokenizer", name=old.label, there=old.tokenizer, here=match.tokenizer_digest)
    if audit.sibling and first.sibling and (here_held := Checkpoint(audit.sibling).digest) != first.sibling:
        yield OtherInput(kind="sibling", name="", there=first.sibling, here=here_held)


def _other_data(first: Reproduction, domain: Domain, also: Mapping[str, Evaluation]) -> Iterator[OtherInput]:
    if domain.max_length != first.max_length:
        yield OtherInput(kind="max_length", name="", there=str(first.max_length), here=str(domain.max_length))
    for role, there in first.data.items():
        rows = domain.digest(role)[role] if domain.has(role) else ""
        if rows != there:
            yield OtherInput(kind="rows", name=role, there=there, here=rows)
    asked = {**also, **{name: evaluation for group in evaluations_of(domain) for name, evaluation in group}}
    for name, (described, content) in first.evaluations.items():
        evaluation = asked.get(name)
        questions = evaluation.content(domain) if evaluation is not None else ""
        if evaluation is None or questions != content or describe(evaluation) != described:
            yield OtherInput(kind="questions", name=name, there=content, here=questions)
    if first.protocol != PROTOCOL:
        yield OtherInput(kind="protocol", name="", there=str(first.protocol), here=str(PROTOCOL))


def other_versions(first: Reproduction) -> Mapping[str, tuple[str, str]]:
    """Package or machine -> there and here, where the two differ; several values there stand side by side."""
    here = environment()
    there: dict[str, list[str]] = {}
    for made in first.environments:
        for name, value in made.items():
            there.setdefault(name, [])
            if str(value) not in there[name]:
                there[name].append(str(value))
    both = {name: (" | ".join(there.get(name, [])), here.get(name, "")) for name in {**there, **here}}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def known_runs(first: Reproduction, audit: Audit) -> int:
    """The number of the first audit's runs that have the same identity here: device, precision and protocol included."""
    ids = {cell.id for worst in (None, *first.attacks) for cell in audit.campaign(worst).cells()}
    return sum(run.cell in ids for run in first.runs)
