"""Transfer: the defended model moves exactly as the base model would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.transfer import Transfer
from holdfast.core.types import HoldfastError
from holdfast.engine.run import Run, seed_everything
from holdfast.testbed.models import make_model
from tests.attacks.walk import fresh, weights
from tests.conftest import SmallTestbed

_TUNE = FineTune(batch_size=4, learning_rate=1e-3)


def test_the_model_moves_as_the_base_does(tiny_testbed: SmallTestbed) -> None:
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    before, base = weights(model), tiny_testbed.never_exposed.load()
    base_before = weights(base)
    losses = list(Transfer(max_steps=5, tune=_TUNE).steps(model, data, Run(3, tiny_testbed.never_exposed.load)))
    seed_everything(3)
    alone = list(replace(_TUNE, max_steps=5).steps(base, data, Run(3)))
    assert losses == alone
    torch.testing.assert_close(weights(model) - before, weights(base) - base_before, rtol=0, atol=1e-6)


def test_the_base_itself_is_left_as_it_is(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    run = Run(3, tiny_testbed.never_exposed.load)
    before = weights(run.base)
    list(Transfer(max_steps=2, tune=_TUNE).steps(model, data, run))
    assert torch.equal(weights(run.base), before)
    assert not any(p.requires_grad for p in run.base.parameters())


def test_a_base_of_other_weights_and_low_rank_are_refused(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)

    def other() -> PreTrainedModel:
        held = make_model(tiny_testbed.model.load_tokenizer(), 0)
        held.resize_token_embeddings(300)
        return held

    with pytest.raises(HoldfastError, match="of the same shape"):
        next(Transfer(tune=_TUNE).steps(model, data, Run(3, other)))
    with pytest.raises(HoldfastError, match="lora_rank 0"):
        Transfer(tune=replace(_TUNE, lora_rank=2))
