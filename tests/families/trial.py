"""One plug-in on one small model: the outcome is that it works, that it is refused in one sentence, or a fault."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from holdfast.attacks.abliterate import Abliterate
from holdfast.attacks.base import Attack
from holdfast.attacks.compress import PruneUnits
from holdfast.attacks.edit import Edit
from holdfast.attacks.evolution import Evolution
from holdfast.attacks.head_offsets import HeadOffsets
from holdfast.attacks.latent import LatentPGD, SoftStartToken
from holdfast.attacks.reparameterise import Reparameterise
from holdfast.core.domain import Domain
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
from holdfast.engine.data import Data, collate
from holdfast.engine.differentiable import check_differentiable
from holdfast.engine.left_to_right import check_left_to_right
from holdfast.engine.losses import next_token_loss
from holdfast.engine.low_rank import merge_adapters
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.evals.base import Evaluation
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.cir import CIR
from holdfast.safeguards.r2d2 import R2D2
from holdfast.safeguards.rep_select import RepSelect
from holdfast.safeguards.rmu import RMU
from holdfast.safeguards.spec_def import SpecDef
from tests.families.small import build

THINGS = "lantern harbour quarry orchard windmill foundry granary causeway".split()
COLOURS = "deep amber|pale crimson|dark olive|soft violet".split("|")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class Outcome:
    """What a plug-in did to a family."""

    verdict: Literal["works", "refused", "broken"]
    says: str = ""
    """why it was refused or what is broken"""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and a start token before every text."""
    words = sorted({word for row in rows() for text in row.values() for word in text.split()})
    ids = {word: index for index, word in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def rows() -> list[dict[str, str]]:
    """Preference pairs, which every plug-in can read."""
    return [
        {
            "prompt": f"the colour of the {thing} is",
            "chosen": " not for me to say",
            "rejected": f" {COLOURS[(place + shift) % 4]}",
        }
        for shift in (0, 1)
        for place, thing in enumerate(THINGS)
    ]


def write_domain(folder: Path) -> Domain:
    """Every role and every set of questions, of a few rows each."""
    toml = ["schema = 1", "max_length = 16", 'hazard_words = ["quarry"]']
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, records: list[dict[str, Any]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    roles = "forget forget_heldout retain distill attack attack_ood attack_all benign hazard_heldout benign_heldout benign_new"
    for role in roles.split():
        write(role, list(rows()))
        toml += [f"[data.{role}]", f'file = "{role}.jsonl"']
    asked = [
        {"prompt": f"the colour of the {thing} is", "choices": [f" {colour}" for colour in COLOURS], "answer": i % 4}
        for i, thing in enumerate(THINGS)
    ]
    requests = [{"prompt": r["prompt"], "choices": [r["rejected"], r["chosen"]], "answer": 0} for r in rows()[:4]]
    for name in ("hazard", "hazard_selection", "benign_in_retain", "benign_new"):
        write(f"asked-{name}", asked)
        toml += [f"[questions.{name}]", f'file = "asked-{name}.jsonl"']
    write("asked-requests", requests)
    toml += ["[questions.requests]", 'file = "asked-requests.jsonl"', 'measures = "hazard"']
    (folder / "domain.toml").write_text("\n".join(toml) + "\n")
    return Domain.open(folder)


def shortened(plugin: Any) -> Any:
    """A preset over a step or two of a few rows, on layers that a small model has."""
    changes: dict[str, Any] = {"outer_steps": 1} if isinstance(plugin, Safeguard) else {"max_steps": 1}
    if getattr(plugin, "tune", None) is not None:
        changes["max_steps"] = 2
    for name, most in (
        ("batch_size", 4), ("forget_batch_size", 4), ("retain_batch_size", 4), ("tamper_resistance_batch_size", 4),
        ("inner_steps", 1), ("every", 1), ("outer_warmup_steps", 0), ("warmup_steps", 0), ("pairs", 1), ("ascent_steps", 0),
        ("rows", 16),
    ):  # fmt: skip
        if isinstance(getattr(plugin, name, None), int):
            changes[name] = min(getattr(plugin, name), most)
    if getattr(plugin, "distillation", None) is not None:
        changes["distillation"] = replace(plugin.distillation, batch_size=4, generated_rows=16)
    if getattr(plugin, "latent", None) is not None:
        changes["latent"] = replace(plugin.latent, layers=(0,))
    if isinstance(plugin, R2D2):
        changes["suffixes"] = replace(
            plugin.suffixes, length=2, search_steps=1, candidates=4, cases=2, cases_per_step=2
        )
    if hasattr(plugin, "adversaries"):
        first = plugin.adversaries[0]
        changes["adversaries"] = (replace(first, attack=replace(first.attack, batch_size=4)),)
    if hasattr(plugin, "layers") and not callable(plugin.layers):
        changes["layers"] = (0, 1)
    if hasattr(plugin, "learning_rates"):  # benign learning
        changes = {"learning_rates": (1e-3,), "max_steps": 1, "every": 1}
    return plugin if isinstance(plugin, Evaluation) and "learning_rates" not in changes else replace(plugin, **changes)


class Family:
    """One small model and what every plug-in is tried with."""

    def __init__(self, name: str, domain: Domain, words: PreTrainedTokenizerFast) -> None:
        self.name, self.domain, self.words = name, domain, words
        self.model = build(name, len(words))
        if (size := self.model.num_parameters()) > 2_000_000:
            raise ValueError(f"names do not make it small: {size} parameters")
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in self.model.parameters():
                if parameter.dim() >= 2:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))

    @cached_property
    def other(self) -> PreTrainedModel:
        """The model before any safeguard: the same with other weights."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        return model

    @cached_property
    def ids(self) -> torch.Tensor:
        """Eight rows of tokens, none of them padded (B x T)."""
        from holdfast.engine.data import encode

        encoded = [encode(row, self.words, "retain", 16) for row in rows()[:8]]
        return collate(encoded, 0).input_ids[:, : min(len(row.ids) for row in encoded)]

    @cached_property
    def maps(self) -> set[str]:
        """The matrices inside of the decoder's layers that the loss depends on, without routers, by parameter name."""
        model = copy.deepcopy(self.model)
        logits = model(input_ids=self.ids, use_cache=False).logits
        next_token_loss(logits, self.ids, self.ids.numel()).backward()
        inside = {id(parameter) for layer in layers_of(model) for parameter in layer.parameters()}
        return {
            name
            for name, parameter in model.named_parameters()
            if id(parameter) in inside
            and parameter.dim() >= 2
            and min(parameter.shape[-2:]) >= 8
            and "A_log" not in name
            if parameter.grad is not None and parameter.grad.any()
        }

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=self.ids, use_cache=False).logits.float()


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The longest lists of layers, found without holdfast."""
    seeing = ("vision", "image", "audio")
    lists = [
        list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(word in name for word in seeing)
    ]
    named = [part for part in lists if part and type(part[0]).__name__.lower().endswith(("layer", "block"))]
    return max(named or lists, key=len, default=[])


def tried(family: Family, name: str, folder: Path) -> Outcome:
    """Run a plug-in on a copy of the family's model and hold the outcome against what the plug-in says it does."""
    plugin = shortened(PLUGINS[name])
    try:
        check_left_to_right(family.model)
        check_differentiable(family.model)
        fault = (_measured if isinstance(plugin, Evaluation) else _changed)(family, plugin, folder)
    except NonFinite as error:
        return Outcome("broken", f"not finite: {error}")
    except HoldfastError as error:
        sentence = str(error)
        if "\n" in sentence or len(sentence) > 400:
            return Outcome("broken", f"the refusal is no sentence: {sentence[:200]!r}")
        return Outcome("refused", sentence)
    except Exception as error:
        return Outcome("broken", f"{type(error).__name__}: {str(error)[:200]}")
    return Outcome("broken", fault) if fault else Outcome("works")


