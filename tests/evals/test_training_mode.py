"""What a model does in training mode alone: it is measured, and no attack is stopped by it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from holdfast.attacks.base import Attack
from holdfast.attacks.break_then_repair import BreakThenRepair
from holdfast.attacks.finetune import FineTune
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.evals.training_mode import TrainingMode
from holdfast.stats.masking import SLOPE
from tests.attacks.walk import loaded, weights
from tests.conftest import SmallTestbed


def attention_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 1.0


def embedding_dropout(model: PreTrainedModel) -> None:
    embed = model.get_input_embeddings()
    embed.register_forward_hook(lambda module, inputs, output: nn.functional.dropout(output, 0.9, module.training))


def residual_dropout(model: PreTrainedModel) -> None:
    dropout = nn.Dropout(0.9)
    model.model.norm.add_module("dropout", dropout)
    model.model.norm.register_forward_hook(lambda module, inputs, output: dropout(output))


def layer_drop(model: PreTrainedModel) -> None:
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: inputs[0] if module.training else output)


def noise(model: PreTrainedModel) -> None:
    def noisy(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + torch.randn_like(output) if module.training else output

    model.model.layers[1].mlp.register_forward_hook(noisy)


def a_forward_that_asks(model: PreTrainedModel) -> None:
    head = model.lm_head
    head.register_forward_hook(lambda module, inputs, output: output * (0.0 if model.training else 1.0))


TRICKS = (attention_dropout, embedding_dropout, residual_dropout, layer_drop, noise, a_forward_that_asks)
every_trick = pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
Trick = Callable[[PreTrainedModel], None]

ATTACKS: Mapping[str, Attack] = {
    "full": FineTune(max_steps=3, batch_size=4),
    "lora": FineTune(max_steps=3, batch_size=4, lora_rank=2, lora_dropout=0.3),
    "break": BreakThenRepair(max_steps=3, batch_size=4, kl_weight=1.0, kick_steps=1),
}


def gap(model: PreTrainedModel, testbed: SmallTestbed) -> float:
    _, tokenizer, domain = loaded(testbed.folder)
    [score] = TrainingMode(rows=8).prepare(tokenizer, domain)(model)
    return score.value


def attacked(attack: Attack, trick: Trick, testbed: SmallTestbed) -> torch.Tensor:
    model, tokenizer, domain = loaded(testbed.folder)
    model = copy.deepcopy(model)
    trick(model)
    seed_everything(3)
    attack.prepare(model)
    model.train()  # however it was handed over
    losses = list(attack.steps(model, Data.attacker(domain, tokenizer), Run(3)))
    assert len(losses) == attack.max_steps
    return weights(model)


@every_trick
def test_what_acts_in_training_mode_alone_stops_no_attack(trick: Trick, tiny_testbed: SmallTestbed) -> None:
    for attack in ATTACKS.values():
        expected = attacked(attack, lambda model: None, tiny_testbed)
        assert torch.equal(attacked(attack, trick, tiny_testbed), expected)


@every_trick
def test_what_acts_in_training_mode_alone_is_measured(trick: Trick, small_testbed: SmallTestbed) -> None:
    model = copy.deepcopy(loaded(small_testbed.folder)[0])
    assert gap(model, small_testbed) < 1e-4
    trick(model)
    assert gap(model, small_testbed) > SLOPE


def test_a_forward_that_asks_whether_gradients_are_recorded_is_measured(small_testbed: SmallTestbed) -> None:
    model = copy.deepcopy(loaded(small_testbed.folder)[0])
    model.lm_head.register_forward_hook(
        lambda module, inputs, output: output.detach() * 0.5 if torch.is_grad_enabled() else output
    )
    assert gap(model, small_testbed) > SLOPE


def test_a_loss_that_is_not_finite_in_training_mode_is_a_gap(tiny_testbed: SmallTestbed) -> None:
    model = copy.deepcopy(loaded(tiny_testbed.folder)[0])
    model.lm_head.register_forward_hook(lambda module, inputs, output: output / (0.0 if module.training else 1.0))
    assert gap(model, tiny_testbed) > SLOPE


def test_the_usual_dropout_of_an_older_model_is_measured(tiny_testbed: SmallTestbed) -> None:
    _, tokenizer, _ = loaded(tiny_testbed.folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.5)
    assert gap(GPT2LMHeadModel(config).eval(), tiny_testbed) > 0.0
