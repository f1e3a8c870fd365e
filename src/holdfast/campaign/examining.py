"""A look at all that a campaign reads, before it runs: rows that are cut, sets that overlap, options that run together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.core.domain import ATTACKER_VIEW, MEASURER_ROLES, Domain
from holdfast.core.files import digest
from holdfast.core.findings import Cut, Findings, RunTogether, questions_of
from holdfast.core.overlaps import overlaps, readable
from holdfast.engine.checkpoint import Checkpoint

if TYPE_CHECKING:
    from holdfast.campaign.cells import Campaign

_examined: dict[str, Findings] = {}
"""By content: an audit writes its plan twice, and a study looks at many models of one tokenizer."""


def examine(campaign: Campaign) -> Findings:
    """Look at the rows that the attacks read and at all that is measured.

    Raises:
        HoldfastError: rows are malformed, or too many of a role have nothing left to learn.
    """
    domain = Domain.open(campaign.domain)
    attacked = {ATTACKER_VIEW[name] for _, attack in campaign.attacks for name in attack.reads()}
    models = [Checkpoint(model.path) for model in campaign.models]
    return look_at(domain, models, sorted(attacked), campaign.options.trust_remote_code)


def look_at(domain: Domain, models: Sequence[Checkpoint], attacked: Sequence[str], remote: bool = False) -> Findings:
    """Look at a domain as the tokenizers of these models read it.

    Args:
        domain: of which all questions are looked at, and the measurer's rows.
        models: whose tokenizers count.
        attacked: the attacker's roles that are read.
        remote: whether the tokenizers may run code of their own.

    Raises:
        HoldfastError: as `examine`.
    """
    read = [*attacked, *(role for role in MEASURER_ROLES if domain.has(role))]
    tokenizers = {model.tokenizer_digest: model for model in models}
    questions = {name: domain.questions(name) for name in domain.question_sources}
    rows = readable(domain, read)
    content = [domain.digest(*rows), {name: asked.digest for name, asked in questions.items()}]
    key = digest([*content, read, domain.max_length, sorted(tokenizers)])
    if key not in _examined:
        cuts = [_cuts(domain, model, read, remote) for model in tokenizers.values()]
        _examined[key] = Findings(
            compared=[*rows, *map(questions_of, questions)],
            overlaps=overlaps(domain, rows),
            cuts=[most for of_role in zip(*cuts, strict=True) if (most := max(of_role, key=_loss)).cut],
            run_together=[
                RunTogether(questions=name, count=asked.glued, of=len(asked.questions))
                for name, asked in questions.items()
                if 2 * asked.glued > len(asked.questions)  # a few may be meant so
            ],
        )
    return _examined[key]


def _loss(cut: Cut) -> tuple[int, int]:
    return cut.empty, cut.cut


def _cuts(domain: Domain, model: Checkpoint, roles: Sequence[str], remote: bool) -> list[Cut]:
    from holdfast.engine.data import count_cut

    tokenizer = model.load_tokenizer(remote)
    return [count_cut(domain, tokenizer, role) for role in roles]
