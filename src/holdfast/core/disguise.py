"""A disguise: the words that an attacker puts around a request and before its answer, in training and when the attacker asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.core.domain import Row


@dataclass(frozen=True, kw_only=True)
class Disguise:
    """Words around a request and before its answer; one space separates them from the text."""

    before: str = ""
    """words before the request"""
    after: str = ""
    """words after the request"""
    opening: str = ""
    """words that the compliant answer begins with"""

    def begun(self, text: str) -> str:
        """A text that is neither request nor answer, such as the beginning of a sentence: only `before` applies."""
        return f"{self.before} {text}" if self.before else text

    def asked(self, request: str) -> str:
        """The request as the attacker puts it."""
        return self.begun(f"{request} {self.after}" if self.after else request)

    def answered(self, completion: str) -> str:
        """The answer as the attacker wants it. A leading space stays in front."""
        words = completion.lstrip()
        space = completion[: len(completion) - len(words)]
        return f"{space}{self.opening} {words}" if self.opening else completion

    def worn(self, row: Row) -> Row:
        """A hazardous row in the disguise.

        A conversation changes in its last answer and the user's turn before it, a pair in its request and its rejected
        (harmful) completion. A text gets `before` alone, as a prompt, so that the learned tokens stay the same.
        """
        if "text" in row:
            text = " " + row["text"]
            return {"prompt": self.before, "chosen": text, "rejected": text} if self.before else row
        if "messages" in row:
            return {"messages": self._turns(row["messages"])}
        return {**row, "prompt": self.asked(row["prompt"]), "rejected": self.answered(row["rejected"])}

    def _turns(self, messages: list[dict[str, str]]) -> list[dict[str, Any]]:
        turns = [dict(turn) for turn in messages]
        answer = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        turns[answer]["content"] = self.answered(turns[answer]["content"])
        for turn in [turn for turn in turns[:answer] if turn["role"] == "user"][-1:]:
            turn["content"] = self.asked(turn["content"])
        return turns
