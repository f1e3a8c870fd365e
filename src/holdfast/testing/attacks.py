"""What every attack keeps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from holdfast.attacks.base import Attack
from holdfast.core.domain import ATTACKER_VIEW
from holdfast.core.presets import describe, restore
from holdfast.engine.data import Data
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.testing.bench import Bench
from holdfast.testing.walks import SEED, attack_path, attack_steps, fresh, require, same, walk_attack, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEEN_AT = 1e-4
"""A learning rate below this, for models of billions of weights, would not be seen on the tiny model within a few steps."""


def every_step_changes_the_weights(attack: Attack, bench: Bench) -> None:
    """`steps` yields after each update, `max_steps` times."""
    path = attack_path(attack, bench).weights
    require(len(path) == attack.max_steps, f"steps yielded {len(path)} times, and max_steps is {attack.max_steps}")
    still = [step for step, (before, after) in enumerate(pairwise(path), 2) if torch.equal(before, after)]
    require(not still, f"the weights did not change at the steps {still}; yield after an update and nowhere else")


def the_same_seed_takes_the_same_path(attack: Attack, bench: Bench) -> None:
    """Whatever the caller does at a yield; another seed takes another path where the attack `draws`."""

    def disturb(model: PreTrainedModel) -> None:
        training = any(module.training for module in model.modules())
        require(not training, "the model was in training mode at a yield; call model.train(False) before it")
        with torch.no_grad():
            model(input_ids=torch.arange(20).view(2, 10))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)

    path = attack_path(attack, bench).weights
    again = walk_attack(attack, bench, at_yield=disturb)
    require(
        same(path, again),
        "the same seed took another path when the model was measured and its gradients dirtied at each yield; draw from "
        "run.generator and run.seed alone, and clear gradients before you use them",
    )
    other = "the same" if same(path, attack_steps(attack, bench, seed=SEED + 1)) else "another"
    require((other == "another") is attack.draws, f"draws is {attack.draws}, and another seed took {other} path")


def it_asks_for_exactly_the_rows_that_it_says_it_reads(attack: Attack, bench: Bench) -> None:
    """`reads()` is what an audit checks before it starts."""
    asked = attack_path(attack, bench).roles
    reads = set(attack.reads())
    require(asked == reads, f"reads() says {sorted(reads)}, and steps asked for {sorted(asked)}")
    require(asked <= ATTACKER_VIEW.keys(), f"an attacker has {', '.join(ATTACKER_VIEW)}, not {sorted(asked)}")


def a_walk_may_be_closed_midway_and_another_begun(attack: Attack, bench: Bench) -> None:
    """What an early stop does, and what a safeguard does that trains against the attack."""
    seed_everything(SEED)
    model, data = fresh(bench)
    attack.prepare(model)
    steps = attack.steps(model, data, Run(SEED, bench.never_exposed.load))
    next(steps)
    steps.close()
    require(not model.training, "the model was left in training mode when the walk was closed")
    with torch.no_grad():
        finite = bool(torch.isfinite(model(input_ids=torch.arange(20).view(2, 10)).logits).all())
    require(finite, "the model's logits are not finite after one step")
    again = list(attack.steps(model, data, Run(SEED + 1, bench.never_exposed.load)))
    require(len(again) == attack.max_steps, "a second walk on the same model did not take all steps")


def a_stopped_walk_goes_on_to_the_same_weights(attack: Attack, bench: Bench) -> None:
    """From `run.start`, with the state of what `run.track` was given."""
    seed_everything(SEED)
    model, data = fresh(bench)
    attack.prepare(model)
    run = Run(SEED, bench.never_exposed.load)
    for step, _ in drive(attack.steps(model, data, run), run):
        if step == max(attack.max_steps - 2, 1):
            break
    with tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "state", model, step, "it")
        seed_everything(99)
        model, data = fresh(bench)
        attack.prepare(model)
        run = Run(SEED, bench.never_exposed.load)
        run.resume(Path(folder) / "state", model, "it")
    for _ in drive(attack.steps(model, data, run), run):
        pass
    require(
        torch.equal(weights(model), attack_path(attack, bench).weights[-1]),
        "a walk that was stopped and resumed ended at other weights; begin at run.start, and give run.track all that has a state",
    )


def its_own_objective_improves(attack: Attack, bench: Bench) -> None:
    """Else the attack is broken, and says nothing of a safeguard.

    An attack that does not `optimises` or does not `learns_rows` is not asked.
    """
    if not (attack.optimises and attack.learns_rows):
        return
    rate = getattr(attack, "learning_rate", None)
    if isinstance(rate, float) and rate < _SEEN_AT:
        attack = replace(attack, learning_rate=rate * 100)  # type: ignore[call-arg]
    seed_everything(SEED)
    model, data = fresh(bench)
    attack.prepare(model)
    # A transferred update lowers the loss of the model it was computed on, and so that of its like.
    base = bench.model if attack.transfers else bench.never_exposed
    run, before = Run(SEED, base.load), _objective(model, data, attack)
    losses = [loss for _, loss in drive(attack.steps(model, data, run), run)]
    after = _objective(model, data, attack)
    require(after < before, f"the mean loss on the rows that it reads went from {before:.4g} to {after:.4g}")
    require(
        min(losses[-3:]) < losses[0],
        f"the losses that it yields did not fall: first {losses[0]:.4g}, last {losses[-3:]}",
    )


def _objective(model: PreTrainedModel, data: Data, attack: Attack) -> float:
    """The mean loss over the first rows of all that it reads."""
    total = 0.0
    for name in attack.reads():
        stream = data.stream(name, batch_size=64, seed=0)
        batch = stream.batch(stream.rows[:64])
        with torch.no_grad():
            total += next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count).item()
    return total / len(attack.reads())


def it_is_described_and_restored(attack: Attack, bench: Bench) -> None:
    """Records, cards and suites hold attacks as JSON; `kind()` leaves the `sizes` out."""
    described = json.loads(json.dumps(describe(attack), allow_nan=False))
    require(described == describe(attack), "a field is other than its JSON; give tuples, texts, numbers and None")
    require(restore("holdfast.attacks", described) == attack, "what was described is restored as another attack")
    kind = attack.kind()
    require(kind["class"] == type(attack).__name__, "kind() must keep the class")
    require("max_steps" in attack.sizes, "sizes must hold max_steps: two lengths of an attack are of one kind")
    require(not kind.keys() & attack.sizes, "kind() must leave the sizes out")
    require(
        replace(attack, max_steps=attack.max_steps + 1).kind() == kind, "another max_steps must leave kind() as it is"
    )


def it_says_its_size_and_what_it_takes_from_the_base(attack: Attack, bench: Bench) -> None:
    """Estimates and threat models ask; an attack that reads the model before the safeguard says so by `uses_base`."""
    require(attack.rows_per_step > 0, "rows_per_step must be about how many rows an update reads")
    require(
        attack.uses_base or not attack.transfers, "an attack that transfers uses the base model: say so by uses_base"
    )
    require(0 <= attack.benign_steps <= attack.max_steps, "benign_steps must lie between 0 and max_steps")
    read_base = attack_path(attack, bench).read_base
    require(not read_base or attack.uses_base, "steps read run.base, and uses_base is false")


ATTACK: tuple[Callable[[Attack, Bench], None], ...] = (
    every_step_changes_the_weights,
    the_same_seed_takes_the_same_path,
    it_asks_for_exactly_the_rows_that_it_says_it_reads,
    a_walk_may_be_closed_midway_and_another_begun,
    a_stopped_walk_goes_on_to_the_same_weights,
    its_own_objective_improves,
    it_is_described_and_restored,
    it_says_its_size_and_what_it_takes_from_the_base,
)
"""Each raises AssertionError, with a sentence, where an attack does not keep the rule."""
