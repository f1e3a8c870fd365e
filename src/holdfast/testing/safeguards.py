"""What every safeguard keeps."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from holdfast.attacks.base import Attack
from holdfast.core.domain import DEFENDER_ROLES
from holdfast.core.presets import describe, restore
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.safeguards.base import Safeguard
from holdfast.testing.bench import Bench
from holdfast.testing.walks import SEED, loaded, require, safeguard_path, safeguard_steps, same, walk_safeguard, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def every_outer_step_changes_the_weights_and_names_its_losses(safeguard: Safeguard, bench: Bench) -> None:
    """`steps` yields after each update, `outer_steps` times, with finite losses by name."""
    path, losses = safeguard_path(safeguard, bench)
    require(
        len(path) == safeguard.outer_steps,
        f"steps yielded {len(path)} times, and outer_steps is {safeguard.outer_steps}",
    )
    still = [step for step, (before, after) in enumerate(pairwise(path), 2) if torch.equal(before, after)]
    require(not still, f"the weights did not change at the steps {still}; yield after an update and nowhere else")
    require(all(losses), "a yield names no loss")
    require(all(math.isfinite(loss) for here in losses for loss in here.values()), "a loss is not finite")


def the_same_seed_takes_the_same_path(safeguard: Safeguard, bench: Bench) -> None:
    """Whatever the caller does at a yield; another seed takes another path where the safeguard `trains`; the original stays."""
    bases: list[PreTrainedModel] = []
    prepared, _, _ = loaded(bench.folder)
    prepared = copy.deepcopy(prepared)
    safeguard.prepare(prepared)
    trained = [weight.requires_grad for weight in prepared.parameters()]

    def disturb(model: PreTrainedModel, run: Run) -> None:
        training = any(module.training for module in model.modules())
        require(not training, "the model was in training mode at a yield; call model.train(False) before it")
        left = [weight.requires_grad for weight in model.parameters()] == trained
        require(left, "a weight was left with another requires_grad at a yield")
        with torch.no_grad():
            model(input_ids=torch.arange(20).view(2, 10))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
        bases.append(run.base)

    path, losses = safeguard_path(safeguard, bench)
    again, repeated = walk_safeguard(safeguard, bench, at_yield=disturb)
    require(
        same(path, again) and losses == repeated,
        "the same seed took another path when the model was measured and its gradients dirtied at each yield; draw from "
        "run.generator and run.seed alone, and clear gradients before you use them",
    )
    elsewhere = (here for here, _ in safeguard_steps(safeguard, bench, seed=SEED + 1))
    other = "the same" if same(path, elsewhere) else "another"
    require(
        (other == "another") is safeguard.trains, f"trains is {safeguard.trains}, and another seed took {other} path"
    )
    require(torch.equal(weights(bases[-1]), weights(bench.model.load())), "run.base, the original model, was changed")
    require(
        not any(p.requires_grad or p.grad is not None for p in bases[-1].parameters()), "run.base was given gradients"
    )


def it_reads_the_defenders_rows_and_no_others(safeguard: Safeguard, bench: Bench) -> None:
    """A safeguard that read an attacker's row would be tested on what it has seen."""
    read: set[str] = set()
    rows = Data._rows

    def seen(self: Data, role: str, *side: Any) -> Any:
        read.add(role)
        return rows(self, role, *side)

    with patch.object(Data, "_rows", seen):
        walk_safeguard(safeguard, bench)
    require(read <= set(DEFENDER_ROLES), f"a defender has {', '.join(DEFENDER_ROLES)}, and steps read {sorted(read)}")


class _Stopped(Exception):
    pass


def a_stopped_walk_goes_on_to_the_same_weights(safeguard: Safeguard, bench: Bench) -> None:
    """From `run.start`, with the state of what `run.track` was given."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "state.safetensors"

        def stop(model: PreTrainedModel, run: Run) -> None:
            run.save(saved, model, 1, "it")
            raise _Stopped

        with suppress(_Stopped):
            walk_safeguard(safeguard, bench, at_yield=stop)
        rest, losses = walk_safeguard(safeguard, bench, resume=saved)
    path, whole = safeguard_path(safeguard, bench)
    require(
        same(rest, path[1:]) and losses == whole[1:],
        "a walk that was stopped and resumed took another path; begin at run.start, and give run.track all that has a state",
    )


def in_microbatches_it_takes_the_same_first_step(safeguard: Safeguard, bench: Bench) -> None:
    """Where it has the field `micro_batch`: `batch.split` gives parts whose losses add up to that of the whole batch."""
    if "micro_batch" not in safeguard.__dataclass_fields__:
        return
    [whole, *_] = safeguard_path(safeguard, bench)[1]
    short = replace(safeguard, outer_steps=1, micro_batch=1)  # type: ignore[call-arg]
    _, [parts] = walk_safeguard(short, bench)
    # What an edit that trains nothing reports is rounding itself.
    least = 1e-12 if safeguard.trains else 1e-5
    for name, loss in whole.items():
        close = math.isclose(parts[name], loss, rel_tol=1e-4, abs_tol=least)
        require(close, f"the first {name} is {loss:.6g} over whole batches and {parts[name]:.6g} over parts of one row")


def it_is_described_and_restored_and_says_what_it_trains_against(safeguard: Safeguard, bench: Bench) -> None:
    """Cards hold safeguards as JSON; attacks of a kind that it trained against are seen in training."""
    described = json.loads(json.dumps(describe(safeguard), allow_nan=False))
    require(described == describe(safeguard), "a field is other than its JSON; give tuples, texts, numbers and None")
    require(
        restore("holdfast.safeguards", described) == safeguard, "what was described is restored as another safeguard"
    )
    trained = safeguard.trains_against()
    require(all(isinstance(attack, Attack) for attack in trained), "trains_against must give attacks")


SAFEGUARD: tuple[Callable[[Safeguard, Bench], None], ...] = (
    every_outer_step_changes_the_weights_and_names_its_losses,
    the_same_seed_takes_the_same_path,
    it_reads_the_defenders_rows_and_no_others,
    a_stopped_walk_goes_on_to_the_same_weights,
    in_microbatches_it_takes_the_same_first_step,
    it_is_described_and_restored_and_says_what_it_trains_against,
)
"""Each raises AssertionError, with a sentence, where a safeguard does not keep the rule."""
