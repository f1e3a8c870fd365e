"""One attack on one model, measured along the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.run import check_campaign, claimed_campaign, run_held
from holdfast.core.options import Options
from holdfast.jobs.graph import Outcome, Progress


def run_attack(
    name: str,
    attack: Attack,
    model: str,
    label: str,
    domain: Path,
    out: Path,
    *,
    seed: int = 0,
    milestones: tuple[int, ...] | None = None,
    options: Options = Options(),  # noqa: B008 - frozen
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Measure a model untouched and along one attack; return how the cells' jobs ended.

    Raises:
        HoldfastError: something that is read is missing or malformed, or the folder holds something else.
    """
    campaign = Campaign(
        models=(Model(label=label, path=model, role="defended"),),
        domain=domain,
        attacks=((name, attack),),
        seeds=(seed,),
        milestones=milestones,
        options=options,
    )
    title = f"{name} on {label}"
    with claimed_campaign(campaign, out, title):
        check_campaign(campaign)
        return run_held(campaign, out, 1, title=title, suite=name, command=command, on_progress=on_progress)
