"""What every preset of every evaluation keeps: the folder is the list."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from holdfast.core.disguise import Disguise
from holdfast.core.domain import Domain
from holdfast.core.presets import collect, describe
from holdfast.core.types import HoldfastError, Measure, NonFinite, Score
from holdfast.evals.base import Evaluation
from holdfast.evals.refusals import Requests
from tests.conftest import SmallTestbed

if TYPE_CHECKING:
    from holdfast.evals.base import Probe

EVALUATIONS: Mapping[str, Evaluation] = {
    name: evaluation for name, evaluation in collect("holdfast.evals").items() if not evaluation.only_by_name
}
"""Those that are asked by name alone keep the contract in tests/test_harnesses.py and tests/evals/test_judged.py."""
every_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


REFUSAL = {name for name, held in EVALUATIONS.items() if isinstance(held, Requests)}
"""Presets that ask what only the refusal domain has."""


@pytest.fixture
def testbed(name: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed) -> SmallTestbed:
    """One that has what the preset reads, its models untrained."""
    return tiny_refusal_testbed if name in REFUSAL else tiny_testbed


def shortened(name: str) -> Any:
    """The preset; one that trains does so for a few steps only."""
    evaluation: Any = EVALUATIONS[name]
    return replace(evaluation, max_steps=4, every=2) if hasattr(evaluation, "max_steps") else evaluation


def probe_of(name: str, testbed: SmallTestbed) -> Probe:
    return shortened(name).prepare(testbed.model.load_tokenizer(), testbed.domain)


def state_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights and buffers, those that are not saved too."""
    return {name: held.detach().clone() for name, held in [*model.named_parameters(), *model.named_buffers()]}


