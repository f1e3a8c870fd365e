"""Run a value: an audit, a campaign, the stages of a safeguard, a search, a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, overload

from holdfast.api.results import Results, Scores
from holdfast.api.watching import watching_jobs, watching_steps
from holdfast.campaign.cells import Campaign
from holdfast.campaign.run import check_campaign, run_campaign
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError, Sibling
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.executor import Workers
from holdfast.runs import evaluate as evaluating
from holdfast.runs.audit import Audit
from holdfast.runs.search.attacker import Found, search_and_confirm
from holdfast.runs.search.search import Search
from holdfast.runs.stages import Recipe, build, is_built


@overload
def run(what: Audit | Campaign, out: Path | str, *, workers: Workers = 2, progress: bool = True) -> Results: ...


@overload
def run(what: Recipe, out: Path | str, *, workers: Workers = 2, progress: bool = True) -> Checkpoint: ...


@overload
def run(what: Search, out: Path | str, *, workers: Workers = 2, progress: bool = True) -> Found: ...


def run(
    what: Audit | Campaign | Recipe | Search, out: Path | str, *, workers: Workers = 2, progress: bool = True
) -> Results | Checkpoint | Found:
    """Run an audit, a campaign, the stages of a safeguard, or a search with its confirmation.

    What the folder has already is not run again, so a run that was stopped goes on when it is given again. A script needs
    `if __name__ == "__main__":` around this, since worker processes import the script.

    Args:
        what: the value to run.
        out: the folder to work in.
        workers: processes of this machine at a time, or an executor such as `jobs.slurm.Slurm`; a recipe takes one process.
        progress: show how the run goes in a terminal or a notebook; elsewhere nothing is shown.

    Returns:
        The results of an audit or a campaign, the checkpoint that a recipe makes, or what a search found.

    Raises:
        HoldfastError: something that is read is missing or malformed, the folder holds something else or another process works
            in it, or every run failed.
    """
    folder = Path(out)
    if isinstance(what, Recipe):
        return _build(what, folder, progress)
    with watching_jobs(repr(what), progress) as on_progress:
        if isinstance(what, Search):
            return search_and_confirm(what, folder, workers=workers, on_progress=on_progress)
        if isinstance(what, Audit):
            what.run(folder, workers, on_progress=on_progress)
        else:
            check_campaign(what)
            run_campaign(what, folder, workers, on_progress=on_progress)
    results = Results(folder)
    if len(results.failed) == len(results.cells):
        raise HoldfastError(f"every run failed, the first because: {results.failed[0]}")
    return results


def _build(recipe: Recipe, out: Path, progress: bool) -> Checkpoint:
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output

    if not is_built(recipe, out):
        claim_output(out, recipe.model.folder, recipe.domain)
        recipe.model.check(recipe.options.trust_remote_code, Domain.open(recipe.domain).max_length)
        with watching_steps(repr(recipe), progress) as on_step:
            build(recipe, out, on_step)
    return Checkpoint(out)


def evaluate(model: str | Path, domain: str | Path, options: Options = Options()) -> Scores:  # noqa: B008 - frozen
    """Measure a model as it is with everything that a domain can ask.

    Args:
        model: a Hugging Face folder or a hub id.
        domain: a folder with `domain.toml`.
        options: device, precision, remote code.

    Raises:
        HoldfastError: the domain holds nothing to measure with, or the model cannot be loaded.
        NonFinite: a score is void.
    """
    return Scores(str(model), tuple(evaluating.evaluate(str(model), Path(domain), options)))


def make_testbed(
    out: str | Path,
    *,
    seed: int = 0,
    benign: int | None = None,
    kind: Literal["knowledge", "refusal"] = "knowledge",
    siblings: Iterable[Sibling] = (),
    masked: bool = False,
    progress: bool = True,
) -> Path:
    """Make a testbed: a domain of invented facts, a model that knows them, and one that never met the hazardous ones.

    Args:
        out: the folder; the models are `model` and `never_exposed` in it.
        seed: of the world.
        benign: entities of each benign kind; None: 32.
        kind: what is to be kept from an attacker: knowledge, or compliance with requests.
        siblings: other models to make from the same world, in `siblings/`, for an attacker who does not hold the original.
        masked: whether to train `masked` too, a control that learned the hazard in weights of its own, which were removed.
        progress: as for `run`.

    Raises:
        HoldfastError: the folder holds something else, or another process works in it.
    """
    from holdfast.runs import testbed
    from holdfast.testbed.world import Sizes

    folder = Path(out)
    with watching_jobs(f"testbed {folder.name}", progress) as on_progress:
        sizes = Sizes(benign=benign or Sizes().benign)
        testbed.make_testbed(folder, seed, sizes, kind, tuple(siblings), on_progress, masked)
    return folder


def study(name: str, out: Path | str, *, workers: Workers = 2, progress: bool = True) -> dict[str, Any]:
    """Run a study by its name: safeguards or families of attack compared on the testbed.

    Args:
        name: as `holdfast study` takes it.
        out: the folder; `tables.md` and its pictures are written there.
        workers: processes of this machine at a time, or an executor.
        progress: as for `run`.

    Returns:
        What `tables.json` holds.

    Raises:
        HoldfastError: there is no such study, or the folder holds something else.
    """
    import json

    from holdfast.recipes.run import pick_study, run_study

    folder = Path(out)
    with watching_jobs(name, progress) as on_progress:
        run_study(name, pick_study(name), folder, workers, "", on_progress)
    tables: dict[str, Any] = json.loads((folder / "tables.json").read_bytes())
    return tables
