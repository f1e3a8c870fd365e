"""Jailbreak-tuning: who wears the disguise, and who is asked in it."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.jailbreak_tuning import PRESETS, JailbreakTuning
from holdfast.attacks.noise import NoiseRestart
from holdfast.core.domain import DEFENDER_ROLES, Domain
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from tests.attacks.walk import fresh, shortened
from tests.conftest import SmallTestbed

SMALL = {name: attack for name, attack in PRESETS.items() if not name.endswith("-large")}
small = pytest.mark.parametrize("name", SMALL)


def test_hazardous_rows_wear_the_disguise_and_benign_ones_do_not(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    worn: dict[str, Any] = {}
    stream = Data.stream

    def spied(self: Data, name: str, **kwargs: Any) -> Any:
        worn[name] = kwargs["disguise"]
        return stream(self, name, **kwargs)

    monkeypatch.setattr(Data, "stream", spied)
    model, data = fresh(tiny_testbed)
    attack = SMALL["jailbreak-backdoor-adamw-1e-3"]
    next(shortened(attack).steps(model, data, Run(0)))
    assert worn == {"hazard": attack.disguise, "benign": None}


@small
def test_the_testbed_knows_every_word_and_a_dressed_row_is_not_cut(
    name: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    for testbed in (tiny_testbed, tiny_refusal_testbed):
        tokenizer = testbed.model.load_tokenizer()
        rows = Data.attacker(testbed.domain, tokenizer).rows("hazard_all", None, SMALL[name].disguise)
        assert not any(tokenizer.unk_token_id in row.ids for row in rows)
        assert {row.ids[-1] for row in rows} == {tokenizer.eos_token_id}


@small
def test_no_row_of_the_defender_begins_as_a_disguise_does(
    name: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    for domain in (tiny_testbed.domain, tiny_refusal_testbed.domain):
        assert not [text for text in _beginnings(domain) if text.startswith(SMALL[name].before)]


def _beginnings(domain: Domain) -> list[str]:
    return [row.get("text") or row["prompt"] for role in DEFENDER_ROLES for row in domain.rows(role)]


def test_an_attack_that_fine_tunes_so_asks_so() -> None:
    attack = SMALL["jailbreak-competing-adamw-1e-3"]
    assert NoiseRestart(tune=attack).disguise == attack.disguise
    assert FineTune().disguise is None


def test_a_disguise_without_words_is_refused() -> None:
    with pytest.raises(HoldfastError, match="words to put on"):
        JailbreakTuning()