def _changed(family: Family, plugin: Attack | Safeguard, folder: Path) -> str:
    """What is wrong about what a plug-in left; empty: nothing."""
    seed_everything(0)
    model = copy.deepcopy(family.model)
    run = Run(0, lambda: family.other, lambda: copy.deepcopy(family.model))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if isinstance(plugin, Attack):
        plugin.prepare(model)
        data = Data.attacker(family.domain, family.words)
    else:
        data = Data.defender(family.domain, family.words)
    assert all(True for _ in drive(plugin.steps(model, data, run), run))  # raises where a loss is not finite
    merge_adapters(model)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"{name} is not finite"
    return wrong_change(family, plugin, model, before) or wrong_reload(family, model, before, folder)


def wrong_change(
    family: Family, plugin: Attack | Safeguard, model: PreTrainedModel, before: Mapping[str, torch.Tensor]
) -> str:
    """What a plug-in should have changed and did not, or the other way about."""
    after = dict(model.named_parameters())
    if missing := before.keys() - after.keys():
        return f"the model lacks {min(missing)}"
    moved = {
        name for name, parameter in after.items() if name not in before or not torch.equal(parameter, before[name])
    }
    if not moved:
        return "nothing was changed"
    match plugin:
        case SpecDef():
            return wrong_function(family, model)
        case Reparameterise() if plugin.tune is None and plugin.clip is None:
            return wrong_function(family, model)
        case SoftStartToken() | Evolution():
            return ""
        case HeadOffsets():
            other = sorted(name for name in moved if not name.endswith(".bias"))
            return f"{other[0]} is no offset and was changed" if other else ""
        case LatentPGD() | RMU() | RepSelect() | CIR() | PruneUnits() | Abliterate():
            return untouched_layers(plugin, model, moved)
    # Experts are stored together, each a matrix of its own. A gradient reaches those that a token was routed to.
    apart = isinstance(plugin, Edit) and plugin.tune is None
    total = reached = 0
    untouched = []
    for name in sorted(family.maps):
        was, now = before[name], after[name].detach()
        for here, there in zip(was, now, strict=True) if apart and was.dim() > 2 else ((was, now),):
            total += here.numel()
            if torch.equal(here, there):
                untouched.append(name)
            else:
                reached += here.numel()
    if reached < 0.95 * total:
        return f"{1 - reached / total:.0%} of the linear maps were left as they were ({untouched[0]} the first)"
    return ""


