"""What every evaluation keeps."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from holdfast.core.disguise import Disguise
from holdfast.core.domain import Domain
from holdfast.core.presets import describe, restore
from holdfast.core.types import Measure, NonFinite, Score
from holdfast.evals.base import Evaluation
from holdfast.testing.bench import Bench, alter, copy_domain
from holdfast.testing.walks import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.evals.base import Probe


def a_probe_leaves_the_model_and_all_randomness_as_they_were(evaluation: Evaluation, bench: Bench) -> None:
    """An attack walks on with the model that it had, and draws what it would have drawn."""
    model = bench.model.load()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3  # draws random numbers wherever it trains
    model.model.embed_tokens.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3) if parameter.requires_grad else None
    probe = _probe(evaluation, bench)
    before, trainable = _state(model), [p.requires_grad for p in model.parameters()]
    torch.manual_seed(11)
    drawn = torch.get_rng_state(), random.getstate(), _numpy_state()
    probe(model)
    after = _state(model)
    changed = [name for name in before if name not in after or not torch.equal(after[name], before[name])]
    require(after.keys() == before.keys() and not changed, f"the probe changed {changed}")
    require([p.requires_grad for p in model.parameters()] == trainable, "the probe changed requires_grad of a weight")
    require(not any(module.training for module in model.modules()), "the probe left the model in training mode")
    kept = torch.equal(torch.get_rng_state(), drawn[0]) and (random.getstate(), _numpy_state()) == drawn[1:]
    require(kept, "the probe drew from a global generator; seed one of its own")


def a_second_look_sees_the_same_whatever_was_looked_at_between(evaluation: Evaluation, bench: Bench) -> None:
    """Nothing is random that a field does not seed, and nothing is kept from one model to the next."""
    model, other, probe = bench.model.load(), bench.never_exposed.load(), _probe(evaluation, bench)
    first, another = probe(model), probe(other)
    require(probe(model) == first, "the same probe gave the same model another score")
    require(_probe(evaluation, bench)(other) == another, "a probe that was prepared anew gave another score")


def scores_are_numbers_with_a_name_and_a_count(evaluation: Evaluation, bench: Bench) -> None:
    """One `Score` or more, each of another metric."""
    scores = _probe(evaluation, bench)(bench.model.load())
    require(bool(scores) and all(isinstance(score, Score) for score in scores), "a probe must return Scores")
    require(len({score.metric for score in scores}) == len(scores), "two scores have one metric")
    for score in scores:
        require(isinstance(score.value, float) and math.isfinite(score.value), f"{score.metric} is no finite float")
        require(score.stderr is None or score.stderr >= 0, f"the standard error of {score.metric} is below 0")
        require(score.n > 0, f"n of {score.metric} must count questions or rows")
        require(score.chance is None or 0 <= score.chance < 1, f"chance of {score.metric} must be a share below 1")


def it_says_what_it_measures_and_what_stands_for_it_at_milestones(evaluation: Evaluation, bench: Bench) -> None:
    """`measures` says who wants it high; a sample at milestones measures the same and reads the same."""
    domain = bench.domain
    require(
        evaluation.available(domain),
        "it is not available in the domain of the bench; take bench('refusal'), or another",
    )
    measured = evaluation.measures(domain)
    require(measured in get_args(Measure), f"measures must be one of {', '.join(get_args(Measure))}, not {measured!r}")
    sampled = evaluation.at_milestone(domain)
    if sampled is not None:
        require(sampled.measures(domain) == measured, "its sample at milestones measures something else")
        require(sampled.content(domain) == evaluation.content(domain), "its sample at milestones has other content")
        require(sampled.at_milestone(domain) == sampled, "a sample at milestones must not be sampled further")


BROKEN = (
    ("model.layers.0.self_attn.q_proj.weight", math.nan),
    ("model.norm.weight", math.nan),
    ("model.norm.weight", math.inf),
    ("lm_head.weight", math.nan),
)
"""Weights that every evaluation's logits depend on. An infinite weight of the head may just make one word impossible."""


