"""What memory a command will take, before it loads a model: the predicted peak by part, on the device and on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.attacks.space import collect_families
from holdfast.core.domain import Domain
from holdfast.core.model_size import count_weights
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.rehearsal import PARTS, Peak, rehearse, vocabulary_of
from holdfast.evals.memory import beside_model

if TYPE_CHECKING:
    from holdfast.attacks.base import Attack
    from holdfast.campaign.cells import Campaign
    from holdfast.runs.search.search import Search
    from holdfast.runs.stages import Recipe

PROCESS = "Python and its libraries"
"""the part of the host's memory that every process takes"""

_UPDATES_OF_ATTACK = 3
"""an edit, the first update behind the edit, and the second, which has the states of the optimizer"""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The most memory that one stage of a command takes at once, in bytes by part."""

    label: str
    """the preset of the stage or the attack"""
    device: Mapping[str, int]
    """on the device; empty where the device is the host's processor"""
    host: Mapping[str, int]

    @property
    def on_device(self) -> int:
        return sum(self.device.values())

    @property
    def on_host(self) -> int:
        return sum(self.host.values())

    @property
    def peak(self) -> int:
        """Where the model is."""
        return self.on_device or self.on_host


def plan_of_stages(recipe: Recipe) -> list[MemoryPlan]:
    """The memory of every stage of a safeguarded checkpoint.

    Raises:
        HoldfastError: a file is missing or malformed, or the memory of a stage cannot be foretold.
    """
    from holdfast.runs.stages import bounded, check_offload

    check_offload(recipe)
    domain = Domain.open(recipe.domain)
    return [
        max(
            (
                _plan(
                    label,
                    rehearse(
                        bounded(short, recipe.options.micro_batch), recipe.model, domain, "defender", recipe.options,
                        prepare=[short.prepare], base=recipe.original(), initial=recipe.model, updates=short.outer_steps,
                    ),
                    recipe.options,
                )
                for short in safeguard.shortened()
            ),
            key=_peak,
        )
        for label, safeguard in recipe.stages
    ]  # fmt: skip


def plan_of_attack(
    label: str, attack: Attack, model: str, domain: Path, *, base: str = "", options: Options
) -> MemoryPlan:
    """The memory of the updates of an attack; `base` is the model before any safeguard, where the attack needs it.

    Raises:
        HoldfastError: a file is missing or malformed, the memory of the attack cannot be foretold, or it has no outer state
            that could wait on the host.
    """
    if options.offload:
        raise HoldfastError("an attack has no outer loop, so there is nothing that could wait on the host")
    opened, original = Domain.open(domain), Checkpoint(base) if base else None
    peaks = (
        rehearse(
            short, Checkpoint(model), opened, "attacker", options,
            prepare=[short.prepare], base=original, updates=_UPDATES_OF_ATTACK,
        )
        for short in attack.shortened()
    )  # fmt: skip
    return max((_plan(label, peak, options) for peak in peaks), key=_peak)


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """The most memory that a worker takes whose cells are those of a campaign, or the trials of a search, in bytes."""

    largest: MemoryPlan
    """of what takes most where the model is: an attack, or the probe that trains all weights"""
    host: int
    """that any of them takes on the host"""
    measuring: int
    """that measuring takes at most, beside what an attack holds meanwhile"""
    unknown: tuple[str, ...]
    """attacks whose memory cannot be foretold"""

    @property
    def on_host(self) -> int:
        return self.host + (0 if self.largest.device else self.measuring)

    @property
    def on_device(self) -> int:
        """0 where the model is on the host."""
        return self.largest.on_device + (self.measuring if self.largest.device else 0)


