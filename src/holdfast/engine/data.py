"""Rows to batches: tokenization, labels, and endless seeded streams by role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from holdfast.core.disguise import Disguise
from holdfast.core.domain import ATTACKER_VIEW, DEFENDER_ROLES, Domain, Row
from holdfast.core.findings import Cut
from holdfast.core.types import HoldfastError
from holdfast.engine.chat import conversation
from holdfast.engine.ranks import rank_of
from holdfast.engine.template import try_template
from holdfast.engine.tokens import begun, common_prefix, ended, plain

UNLABELLED = -100
"""The label of a position that no loss looks at."""

Value = TypeVar("Value")

Side = Literal["chosen", "rejected"]
"""One completion of a preference pair."""

NOTHING_LEFT = 0.05
"""The share of a role's rows that may teach nothing. With more of them an attack that learns nothing would read as resistance."""

LEARNS_REJECTED = ("forget", "forget_heldout", "attack", "attack_ood", "attack_all", "hazard_heldout")
"""Roles whose preference rows are learned from their rejected (harmful) side; the others learn the chosen one."""


@dataclass(frozen=True)
class Encoded:
    """One tokenized row. `labels[i]` is `ids[i]` where the token is to be learned, else `UNLABELLED`."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: int = 0
    """tokens beyond the row's greatest length, which were cut off"""

    @property
    def teaches(self) -> bool:
        """Whether a token is to be learned; nothing predicts the first."""
        return any(label != UNLABELLED for label in self.labels[1:])


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of this rank, B x T.

    Padding is on the right and never labelled, so a causal model needs no attention mask. `mask` says which positions
    are tokens. The counts are those of the *whole* batch, over all microbatches and ranks, divided by the number of
    ranks: a loss that sums over its rows and divides by such a count, when summed over microbatches and averaged over
    ranks, is the mean over the batch, however the batch was split.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    label_count: float
    """labelled next-token targets"""
    token_count: float
    """tokens that are not padding"""
    row_count: float
    """rows"""
    ranks: int = 1
    """how many ranks have a share of the batch; 1: each has all of it"""

    def share(self, of_rows: Sequence[Value]) -> Sequence[Value]:
        """Of values of all rows of the batch, over all ranks: those of this rank's rows."""
        return of_rows[rank_of()[0] % self.ranks :: self.ranks]

    def split(self, rows: int | None) -> Iterator[Batch]:
        """Microbatches of at most `rows` rows, which keep the counts of the whole."""
        if rows is None or rows >= len(self.input_ids):
            yield self
            return
        for start in range(0, len(self.input_ids), rows):
            part = slice(start, start + rows)
            yield replace(self, input_ids=self.input_ids[part], labels=self.labels[part], mask=self.mask[part])


def encode(
    row: Row, tokenizer: PreTrainedTokenizerBase, role: str, max_length: int, side: Side | None = None
) -> Encoded:
    """Tokenize a row and label what is to be learned: all of a text, the assistant's turns, one completion of a pair.

    The completion is that of `side`; without `side`, the role determines the completion.

    `engine.tokens` says which special tokens stand before and after a text, `engine.chat` which tokens of a conversation are
    an answer. The end token is labelled even where the padding token is the same. Rows are cut at `max_length`.

    Raises:
        HoldfastError: the row is a conversation and the tokenizer has no chat template that can mark the turns, or a side
            is asked for and the row is no pair.
    """
    if side is not None and "prompt" not in row:
        raise HoldfastError(
            f"a row of {role} has no two completions, which this needs; give rows of 'prompt', 'chosen' and 'rejected'"
        )
    if "text" in row:
        [ids] = begun(tokenizer, [row["text"]])
        return _cut(ended(tokenizer, ids), [True] * (len(ids) + 1), max_length)
    if "messages" in row:
        ids, learned = conversation(tokenizer, row["messages"])
        return _cut(ids, learned, max_length)
    completion = side or ("rejected" if role in LEARNS_REJECTED else "chosen")
    prompt, ids = begun(tokenizer, [row["prompt"], row["prompt"] + row[completion]])
    shared = common_prefix(prompt, ids)
    return _cut(ended(tokenizer, ids), [i >= shared for i in range(len(ids) + 1)], max_length)


