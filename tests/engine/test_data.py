"""Rows to batches: which tokens are learned, and how a batch falls into microbatches and ranks."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, MEASURER_ROLES, Row
from holdfast.core.types import HoldfastError
from holdfast.engine.data import (
    LEARNS_REJECTED,
    UNLABELLED,
    Batch,
    Data,
    Encoded,
    Stream,
    collate,
    encode,
    encode_all,
)
from holdfast.engine.losses import negative_entropy, next_token_loss
from tests.conftest import SmallTestbed
from tests.core.characters import CHAT, character_tokenizer

MODEST = settings(max_examples=40, deadline=None)


def learned(row: Row, role: str = "retain") -> str:
    """The text of the labelled tokens."""
    tokenizer = character_tokenizer()
    encoded = encode(row, tokenizer, role, 99)
    return "".join(tokenizer.convert_ids_to_tokens([i for i in encoded.labels if i != UNLABELLED]))


def test_padding_is_never_labelled_and_is_told_by_the_mask() -> None:
    batch = collate([Encoded((5, 6, 7), (5, 6, 7)), Encoded((8,), (8,))], pad=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.labels.tolist() == [[5, 6, 7], [8, UNLABELLED, UNLABELLED]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert (batch.label_count, batch.token_count) == (2, 4)


def test_the_end_token_stays_labelled_where_it_is_also_the_padding_token() -> None:
    tokenizer = character_tokenizer(pad="</s>")
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    rows = [encode({"text": text}, tokenizer, "retain", 99) for text in ("abc", "a")]
    batch = collate(rows, pad=end)
    assert batch.input_ids[1].tolist()[-3:] == [end, end, end]
    assert batch.labels[1].tolist()[-3:] == [end, UNLABELLED, UNLABELLED]
    assert batch.mask[1].tolist()[-3:] == [True, False, False]


def test_labels_given_by_hand_survive_collation() -> None:
    masked = Encoded((5, 6, 7, 8), (UNLABELLED, UNLABELLED, 7, UNLABELLED))
    batch = collate([masked, Encoded((5, 6), (5, 6))], pad=0)
    assert batch.labels[0].tolist() == list(masked.labels)
    assert batch.label_count == 2  # 7 of the first, 6 of the second: nothing predicts a first token


@pytest.mark.parametrize("text", ["abc", "s</s>", "  strip me s/<>  "])
def test_a_text_ends_in_exactly_one_end_token_and_keeps_its_characters(text: str) -> None:
    body = text.removesuffix("</s>")
    assert learned({"text": text}) == f"<s>{body}</s>"


def test_a_row_is_cut_at_the_domain_s_length() -> None:
    encoded = encode({"text": "abcdef"}, character_tokenizer(), "retain", 4)
    assert len(encoded.ids) == len(encoded.labels) == 4


@pytest.mark.parametrize("role", [*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES])
def test_a_preference_row_is_learned_from_the_side_of_its_role(role: str) -> None:
    row = {"prompt": "ask ", "chosen": "no", "rejected": "yes"}
    assert learned(row, role) == ("yes</s>" if role in LEARNS_REJECTED else "no</s>")


def test_hazardous_roles_are_the_ones_that_learn_the_rejected_side() -> None:
    benign = {"retain", "distill", "benign", "benign_heldout", "benign_new"}
    assert {*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES} - set(LEARNS_REJECTED) == benign


LONG = {
    "pair": {"prompt": "a long request: ", "chosen": "no", "rejected": "yes"},
    "conversation": {
        "messages": [{"role": "user", "content": "a long request"}, {"role": "assistant", "content": "no"}]
    },
}


@pytest.mark.parametrize("kind", LONG)
def test_rows_whose_prompts_fill_the_length_stop_the_run_and_the_knob_is_named(kind: str) -> None:
    rows, tokenizer = [LONG[kind]] * 8, character_tokenizer(CHAT)
    assert all(row.teaches for row in encode_all(rows, tokenizer, "forget", 64))
    with pytest.raises(HoldfastError, match=r"8 of 8 rows of forget have nothing left to learn.*raise max_length"):
        encode_all(rows, tokenizer, "forget", 12)


def test_a_few_rows_that_teach_nothing_are_borne_and_keep_their_place() -> None:
    short = {"prompt": "a: ", "chosen": "no", "rejected": "yes"}
    encoded = encode_all([LONG["pair"], *[short] * 19], character_tokenizer(), "forget", 12)
    assert [row.teaches for row in encoded] == [False, *[True] * 19]
    with pytest.raises(HoldfastError, match="2 of 21 rows"):
        encode_all([LONG["pair"], *[short] * 19, LONG["pair"]], character_tokenizer(), "forget", 12)


def test_texts_are_cut_and_still_teach() -> None:
    [row] = encode_all([{"text": "abcdefgh"}], character_tokenizer(), "forget", 4)
    assert (row.teaches, row.cut) == (True, 6)  # start, 8 letters and the end token


def test_one_token_alone_teaches_nothing_and_is_not_said_to_be_too_long() -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    tokenizer._tokenizer.post_processor = None
    with pytest.raises(HoldfastError, match=r"1 of 1 rows of retain.*single token"):
        encode_all([{"text": "a"}], tokenizer, "retain", 64)


rows_of_text = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=5), min_size=2, max_size=9)


def toy_batch(rows: list[list[int]], rank: int = 0, ranks: int = 1) -> Batch:
    """Every odd position of a row but the last is not to be learned."""
    encoded = [
        Encoded(tuple(ids), tuple(UNLABELLED if i % 2 and i + 1 < len(ids) else t for i, t in enumerate(ids)))
        for ids in rows
    ]
    return collate(encoded, 0, rank=rank, ranks=ranks)


def loss_and_gradient(parts: list[Batch], loss: str) -> tuple[float, torch.Tensor]:
    """Of a bigram model, as a loop of accumulation would take them."""
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    function = {"cross entropy": next_token_loss, "entropy": negative_entropy}[loss]
    total = 0.0
    for part in parts:
        value = function(table[part.input_ids], part.labels, part.label_count)
        value.backward()
        total += value.item()
    assert table.grad is not None
    return total, table.grad


@pytest.mark.parametrize("loss", ["cross entropy", "entropy"])
@MODEST
@given(rows=rows_of_text, size=st.integers(1, 10))
def test_microbatches_add_up_to_the_whole_batch(loss: str, rows: list[list[int]], size: int) -> None:
    batch = toy_batch(rows)
    whole, gradient = loss_and_gradient([batch], loss)
    parts = list(batch.split(size))
    assert all(len(part.input_ids) <= size for part in parts)
    total, accumulated = loss_and_gradient(parts, loss)
    assert total == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(accumulated, gradient, rtol=1e-6, atol=1e-7)


@MODEST
@given(rows=rows_of_text, ranks=st.integers(1, 4), size=st.integers(1, 3))
def test_ranks_average_to_the_whole_batch(rows: list[list[int]], ranks: int, size: int) -> None:
    ranks = min(ranks, len(rows))
    whole, gradient = loss_and_gradient([toy_batch(rows)], "cross entropy")
    shares = [
        loss_and_gradient(list(toy_batch(rows, rank, ranks).split(size)), "cross entropy") for rank in range(ranks)
    ]
    assert sum(loss for loss, _ in shares) / ranks == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(torch.stack([g for _, g in shares]).mean(0), gradient, rtol=1e-6, atol=1e-7)


def numbered(count: int) -> list[Encoded]:
    return [Encoded((i,), (i,)) for i in range(count)]


def drawn(stream: Stream, batches: int) -> list[int]:
    return [i for batch in islice(stream, batches) for i in batch.input_ids.flatten().tolist()]


@MODEST
@given(rows=st.integers(1, 13), size=st.integers(1, 7), seed=st.integers(0, 2**62))
def test_every_pass_of_a_stream_is_a_permutation(rows: int, size: int, seed: int) -> None:
    order = drawn(Stream(numbered(rows), size, seed, 0), 3 * rows)
    for start in range(0, 3 * rows * size, rows):
        assert sorted(order[start : start + rows]) == list(range(rows))


@MODEST
@given(rows=st.integers(1, 13), size=st.integers(1, 7), seed=st.integers(0, 2**62), done=st.integers(0, 9))
def test_a_resumed_stream_goes_on_where_it_was(rows: int, size: int, seed: int, done: int) -> None:
    whole = Stream(numbered(rows), size, seed, 0)
    drawn(whole, done)
    resumed = Stream(numbered(rows), size, seed, 0)
    resumed.load_state_dict(whole.state_dict())
    assert drawn(resumed, 9) == drawn(whole, 9)


def test_the_order_of_a_stream_is_its_seed_s_and_passes_differ() -> None:
    orders = [drawn(Stream(numbered(50), 25, seed, 0), 4) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][:50] != orders[0][50:]
    assert orders[0][:50] != sorted(orders[0][:50])  # the published loaders never shuffle


def test_streams_of_different_names_with_one_seed_resume_apart(tiny_testbed: SmallTestbed) -> None:
    data = Data.attacker(tiny_testbed.domain, tiny_testbed.model.load_tokenizer())
    hazard, benign = (data.stream(name, batch_size=4, seed=1) for name in ("hazard", "benign"))
    next(hazard)
    assert (hazard.state_dict(), benign.state_dict()) == ({"drawn": 4}, {"drawn": 0})


def test_a_safeguard_reads_no_attacker_s_row_and_an_attack_no_defender_s(tiny_testbed: SmallTestbed) -> None:
    tokenizer = tiny_testbed.model.load_tokenizer()
    defender = Data.defender(tiny_testbed.domain, tokenizer)
    attacker = Data.attacker(tiny_testbed.domain, tokenizer)
    assert all(defender.rows(role) for role in DEFENDER_ROLES)
    assert all(attacker.rows(name) for name in ("hazard", "hazard_ood", "hazard_all", "benign"))
    for role in (*ATTACKER_ROLES, *MEASURER_ROLES, "hazard"):
        with pytest.raises(HoldfastError, match="may not be read"):
            defender.stream(role, batch_size=1, seed=0)
        with pytest.raises(HoldfastError, match="may not be read"):
            defender.renamed(hazard=[role])
    for role in (*DEFENDER_ROLES, *MEASURER_ROLES, "attack", "attack_ood", "attack_all"):
        with pytest.raises(HoldfastError, match="may not be read"):
            attacker.stream(role, batch_size=1, seed=0)


def test_renamed_rows_are_the_same_rows_and_no_others(tiny_testbed: SmallTestbed) -> None:
    defender = Data.defender(tiny_testbed.domain, tiny_testbed.model.load_tokenizer())
    view = defender.renamed(hazard=["forget", "forget_heldout"])
    assert view.rows("hazard") == defender.rows("forget") + defender.rows("forget_heldout")
    with pytest.raises(HoldfastError, match="allowed: hazard"):
        view.rows("forget")