def memory_of_worker(
    campaign: Campaign, on_step: Callable[[int, int], None] = lambda done, total: None
) -> WorkerMemory:
    """Plan every attack of a campaign on the model under test, whose shape the others have.

    Raises:
        HoldfastError: a file is missing or malformed, or the memory of no attack can be foretold.
    """
    model = next(model for model in campaign.models if model.role == "defended").path
    domain, (_, probes) = Domain.open(campaign.domain), campaign.evaluations()
    plans = [
        plan_of_probe(name, count_weights(Checkpoint(model).folder), campaign.options.device)
        for name, probe in (probes if campaign.probes else ())
        if probe.measures(domain) == "trainability"
    ]
    attacks = [(name, attack) for name, attack in campaign.attacks if name not in campaign.left_out]
    return plan_of_worker(attacks, model, campaign.domain, campaign.base, campaign.options, plans, on_step)


def memory_of_search(search: Search, on_step: Callable[[int, int], None] = lambda done, total: None) -> WorkerMemory:
    """Plan the attack of every family of a search that takes most, about: the one with the largest numbers of its space.

    Raises:
        HoldfastError: as `memory_of_worker`.
    """
    known = collect_families()
    attacks = [(name, known[name].largest()) for name in search.families]
    return plan_of_worker(attacks, search.model, search.domain, search.base, search.options, (), on_step)


def plan_of_worker(
    attacks: Sequence[tuple[str, Attack]],
    model: str,
    domain: Path,
    base: str,
    options: Options,
    others: Sequence[MemoryPlan],
    on_step: Callable[[int, int], None],
) -> WorkerMemory:
    """What the largest of these attacks, and of the other plans, takes.

    Raises:
        HoldfastError: as `memory_of_worker`.
    """
    plans, unknown = list[MemoryPlan](), []
    for done, (name, attack) in enumerate(attacks, 1):
        original = base if attack.uses_base else ""
        try:
            plans.append(plan_of_attack(name, attack, model, domain, base=original, options=options))
        except HoldfastError:
            unknown.append(name)
        on_step(done, len(attacks))
    if not plans:
        raise HoldfastError("the memory of none of these attacks can be foretold; give --cluster memory in GB")
    plans += others
    return WorkerMemory(
        largest=max(plans, key=_peak), host=max(plan.on_host for plan in plans),
        measuring=beside_model(vocabulary_of(Checkpoint(model), options)), unknown=tuple(unknown),
    )  # fmt: skip


def plan_of_probe(label: str, weights: int, device: str) -> MemoryPlan:
    """The memory of the probe that trains all weights with AdamW, and keeps a copy of them on the host."""
    trained = {"weights": 4 * weights, "optimizers": 8 * weights, "gradients": 4 * weights}
    host = {PROCESS: resident(), "copies of weights": 4 * weights}
    if device == "cpu":
        return MemoryPlan(label=label, device={}, host={**host, **trained})
    return MemoryPlan(label=label, device=trained, host=host)


def _plan(label: str, peaks: Mapping[str, Peak], options: Options) -> MemoryPlan:
    kind, process = options.device.partition(":")[0], resident()
    parts = {kind: _in_order(peak.parts) for kind, peak in peaks.items()}
    host = {PROCESS: process, **parts.get("cpu", {})}
    if kind == "cpu":
        return MemoryPlan(label=label, device={}, host=host)
    # A model is loaded on the host and then put on the device, one after the other.
    weights = parts.get(kind, {}).get("weights", 0)
    return MemoryPlan(label=label, device=parts.get(kind, {}), host={**host, "a model that is loaded": weights})


def _in_order(parts: Mapping[str, int]) -> dict[str, int]:
    return {part: parts[part] for part in PARTS if parts.get(part)}


def _peak(plan: MemoryPlan) -> int:
    return plan.peak


def resident() -> int:
    """The memory that this process has now, in bytes; 0 where the system does not tell."""
    try:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    except (OSError, ValueError):
        return 0
    return int(line.split()[1]) * 1024


def free(device: str) -> int | None:
    """The memory in bytes that a run may still take: on a GPU, or on the host, of which a control group may allow a part."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    found = [each for each in (_available(), _allowed()) if each is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        [line] = [line for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    return int(line.split()[1]) * 1024


def _allowed() -> int | None:
    """What a control group still allows."""
    group = Path("/sys/fs/cgroup")
    try:
        most, taken = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if most == "max" else int(most) - int(taken)
    except (OSError, ValueError):
        return None