def encode_all(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, role: str, max_length: int, side: Side | None = None
) -> list[Encoded]:
    """`encode` for all rows of a role, in their order; rows that were cut down to their prompt teach nothing and stay.

    Raises:
        HoldfastError: as `encode` and `try_template`, or more than `NOTHING_LEFT` of the rows teach nothing.
    """
    if conversations := [row["messages"] for row in rows if "messages" in row]:
        try_template(tokenizer, conversations)
    encoded = [encode(row, tokenizer, role, max_length, side) for row in rows]
    empty = [row for row in encoded if not row.teaches]
    if len(empty) > NOTHING_LEFT * len(encoded):
        why = (
            f"their prompts alone fill max_length = {max_length} tokens; raise max_length in domain.toml or shorten the prompts"
            if any(row.cut for row in empty)
            else "they are a single token; give longer rows"
        )
        raise HoldfastError(f"{len(empty)} of {len(encoded)} rows of {role} have nothing left to learn, since {why}")
    return encoded


def count_cut(domain: Domain, tokenizer: PreTrainedTokenizerBase, role: str) -> Cut:
    """How many rows of a role are cut, and how many of them down to their prompt.

    Raises:
        HoldfastError: as `encode_all`.
    """
    return _count(role, encode_all(domain.rows(role), tokenizer, role, domain.max_length))


def _count(role: str, rows: Sequence[Encoded]) -> Cut:
    cut, empty = sum(row.cut > 0 for row in rows), sum(not row.teaches for row in rows)
    return Cut(role=role, rows=len(rows), cut=cut, empty=empty)


def collate(
    rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu", rank: int = 0, ranks: int = 1
) -> Batch:
    """The batch of `rows`, of which this rank keeps every `ranks`-th from `rank` on; all where they do not divide evenly.

    Ranks that keep all compute the same, so their mean is the whole batch's value too.
    """
    if len(rows) % ranks:
        rank, ranks = 0, 1
    label_count = sum(len(row.labels) - 1 - row.labels[1:].count(UNLABELLED) for row in rows) / ranks
    token_count = sum(len(row.ids) for row in rows) / ranks
    width = max(len(row.ids) for row in rows)
    mine = rows[rank::ranks]
    # By way of numpy, which reads nested tuples several times as fast.
    input_ids = torch.from_numpy(np.array([row.ids + (pad,) * (width - len(row.ids)) for row in mine], np.int64))
    labels = torch.from_numpy(np.array([row.labels + (UNLABELLED,) * (width - len(row.ids)) for row in mine], np.int64))
    mask = torch.from_numpy(np.arange(width) < np.array([[len(row.ids)] for row in mine]))
    return Batch(
        input_ids.to(device),
        labels.to(device),
        mask.to(device),
        max(label_count, 1 / ranks),
        token_count,
        len(rows) / ranks,
        ranks,
    )


class Tally:
    """How many tokens the streams of one `Data` have put into batches, over all ranks."""

    def __init__(self) -> None:
        self.tokens = 0


