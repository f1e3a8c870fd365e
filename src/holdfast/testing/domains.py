"""What every domain keeps."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, Domain
from holdfast.testing.walks import require


def its_rows_and_questions_can_be_read(domain: Domain) -> None:
    """Every role and every set of questions that `domain.toml` names; each holds something."""
    roles = [role for role in (*DEFENDER_ROLES, *ATTACKER_ROLES) if domain.has(role)]
    require(bool(roles), "domain.toml names no data")
    for role in roles:
        require(len(domain.rows(role)) > 0, f"the rows of {role} are empty")
    require(bool(domain.question_sources), "domain.toml names no questions")
    for name in domain.question_sources:
        require(len(domain.questions(name).questions) > 0, f"the questions of {name} are empty")


def a_safeguard_and_an_attack_have_what_they_read(domain: Domain) -> None:
    """A defender needs forget and retain rows, an attacker rows of the hazard."""
    missing = [role for role in ("forget", "retain", "attack") if not domain.has(role)]
    require(not missing, f"domain.toml has no rows of {', '.join(missing)}")


def hazard_and_ability_can_be_measured(domain: Domain) -> None:
    """An audit needs hazard questions, and ability questions to tell an attack from a ruin."""
    measured = {domain.questions(name).measures for name in domain.question_sources}
    require("hazard" in measured or "refusal" in measured, "no questions measure hazard")
    require("ability" in measured, "no questions measure ability")


def the_attacker_has_rows_of_their_own(domain: Domain) -> None:
    """An attack with the defender's own rows would say nothing of rows that the defender has not seen."""
    defended = {str(row) for role in DEFENDER_ROLES if domain.has(role) for row in domain.rows(role)}
    for role in ("attack", "attack_ood"):
        both = [row for row in domain.rows(role) if str(row) in defended] if domain.has(role) else []
        require(not both, f"{len(both)} rows of {role} are among the defender's; the first is {str(both[:1])[:80]}")


DOMAIN: tuple[Callable[[Domain], None], ...] = (
    its_rows_and_questions_can_be_read,
    a_safeguard_and_an_attack_have_what_they_read,
    hazard_and_ability_can_be_measured,
    the_attacker_has_rows_of_their_own,
)
"""Each raises AssertionError, with a sentence, where a domain does not keep the rule."""
