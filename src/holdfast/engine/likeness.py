"""How a model's folder differs from the undefended model's beside what its safeguard taught: weights and tokenizer.

A folder is more than its weights. A tokenizer that writes every hazardous name as one token makes each question a guess and each
of the attacker's rows useless, and the undefended weights under such a tokenizer look safe. So the tokenizers are compared on
everything that the domain reads, and the weights apart from the config.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from holdfast.core.domain import ATTACKER_ROLES, MEASURER_ROLES, Domain
from holdfast.core.folder import weight_files
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import encode_all
from holdfast.engine.tokens import begun


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """A model beside the undefended model."""

    distance: float | None
    """of the weights, relative to the undefended model's norm; None where no weight has the same name and shape"""
    texts: int
    """texts of the attacker and of the evaluations, each counted once"""
    differing: int
    """texts that the tokenizers write as other tokens, or read back as another text"""
    merged: int
    """texts that the undefended model's tokenizer tells apart from each other and the model's does not"""


def likeness(model: Checkpoint, undefended: Checkpoint, domain: Domain, trust_remote_code: bool = False) -> Likeness:
    """Compare two folders; no model is built.

    Raises:
        HoldfastError: a tokenizer cannot be loaded, or refuses a row of the domain.
    """
    words, others = (one.load_tokenizer(trust_remote_code) for one in (model, undefended))
    written = dict.fromkeys(zip(_written(words, domain), _written(others, domain), strict=True))
    told_apart: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for mine, theirs in written:
        told_apart.setdefault(mine.ids, set()).add(theirs.ids)
    return Likeness(
        distance=distance(model, undefended),
        texts=len(written),
        differing=sum(mine != theirs for mine, theirs in written),
        merged=sum(len(ids) for ids in told_apart.values() if len(ids) > 1),
    )


def distance(model: Checkpoint, other: Checkpoint) -> float | None:
    """The norm of the difference of two models' weights over the norm of the other's, over tensors of one name and shape.

    The files are read tensor by tensor: how they are split, their precision and their config do not count.
    """
    places = {name: path for path in _tensors(other) for name in _names(path)}
    moved = before = 0.0
    for path in _tensors(model):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  an open file is no mapping
                if name not in places:
                    continue
                with safe_open(places[name], "pt") as beside:
                    was, now = beside.get_tensor(name), file.get_tensor(name)
                if was.shape == now.shape:
                    moved += float((now.float() - was.float()).square().sum(dtype=torch.float64))
                    before += float(was.float().square().sum(dtype=torch.float64))
    return float((moved / before) ** 0.5) if before else None


def _tensors(checkpoint: Checkpoint) -> list[str]:
    return [str(path) for path in weight_files(checkpoint.folder) if path.suffix == ".safetensors"]


def _names(path: str) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


@dataclass(frozen=True)
class _Written:
    """A text as a tokenizer writes it: its tokens, what is learned of them, how they are read back, and what ends them."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    text: str
    end: Any


def _written(tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Iterator[_Written]:
    """Every text of the attacker and of the evaluations."""
    end = tokenizer.eos_token_id
    for role in (role for role in (*ATTACKER_ROLES, *MEASURER_ROLES) if domain.has(role)):
        for encoded in encode_all(domain.rows(role), tokenizer, role, domain.max_length):
            yield _Written(encoded.ids, encoded.labels, str(tokenizer.decode(list(encoded.ids))), end)
    for name in domain.question_sources:
        questions = domain.questions(name).questions
        texts = [text for q in questions for text in (q.prompt, *(q.prompt + choice for choice in q.choices))]
        for ids in begun(tokenizer, texts):
            yield _Written(tuple(ids), tuple(ids), str(tokenizer.decode(ids)), end)
