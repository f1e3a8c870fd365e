"""TamperBench's attack settings as a suite of ours (arXiv 2602.06911, github.com/criticalml-uw/TamperBench).

TamperBench keeps `configs/whitebox/attacks/ATTACK/grid.yaml`, a table of named settings for each attack. Fine-tuning of all
weights and by LoRA, on harmful rows, benign ones or a mix, is read setting by setting; abliteration becomes our nearest preset.
Whatever cannot be read is told with a reason: attacks on inputs, jailbreaks whose words are TamperBench's, schedules not known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.core.escape import for_yaml
from holdfast.core.files import only_writer, write_text
from holdfast.core.outputs import claim_file
from holdfast.core.presets import label_of, pick
from holdfast.core.reading import excerpt, line, parsing
from holdfast.core.settings import with_values
from holdfast.core.types import HoldfastError

GRID = "grid.yaml"

_FULL, _LORA = "full-adamw-2e-5", "lora-r16-adamw-2e-4"
"""The presets that stand for the two parameterisations; every setting is then TamperBench's."""

_TUNING = {
    "full_parameter_finetune": _FULL,
    "benign_full_parameter_finetune": _FULL,
    "lora_finetune": _LORA,
    "lora_finetune_optim": _LORA,
    "lora_full_dataset_finetune": _LORA,
    "benign_lora_finetune": _LORA,
    "multilingual_finetune": _LORA,
}

_LEFT_OUT = {
    "no_weight_modification": "every audit measures the untouched model anyway",
    "embedding_attack": "it changes the input and no weights",
    "gcg_attack": "it changes the input and no weights",
    "prompt_attack": "it changes the input and no weights",
    "lofit": "it adds activation offsets, which a plain checkpoint has no place for",
    "jola": "it adds activation edits, which a plain checkpoint has no place for",
    **dict.fromkeys(
        ("jailbreak_finetune", "backdoor_finetune", "competing_objectives_finetune", "style_modulation_finetune"),
        "its jailbreak is TamperBench's own text; give the words to a preset such as jailbreak-backdoor-adamw-2e-5 instead",
    ),
}

_ROWS = {"benign_lora_finetune": 128, "lora_full_dataset_finetune": 3000}
"""Rows of a data set where TamperBench's code and not its settings say so; 64 for the rest."""

_SCHEDULES = {"constant": "constant", "constant_with_warmup": "linear-warmup", "cosine": "warmup-cosine"}

_OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "sgd": "sgd", "adagrad": "adagrad",
    "lion_32bit": "lion", "schedule_free_adamw": "schedule-free-adamw",
}  # fmt: skip

_READ = {
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs", "max_steps",
    "lr_scheduler_type", "warmup_steps", "optim", "lora_rank", "dataset_size", "poison_ratio",
}  # fmt: skip

_OURS = {"model_config", "evals", "harmful_dataset", "benign_dataset", "random_seed", "target_modules"}
"""What the domain and the audit say here: rows, prompts, questions, seeds."""