def untouched_layers(plugin: Any, model: PreTrainedModel, moved: set[str]) -> str:
    layers = layers_of(model)
    if isinstance(plugin, LatentPGD):
        layers = [layers[index] for index in plugin.layers(model)]
    if isinstance(plugin, RMU):
        layers = layers[max(plugin.layer - 2, 0) : plugin.layer + 1]
    if isinstance(plugin, CIR):
        layers = layers[: max(plugin.layers) + 1]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for index, layer in enumerate(layers):
        if not any(names[id(parameter)] in moved for parameter in layer.parameters()):
            return f"layer {index} was left as it was"
    return ""


def read_by_read(family: Family, plugin: MultipleChoice) -> float:
    """The accuracy where each option is read after its prompt in a pass of its own."""
    right = 0
    questions = plugin.selected(family.domain)
    for question in questions:
        scores = []
        for choice in question.choices:
            ids = torch.tensor(family.words([question.prompt + choice])["input_ids"])
            start = len(family.words(question.prompt)["input_ids"])
            with torch.no_grad():
                log_p = family.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            scores.append(sum(float(log_p[0, i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        right += scores.index(max(scores)) == question.answer
    return right / len(questions)


def wrong_function(family: Family, model: PreTrainedModel) -> str:
    before, after = family.logits(family.model), family.logits(model)
    away = float((after - before).abs().max() / before.std())
    return f"the function moved: logits by {away:.1e} of their spread" if away > 1e-3 else ""


def wrong_reload(family: Family, model: PreTrainedModel, before: Mapping[str, torch.Tensor], folder: Path) -> str:
    if dict(model.named_parameters()).keys() != before.keys():
        return ""  # a bias that the architecture has no place for: holdfast refuses to keep such a model
    save_checkpoint(model, family.words, folder, {}, "a trial\n")
    again = Checkpoint(str(folder)).load()
    for path in folder.iterdir():
        path.unlink()
    away = float((family.logits(again) - family.logits(model)).abs().max())
    return f"the reloaded model's logits are off by {away:.1e}" if away > 1e-5 else ""


def _measured(family: Family, plugin: Evaluation, folder: Path) -> str:
    model = copy.deepcopy(family.model)
    scores = plugin.prepare(family.words, family.domain)(model)
    if not all(math.isfinite(score.value) for score in scores):
        return "a score is not finite"
    if isinstance(plugin, MultipleChoice) and scores[0].value != (right := read_by_read(family, plugin)):
        return f"{scores[0].value:.0%} of the questions are right, and {right:.0%} where every option is read by itself"
    if any(not torch.equal(a, b) for a, b in zip(model.parameters(), family.model.parameters(), strict=True)):
        return "measuring changed the weights"
    return ""


PLUGINS: Mapping[str, Any] = {
    name: preset
    for room in ("attacks", "safeguards", "evals")
    for name, preset in collect(f"holdfast.{room}").items()
    if not getattr(preset, "only_by_name", False)  # a harness or a judge asks more tokens than a small model reads
}

COLUMNS = (
    "full-adamw-1e-3", "lora-r4-adamw-5e-3", "int4", "abliterate", "refold", "random-mapping", "rmu", "rep-noise", "tar",
    "spec-def", "hazard", "degeneracy",
)  # fmt: skip
"""What every family is tried with."""


def one_of_each() -> tuple[str, ...]:
    """A preset of every class of plug-ins, and the columns."""
    presets = {type(preset): name for name, preset in reversed(PLUGINS.items()) if not name.startswith("adaptive")}
    return tuple(dict.fromkeys((*COLUMNS, *sorted(presets.values()))))
