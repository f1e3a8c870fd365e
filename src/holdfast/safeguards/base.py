"""The interface of a safeguard."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdfast.core.domain import DEFENDER_ROLES
from holdfast.core.presets import leaves

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from holdfast.attacks.base import Attack
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a safeguard's loss, as `holdfast calibrate` measures it."""

    name: str
    setting: str
    """the dotted path of the term's weight in the safeguard, in the form that `--set` accepts"""
    weight: float
    """the term's weight"""
    keeps: bool
    """True: the term preserves ability; False: the term removes the hazard"""
    take: Callable[[GradientSum], float]
    """adds the gradient of the term with weight 1 at the current model, on the same rows at every call; returns the term's
    value"""


@dataclass(frozen=True, kw_only=True)
class Safeguard(abc.ABC):
    """A way to train or edit a model before its release: frozen hyperparameters; all state lives in the call of `steps`."""

    version: ClassVar[int] = 1
    """raised whenever the same fields give other weights; the version enters identities, so that no old result passes for a new
    one"""
    rate_setting: ClassVar[str] = ""
    """name of the field with the learning rate of the published weights; empty: no such field"""

    outer_state: ClassVar[bool] = False
    """whether it has an inner loop, during which what only the outer loop needs may wait on the host (`run.aside`)"""

    outer_steps: int = 200
    """updates of the published weights"""

    @property
    def trains(self) -> bool:
        """Whether it minimises losses on the defender's rows. A safeguard that only edits the weights samples nothing."""
        return True

    def reads(self) -> tuple[str, ...]:
        """The defender's roles that it reads: those that every safeguard may read, and those that a field names."""
        values = [part for leaf in leaves(self).values() for part in (leaf if isinstance(leaf, tuple) else (leaf,))]
        named = (value for value in values if isinstance(value, str) and value in DEFENDER_ROLES)
        return tuple(dict.fromkeys(("forget", "forget_heldout", "retain", *named)))

    @property
    def on_one_device(self) -> str:
        """Why it cannot run on a model that is split over several devices, as a clause after "because"; empty: it can."""
        return ""

    @property
    def needs_pairs(self) -> bool:
        """Whether the rows to forget have to be pairs of a wanted and an unwanted completion."""
        return False

    def trains_against(self) -> tuple[Attack, ...]:
        """The attacks that it trains against, each as it may be drawn. Most safeguards train against none."""
        return ()

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        """The terms of the loss on the rows of one step, for `holdfast calibrate`; none where the safeguard tells none."""
        return ()

    def shortened(self) -> tuple[Self, ...]:
        """Short copies of itself, of which one takes as much memory as the whole run; a plan of the memory runs them.

        By default the first two updates: the second one has the states of the optimizer.
        """
        return (replace(self, outer_steps=min(self.outer_steps, 2)),)

    def prepare(self, model: PreTrainedModel) -> None:
        """Change the architecture, before the model is sharded. LoRA is merged at the end. Most safeguards need nothing here."""
        return

    def trained(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The weights that are updated."""
        from holdfast.engine.sharded import trainable

        return trainable(model)

    def against_sinks(self) -> Mapping[str, Any]:
        """Settings, by dotted path, that suit a model with attention sinks better than those that the safeguard has."""
        return {}

    @abc.abstractmethod
    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        """Train in place; yield the losses of each outer step.

        `data` gives the defender's `forget`, `forget_heldout` and `retain`. At a yield, and when the walk is over, the
        model holds what would be published; the caller may measure it and dirty the gradients. State that a resumed run
        needs goes to `run.track`.
        """
