"""Products by oneDNN: equal to torch's in value, in first and second gradient and in FLOPs, and part of identities."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.costs import flops_of
from holdfast.engine.data import Data
from holdfast.engine.losses import next_token_loss
from holdfast.engine.matmul import linear, multiply_with_onednn
from holdfast.engine.session import open_session
from tests.conftest import SmallTestbed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_value_and_gradients_are_those_of_torch(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(4, 7), *([torch.randn(4)] if biased else [])]
    inputs, slope = torch.randn(shape), torch.randn(*shape[:-1], 4)

    def read(product: Any) -> list[torch.Tensor]:
        factors = [each.clone().requires_grad_() for each in (inputs, *weights)]
        value = product(*factors)
        first = torch.autograd.grad(value, factors, slope, create_graph=True)
        length = sum(each.square().sum() for each in first)
        second = torch.autograd.grad(length, factors[:2])
        return [value, *first, *second]

    for ours, theirs in zip(read(linear), read(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_computes_the_same_and_its_products_are_counted(tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    batch = next(Data.defender(tiny_testbed.domain, tokenizer).stream("forget", batch_size=4, seed=0))
    fast = copy.deepcopy(model)
    multiply_with_onednn(fast)
    fast = copy.deepcopy(fast)  # an adversary's copy multiplies with its own weights

    def backward(which: Any) -> None:
        loss = next_token_loss(which(input_ids=batch.input_ids).logits, batch.labels, batch.label_count)
        loss.backward()

    assert flops_of(lambda: backward(model)) == flops_of(lambda: backward(fast))
    for (name, one), other in zip(model.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_a_session_multiplies_with_what_the_options_say(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    monkeypatch.setattr("holdfast.engine.session.multiply_with_onednn", models.append)
    for options in (Options(), Options(matmul="onednn")):
        session = open_session(
            tiny_testbed.model, tiny_testbed.domain, "attacker", 0, options, base=tiny_testbed.never_exposed
        )
        base = session.run.base
        assert models == ([session.model, base] if options.matmul == "onednn" else [])


def test_the_library_is_part_of_an_identity_where_it_is_not_torchs() -> None:
    assert "matmul" not in Options().arithmetic
    assert Options(matmul="onednn").arithmetic == {**Options().arithmetic, "matmul": "onednn"}


@pytest.mark.parametrize("options", [{"precision": "mixed"}, {"device": "cuda"}])
def test_other_numbers_and_devices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match="--matmul onednn is for"):
        Options(matmul="onednn", **options)
    with pytest.raises(HoldfastError, match="torch or onednn"):
        Options(matmul="blis")  # type: ignore[arg-type]