class Stream:
    """Endless batches of one role, in an order that depends on the seed alone.

    Every pass over the rows has a new permutation; a batch may span two passes. The state is one number: how many rows
    were drawn. With several ranks each sees its share of the same global batch.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        batch_size: int,
        seed: int,
        pad: int,
        device: torch.device | str = "cpu",
        tally: Tally | None = None,
        whole: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.pad, self.device = rows, batch_size, seed, pad, device
        self._whole = whole
        self._tally = tally or Tally()
        self.drawn = 0
        self._pass = -1
        self._order: list[int] = []

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Batch:
        return self.batch(self.take(self.batch_size))

    def take(self, rows: int) -> list[Encoded]:
        """The next rows of the stream, over all ranks."""
        return [self.rows[index] for index in self.draw(rows)]

    def draw(self, rows: int) -> list[int]:
        """The indices of the next rows of the stream, over all ranks."""
        return [self._next() for _ in range(rows)]

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """This rank's share of a batch of `rows`; all of a batch that must stay whole."""
        self._tally.tokens += sum(len(row.ids) for row in rows)
        return collate(rows, self.pad, self.device, *((0, 1) if self._whole else rank_of()))

    def _next(self) -> int:
        done, position = divmod(self.drawn, len(self.rows))
        if done != self._pass:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + done) % 2**63)
            self._order, self._pass = torch.randperm(len(self.rows), generator=generator).tolist(), done
        self.drawn += 1
        return self._order[position]

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Data:
    """Streams by role, for one tokenizer. `Data` hands out the roles it was made with and no others.

    `Data.defender` holds what a safeguard may read and `Data.attacker` what an attack may read, under the names that an
    attack asks for. Neither holds a row that an evaluation reads.
    """

    def __init__(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerBase,
        roles: Mapping[str, Sequence[str]],
        device: torch.device | str = "cpu",
    ) -> None:
        self._domain, self._tokenizer, self._roles, self._device = domain, tokenizer, dict(roles), device
        self._encoded: dict[tuple[str, Side | None, Disguise | None], list[Encoded]] = {}
        self.tally = Tally()

    @property
    def domain(self) -> Domain:
        return self._domain

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @classmethod
    def defender(cls, domain: Domain, tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu") -> Data:
        return cls(domain, tokenizer, {role: (role,) for role in DEFENDER_ROLES}, device)

    @classmethod
    def attacker(cls, domain: Domain, tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu") -> Data:
        return cls(domain, tokenizer, {name: (role,) for name, role in ATTACKER_VIEW.items()}, device)

    @property
    def cuts(self) -> list[Cut]:
        """The roles read so far of which rows were cut."""
        counts = {role: _count(role, rows) for (role, _, _), rows in self._encoded.items()}
        return [count for count in counts.values() if count.cut]

    def renamed(self, **roles: Sequence[str]) -> Data:
        """The same rows under new names, and no other rows: `renamed(hazard=["forget"], benign=["retain"])`."""
        merged = {new: [role for old in olds for role in self._roles_of(old)] for new, olds in roles.items()}
        view = Data(self._domain, self._tokenizer, merged, self._device)
        view._encoded, view.tally = self._encoded, self.tally
        return view

    def stream(
        self,
        name: str,
        *,
        batch_size: int,
        seed: int,
        side: Side | None = None,
        disguise: Disguise | None = None,
        whole: bool = False,
    ) -> Stream:
        """An endless stream of batches of `batch_size` rows (over all ranks), which wear the disguise if there is one.

        With one name and seed, the streams of both sides go through the same pairs in the same order. A loss that compares the
        rows of a batch with each other asks for `whole` batches: every rank then gets all rows of each.

        Raises:
            HoldfastError: the domain names no rows for `name`, the rows are malformed, or `side` is set and they are no pairs.
        """
        pad = self._tokenizer.pad_token_id
        rows = self.rows(name, side, disguise)
        return Stream(rows, batch_size, seed, pad if isinstance(pad, int) else 0, self._device, self.tally, whole)

    def rows(self, name: str, side: Side | None = None, disguise: Disguise | None = None) -> list[Encoded]:
        """All tokenized rows behind a name. A pair gives the completion of `side`, by default the one its role learns."""
        return [row for role in self._roles_of(name) for row in self._rows(role, side, disguise)]

    def other_side(self, name: str, place: int) -> Encoded | None:
        """The completion of a pair that its role does not learn, by the pair's place in `rows`; None: the row is no pair."""
        for role in self._roles_of(name):
            rows = self._domain.rows(role)
            if place < len(rows):
                other: Side = "chosen" if role in LEARNS_REJECTED else "rejected"
                pair = "prompt" in rows[place]
                return encode(rows[place], self._tokenizer, role, self._domain.max_length, other) if pair else None
            place -= len(rows)
        raise IndexError(place)

    def formats(self, name: str) -> list[str]:
        """The format of each row behind a name, in the order of `rows`, by its first column: text, messages or prompt."""
        columns = ("text", "messages", "prompt")
        rows = (row for role in self._roles_of(name) for row in self._domain.rows(role))
        return [next(column for column in columns if column in row) for row in rows]

    def hazard_tokens(self) -> tuple[int, ...]:
        """The ids of the domain's hazard words, with and without a space before them, where they are single tokens.

        Raises:
            HoldfastError: the domain names no hazard words.
        """
        if not self._domain.hazard_words:
            raise HoldfastError(
                f"{self._domain.folder / 'domain.toml'} names no words that mark hazardous text, which generated text is "
                'filtered by; add hazard_words = ["…"] at its top'
            )
        spellings = plain(self._tokenizer, [space + word for word in self._domain.hazard_words for space in ("", " ")])
        return tuple(sorted({ids[0] for ids in spellings if len(ids) == 1}))

    def _roles_of(self, name: str) -> Sequence[str]:
        if name not in self._roles:
            raise HoldfastError(f"rows named {name!r} may not be read here; allowed: {', '.join(sorted(self._roles))}")
        return self._roles[name]

    def _rows(self, role: str, side: Side | None, disguise: Disguise | None) -> list[Encoded]:
        if (role, side, disguise) not in self._encoded:
            rows = [disguise.worn(row) if disguise else row for row in self._domain.rows(role)]
            self._encoded[role, side, disguise] = encode_all(rows, self._tokenizer, role, self._domain.max_length, side)
        return self._encoded[role, side, disguise]


def _cut(ids: Sequence[int], learned: Sequence[bool], max_length: int) -> Encoded:
    kept = ids[:max_length]
    labels = tuple(token if learn else UNLABELLED for token, learn in zip(kept, learned, strict=False))
    return Encoded(tuple(kept), labels, len(ids) - len(kept))
