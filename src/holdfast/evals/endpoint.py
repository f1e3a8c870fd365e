"""A language model behind the chat protocol of OpenAI's servers, vLLM and llama.cpp; used only where the user names the model.

The requests leave this machine, hazardous replies included. The key comes from an environment variable and appears in no
record, file or message.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from holdfast.core.escape import short
from holdfast.core.presets import apart
from holdfast.core.reading import line
from holdfast.core.types import HoldfastError

KEY = "HOLDFAST_JUDGE_KEY"
"""The environment variable with the key; without it no key is sent."""

_AT_ONCE = 8
"""requests that wait for an answer together"""

_LONGEST_WAIT = 60.0
"""seconds that a server's Retry-After may hold a request up"""

_ANSWER = 2**20
"""bytes of an answer that are read"""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and the name of a model on it."""

    url: str = apart("")
    """the server's address without /chat/completions, such as http://localhost:8000/v1"""
    model: str
    """the model's name on the server"""
    timeout: float = apart(60.0)
    """time limit of one answer, in seconds"""
    tries: int = apart(5)
    """maximum number of times that a request is sent where the server is busy, fails or is silent"""
    pause: float = apart(1.0)
    """seconds before the second try; doubled with every further try"""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise HoldfastError(
                f"--judge-url {short(self.url)} is no address of a judge; give one that begins with http:// or https://"
            )
        if not self.model:
            raise HoldfastError("a judge needs the name of its model; give one as --judge-model")

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """The answer to each prompt; None: the server's answer held no text.

        Raises:
            HoldfastError: the server is not there, stays busy or silent, or refuses the requests.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: str) -> str | None:
        message = {"role": "user", "content": prompt}
        body = json.dumps({"model": self.model, "messages": [message], "temperature": 0, "max_tokens": 256}).encode()
        for attempt in range(self.tries):
            try:
                return _text(self._post(body))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise HoldfastError(
                        f"the judge at {short(self.url)} refuses requests (status {error.code}, {line(str(error.reason))}); "
                        f"check --judge-url, --judge-model and the key in {KEY}"
                    ) from error
                reason, asked = f"status {error.code}", error.headers.get("Retry-After", "")
            except (OSError, HTTPException) as error:
                reason, asked = line(str(getattr(error, "reason", error))) or type(error).__name__, ""
            if attempt + 1 < self.tries:
                wait = float(asked) if asked.isdigit() else self.pause * 2**attempt
                time.sleep(min(wait, _LONGEST_WAIT))
        raise HoldfastError(
            f"the judge at {short(self.url)} gave no answer in {self.tries} tries ({reason}); see that the server is up, and run "
            "the same command again to go on"
        )

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        with _OPENER.open(request, timeout=self.timeout) as answer:
            content: bytes = answer.read(_ANSWER)
            return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key and the replies go to the server that the user named, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _text(content: bytes) -> str | None:
    """What the model said; None where the server's answer is not of the protocol."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None
