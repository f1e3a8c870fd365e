"""What the attacker holds, in a sentence that stands under every table of an audit."""

from __future__ import annotations

from holdfast.report.audited import Audited
from holdfast.report.words.numbers import count

_SIBLING = (
    "an earlier revision, another fine-tune or a quantised copy of the model before the safeguard, and not that model"
)


def threat(audit: Audited) -> str:
    """The threat model: the weights, and for some attacks the model from before the safeguard or a sibling of it."""
    uses = [name for name in audit.figures.uses_base if audit.summary.attack(name)]
    if not uses:
        return "Threat model: the attacker holds the weights and no other model."
    sibling = f" ({_SIBLING})" if audit.plan.details.get("sibling") else ""
    had = "has" if len(uses) == 1 else "have"
    return f"Threat model: the attacker holds the weights; {count(len(uses), 'attack')} also {had} {audit.original}{sibling}."
