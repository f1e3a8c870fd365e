"""The probe reads what a model knows, and nothing from one that does not; its ridge regression against a plain one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from holdfast.core.domain import Domain
from holdfast.core.types import Score
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.linear_probe import STRENGTHS, LinearProbe, _read, _scaled, _Seen
from tests.conftest import SmallTestbed

OPTIONS = 4


def probed(checkpoint: Checkpoint, domain: Domain) -> dict[str, Score]:
    model, tokenizer = checkpoint.load_both()
    return {score.metric: score for score in LinearProbe().prepare(tokenizer, domain)(model)}


def test_it_reads_the_model_that_knows_and_not_the_one_that_never_saw(small_testbed: SmallTestbed) -> None:
    known = probed(small_testbed.model, small_testbed.domain)
    clean = probed(small_testbed.never_exposed, small_testbed.domain)
    assert known["probe_accuracy"].value > 0.6
    assert clean["probe_accuracy"].value < 0.5
    assert 1 <= known["probe_layer"].value <= 3
    for found in (known, clean):
        score = found["probe_accuracy"]
        assert (score.n, score.chance) == (len(small_testbed.domain.questions("hazard").questions), 0.25)
        assert score.stderr == pytest.approx((score.value * (1 - score.value) / score.n) ** 0.5)


def test_a_readout_that_hides_the_answers_does_not_hide_them_from_the_probe(small_testbed: SmallTestbed) -> None:
    """A rotation before the output embedding leaves the model ignorant and what it knows in place."""
    model, tokenizer = small_testbed.model.load_both()
    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(96, 96))
    model.model.norm.register_forward_hook(lambda module, inputs, output: output @ rotation)
    from holdfast.evals.multiple_choice import MultipleChoice

    [own] = MultipleChoice(questions="hazard").prepare(tokenizer, small_testbed.domain)(model)
    accuracy, _ = LinearProbe().prepare(tokenizer, small_testbed.domain)(model)
    assert own.value < 0.5 < accuracy.value


def test_without_harmless_questions_the_hazardous_ones_must_do(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    folder = tmp_path / "domain"
    shutil.copytree(tiny_testbed.folder, folder)
    text = (folder / "domain.toml").read_text()
    (folder / "domain.toml").write_text(text.replace("[questions.benign_in_retain]", "[questions.other]"))
    bare = Domain.open(folder)
    assert LinearProbe().available(bare)
    assert LinearProbe().content(bare) == "".join(bare.questions(n).digest for n in ("hazard", "hazard_selection"))
    assert set(probed(tiny_testbed.model, bare)) == {"probe_accuracy", "probe_layer"}


@pytest.mark.parametrize("missing", ["hazard", "hazard_selection"])
def test_it_needs_questions_to_train_on_and_others_to_ask(missing: str, tiny_testbed: SmallTestbed) -> None:
    domain = tiny_testbed.domain
    held = {name: source for name, source in domain.question_sources.items() if name != missing}
    assert not LinearProbe().available(replace(domain, question_sources=held))


def seen(questions: int, seed: int, layers: int = 3, told: int | None = 1, width: int = 8) -> _Seen:
    """Questions whose right option is a fixed linear map of the state of one layer, and noise in the others."""
    draw = torch.Generator().manual_seed(seed)
    options = torch.randn(questions, OPTIONS, width, generator=draw, dtype=torch.float64)
    options -= options.mean(1, keepdim=True)
    answers = torch.randint(OPTIONS, (questions,), generator=draw).tolist()
    right = torch.stack([held[answer] for held, answer in zip(options, answers, strict=True)])
    turn = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    states = [torch.randn(questions, width, generator=draw, dtype=torch.float64) for _ in range(layers)]
    if told is not None:
        states[told] = 5.0 + right @ turn
    return _Seen(states, list(options), answers)


def test_a_planted_map_is_found_in_its_layer() -> None:
    assert _read([seen(40, 1)], seen(200, 2)) == (1, pytest.approx(1.0, abs=0.02))
    _, accuracy = _read([seen(40, 1, told=None)], seen(400, 2, told=None))
    assert accuracy == pytest.approx(0.25, abs=0.08)


def test_the_tested_answers_have_no_say_in_what_is_chosen() -> None:
    train, test = [seen(30, 3, told=2)], seen(60, 4, told=0)
    layer, _ = _read(train, test)
    wrong = replace(test, answers=[(answer + 1) % OPTIONS for answer in test.answers])
    assert layer == _read(train, wrong)[0] == 2


def plain_ridge(known: torch.Tensor, wanted: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(known.T @ known + penalty * torch.eye(known.shape[1]), known.T @ wanted)


@pytest.mark.parametrize("seed", range(4))
def test_layer_strength_and_reading_are_those_of_plain_ridge_regression_left_one_out(seed: int) -> None:
    """Every question is left out by fitting without it, and the whole is fitted in the space of states."""
    draw = torch.Generator().manual_seed(seed)
    train, more, test = (seen(count, 10 * seed + i, layers=2, told=0) for i, count in enumerate((14, 9, 50)))
    for held in (train, more, test):  # so noisy that layers and strengths differ
        held.states[:] = [s + 6 * torch.randn(s.shape, generator=draw, dtype=torch.float64) for s in held.states]
    wanted = torch.stack([held.options[i][a] for held in (train, more) for i, a in enumerate(held.answers)])
    best, expected = -1.0, (0, 0.0)
    for layer in range(2):
        known = torch.cat([_scaled(held.states[layer], held.states[layer]) for held in (train, more)])
        for strength in STRENGTHS:
            penalty = strength * known.square().sum() / len(known)
            below = []
            for i, answer in enumerate(train.answers):
                kept = torch.arange(len(known)) != i
                scores = train.options[i] @ (known[i] @ plain_ridge(known[kept], wanted[kept], penalty))
                below.append((scores < scores[answer]).sum().item() / (OPTIONS - 1))
            if sum(below) / len(below) > best + 1e-12:
                best = sum(below) / len(below)
                written = _scaled(test.states[layer], train.states[layer]) @ plain_ridge(known, wanted, penalty)
                right = [
                    int((options @ own).argmax()) == answer
                    for options, own, answer in zip(test.options, written, test.answers, strict=True)
                ]
                expected = (layer, sum(right) / len(right))
    assert _read([train, more], test) == expected
