"""A pool of forbidden requests with adversarial suffixes, searched token by token: greedy coordinate gradient.

    slope   = gradient of LM(compliance | request + suffix) by the embedding of each token of the suffix
    promise = -slope . E, for every token of the vocabulary: by how much the loss would fall with that token, to first order
    suffix  = the best of some candidates, each with one token exchanged for one of the most promising

The source is arXiv 2307.15043, algorithm 1, as arXiv 2402.04249 uses it: candidates exchange tokens at evenly spread places, and
the best candidate replaces the suffix even where it is worse than the suffix was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from holdfast.core.ranges import check_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.engine.data import Batch, Data, Encoded
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Suffixes:
    """Adversarial suffixes of forbidden requests."""

    cases: int = 8
    """requests with a suffix in the pool"""
    cases_per_step: int = 8
    """cases that are searched and trained on in a step"""
    length: int = 6
    """tokens of a suffix"""
    search_steps: int = 2
    """exchanges of a token in a step, for each case"""
    candidates: int = 32
    """suffixes that are tried for an exchange"""
    best: int = 32
    """tokens from which a place's candidates are drawn, the most promising"""
    renew_every: int = 50
    """steps after which a part of the pool begins anew"""
    renewed: float = 0.2
    """that part of the pool, at least one case"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("cases", "cases_per_step", "length", "search_steps", "candidates", "best", "renew_every"),
            not_negative=("renewed",),
        )

    def pool(self, data: Data, run: Run, micro_batch: int | None) -> Pool:
        """The pool as it begins, with requests of forget and forget_heldout.

        Raises:
            HoldfastError: these rows are no pairs.
        """
        return Pool(self, data.renamed(forget=("forget", "forget_heldout")), run, micro_batch)


class Pool:
    """The cases of one run: which pair each has, and its suffix."""

    def __init__(self, settings: Suffixes, data: Data, run: Run, micro_batch: int | None) -> None:
        import torch

        self._settings, self._generator, self._micro_batch = settings, run.generator, micro_batch
        self._chosen, self._rejected = (data.rows("forget", side=side) for side in ("chosen", "rejected"))
        self._stream = data.stream("forget", batch_size=1, seed=run.seed, side="rejected")
        both = zip(self._chosen, self._rejected, strict=True)
        self._pairs = [index for index, pair in enumerate(both) if all(row.teaches for row in pair)]
        self._allowed = allowed_tokens(data.tokenizer)
        # Drawn from the seed alone: the run's generator is further on where a run is resumed.
        generator = torch.Generator().manual_seed(run.seed)
        self._of = torch.randint(len(self._pairs), (settings.cases,), generator=generator)
        self._suffixes = self._fresh(settings.cases, generator)

    def batches(self, model: PreTrainedModel) -> tuple[Batch, Batch]:
        """Search some cases on; give their refusals and their compliances, of this rank."""
        import torch

        order = torch.randperm(self._settings.cases, generator=self._generator)
        drawn = order[: self._settings.cases_per_step].tolist()
        model.train(False)
        for case in drawn:
            for _ in range(self._settings.search_steps):
                self._exchange(model, case)
        sides = [[self._row(rows, case) for case in drawn] for rows in (self._chosen, self._rejected)]
        refused, complied = map(self._stream.batch, sides)
        return refused, complied

    def renew(self) -> None:
        """Begin a part of the pool anew."""
        import torch

        count = min(max(round(self._settings.renewed * self._settings.cases), 1), self._settings.cases)
        places = torch.randperm(self._settings.cases, generator=self._generator)[:count]
        self._of[places] = torch.randint(len(self._pairs), (count,), generator=self._generator)
        self._suffixes[places] = self._fresh(count, self._generator)

    def state_dict(self) -> dict[str, Any]:
        return {"of": self._of, "suffixes": self._suffixes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._of, self._suffixes = state["of"].clone(), state["suffixes"].clone()

    def _fresh(self, count: int, generator: torch.Generator) -> torch.Tensor:
        import torch

        places = torch.randint(len(self._allowed), (count, self._settings.length), generator=generator)
        return self._allowed[places]

    def _row(self, rows: Sequence[Encoded], case: int, suffix: torch.Tensor | None = None) -> Encoded:
        row = rows[self._pairs[int(self._of[case])]]
        return with_suffix(row, (self._suffixes[case] if suffix is None else suffix).tolist())

    def _exchange(self, model: PreTrainedModel, case: int) -> None:
        """Replace a case's suffix by the best of its candidates, on every rank by the same."""
        import torch

        from holdfast.engine.ranks import agreed

        settings, width = self._settings, self._settings.candidates
        promise = -self._slopes(model, self._row(self._rejected, case))[:, self._allowed.to(model.device)]
        best = promise.topk(min(settings.best, len(self._allowed)), dim=-1).indices.cpu()
        places = torch.arange(width) * settings.length // width
        picks = torch.randint(best.shape[1], (width,), generator=self._generator)
        tried = self._suffixes[case].repeat(width, 1)
        tried[torch.arange(width), places] = self._allowed[best[places, picks]]
        losses = self._losses(model, [self._row(self._rejected, case, suffix) for suffix in tried])
        self._suffixes[case] = agreed(tried[int(losses.argmin())])

    def _slopes(self, model: PreTrainedModel, row: Encoded) -> torch.Tensor:
        """By how much each token of the vocabulary in place of each token of the suffix would raise the loss: length x V."""
        import torch

        from holdfast.engine.data import collate
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import clear_gradients, trainable, whole

        embedding = model.get_input_embeddings()
        batch, kept = collate([row], self._stream.pad, model.device), list[torch.Tensor]()

        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            kept.append(output)

        hook = embedding.register_forward_hook(keep)
        try:
            logits = predictions(model, batch.input_ids)
        finally:
            hook.remove()
        next_token_loss(logits, batch.labels, batch.label_count).backward()  # type: ignore[no-untyped-call]
        start = answer_start(row) - self._settings.length
        slopes = kept[0].grad
        assert slopes is not None
        clear_gradients(trainable(model))
        table = whole(embedding.get_parameter("weight").detach())
        return slopes[0, start : start + self._settings.length].float() @ table.float().mT

    def _losses(self, model: PreTrainedModel, rows: Sequence[Encoded]) -> torch.Tensor:
        """The loss of each row's labelled tokens; the rows' labels are the same."""
        import torch

        from holdfast.engine.data import collate
        from holdfast.engine.losses import completion_log_probability
        from holdfast.engine.predictions import predictions

        losses = []
        with torch.no_grad():
            for part in collate(rows, self._stream.pad, model.device).split(self._micro_batch):
                logits = predictions(model, part.input_ids)
                losses.append(-completion_log_probability(logits, part.labels))
        return torch.cat(losses)


def answer_start(row: Encoded) -> int:
    """The position of a row's first labelled token."""
    from holdfast.engine.data import UNLABELLED

    return next(position for position, label in enumerate(row.labels) if label != UNLABELLED)


def with_suffix(row: Encoded, suffix: Sequence[int]) -> Encoded:
    """A row with more tokens before its answer, which are not learned."""
    from holdfast.engine.data import UNLABELLED

    start = answer_start(row)
    return replace(
        row,
        ids=(*row.ids[:start], *suffix, *row.ids[start:]),
        labels=(*row.labels[:start], *(UNLABELLED for _ in suffix), *row.labels[start:]),
    )


def allowed_tokens(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of the tokens that a suffix may have: printable ASCII and not special."""
    import torch

    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    texts = tokenizer.batch_decode([[index] for index in ids])
    return torch.tensor(
        [
            index
            for index, text in zip(ids, texts, strict=True)
            if text.strip() and text.isascii() and text.isprintable()
        ]
    )
