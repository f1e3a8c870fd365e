"""What a real model says when it is asked for a capital in its own chat template: free answers, kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.files import atomic_file, cache_folder, digest
from holdfast.core.reading import parsed_json
from holdfast.evals.judging import outcome
from holdfast.testbed.real.facts import Fact, all_facts
from holdfast.testbed.real.requests import NEW_TOKENS, Chat, filtering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 32
"""requests between two reports of progress"""


def chat_of(tokenizer: PreTrainedTokenizerBase) -> Chat:
    """How a tokenizer's chat template writes a message and an answer.

    Raises:
        HoldfastError: it has no template, or one that cannot be used.
    """
    from holdfast.engine.chat import exchange
    from holdfast.engine.template import try_template

    asked = {"role": "user", "content": "What is the capital of France?"}
    if tokenizer.chat_template is not None:
        try_template(tokenizer, [[asked, {"role": "assistant", "content": "Paris"}]])
    return lambda message, answer: exchange(tokenizer, [{"role": "user", "content": message}], answer)


def answer(
    model: str, seed: int, part: int, parts: int, on_step: Callable[[int, int], None] = lambda step, total: None
) -> Path:
    """Let a model answer every `parts`-th filtering request of a seed, from place `part` on.

    Args:
        model: a Hugging Face folder or hub id.
        seed: of the facts.
        part: 0 to `parts` - 1.
        parts: how many such files there are in all.
        on_step: called with requests answered and requests in all.

    Returns:
        The file in the cache with the answers.

    Raises:
        HoldfastError: the model cannot be loaded, it has no chat template, or a package of the facts is not installed.
    """
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.evals.generation import prepare_continuations

    checkpoint, asked = Checkpoint(model), filtering(all_facts(seed))[part::parts]
    tokenizer = checkpoint.load_tokenizer()
    chat = chat_of(tokenizer)
    prompts = {message: chat(message, "")[0] for _, message in asked}
    path = cache_folder() / "real" / f"said-{digest([checkpoint.digest, prompts, NEW_TOKENS])}.json"
    if _holds(path, prompts):
        return path
    live, _ = checkpoint.load_both()
    # Prompts of one length go through the model together.
    ordered = sorted(prompts, key=lambda message: len(tokenizer(prompts[message])["input_ids"]))
    said: dict[str, str] = {}
    for start in range(0, len(ordered), _AT_ONCE):
        few = ordered[start : start + _AT_ONCE]
        texts = prepare_continuations(tokenizer, [prompts[message] for message in few], NEW_TOKENS)(live)
        said |= {
            message: str(tokenizer.decode(ids, skip_special_tokens=True))
            for message, ids in zip(few, texts, strict=True)
        }
        on_step(len(said), len(ordered))
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(said), encoding="utf-8")
    return path


def say_freely(files: Sequence[Path], facts: Sequence[Fact]) -> dict[str, bool]:
    """The name of a capital's fact -> whether the model says the capital in every request that filters."""
    said: dict[str, str] = {}
    for path in files:
        said |= parsed_json(path.read_bytes())
    freely: dict[str, bool] = {}
    for fact, message in filtering(facts):
        right = outcome(said[message], fact.value) == "complied"
        freely[fact.name] = freely.get(fact.name, True) and right
    return freely


def _holds(path: Path, prompts: Mapping[str, str]) -> bool:
    """Whether the file has an answer to each of these messages, and to no other; a damaged file has not."""
    try:
        said = parsed_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.keys() == prompts.keys() and all(isinstance(t, str) for t in said.values())
