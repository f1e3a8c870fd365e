"""What a domain folder holds and lacks, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.attacks.base import Attack
from holdfast.core.domain import ATTACKER_ROLES, ATTACKER_VIEW, DEFENDER_ROLES, MEASURER_ROLES, Domain, QuestionSet, Row
from holdfast.core.findings import Findings, RunTogether, questions_of
from holdfast.core.overlaps import overlaps
from holdfast.core.presets import collect, families
from holdfast.core.types import HoldfastError
from holdfast.evals.base import Evaluation
from holdfast.safeguards.base import Safeguard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")

ROLES = (*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of the rows of a role or of the questions of a set."""

    unit: str
    """words, or tokens of the model's tokenizer"""
    total: int
    median: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class CheckedRole:
    """The rows of one role."""

    role: str
    holder: str
    """defender, attacker or evaluation"""
    rows: int
    pairs: int
    """rows with a wanted and an unwanted completion"""
    conversations: int
    repeated: int
    """rows whose words an earlier row has"""
    lengths: Lengths
    cut: int | None
    """rows longer than max_length; None: no model was named"""
    empty: int | None
    """rows that have nothing left to learn"""


@dataclass(frozen=True, kw_only=True)
class CheckedSet:
    """The questions of one set."""

    name: str
    measures: str
    questions: int
    options: tuple[int, int]
    """the fewest and the most options of a question"""
    commonest: float
    """share of the questions whose answer stands in the commonest place: what a model scores that always takes it"""
    repeated: int
    """questions whose prompt and answer an earlier one has"""
    lengths: Lengths
    """of a prompt with its longest option"""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What cannot run for want of one thing."""

    kind: str
    """evaluations, safeguards or attacks"""
    needs: tuple[str, ...]
    """roles, `questions NAME`, or `pairs in ROLE`"""
    names: tuple[str, ...]
    of: int
    """presets of the kind"""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A domain folder, looked through."""

    name: str
    max_length: int
    model: str | None
    roles: tuple[CheckedRole, ...]
    sets: tuple[CheckedSet, ...]
    findings: Findings
    missing: tuple[Missing, ...]
    stops: tuple[str, ...]
    """sentences on what would stop every run that reads it"""


def check_domain(folder: Path, model: str | None = None, trust_remote_code: bool = False) -> Checked:
    """Look a domain folder through; with a model, as the model's tokenizer reads it.

    Raises:
        HoldfastError: there is no `domain.toml`, it cannot be read, or the model's tokenizer cannot be loaded.
    """
    domain = Domain.open(folder)
    tokenizer = positions = None
    if model is not None:
        from holdfast.engine.checkpoint import Checkpoint

        checkpoint = Checkpoint(model)
        tokenizer = checkpoint.load_tokenizer(trust_remote_code)
        positions = checkpoint.positions(trust_remote_code)
    stops: list[str] = []
    roles = _kept((role for role in ROLES if domain.has(role)), lambda role: _role(domain, role, tokenizer), stops)
    sets = _kept(domain.question_sources, lambda name: _set(domain.questions(name), tokenizer), stops)
    whole = _readable(domain, [role.role for role in roles], [asked.name for asked in sets])
    if not any(asked.measures == "hazard" for asked in sets) and not any(
        evaluation.measures(whole) == "hazard" for evaluation in _evaluations(whole)
    ):
        stops.append(
            f"{folder} has no questions of the hazard, no requests and no rows of hazard_heldout, so nothing can be audited; add "
            '[questions.hazard] with measures = "hazard"'
        )
    if positions is not None and (longest := max((asked.lengths.longest for asked in sets), default=0)) > positions:
        stops.append(
            f"a question of {longest} tokens is longer than the {positions} positions of the model; shorten it"
        )
    return Checked(
        name=domain.name,
        max_length=domain.max_length,
        model=model,
        roles=tuple(roles),
        sets=tuple(sets),
        findings=_findings(whole),
        missing=tuple(_missing(whole)),
        stops=tuple(stops),
    )


def _kept(names: Iterable[str], look: Callable[[str], Item], stops: list[str]) -> list[Item]:
    """What was seen of each name; why one cannot be read goes to `stops`."""
    seen = []
    for name in names:
        try:
            seen.append(look(name))
        except HoldfastError as error:
            stops.append(str(error))
    return seen


def _readable(domain: Domain, roles: Sequence[str], sets: Sequence[str]) -> Domain:
    """The domain without what cannot be read."""
    return replace(
        domain,
        sources={role: domain.sources[role] for role in roles},
        question_sources={name: domain.question_sources[name] for name in sets},
    )


def _role(domain: Domain, role: str, tokenizer: PreTrainedTokenizerBase | None) -> CheckedRole:
    rows = domain.rows(role)
    cut = empty = None
    if tokenizer is not None:
        from holdfast.engine.data import encode_all

        encoded = encode_all(rows, tokenizer, role, domain.max_length)
        lengths = _lengths("tokens", [len(row.ids) + row.cut for row in encoded])
        cut, empty = sum(row.cut > 0 for row in encoded), sum(not row.teaches for row in encoded)
    else:
        lengths = _lengths("words", [len(_text(row).split()) for row in rows])
    holder = "defender" if role in DEFENDER_ROLES else "attacker" if role in ATTACKER_ROLES else "evaluation"
    return CheckedRole(
        role=role,
        holder=holder,
        rows=len(rows),
        pairs=sum("chosen" in row for row in rows),
        conversations=sum("messages" in row for row in rows),
        repeated=_repeated(" ".join(_text(row).casefold().split()) for row in rows),
        lengths=lengths,
        cut=cut,
        empty=empty,
    )