def a_model_that_is_not_finite_has_no_score(
    evaluation: Evaluation, bench: Bench, broken: tuple[tuple[str, float], ...] = BROKEN
) -> None:
    """The argmax of NaN is index 0, so that a diverged model could score well."""
    for name, bad in broken:
        model = bench.model.load()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[7] = bad
        before, probe = _state(model), _probe(evaluation, bench)
        try:
            probe(model)
        except NonFinite:
            after = _state(model)
            kept = all(torch.equal(_bits(after[key]), _bits(before[key])) for key in before)
            require(kept, "the probe changed a model that is not finite")
        else:
            require(False, f"a model with {name} = {bad} got a score; raise NonFinite where logits are not finite")


def equal_content_means_equal_scores(evaluation: Evaluation, bench: Bench) -> None:
    """`content` changes with what the evaluation reads: scores are kept under it."""
    content = evaluation.content(bench.domain)
    contents = {path: evaluation.content(domain) for path, domain in bench.altered.items()}
    changed = {path: other for path, other in contents.items() if other != content}
    require(bool(changed), "content() is the same whatever file of the domain differs; hash what prepare reads")
    require(len(set(changed.values())) == len(changed), "content() is the same for two different changes of the domain")
    with tempfile.TemporaryDirectory() as folder:
        copy_domain(bench.folder, Path(folder) / "domain")
        for path in contents.keys() - changed.keys():
            alter(Path(folder) / "domain" / path)
        domain = Domain.open(Path(folder) / "domain")
        require(evaluation.content(domain) == content, "content() changes with files that alone do not change it")
        model, tokenizer = bench.model.load_both()
        one, two = (evaluation.prepare(tokenizer, opened)(model) for opened in (bench.domain, domain))
    require(one == two, "files that content() leaves out changed a score; hash all that prepare reads")


def it_is_not_available_where_the_domain_lacks_what_it_reads(evaluation: Evaluation, bench: Bench) -> None:
    """An empty domain has nothing to measure with."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "domain.toml").write_text("schema = 1\n")
        there = evaluation.available(Domain.open(Path(folder)))
    require(not there, "available() must be false for a domain without data and questions")


def it_wears_a_disguise_in_the_words_it_asks_or_stays_as_it_is(evaluation: Evaluation, bench: Bench) -> None:
    """An attacker who trained in a disguise asks for hazard in the same."""
    disguise = Disguise(before="ask note")
    worn = evaluation.wearing(disguise)
    require(type(worn) is type(evaluation), "wearing() must return an evaluation of its own class")
    has_field = "disguise" in evaluation.__dataclass_fields__
    require(
        describe(worn).get("disguise") == (describe(disguise) if has_field else None), "wearing() must set its disguise"
    )


def it_is_described_and_restored(evaluation: Evaluation, bench: Bench) -> None:
    """Identities hold evaluations as JSON."""
    described = json.loads(json.dumps(describe(evaluation), allow_nan=False))
    require(described == describe(evaluation), "a field is other than its JSON; give tuples, texts, numbers and None")
    require(restore("holdfast.evals", described) == evaluation, "what was described is restored as another evaluation")


EVALUATION: tuple[Callable[[Evaluation, Bench], None], ...] = (
    a_probe_leaves_the_model_and_all_randomness_as_they_were,
    a_second_look_sees_the_same_whatever_was_looked_at_between,
    scores_are_numbers_with_a_name_and_a_count,
    it_says_what_it_measures_and_what_stands_for_it_at_milestones,
    a_model_that_is_not_finite_has_no_score,
    equal_content_means_equal_scores,
    it_is_not_available_where_the_domain_lacks_what_it_reads,
    it_wears_a_disguise_in_the_words_it_asks_or_stays_as_it_is,
    it_is_described_and_restored,
)
"""Each raises AssertionError, with a sentence, where an evaluation does not keep the rule."""


def _probe(evaluation: Evaluation, bench: Bench) -> Probe:
    return evaluation.prepare(bench.model.load_tokenizer(), bench.domain)


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights and buffers, those that are not saved too."""
    return {name: held.detach().clone() for name, held in [*model.named_parameters(), *model.named_buffers()]}


def _numpy_state() -> list[int]:
    state: list[int] = np.random.get_state()[1].tolist()  # type: ignore[index]
    return state


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN equals nothing; its bits do."""
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor
