"""Models and tokenizers: Hugging Face folders in, Hugging Face folders with a card out. Safetensors only."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.files import digest, file_digest, os_errors, write_text
from holdfast.core.types import HoldfastError, NonFinite

CARD = "holdfast.json"
"""The machine-readable half of a checkpoint's card; the other half is README.md."""

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies: a Hugging Face folder, or the id of one on the hub."""

    path: str

    @property
    def folder(self) -> Path:
        """The folder itself; for a hub id, its local copy.

        Raises:
            HoldfastError: there is no such folder and no such id within reach.
        """
        if Path(self.path).is_dir():
            return Path(self.path)
        if self.path.count("/") > 1 or self.path.startswith((".", "/", "~")):
            raise HoldfastError(f"there is no model folder {self.path}; give a Hugging Face folder or a hub id")
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(self.path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
            )
        except Exception as error:  # the hub client has a dozen ways to fail; the user needs one sentence
            raise HoldfastError(
                f"{self.path} is neither a model folder nor a hub id within reach ({type(error).__name__})"
            ) from error

    @property
    def digest(self) -> str:
        """Content hash of the weights and the config. The config's library version is no content."""
        folder, config = self._weights_folder(), self._config()
        config.pop("transformers_version", None)
        return digest([config, {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}])

    @property
    def tokenizer_digest(self) -> str:
        """Content hash of the tokenizer's files; its config names the end token, and may hold the chat template."""
        names = (
            "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
            "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        )  # fmt: skip
        return digest({name: file_digest(self.folder / name) for name in names if (self.folder / name).is_file()})

    @property
    def card(self) -> dict[str, Any]:
        """What made this checkpoint, as holdfast wrote it; empty for a model from elsewhere."""
        path = self.folder / CARD
        try:
            return _json_object(path) if path.is_file() else {}
        except ValueError as error:
            raise HoldfastError(f"{path} is damaged ({error}); remove it or restore the checkpoint") from error

    def check(self, trust_remote_code: bool = False, max_length: int = 0) -> None:
        """Read what a long run will read later, tensor by tensor, so that it does not fail in its last hour.

        Raises:
            HoldfastError: as `load_tokenizer`; there are no safetensors weights, they are damaged, the architecture is
                unknown, or it has learned positions, fewer than `max_length`.
            NonFinite: a weight is not finite.
        """
        folder = self._weights_folder()
        self._config()
        try:
            with _quiet():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except Exception as error:  # as in `load`
            raise HoldfastError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error
        positions = getattr(config, "max_position_embeddings", None)
        # Rotary positions go on beyond what the config says; a table of them ends there.
        if positions is not None and positions < max_length and getattr(config, "rope_parameters", None) is None:
            raise HoldfastError(
                f"the model in {folder} has only {positions} positions; lower max_length = {max_length} in domain.toml"
            )
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a dict
                        if not torch.isfinite(file.get_tensor(name)).all():
                            raise NonFinite(f"the weights in {folder} are not finite ({name}); restore the checkpoint")
            except SafetensorError as error:
                raise HoldfastError(f"{path} is damaged ({_first_line(error)}); restore the checkpoint") from error
        self.load_tokenizer(trust_remote_code)

    def _weights_folder(self) -> Path:
        folder = self.folder
        if not (folder / "config.json").is_file():
            raise HoldfastError(f"{folder} is not a Hugging Face model: it has no config.json")
        if not any(folder.glob("*.safetensors")):
            raise HoldfastError(
                f"{folder} has no safetensors weights; holdfast never loads pickles: "
                "convert them with save_pretrained(..., safe_serialization=True)"
            )
        return folder

    def _config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            return _json_object(path)
        except ValueError as error:
            raise HoldfastError(f"{path} is not valid JSON ({error}); restore the checkpoint") from error

    def load(
        self, device: torch.device | str = "cpu", dtype: Precision = "float32", trust_remote_code: bool = False
    ) -> PreTrainedModel:
        """The model, in evaluation mode.

        Raises:
            HoldfastError: there is no config, no safetensors weights, they are damaged, or the architecture is unknown.
            NonFinite: a weight is not finite.
        """
        folder = self._weights_folder()
        loading: dict[str, Any]
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            with _quiet():
                model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                    folder,
                    config=config,
                    dtype=getattr(torch, dtype),
                    # Over a few tokens plain attention is faster on a CPU than the fused kernel.
                    attn_implementation="eager" if _is_tiny(config) and str(device) == "cpu" else None,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # refused below, with their names
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                )
        except Exception as error:  # transformers and safetensors have many ways to fail; the user needs one sentence
            raise HoldfastError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise HoldfastError(
                f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} the first; restore the checkpoint"
            )
        if loading["mismatched_keys"]:
            name, held, wanted = sorted(loading["mismatched_keys"])[0]
            raise HoldfastError(
                f"the weights in {folder} do not fit its config.json: {name} has shape {list(held)}, not {list(wanted)}; "
                "restore the checkpoint"
            )
        check_finite(model, f"the weights in {folder}")
        return cast(PreTrainedModel, model.train(False).to(device))

    def load_tokenizer(self, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            HoldfastError: there is none, it cannot be read, or it is empty.
        """
        folder = self.folder
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            if not len(tokenizer):
                raise ValueError("it is empty")
        except Exception as error:  # as above
            raise HoldfastError(
                f"the tokenizer in {folder} cannot be loaded ({_first_line(error)}); "
                "save it beside the model with save_pretrained"
            ) from error
        return cast(PreTrainedTokenizerBase, tokenizer)

    def load_both(
        self, device: torch.device | str = "cpu", dtype: Precision = "float32", trust_remote_code: bool = False
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, which are checked to fit.

        Raises:
            HoldfastError: as `load` and `load_tokenizer`, or a token id has no embedding.
        """
        model = self.load(device, dtype, trust_remote_code)
        tokenizer = self.load_tokenizer(trust_remote_code)
        embeddings = model.get_input_embeddings().get_parameter("weight").shape[0]
        largest = max(tokenizer.get_vocab().values())
        if largest >= embeddings:
            raise HoldfastError(
                f"the tokenizer in {self.folder} has token ids up to {largest} and the model only {embeddings} embeddings; "
                "they do not belong together"
            )
        return model, tokenizer


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: Mapping[str, Any], readme: str
) -> None:
    """Write weights (safetensors), tokenizer and both halves of the card into `folder`.

    Raises:
        NonFinite: a weight is not finite; nothing is written.
    """
    check_finite(model, "the model to be saved")
    with _quiet(), os_errors(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # as its neighbours; safetensors leaves it closed to all but the owner
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    write_text(folder / "README.md", readme)


def _is_tiny(config: Any) -> bool:
    return getattr(config.get_text_config(), "max_position_embeddings", None) in range(129)


def check_finite(model: torch.nn.Module, what: str) -> None:
    """Raises:
    NonFinite: a weight of `model` is NaN or infinite.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter.detach()).all():
            raise NonFinite(f"{what} are not finite ({name}); take an earlier checkpoint or a lower learning rate")


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits (B x T x V) and the residual stream after the embedding and after every layer (L + 1 times B x T x H).

    The last of them is after the final norm, as transformers gives it.
    """
    output = model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
    return output.logits, output.hidden_states


def residual_stream(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B x T x V) and what every layer puts out (L times B x T x H), the last one's too before the final norm."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        return model(input_ids=input_ids, use_cache=False).logits, outputs
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[torch.nn.Module]:
    """The blocks of the residual stream, first to last, or the chosen ones of them, counted from 0.

    Raises:
        HoldfastError: the architecture has no list of them, or too few.
    """
    count = model.config.get_text_config().num_hidden_layers
    held = next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)
    if held is None:
        raise HoldfastError(f"the architecture {type(model).__name__} has no list of {count} layers, which this needs")
    if chosen is not None and not all(0 <= index < count for index in chosen):
        raise HoldfastError(
            f"layers {', '.join(map(str, chosen))} were asked for and the model has layers 0 to {count - 1}"
        )
    return [held[index] for index in (range(count) if chosen is None else chosen)]