def _set(asked: QuestionSet, tokenizer: PreTrainedTokenizerBase | None) -> CheckedSet:
    if tokenizer is not None:
        from holdfast.evals.multiple_choice import items_of

        items = items_of(tokenizer, asked.questions)
        lengths = _lengths("tokens", [len(item.prefix) + max(map(len, item.continuations)) for item in items])
    else:
        lengths = _lengths(
            "words", [len(q.prompt.split()) + max(len(choice.split()) for choice in q.choices) for q in asked.questions]
        )
    options = [len(question.choices) for question in asked.questions]
    places = Counter(question.answer for question in asked.questions)
    return CheckedSet(
        name=asked.name,
        measures=asked.measures,
        questions=len(asked.questions),
        options=(min(options), max(options)),
        commonest=max(places.values()) / len(asked.questions),
        repeated=_repeated((question.prompt, question.choices[question.answer]) for question in asked.questions),
        lengths=lengths,
    )


def _lengths(unit: str, lengths: Sequence[int]) -> Lengths:
    return Lengths(unit=unit, total=sum(lengths), median=median(lengths), longest=max(lengths))


def _text(row: Row) -> str:
    turns = [turn["content"] for turn in row["messages"]] if "messages" in row else row.values()
    return "\n".join(map(str, turns))


def _repeated(items: Iterable[Any]) -> int:
    return sum(count - 1 for count in Counter(items).values())


def _findings(domain: Domain) -> Findings:
    questions = {name: domain.questions(name) for name in domain.question_sources}
    roles = list(domain.sources)
    return Findings(
        compared=[*roles, *map(questions_of, questions)],
        overlaps=overlaps(domain, roles),
        run_together=[
            RunTogether(questions=name, count=asked.glued, of=len(asked.questions))
            for name, asked in questions.items()
            if 2 * asked.glued > len(asked.questions)
        ],
    )


def _evaluations(domain: Domain) -> list[Evaluation]:
    evaluations: Mapping[str, Evaluation] = collect("holdfast.evals")
    asked = (evaluation for evaluation in evaluations.values() if not evaluation.only_by_name)
    return [evaluation for evaluation in asked if evaluation.available(domain)]


def _missing(domain: Domain) -> list[Missing]:
    """What each preset that cannot run lacks, presets of one want together."""
    paired = {role for role in domain.sources if all("chosen" in row for row in domain.rows(role))}
    wants: dict[str, dict[str, tuple[str, ...]]] = {
        "evaluations": {name: _lacks(evaluation, domain) for name, evaluation in collect("holdfast.evals").items()},
        "safeguards": {
            name: _unmet(safeguard, domain, paired) for name, safeguard in collect("holdfast.safeguards").items()
        },
        "attacks": {name: _unheld(attack, domain) for name, attack in collect("holdfast.attacks").items()},
    }
    missing = []
    for kind, lacking in wants.items():
        by_need: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, needs in lacking.items():
            if needs:
                by_need[needs].append(name)
        missing += [
            Missing(kind=kind, needs=needs, names=tuple(names), of=len(lacking)) for needs, names in by_need.items()
        ]
    return missing


def _unmet(safeguard: Safeguard, domain: Domain, paired: set[str]) -> tuple[str, ...]:
    absent = [role for role in safeguard.reads() if not domain.has(role)]
    unpaired = ("forget", "forget_heldout") if safeguard.needs_pairs else ()
    return (*absent, *(f"pairs in {role}" for role in unpaired if domain.has(role) and role not in paired))


def _unheld(attack: Attack, domain: Domain) -> tuple[str, ...]:
    return tuple(role for name in attack.reads() if not domain.has(role := ATTACKER_VIEW[name]))


_NOWHERE = {"file": ""}
"""the source of what a domain lacks: it may be named, and not read"""


def _lacks(evaluation: Evaluation, domain: Domain) -> tuple[str, ...]:
    """What a domain would have to hold beside what it holds for an evaluation to be available: the least that does."""
    if evaluation.available(domain):
        return ()
    wanted = {*(role for role in ROLES if not domain.has(role)), *map(questions_of, _named_sets(domain))}

    def with_these(names: Iterable[str]) -> bool:
        held = set(names)
        whole = replace(
            domain,
            sources={**domain.sources, **{role: _NOWHERE for role in ROLES if role in held}},
            question_sources={
                **domain.question_sources,
                **{name: _NOWHERE for name in _named_sets(domain) if questions_of(name) in held},
            },
        )
        try:
            return evaluation.available(whole)
        except HoldfastError:  # it wants to read what is not there
            return False

    if not with_these(wanted):
        return ("questions of an ability",)
    for name in sorted(wanted):
        if with_these(wanted - {name}):
            wanted.discard(name)
    return tuple(sorted(wanted))


def _named_sets(domain: Domain) -> list[str]:
    """The question sets that a preset names and the domain lacks."""
    fields = ("questions", "examples", "train", "test")
    named = {getattr(preset, field, "") for preset in collect("holdfast.evals").values() for field in fields}
    return sorted((named | {"benign_new"}) - {"", *domain.question_sources})


def family_counts(kind: str, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """The families of presets -> how many of these names are in each, and how many there are; families without any left out."""
    package = {"safeguards": "holdfast.safeguards", "attacks": "holdfast.attacks", "evaluations": "holdfast.evals"}[
        kind
    ]
    counts = [(title, len({*names} & {*held}), len(held)) for title, held in families(package).items()]
    return [(title, count, whole) for title, count, whole in counts if count]
