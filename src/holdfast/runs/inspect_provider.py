"""Models for Inspect: `inspect eval TASK --model holdfast/FOLDER`, and from Python a model in memory, such as one in an attack.

Inspect finds this module by the entry point `inspect_ai`, so inspect-ai is there when the module is imported. Prompts become
tokens where those of holdfast's own evaluations do: the chat template where the tokenizer has one, else the text as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from holdfast.core.types import HoldfastError, NonFinite, Precision
from holdfast.evals.memory import rows_at_once

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 512
"""What is written at most where the task does not say."""

_UNSUPPORTED = ("logprobs", "top_logprobs", "prompt_logprobs", "response_schema", "frequency_penalty")


@dataclass(frozen=True)
class _Settings:
    """How text is drawn; requests of equal settings are answered together."""

    new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    stops: tuple[str, ...]


@dataclass(eq=False)
class _Request:
    """A prompt that waits for its text."""

    ids: list[int]
    settings: _Settings
    output: ModelOutput | None = field(default=None)


class LiveModel(ModelAPI):  # type: ignore[misc]
    """A model in memory that answers Inspect. The model is bit-identical afterwards, and torch's random numbers too.

    Greedy, unless the task sets a temperature; then draws depend on the task's seed (0 where it has none) and on the order in
    which its samples come.

    Raises:
        HoldfastError: the task asks for what the model has not: tools, log-probabilities, several choices.
        NonFinite: the model's logits are not finite.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Any = None
    ) -> None:
        super().__init__(model_name=name, config=config or GenerateConfig())
        self.model: Any = model
        self.words = tokenizer
        self._lock, self._waiting, self._batches = anyio.Lock(), list[_Request](), 0

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation; those that come meanwhile are answered in one batch when this one is done."""
        request = _Request(self._ids(input), self._settings(tools, config))
        self._waiting.append(request)
        async with self._lock:
            if request.output is None:
                batch = [
                    other for other in self._waiting if other.settings == request.settings and other.output is None
                ]
                # Prompts of one length: nothing is padded, which not every architecture reads right.
                batch = [other for other in batch if len(other.ids) == len(request.ids)]
                size = rows_at_once(self.model, len(request.ids) + request.settings.new_tokens)
                batch = [request, *(other for other in batch if other is not request)][:size]
                await anyio.to_thread.run_sync(self._answer, batch)
        self._waiting.remove(request)
        assert request.output is not None
        return request.output

    def max_tokens(self) -> int | None:
        return NEW_TOKENS

    def max_connections(self) -> int:
        """How many samples are asked at a time: as many as may make up a batch."""
        return 32

    def connection_key(self) -> str:
        return f"holdfast {id(self)}"

    def _ids(self, messages: list[ChatMessage]) -> list[int]:
        from holdfast.engine.chat import render
        from holdfast.engine.tokens import prompt_ids

        if self.words.chat_template is None:
            text = "\n".join(message.text for message in messages)
        else:
            text = render(self.words, [{"role": turn.role, "content": turn.text} for turn in messages], prompt=True)
        [ids] = prompt_ids(self.words, [text])
        return ids

    def _settings(self, tools: list[ToolInfo], config: GenerateConfig) -> _Settings:
        wanted = [name for name in _UNSUPPORTED if getattr(config, name, None)]
        if (config.num_choices or 1) > 1:
            wanted.append("num_choices")
        if tools or wanted:
            what = "tools" if tools else wanted[0]
            raise HoldfastError(f"a model of the provider holdfast has no {what}; run the task with the provider hf")
        return _Settings(
            new_tokens=config.max_tokens or NEW_TOKENS, temperature=config.temperature or 0.0, top_p=config.top_p,
            top_k=config.top_k, seed=config.seed or 0, stops=tuple(config.stop_seqs or ()),
        )  # fmt: skip

    def _answer(self, batch: list[_Request]) -> None:
        import torch
        from transformers import LogitsProcessorList, StopStringCriteria

        from holdfast.engine.tokens import end_tokens

        def finite(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if not torch.isfinite(scores).all():
                raise NonFinite("the model's logits are not finite, so its text means nothing")
            return scores

        settings, length = batch[0].settings, len(batch[0].ids)
        room = self._room(length)
        if room < 1:
            for request in batch:
                request.output = self._output("", "model_length", length, 0)
            return
        ends = end_tokens(self.words, self.model)
        prompts = torch.tensor([request.ids for request in batch], device=self.model.device)
        drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if settings.temperature > 0:
            drawing = {
                "do_sample": True, "temperature": settings.temperature,
                "top_p": settings.top_p or 1.0, "top_k": settings.top_k or 0,
            }  # fmt: skip
        stopping = [StopStringCriteria(self.words, list(settings.stops))] if settings.stops else None
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed + self._batches)
            self._batches += 1
            rows = self.model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=min(settings.new_tokens, room),
                eos_token_id=list(ends) or None, pad_token_id=ends[0] if ends else 0, stopping_criteria=stopping,
                logits_processor=LogitsProcessorList([finite]), **drawing,
            )  # fmt: skip
        for request, row in zip(batch, rows[:, length:].tolist(), strict=True):
            written = next((place for place, token in enumerate(row) if token in ends), len(row))
            text = str(self.words.decode(row[:written], skip_special_tokens=True))
            cut = min((text.find(stop) for stop in settings.stops if stop in text), default=len(text))
            stopped = written < len(row) or cut < len(text)
            request.output = self._output(text[:cut], "stop" if stopped else "max_tokens", length, written)

    def _room(self, length: int) -> int:
        """How many tokens may follow a prompt."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return positions - length if isinstance(positions, int) else NEW_TOKENS**2

    def _output(self, text: str, reason: Any, read: int, written: int) -> ModelOutput:
        output = ModelOutput.from_content(self.model_name, text, stop_reason=reason)
        output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return output


def live_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "live") -> Model:
    """A model in memory as Inspect takes models: `inspect_ai.eval(task, model=live_model(model, tokenizer))`."""
    _live[name] = model, tokenizer
    try:
        return get_model(f"holdfast/{name}", memoize=False)
    finally:
        del _live[name]


_live: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
"""Models in memory by name, while Inspect makes its own object of one: its registry knows names alone."""


@modelapi(name="holdfast")  # type: ignore[untyped-decorator]
def holdfast() -> Any:
    """The provider: `holdfast/FOLDER`, with `-M device=cuda -M precision=lean` where they are wanted."""
    return _opened


def _opened(
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as Inspect's own providers
    device: str = "cpu",
    precision: Precision = "float32",
    trust_remote_code: bool = False,
) -> LiveModel:
    from holdfast.engine.checkpoint import Checkpoint

    if model_name in _live:
        return LiveModel(model_name, *_live[model_name], config)
    checkpoint = Checkpoint(model_name)
    checkpoint.check(trust_remote_code)
    model = checkpoint.load(device, precision, trust_remote_code)
    return LiveModel(model_name, model, checkpoint.load_tokenizer(trust_remote_code), config)
