"""The interface of an attack, which is also the adversary of a safeguard that trains against it."""

from __future__ import annotations

import abc
from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from holdfast.core.disguise import Disguise
from holdfast.core.presets import describe
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Attack(abc.ABC):
    """A way to remove a safeguard: frozen hyperparameters; all state lives in the call of `steps`."""

    version: ClassVar[int] = 1
    """raised whenever the same fields give other weights; the version enters identities, so that no old result passes for a new
    one"""

    family: ClassVar[str] = "an attack of another kind"
    """the kind of attack in words; a public report names the family where it may not name settings"""

    control: ClassVar[str] = ""
    """what a test plants in a model, for this attack to open it: the attack's positive control. Empty: there is none, so an
    attack that does nothing may be broken, and a report does not count it"""

    sizes: ClassVar[frozenset[str]] = frozenset({"max_steps"})
    """names of the fields in which two attacks of one kind may differ: lengths, batch sizes and the like"""

    max_steps: int = 160
    """updates of the weights"""

    @property
    @abc.abstractmethod
    def benign_steps(self) -> int:
        """Updates at the start that do not follow the attack's objective; the yielded loss counts from there on."""

    @property
    def optimises(self) -> bool:
        """Whether the attack minimises the loss that it yields; a loss that does not fall is then a fault. An edit does not."""
        return True

    @property
    def learns_rows(self) -> bool:
        """Whether training makes the rows that the attack reads likelier, on any model.

        An attack that follows preferences, samples of the model or a reward needs a model that has something to say. A test
        of such an attack is its positive control.
        """
        return True

    @property
    def draws(self) -> bool:
        """Whether the path depends on the seed. Where it does not, more seeds would repeat the same measurement."""
        return True

    @property
    def uses_base(self) -> bool:
        """Whether the attack reads the model before any safeguard, which not every threat model grants."""
        return False

    @property
    def transfers(self) -> bool:
        """Whether the update is computed on the model before any safeguard, whose gradients no safeguard can mask."""
        return False

    @property
    def on_one_device(self) -> str:
        """Why it cannot run on a model that is split over several devices, as a clause after "because"; empty: it can."""
        return ""

    @property
    def rows_per_step(self) -> int:
        """The approximate number of rows that an update reads; the estimate of an attack's duration uses this."""
        return 16

    def kind(self) -> dict[str, Any]:
        """The attack without its sizes, as JSON. Two attacks of one kind have equal kinds.

        A model that was trained against an attack has seen every attack of that kind.
        """
        return {name: value for name, value in describe(self).items() if name not in self.sizes}

    def is_family_of(self, other: Attack) -> bool:
        """Whether another attack is of this attack's family, whatever its settings."""
        return type(self) is type(other)

    def varied(self, **settings: Any) -> Attack:
        """The attack with other values of some of its settings.

        Raises:
            HoldfastError: the attack has no such setting.
        """
        known = {field.name for field in fields(self)}
        for name in settings:
            if name not in known:
                raise HoldfastError(
                    f"{type(self).__name__} has no {name} to sample; leave that setting of the adversary empty"
                )
        return replace(self, **settings)

    @property
    def disguise(self) -> Disguise | None:
        """The disguise of the hazardous rows; hazard is then measured under the same disguise."""
        return None

    def shortened(self) -> tuple[Self, ...]:
        """Copies of itself whose first three updates between them take as much memory as the whole run; a plan runs these."""
        return (self,)

    def prepare(self, model: PreTrainedModel) -> None:
        """Change the architecture, before the model is sharded. Most attacks need nothing here."""
        return

    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The names of the rows that the attack reads from `data`."""

    @abc.abstractmethod
    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        """Tamper in place; yield the attacker's loss after each update of the weights.

        `data` gives `hazard`, `hazard_ood`, `hazard_all` and `benign`. At a yield the model holds what the attacker would
        publish (a schedule-free optimizer's averaged point, evaluation mode, dropout off); the attack itself switches
        back when it is resumed. Meanwhile the caller may dirty the gradients, never the weights.
        """
