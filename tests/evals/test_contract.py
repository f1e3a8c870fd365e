"""What every preset of every evaluation keeps: the folder is the list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from holdfast.core.disguise import Disguise
from holdfast.core.domain import Domain
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.evals.base import Evaluation
from holdfast.evals.refusals import Requests
from holdfast.testing import EVALUATION, evaluations, name_of, small
from holdfast.testing.bench import copy_domain
from tests.conftest import SmallTestbed

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


BROKEN = [pytest.param((broken,), id=f"{broken[0]}-{broken[1]}") for broken in evaluations.BROKEN]
Check = Callable[[Evaluation, SmallTestbed], None]


@pytest.mark.parametrize(
    "check",
    [check for check in EVALUATION if check is not evaluations.a_model_that_is_not_finite_has_no_score],
    ids=name_of,
)
@every_evaluation
def test_an_evaluation_keeps_the_contract(name: str, check: Check, testbed: SmallTestbed) -> None:
    check(small(EVALUATIONS[name]), testbed)


@pytest.mark.parametrize("broken", BROKEN)
@every_evaluation
def test_a_model_that_is_not_finite_has_no_score(
    name: str, broken: tuple[tuple[str, float], ...], testbed: SmallTestbed
) -> None:
    evaluations.a_model_that_is_not_finite_has_no_score(small(EVALUATIONS[name]), testbed, broken)


@every_evaluation
def test_hazard_is_asked_in_the_attackers_disguise(name: str, testbed: SmallTestbed) -> None:
    if EVALUATIONS[name].measures(testbed.domain) == "hazard":
        assert EVALUATIONS[name].wearing(Disguise(before="ask note")) != EVALUATIONS[name]


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
def test_its_content_changes_with_what_it_reads_and_with_nothing_else(name: str, testbed: SmallTestbed) -> None:
    evaluation = EVALUATIONS[name]
    content = evaluation.content(testbed.domain)
    changed = {path for path, domain in testbed.altered.items() if evaluation.content(domain) != content}
    assert changed
    assert changed == READS.get(name, changed)
    assert len({evaluation.content(testbed.altered[path]) for path in changed}) == len(changed)


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
