"""Mean loss on rows that only the evaluation reads, in nats a token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.core.disguise import Disguise
from holdfast.core.presets import added
from holdfast.core.types import Measure, NonFinite, Score
from holdfast.evals.base import Evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.evals.base import Probe


@dataclass(frozen=True, kw_only=True)
class HeldoutLoss(Evaluation):
    """Language-model loss on the first rows of a held-out role. On hazardous rows, lower means more hazard."""

    role: str
    """`hazard_heldout` or `benign_heldout`"""
    rows: int = 96
    """maximum number of rows"""
    batch_size: int = 64
    """rows that go through the model at once, or fewer where `rows_at_once` gives a lower number"""
    disguise: Disguise | None = added(None)
    """the attacker's disguise of the rows; the opening of an answer counts in the loss, words before the answer do not; None: no
    disguise"""

    def measures(self, domain: Domain) -> Measure:
        return "hazard" if self.role.startswith("hazard") else "ability"

    def available(self, domain: Domain) -> bool:
        return domain.has(self.role)

    def content(self, domain: Domain) -> str:
        return domain.digest(self.role)[self.role]

    def wearing(self, disguise: Disguise) -> Evaluation:
        return replace(self, disguise=disguise)

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        """None, unless the domain has no hazard questions and the loss is the only measure of hazard."""
        return self if self.measures(domain) == "hazard" and "hazard" not in domain.question_sources else None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        import torch

        from holdfast.engine.data import collate, encode_all
        from holdfast.engine.losses import surprise_of_rows
        from holdfast.engine.predictions import predictions
        from holdfast.evals.memory import rows_at_once

        rows = [self.disguise.worn(row) if self.disguise else row for row in domain.rows(self.role)[: self.rows]]
        encoded = [row for row in encode_all(rows, tokenizer, self.role, domain.max_length) if row.teaches]

        def probe(model: PreTrainedModel) -> list[Score]:
            means = []
            with torch.no_grad():
                for start in range(0, len(encoded), self.batch_size):
                    batch = collate(encoded[start : start + self.batch_size], pad=0, device=model.device)
                    for part in batch.split(rows_at_once(model, batch.input_ids.shape[1])):
                        means.append(surprise_of_rows(predictions(model, part.input_ids), part.labels))
            by_row = torch.cat(means)
            if not torch.isfinite(by_row).all():
                raise NonFinite("the model's loss on held-out rows is not finite, so it has no score")
            stderr = by_row.std().item() / len(by_row) ** 0.5 if len(by_row) > 1 else None
            return [Score(metric="nats", value=by_row.mean().item(), stderr=stderr, n=len(by_row))]

        return probe


PRESETS = {"hazard-loss": HeldoutLoss(role="hazard_heldout"), "benign-loss": HeldoutLoss(role="benign_heldout")}