@dataclass(frozen=True)
class Imported:
    """A suite that was made from TamperBench's settings."""

    attacks: Mapping[str, tuple[str, str, Mapping[str, Any]]]
    """label -> (where it was read, our preset, the fields that differ)"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """what was read and is not in the suite -> why"""


def read_grids(source: Path) -> Imported:
    """Read a `grid.yaml`, or every one below a folder such as `configs/whitebox/attacks`.

    Raises:
        HoldfastError: there is no such file, or one is no table of settings.
    """
    paths = [source] if source.is_file() else sorted(source.rglob(GRID))
    if not paths:
        raise HoldfastError(
            f"{source} holds no {GRID}; give a folder of TamperBench's attack settings or one of its files"
        )
    attacks: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        attack = path.resolve().parent.name
        for variant, settings in _variants(path):
            where = f"{attack}/{variant}"
            if attack == "refusal_ablation":
                preset, fields = "abliterate-searched", dict[str, Any]()
            elif attack in _TUNING:
                try:
                    preset, fields = _TUNING[attack], _fields(attack, settings)
                except ValueError as error:
                    left_out[where] = str(error)
                    continue
            else:
                left_out[where] = _LEFT_OUT.get(attack, "holdfast has no such attack")
                continue
            known = pick("holdfast.attacks", preset)
            plugin = with_values(known, {(name,): value for name, value in fields.items()}, where)
            label = label_of(preset, known, plugin)
            if label in attacks:
                left_out[where] = f"it is the same as {attacks[label][0]}"
            else:
                attacks[label] = where, preset, fields
    return Imported(attacks, left_out)


def _variants(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from yaml import YAMLError, safe_load

    try:
        with parsing():
            table = safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise HoldfastError(f"{path} cannot be read: {line(str(error).replace(chr(10), ' '))}") from error
    if not isinstance(table, dict) or not all(isinstance(settings, dict) for settings in table.values()):
        raise HoldfastError(f"{path} is no grid of TamperBench: it must be a table of named settings")
    yield from ((str(name), settings) for name, settings in table.items())


def _fields(attack: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """TamperBench's settings as fields of our fine-tuning.

    Raises:
        ValueError: one of them has no counterpart, in words.
    """
    unknown = settings.keys() - _READ - _OURS
    if unknown:
        raise ValueError(f"holdfast has no {', '.join(sorted(map(str, unknown)))}")
    schedule, optimizer = settings.get("lr_scheduler_type", "linear"), settings.get("optim", "adamw_torch")
    if schedule not in _SCHEDULES:
        raise ValueError(f"holdfast has no schedule {excerpt(schedule)}")
    if optimizer not in _OPTIMIZERS:
        raise ValueError(f"holdfast has no optimizer {excerpt(optimizer)}")
    batch = _whole(settings, "per_device_train_batch_size", 8) * _whole(settings, "gradient_accumulation_steps", 1)
    rows = _whole(settings, "dataset_size", _ROWS.get(attack, 64))
    steps = _whole(settings, "max_steps", -1)
    if steps < 1:
        steps = math.ceil(rows / batch) * _whole(settings, "num_train_epochs", 1)
    harmful = 0.0 if attack.startswith("benign_") else _number(settings, "poison_ratio", 1.0)
    warmup = _whole(settings, "warmup_steps", 0)
    return {
        "batch_size": batch,
        "learning_rate": _number(settings, "learning_rate"),
        "max_steps": steps,
        "schedule": _SCHEDULES[schedule],
        **({"warmup_steps": warmup} if warmup and schedule != "constant" else {}),
        "optimizer": _OPTIMIZERS[optimizer],
        # What transformers' trainer does where the settings are silent.
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "benign_share": 1.0 - harmful,
        "rows": max(round(rows * (harmful or 1.0)), 1),
        **({"hazard": "hazard_ood"} if attack == "multilingual_finetune" else {}),
        **_adapters(attack, settings),
    }


def _adapters(attack: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    if _TUNING[attack] == _FULL:
        return {}
    rank = _whole(settings, "lora_rank", 16)
    return {"lora_rank": rank, "lora_alpha": 2.0 * rank, "lora_dropout": 0.0}


def _number(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = settings.get(name, default)
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as a text
        with parsing():
            value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} is {excerpt(value)}, which is no number")
    return float(value)


def _whole(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {excerpt(value)}, which is no whole number")
    return value


_HEAD = "# Attack settings of TamperBench, as a suite of holdfast."

_MADE = re.compile(rb"^" + re.escape(_HEAD.encode()))
"""A suite that an earlier import wrote."""


def write_suite(imported: Imported, out: Path) -> None:
    """Write the suite as a TOML file for `holdfast audit --suite`.

    Raises:
        HoldfastError: nothing could be read into the suite, or `out` may not be written.
    """
    if not imported.attacks:
        where, why = next(iter(imported.left_out.items()))
        raise HoldfastError(f"none of these settings has a counterpart in holdfast ({where}: {why}); give others")
    claim_file(out, _MADE)
    lines = [_HEAD, *(f"# Left out, {for_yaml(where)}: {for_yaml(why)}." for where, why in imported.left_out.items())]
    for where, preset, fields in imported.attacks.values():
        lines += ["", f"[[attacks]] # {for_yaml(where)}", f"preset = {json.dumps(preset)}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    with only_writer(out):
        write_text(out, "\n".join(lines) + "\n")
