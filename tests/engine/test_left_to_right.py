"""An encoder, or a model that needs more than text, is refused before anything is trained on it."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.left_to_right import check_left_to_right
from tests.families.small import build


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "jamba", "rwkv", "bert"])
def test_a_causal_model_passes_in_half_precision_too(family: str) -> None:
    model = build(family, 40)
    check_left_to_right(model)
    check_left_to_right(model.bfloat16())


@pytest.mark.parametrize(("family", "changes"), [("bert", {"is_decoder": False}), ("cpmant", {})])
def test_an_encoder_is_refused(family: str, changes: dict[str, bool]) -> None:
    with pytest.raises(HoldfastError, match="as an encoder does"):
        check_left_to_right(build(family, 40, **changes))


def test_a_model_that_needs_more_than_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: PreTrainedModel = build("llama", 40)
    monkeypatch.setattr(model, "forward", lambda **_: model.pixel_values)
    with pytest.raises(HoldfastError, match="cannot read a text of tokens alone"):
        check_left_to_right(model)