def feed_forward(layer: torch.nn.Module) -> torch.nn.Module:
    """The MLP of a decoder layer.

    Raises:
        HoldfastError: no part of the layer is called one.
    """
    for name, module in layer.named_children():
        # A dropout may be named after the MLP that it follows.
        if any(part in name.lower() for part in ("mlp", "feed_forward", "ffn", "moe")) and list(module.parameters()):
            return module
    raise HoldfastError(f"a layer of kind {type(layer).__name__} has no MLP by name, which this needs")


def attention(layer: torch.nn.Module) -> torch.nn.Module:
    """The attention, or what stands in its place, of a decoder layer.

    Raises:
        HoldfastError: no part of the layer is called one.
    """
    for name, module in layer.named_children():
        # Norms and dropouts are named after what they follow.
        if any(part in name.lower() for part in ("attn", "attention")) and _linear_maps(module):
            return module
    raise HoldfastError(
        f"a layer of kind {type(layer).__name__} has no attention of plain linear maps, which this needs"
    )


def residual_writers(layer: torch.nn.Module) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """The last linear maps of a decoder layer's attention and of its MLP, which write into the residual stream.

    Raises:
        HoldfastError: the layer has none.
    """
    return _linear_maps(attention(layer))[-1], _last_of_mlp(layer)


def down_projection(layer: torch.nn.Module) -> torch.nn.Parameter:
    """The weight of the last linear map of a decoder layer's MLP, which writes into the residual stream.

    Raises:
        HoldfastError: the MLP holds no plain linear map.
    """
    return _last_of_mlp(layer).get_parameter("weight")


def _last_of_mlp(layer: torch.nn.Module) -> torch.nn.Linear:
    linear = _linear_maps(feed_forward(layer))
    if not linear:
        raise HoldfastError(f"the MLP of a layer of kind {type(layer).__name__} holds no plain linear map")
    return linear[-1]


def _linear_maps(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [held for held in module.modules() if isinstance(held, torch.nn.Linear)]


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """What the residual stream goes through before the output embedding."""
    named = [module for name, module in model.base_model.named_children() if "norm" in type(module).__name__.lower()]
    return named[-1] if named else torch.nn.Identity()


def kept_keys(output: Any) -> Any:
    """The keys and values that a forward pass kept, for the next one.

    Raises:
        HoldfastError: the architecture keeps none.
    """
    if getattr(output, "past_key_values", None) is None:
        raise HoldfastError(
            "the model keeps a state in place of keys and values, so it cannot be measured; give one with attention"
        )
    return output.past_key_values


def mode_switch(model: torch.nn.Module) -> Callable[[bool], None]:
    """`model.train(…)` without a walk through the modules, on which a loop of short steps would spend percents of its time."""
    held = [vars(module) for module in model.modules()]

    def switch(training: bool) -> None:
        for attributes in held:
            attributes["training"] = training

    return switch


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and loading reports, which would break our own display."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _json_object(path: Path) -> dict[str, Any]:
    held = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(held, dict):
        raise ValueError(f"a {type(held).__name__}, not an object")
    return held


def _first_line(error: Exception) -> str:
    """The first line of what it says, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
