"""One attack on one model, measured along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.run import check_campaign, claimed_campaign, run_held
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.base import Evaluation
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Outcome, Progress


@dataclass(frozen=True, kw_only=True)
class Original:
    """The model before any safeguard, as far as an attack on one model alone knows it."""

    path: str
    """empty: the attack needs none"""
    source: str
    """who named it, in words"""


def original_of(attack: Attack, model: str, base: str | None) -> Original:
    """The model before any safeguard: the one that the user names, else the one that the model's card names.

    A card is written by whoever made the model, so its word is only taken where the folder holds the weights that the card says,
    and they are not the model's own.

    Raises:
        HoldfastError: the attack needs the model before any safeguard, and nobody names it, or the card is not to be believed.
    """
    if not attack.uses_base:
        return Original(path="", source="")
    if base is not None:
        return Original(path=base, source="named by --base")
    named = Checkpoint(model).card.get("base")
    if not named:
        raise HoldfastError("this attack needs the original model, before any safeguard; name it with --base")
    path = named["path"]
    if not Path(path).is_dir():
        raise HoldfastError(
            f"the card of {model} names {path} as its original, which is not there; name it with --base"
        )
    original = Checkpoint(path).digest
    if original != named["digest"] or original == Checkpoint(model).digest:
        what = "the model itself" if original == Checkpoint(model).digest else "another model by now"
        raise HoldfastError(f"the card of {model} names {path} as its original, which is {what}; name it with --base")
    return Original(path=path, source="a hint in the model's own card; --base names another")


def run_attack(
    name: str,
    attack: Attack,
    model: str,
    label: str,
    domain: Path,
    out: Path,
    *,
    base: str = "",
    seed: int = 0,
    milestones: tuple[int, ...] | None = None,
    also: tuple[tuple[str, Evaluation], ...] = (),
    options: Options = Options(),  # noqa: B008 - frozen
    workers: Workers = 1,
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
        also=also,
        options=options,
        base=base,
    )
    title = f"{name} on {label}"
    with claimed_campaign(campaign, out, title):
        check_campaign(campaign)
        return run_held(campaign, out, workers, title=title, suite=name, command=command, on_progress=on_progress)
