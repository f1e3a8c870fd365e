"""Models and tokenizers: Hugging Face folders in, Hugging Face folders with a card out. Safetensors only."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.converted import Converted, as_text
from holdfast.core.files import digest, file_digest, os_errors, write_text
from holdfast.core.folder import (
    CARD,
    SINGLE,
    check_code,
    code_files,
    generation_settings,
    read_card,
    read_config,
    shard_names,
    tokenizer_content,
    weight_files,
)
from holdfast.core.model_size import Size, count_weights, size_of
from holdfast.core.sizes import check_sizes
from holdfast.core.types import HoldfastError, NonFinite, NumberType, Precision, weights_of
from holdfast.engine.attention import chosen_attention, named_attention
from holdfast.engine.exporting import write_split
from holdfast.engine.lean import keep_gradients_whole
from holdfast.engine.mixed import multiply_in_bfloat16
from holdfast.engine.precision import OTHERS, held_in
from holdfast.engine.ranks import agreed, is_first, totals
from holdfast.engine.read_back import difference, shapes_differ, tokenizers_differ
from holdfast.engine.sharded import is_split, local
from holdfast.engine.splitting import load


@dataclass(frozen=True)
class Checkpoint:
    """The place of a model: a Hugging Face folder or a hub id."""

    path: Converted[str | os.PathLike[str], str] = Converted(as_text)

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
        try:
            return _snapshot(self.path)
        except HoldfastError:
            raise
        except Exception as error:  # the hub client has a dozen ways to fail; the user needs one sentence
            raise HoldfastError(
                f"{self.path} is neither a model folder nor a hub id within reach ({type(error).__name__})"
            ) from error

    @property
    def size(self) -> Size:
        """The class of models that it belongs to, by its number of weights.

        Raises:
            HoldfastError: as `weight_files`.
        """
        return size_of(count_weights(self.folder))

    @property
    def digest(self) -> str:
        """Content hash of what is loaded: config, weights and their index, settings of generation, the model's own code.

        The config's library version does not count. Code counts whether it is run or not; `runs_code` says which.

        Raises:
            HoldfastError: as `weight_files` and `generation_settings`.
        """
        folder = self.folder
        config = read_config(folder)
        config.pop("transformers_version", None)
        # What few models have stands here only where they have it, so that what was recorded before stays known.
        more = {
            "generation": generation_settings(folder),
            "code": _content(folder, code_files(folder)),
            "attention": named_attention(config),
        }
        content = [config, _content(folder, weight_files(folder)), {name: part for name, part in more.items() if part}]
        return digest(content if content[-1] else content[:2])

    @property
    def tokenizer_digest(self) -> str:
        """Content hash of the tokenizer's files.

        Raises:
            HoldfastError: as `tokenizer_content`.
        """
        return digest(tokenizer_content(self.folder))

    def runs_code(self, trust_remote_code: bool) -> dict[str, bool]:
        """What an identity holds beside the digest where the model's own code runs; else nothing."""
        return {"remote_code": True} if trust_remote_code and code_files(self.folder) else {}

    @property
    def card(self) -> dict[str, Any]:
        """The card that holdfast wrote about how this checkpoint was made; empty for a model from elsewhere.

        Raises:
            HoldfastError: the card is no JSON object, or a field that is read has another type.
        """
        return read_card(self.folder)

    def check(self, trust_remote_code: bool = False, max_length: int = 0) -> None:
        """Read now, tensor by tensor, what a long run will read later, so that the run does not fail in its last hour.

        Raises:
            HoldfastError: as `load_tokenizer` and `check_sizes`; there are no safetensors weights, they are damaged, the
                architecture is unknown, it has learned positions, fewer than `max_length`, a dropout is no share, or its weights
                are float8.
            NonFinite: a weight is not finite.
        """
        folder = self.folder
        files = weight_files(folder)
        dequantised = _dequantised(folder)
        if trust_remote_code:
            check_code(folder)
        shards = [path for path in files if path.suffix == ".safetensors"]
        check_sizes(
            read_config(folder), sum(map(_tensors, shards)), sum(path.stat().st_size for path in shards), folder
        )
        config, positions = self._text_config(trust_remote_code), self.positions(trust_remote_code)
        if positions is not None and positions < max_length:
            raise HoldfastError(
                f"the model in {folder} has only {positions} positions; lower max_length = {max_length} in domain.toml"
            )
        for name, share in vars(config).items():
            if "drop" in name and isinstance(share, (int, float)) and not 0 <= share <= 1:
                raise HoldfastError(
                    f"the model in {folder} cannot be trained: its config's {name} is {share}, which is not from 0 to 1"
                )
        for path in shards:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and tensor.itemsize == 1:
                        if not dequantised:
                            raise HoldfastError(
                                f"the weights in {folder} are kept as float8 ({name}), which cannot be changed; save the model "
                                "with dequantised weights"
                            )
                        tensor = tensor.float()
                    if not torch.isfinite(tensor).all():
                        raise NonFinite(f"the weights in {folder} are not finite ({name}); restore the checkpoint")
        self.load_tokenizer(trust_remote_code)

    def positions(self, trust_remote_code: bool = False) -> int | None:
        """How many positions the model's table has; None: its positions need no table.

        Raises:
            HoldfastError: the config cannot be read.
        """
        config = self._text_config(trust_remote_code)
        # Rotary positions go on beyond what the config says; a table of them ends there.
        if getattr(config, "rope_parameters", None) is not None:
            return None
        positions = getattr(config, "max_position_embeddings", None)
        return positions if isinstance(positions, int) else None

    def _text_config(self, trust_remote_code: bool) -> Any:
        folder = self.folder
        try:
            with _quiet():
                return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except Exception as error:  # as in `load`
            raise HoldfastError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error

    def load(
        self,
        device: torch.device | str = "cpu",
        precision: Precision | NumberType = "float32",
        trust_remote_code: bool = False,
    ) -> PreTrainedModel:
        """The model, in evaluation mode.

        Args:
            device: where the model is put.
            precision: how the model is computed, or the type of its numbers where the model is only read.
            trust_remote_code: run the Python code that comes with the model.

        Raises:
            HoldfastError: there is no config, no safetensors weights, they are damaged, or the architecture is unknown.
            NonFinite: a weight is not finite.
        """
        folder = self.folder
        weight_files(folder)
        if trust_remote_code:
            check_code(folder)
        loading: dict[str, Any]
        weights = weights_of(precision)
        dequantised = _dequantised(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            with _quiet():
                model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                    folder,
                    config=config,
                    dtype=getattr(torch, weights),
                    **chosen_attention(folder, named_attention(read_config(folder)), device, weights, _is_tiny(config)),
                    quantization_config=dequantised,
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
            name, shape, wanted = sorted(loading["mismatched_keys"])[0]
            raise HoldfastError(
                f"the weights in {folder} do not fit its config.json: {name} has shape {list(shape)}, not {list(wanted)}; "
                "restore the checkpoint"
            )
        if dequantised is not None:
            model = model.to(getattr(torch, weights))  # transformers leaves some in the precision that the config names
            model._weight_conversions = (
                None  # with these, save_pretrained would quantise, or name plain weights as quantised
            )
        check_finite(model, f"the weights in {folder}")
        if precision == "mixed":
            multiply_in_bfloat16(model)
        model = model.train(False).to(device)
        if precision == "lean":
            keep_gradients_whole(model)
        return cast(PreTrainedModel, model)

    def empty(self, precision: Precision | NumberType = "float32", trust_remote_code: bool = False) -> PreTrainedModel:
        """The model as `load` gives it on the CPU, but without weights: all its tensors are on torch's meta device.

        Raises:
            HoldfastError: the architecture is unknown.
        """
        folder, weights = self.folder, weights_of(precision)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            attention = chosen_attention(folder, named_attention(read_config(folder)), "cpu", weights, _is_tiny(config))
            with torch.device("meta"), _quiet():
                model = cast(Any, AutoModelForCausalLM).from_config(
                    config, dtype=getattr(torch, weights), trust_remote_code=trust_remote_code, **attention
                )
        except Exception as error:  # as in `load`
            raise HoldfastError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error
        if precision == "mixed":
            multiply_in_bfloat16(model)
        return cast(PreTrainedModel, model.train(False))

    def load_tokenizer(self, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            HoldfastError: the tokenizer is missing, unreadable or empty.
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
        self,
        device: torch.device | str = "cpu",
        precision: Precision | NumberType = "float32",
        trust_remote_code: bool = False,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, which are checked to fit.

        Raises:
            HoldfastError: as `load` and `load_tokenizer`, or a token id has no embedding.
        """
        model = self.load(device, precision, trust_remote_code)
        tokenizer = self.load_tokenizer(trust_remote_code)
        check_fit(model, tokenizer, self.folder)
        return model, tokenizer


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises:
    HoldfastError: a token id of `tokenizer` has no embedding in `model`, which was loaded from `folder`.
    """
    embeddings = model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= embeddings:
        raise HoldfastError(
            f"the tokenizer in {tokenizer.name_or_path or folder} has token ids up to {largest} and the model only "
            f"{embeddings} embeddings; they do not belong together"
        )


_SMALL = (
    "*.json", "*.jinja", "*.txt", "*.md", "*.pdf", "*.model", "*.tiktoken", "*.py", "LICENSE*", "LICENCE*", "NOTICE*",
    "COPYING*", "*POLICY*",
)  # fmt: skip
"""What is fetched of a hub id beside its weights; code is fetched, and runs where the user trusts it."""


@cache
def _snapshot(name: str) -> Path:
    """The local copy of a hub id, fetched once a process, with no other weights than those that are loaded."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=list(_SMALL)))
    # The folder is named after its commit, so that both parts are of the same one.
    snapshot_download(name, revision=folder.name, allow_patterns=[SINGLE, *shard_names(folder)])
    return folder


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: Mapping[str, Any],
    readme: str,
    precision: Mapping[str, NumberType] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write weights (safetensors), tokenizer and both halves of the card into `folder`, and read them back.

    Of a model that is split over ranks, all ranks call this, and rank 0 writes.

    Args:
        model: its weights are rounded to `precision`.
        tokenizer: of the model.
        folder: where to write.
        card: what made the model.
        readme: the same for people.
        precision: of the saved weights, by name, as `stored_precision` gives it; None: the model's own.
        trust_remote_code: the model may come with code of its own.

    Raises:
        NonFinite: a weight is not finite; nothing is written.
        HoldfastError: what was written does not load as the same model.
    """
    kept = precision or {OTHERS: cast(NumberType, str(model.dtype).removeprefix("torch."))}
    with nullcontext() if precision is None or is_split(model) else held_in(model, precision):
        check_finite(model, "the model to be saved")
        with _quiet(), os_errors(folder):
            if is_split(model):
                write_split(model, folder, kept)
            else:
                model.save_pretrained(folder)
            if is_first():
                tokenizer.save_pretrained(folder)
    agreed(None)  # rank 0 has written what all ranks read now
    _read_back(model, tokenizer, folder, trust_remote_code)
    if not is_first():
        return
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    write_text(folder / "README.md", readme)
    mode = stat.S_IMODE((folder / CARD).stat().st_mode)  # the user's; safetensors and tokenizers choose their own
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def check_savable(model: PreTrainedModel, trust_remote_code: bool = False) -> None:
    """Compare with a fresh model of the same config, so that a long run does not end with weights that cannot be loaded.

    Raises:
        HoldfastError: a model that is loaded from this config has other weights, or there is no such model.
    """
    try:
        with torch.device("meta"), _quiet():
            fresh: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(model.config), trust_remote_code=trust_remote_code
            )  # type: ignore[no-untyped-call]
        off = shapes_differ(model, fresh)
    except Exception as error:  # as in `load`
        off = _first_line(error)
    if off is not None:
        raise HoldfastError(
            f"a {type(model).__name__} that is saved cannot be loaded again ({off}); give its language model alone"
        )


def _read_back(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, trust_remote_code: bool
) -> None:
    written, numbers = Checkpoint(str(folder)), cast(NumberType, str(model.dtype).removeprefix("torch."))
    with torch.random.fork_rng(devices=[]):  # loading may draw
        try:
            off = tokenizers_differ(tokenizer, written.load_tokenizer(trust_remote_code))
            device = str(model.device) if is_split(model) else "cpu"
            off = off or difference(model, load(written, device, numbers, trust_remote_code))
        except HoldfastError as error:
            # The folder is not kept, so that its name says nothing.
            off = str(error) if error.__cause__ is None else _first_line(error.__cause__)
    if off is not None:
        raise HoldfastError(
            f"this {type(model).__name__} is not the same when it is saved and loaded again ({off}), so that nothing was "
            "kept; save the model that you start from with plain weights, by save_pretrained, and begin again"
        )


def _content(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _dequantised(folder: Path) -> Any:
    """How the weights of a quantised model become plain ones; None for a model that is not quantised.

    Raises:
        HoldfastError: the model is quantised in a way that transformers does not undo on every device.
    """
    quantised = read_config(folder).get("quantization_config")
    if not quantised:
        return None
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    undone = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method not in undone:
        raise HoldfastError(
            f"the weights in {folder} are quantised ({method}), and holdfast trains plain weights; give the model that was "
            f"quantised, or one in {' or '.join(undone)}"
        )
    return undone[method](dequantize=True)


def _is_tiny(config: Any) -> bool:
    return getattr(config.get_text_config(), "max_position_embeddings", None) in range(129)


def check_finite(model: torch.nn.Module, what: str) -> None:
    """Raises:
    NonFinite: a weight of `model` is NaN or infinite.
    """
    names = [name for name, _ in model.named_parameters()]
    infinite = [float(not torch.isfinite(local(weight.detach())).all()) for weight in model.parameters()]
    for name, anywhere in zip(names, totals(infinite) if is_split(model) else infinite, strict=True):
        if anywhere:
            raise NonFinite(f"{what} are not finite ({name}); take an earlier checkpoint or a lower learning rate")


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    try:
        with safe_open(shard, "pt") as file:
            yield file
    except SafetensorError as error:
        raise HoldfastError(f"{shard} is damaged ({_first_line(error)}); restore the checkpoint") from error


def _tensors(shard: Path) -> int:
    """How many tensors a file has."""
    with _opened(shard) as file:
        return len(file.keys())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and loading reports, which would break our display."""
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


def _first_line(error: BaseException) -> str:
    """The first line of an error's text, and the second where the first only announces it."""
    if found := re.match(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", str(error)):
        return f"transformers has no causal language model for a {found[1]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