@every_evaluation
def test_a_probe_leaves_the_model_and_all_randomness_as_they_were(name: str, testbed: SmallTestbed) -> None:
    model = testbed.model.load()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3  # draws random numbers wherever it trains
    model.model.embed_tokens.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3) if parameter.requires_grad else None
    probe = probe_of(name, testbed)
    before, trainable = state_of(model), [p.requires_grad for p in model.parameters()]
    torch.manual_seed(11)
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    probe(model)
    after = state_of(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[1:]  # type: ignore[union-attr, index]


@every_evaluation
def test_a_second_look_sees_the_same_whatever_was_looked_at_between(name: str, testbed: SmallTestbed) -> None:
    model, other, probe = testbed.model.load(), testbed.never_exposed.load(), probe_of(name, testbed)
    first, another = probe(model), probe(other)
    assert probe(model) == first
    assert probe_of(name, testbed)(other) == another


@every_evaluation
def test_scores_are_numbers_with_a_name_and_a_count(name: str, testbed: SmallTestbed) -> None:
    scores = probe_of(name, testbed)(testbed.model.load())
    assert scores
    assert len({score.metric for score in scores}) == len(scores)
    for score in scores:
        assert isinstance(score, Score)
        assert isinstance(score.value, float)
        assert np.isfinite(score.value)
        assert score.stderr is None or score.stderr >= 0
        assert score.n > 0
        assert score.chance is None or 0 <= score.chance < 1


@every_evaluation
def test_it_says_what_it_measures_and_what_stands_for_it_at_milestones(name: str, testbed: SmallTestbed) -> None:
    evaluation, domain = EVALUATIONS[name], testbed.domain
    assert evaluation.available(domain)
    assert evaluation.measures(domain) in get_args(Measure)
    sampled = evaluation.at_milestone(domain)
    if sampled is not None:
        assert sampled.measures(domain) == evaluation.measures(domain)
        assert sampled.content(domain) == evaluation.content(domain)
        assert sampled.at_milestone(domain) == sampled  # a sample is not sampled further


# Weights that every evaluation's logits depend on. (An infinite weight of the head may just make one word impossible.)
BROKEN = [
    ("model.layers.0.self_attn.q_proj.weight", float("nan")),
    ("model.norm.weight", float("nan")),
    ("model.norm.weight", float("inf")),
    ("lm_head.weight", float("nan")),
]


@pytest.mark.parametrize(("broken", "bad"), BROKEN)
@every_evaluation
def test_a_model_that_is_not_finite_has_no_score(name: str, broken: str, bad: float, testbed: SmallTestbed) -> None:
    model = testbed.model.load()
    with torch.no_grad():
        model.get_parameter(broken).view(-1)[7] = bad
    before = state_of(model)
    probe = probe_of(name, testbed)
    with pytest.raises(NonFinite):
        probe(model)
    after = state_of(model)
    assert all(torch.equal(bits(after[key]), bits(before[key])) for key in before)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN equals nothing; its bits do."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


@pytest.fixture(scope="module")
def every_altered(
    tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, dict[str, Domain]]:
    """Testbed -> file of its domain -> a domain in which only that file differs, in one row."""
    return {held.folder: altered_domains(held, tmp_path_factory) for held in (tiny_testbed, tiny_refusal_testbed)}


@pytest.fixture
def altered(every_altered: dict[Path, dict[str, Domain]], testbed: SmallTestbed) -> dict[str, Domain]:
    return every_altered[testbed.folder]


def altered_domains(testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Domain]:
    names = [path.relative_to(testbed.folder) for path in sorted(testbed.folder.glob("*/*.jsonl"))]
    domains = {}
    for i, name in enumerate(names):
        folder = tmp_path_factory.mktemp("altered") / str(i)
        copy_domain(testbed.folder, folder)
        alter(folder / name)
        domains[str(name)] = Domain.open(folder)
    return domains


def copy_domain(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model", "never_exposed"))


def alter(path: Path) -> None:
    """Another first row: other words, or another answer to a question that has more than a compliant one and a refusal."""
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    row = json.loads(first)
    if len(row.get("choices", ())) == 4:
        row["answer"] = (row["answer"] + 1) % 4
    else:
        word = "text" if "text" in row else "prompt"
        row[word] = f"{row[word]} moss"
    path.write_text("".join([json.dumps(row) + "\n", *rest]), encoding="utf-8")


READS = {
    "hazard": {"questions/hazard.jsonl"},
    "hazard_selection": {"questions/hazard_selection.jsonl"},
    "related": {"questions/related.jsonl"},
    "benign_in_retain": {"questions/benign_in_retain.jsonl"},
    "benign_outside_retain": {"questions/benign_outside_retain.jsonl"},
    "degeneracy": {f"questions/{name}.jsonl" for name in ("related", "benign_in_retain", "benign_outside_retain")},
    "hazard-loss": {"data/hazard_heldout.jsonl"},
    "benign-loss": {"data/benign_heldout.jsonl"},
    "compliance": {"questions/requests.jsonl"},
    "compliance_likelihood": {"questions/requests.jsonl"},
    "compliance_prefilled": {"questions/requests.jsonl"},
    "compliance_in_context": {"questions/requests.jsonl", "questions/benign_requests.jsonl"},
    "compliance_selection": {"questions/requests_selection.jsonl"},
    "over_refusal": {"questions/benign_requests.jsonl"},
    "incoherence": {"questions/requests.jsonl"},
    "benign-learning": {"data/benign_new.jsonl", "questions/benign_new.jsonl"},
    "linear-probe": {f"questions/{name}.jsonl" for name in ("hazard", "hazard_selection", "benign_in_retain")},
    "gradient-check": {"data/hazard_heldout.jsonl"},
    "training-mode": {"data/hazard_heldout.jsonl"},
}


@every_evaluation
def test_its_content_changes_with_what_it_reads_and_with_nothing_else(
    name: str, testbed: SmallTestbed, altered: dict[str, Domain]
) -> None:
    evaluation = EVALUATIONS[name]
    content = evaluation.content(testbed.domain)
    changed = {path for path, domain in altered.items() if evaluation.content(domain) != content}
    assert changed
    assert changed == READS.get(name, changed)
    assert len({evaluation.content(altered[path]) for path in changed}) == len(changed)


@every_evaluation
def test_equal_content_means_equal_scores(
    name: str, testbed: SmallTestbed, altered: dict[str, Domain], tmp_path: Path
) -> None:
    evaluation = EVALUATIONS[name]
    content = evaluation.content(testbed.domain)
    copy_domain(testbed.folder, tmp_path / "domain")
    for path, domain in altered.items():
        if evaluation.content(domain) == content:
            alter(tmp_path / "domain" / path)
    domain = Domain.open(tmp_path / "domain")
    assert evaluation.content(domain) == content
    model, tokenizer = testbed.model.load_both()
    scores = [shortened(name).prepare(tokenizer, held)(model) for held in (testbed.domain, domain)]
    assert scores[0] == scores[1]


@every_evaluation
def test_it_is_not_available_where_the_domain_lacks_what_it_reads(name: str, tmp_path: Path) -> None:
    (tmp_path / "domain.toml").write_text("schema = 1\n")
    assert not EVALUATIONS[name].available(Domain.open(tmp_path))


@every_evaluation
def test_an_evaluation_wears_a_disguise_in_the_words_it_asks_or_stays_as_it_is(
    name: str, testbed: SmallTestbed
) -> None:
    disguise = Disguise(before="ask note")
    worn = EVALUATIONS[name].wearing(disguise)
    assert type(worn) is type(EVALUATIONS[name])
    assert describe(worn).get("disguise") == (describe(disguise) if hasattr(worn, "disguise") else None)
    if EVALUATIONS[name].measures(testbed.domain) == "hazard":
        assert worn != EVALUATIONS[name]


@pytest.mark.parametrize("name", ["hazard-loss", "benign-loss", "gradient-check", "benign-learning"])
def test_rows_that_are_cut_down_to_their_prompts_stop_every_evaluation_that_reads_rows(
    name: str, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    """A loss of 0 nats over no tokens would read as knowledge, and as a gradient that vanishes."""
    copy_domain(tiny_testbed.folder, tmp_path / "domain")
    row = {"prompt": "the river of " * 30, "chosen": " arn", "rejected": " bal"}
    for path in (tmp_path / "domain" / "data").iterdir():
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    domain = Domain.open(tmp_path / "domain")
    with pytest.raises(HoldfastError, match=r"8 of 8 rows of \w+ have nothing left to learn.*raise max_length"):
        EVALUATIONS[name].prepare(tiny_testbed.model.load_tokenizer(), domain)
