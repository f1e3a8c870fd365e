"""From a model to a safeguarded checkpoint, stage by stage.

A checkpoint is keyed by the content of what made it: the model, the original model, the defender's data, the seed, and
the stages up to and including its own. Each prefix of stages is kept in the cache, so a shared first stage is trained
once, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from holdfast.campaign.cells import milestones_up_to
from holdfast.campaign.exposure import TRAINED_AGAINST
from holdfast.campaign.milestones import Milestones
from holdfast.campaign.on_ranks import on_ranks
from holdfast.core.cache import copy_entry, has_entry, new_entry
from holdfast.core.converted import Converted
from holdfast.core.domain import DEFENDER_ROLES, Domain
from holdfast.core.files import (
    atomic_folder,
    beside,
    cache_folder,
    digest,
    forget_digests,
    only_writer,
    sweep,
    write_text,
)
from holdfast.core.findings import Cut
from holdfast.core.folder import CARD, copy_companions
from holdfast.core.losses import LOSSES, read_lines, written
from holdfast.core.options import Options
from holdfast.core.presets import SOURCE, describe, pick
from holdfast.core.profiling import profile_folder
from holdfast.core.reuse import say_reused
from holdfast.core.tracking import tracking_folder
from holdfast.core.types import HoldfastError, NumberType, weights_of
from holdfast.engine.checkpoint import Checkpoint, check_savable, save_checkpoint
from holdfast.engine.precision import stored_precision
from holdfast.runs.readme import kept_head, readme
from holdfast.runs.sample import sample_of
from holdfast.safeguards.base import Safeguard

if TYPE_CHECKING:
    from holdfast.engine.walk import Observer

PROTOCOL = 5
"""Raised whenever the same stages would give other weights, so that no cached checkpoint is taken for a new one."""

OnStep = Callable[[int, int], None]
"""Called with outer steps done and outer steps in all, over every stage."""

OnLosses = Callable[[Mapping[str, float]], None]
"""Called with the losses of an outer step, before `OnStep` is."""


def _checkpoint(given: Checkpoint | str | os.PathLike[str]) -> Checkpoint:
    return given if isinstance(given, Checkpoint) else Checkpoint(given)


def _checkpoint_or_none(given: Checkpoint | str | os.PathLike[str] | None) -> Checkpoint | None:
    return None if given is None else _checkpoint(given)


def _stages(given: Iterable[str | tuple[str, Safeguard]]) -> tuple[tuple[str, Safeguard], ...]:
    return tuple((one, pick("holdfast.safeguards", one)) if isinstance(one, str) else one for one in given)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """The parts that a safeguarded checkpoint is made of."""

    model: Converted[Checkpoint | str | os.PathLike[str], Checkpoint] = Converted(_checkpoint)
    """the model to safeguard"""
    domain: Converted[str | os.PathLike[str], Path] = Converted(Path)
    """the domain whose defender's rows are used"""
    stages: Converted[Iterable[str | tuple[str, Safeguard]], tuple[tuple[str, Safeguard], ...]] = Converted(_stages)
    """(preset name, safeguard), in order; of a preset the name is enough"""
    base: Converted[Checkpoint | str | os.PathLike[str] | None, Checkpoint | None] = Converted(
        _checkpoint_or_none, default=None
    )
    """the original model, which retain losses compare with; None: what the model's card names, else the model itself"""
    seed: int = 0
    options: Options = Options()
    """device, precision, remote code"""
    saved_as: NumberType | None = None
    """the type of the saved weights; None: that of the model's files, weight by weight"""

    def __repr__(self) -> str:
        return f"Recipe({' → '.join([self.model.path, *(name for name, _ in self.stages)])})"

    def original(self) -> Checkpoint:
        """The model before the first safeguard.

        Raises:
            HoldfastError: the card names one that has gone or changed, and none was given.
        """
        if self.base is not None:
            return self.base
        named = self.model.card.get("base")
        if not named:
            return self.model
        base = Checkpoint(named["path"])
        try:
            unchanged = base.digest == named["digest"]
        except (HoldfastError, OSError):
            unchanged = False
        if not unchanged:
            raise HoldfastError(
                f"the original model {base.path}, named in the model's card, is gone or changed; name it with --base"
            )
        return base

    def cuts(self) -> list[Cut]:
        """How many rows of each of the defender's roles are cut.

        Raises:
            HoldfastError: rows are malformed, or too many of a role have nothing left to learn.
        """
        from holdfast.engine.data import count_cut

        domain, tokenizer = Domain.open(self.domain), self.model.load_tokenizer(self.options.trust_remote_code)
        return [count_cut(domain, tokenizer, role) for role in DEFENDER_ROLES if domain.has(role)]

    def saved(self) -> dict[str, NumberType]:
        """The precision of the saved weights by name: that of the model's files, or what was asked for instead."""
        stored = stored_precision(self.model.folder, weights_of(self.options.precision))
        return dict.fromkeys(stored, self.saved_as) if self.saved_as else stored

    def keys(self) -> list[str]:
        """One key per prefix of the stages."""
        domain = Domain.open(self.domain)
        roles = [role for role in DEFENDER_ROLES if domain.has(role)]
        made_of: dict[str, Any] = {
            "protocol": PROTOCOL,
            "model": self.model.digest,
            "tokenizer": self.model.tokenizer_digest,
            "base": self.original().digest,
            "data": domain.digest(*roles),
            "max_length": domain.max_length,
            "seed": self.seed,
            **self.options.arithmetic,
            **self.model.runs_code(self.options.trust_remote_code),
        }
        # What few recipes have stands in the key only where they have it, so that what was cached before stays known.
        if (saved := sorted(set(self.saved().values()))) != [weights_of(self.options.precision)]:
            made_of["saved"] = saved
        described = [describe(safeguard) for _, safeguard in self.stages]
        return [digest({**made_of, "stages": described[: i + 1]}) for i in range(len(described))]


def build(
    recipe: Recipe,
    out: Path | str | None = None,
    on_step: OnStep = lambda step, total: None,
    on_losses: OnLosses = lambda losses: None,
) -> Path:
    """Train the stages that are not cached; return the folder of the last stage, or `out` if `out` is set.

    Where another process trains the same stage, this one waits for it. The losses of every update are in the folder's
    `losses.jsonl`, and while a stage is trained in a file beside its place in the cache.

    Raises:
        HoldfastError: data are missing or malformed, a loss or a weight became non-finite, the original is not known, or
            something else has been written to `out` meanwhile.
    """
    if out is None:
        return _cached(recipe, None, on_step, on_losses)
    out, head = Path(out), kept_head(recipe.model)  # read now, so that a long run does not fail at its end
    with only_writer(out):
        trained = _cached(recipe, out, on_step, on_losses)
        with atomic_folder(out) as temporary:
            copy_entry(trained, temporary)
            copy_companions(recipe.model.folder, temporary)
            # The cache may have been filled from the same contents at other paths, under other names of the stages.
            made = Checkpoint(str(temporary))
            stages = made.card["stages"]
            names = dict(enumerate((name for name, _ in recipe.stages), start=len(stages) - len(recipe.stages) + 1))
            stages = [{**stage, "preset": names.get(i, stage["preset"])} for i, stage in enumerate(stages, start=1)]
            card = {**made.card, **_made_from(recipe), "digest": made.digest, "stages": stages}
            write_text(temporary / CARD, json.dumps(card, indent=2) + "\n")
            if lines := read_lines(temporary / LOSSES):  # entries of version 0.1.0 have none
                renamed = (replace(line, preset=names.get(line.stage, line.preset)) for line in lines)
                write_text(temporary / LOSSES, "".join(map(written, renamed)))
            write_text(temporary / "README.md", readme(card, head))
    return out


def _cached(recipe: Recipe, out: Path | None, on_step: OnStep, on_losses: OnLosses) -> Path:
    """The last stage's folder in the cache, trained if it is not there."""
    from holdfast.engine.ranks import check_splits

    for name, safeguard in recipe.stages:
        check_splits(name, safeguard.on_one_device, recipe.options.ranks)
    check_offload(recipe)
    if recipe.options.offload:
        check_splits("--offload", "parts of a split state stay with the parts of the model", recipe.options.ranks)
    forget_digests()  # files may have changed since they were hashed for another run
    keys = recipe.keys()
    folders = [cache_folder() / "stages" / key for key in keys]
    done = next((i + 1 for i in reversed(range(len(folders))) if has_entry(folders[i])), 0)
    if done:
        say_reused(" → ".join(name for name, _ in recipe.stages[:done]))
    total = sum(safeguard.outer_steps for _, safeguard in recipe.stages)
    before = sum(safeguard.outer_steps for _, safeguard in recipe.stages[:done])
    on_step(before, total)
    for i in range(done, len(recipe.stages)):
        source = Checkpoint(str(folders[i - 1])) if i else recipe.model
        sweep(folders[i].parent)
        with only_writer(folders[i], *beside(folders[i]), patience=math.inf):
            state, losses = beside(folders[i])
            try:
                if not has_entry(folders[i]):  # another process may have made it meanwhile
                    size = recipe.stages[i][1].outer_steps
                    on_ranks(
                        recipe.options.ranks,
                        _train,
                        mine={"on_step": partial(_report, on_step, before, size, total), "on_losses": on_losses},
                        recipe=recipe, index=i, source=source, base=recipe.original(), key=keys[i], folder=folders[i],
                        out=out,
                    )  # fmt: skip
                else:
                    say_reused(recipe.stages[i][0])
                state.unlink(missing_ok=True)
            finally:
                if not state.exists():  # else a run goes on from there
                    losses.unlink(missing_ok=True)
        before += recipe.stages[i][1].outer_steps
    return folders[-1]


def _report(on_step: OnStep, before: int, size: int, total: int, done: int, of: int) -> None:
    """Report the progress of a stage of `size` steps, of which the share `done / of` is done."""
    on_step(before + round(size * done / of), total)


def is_built(recipe: Recipe, out: Path) -> bool:
    """Whether `out` holds the model of this recipe, with the weights that it was built with.

    Raises:
        HoldfastError: as `Recipe.keys`, or the card in `out` is damaged.
    """
    if not out.is_dir():
        return False
    made = Checkpoint(str(out))
    card = made.card
    if card.get("key") != recipe.keys()[-1]:
        return False
    try:
        return card.get("digest") in (None, made.digest)  # cards of version 0.1.0 have none
    except HoldfastError:
        return False


def _made_from(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The card's entries for the models that a checkpoint comes from."""
    named = {"model": recipe.model, "base": recipe.original()}
    return {name: {"path": str(source.folder.resolve()), "digest": source.digest} for name, source in named.items()}


def _train(
    recipe: Recipe,
    index: int,
    source: Checkpoint,
    base: Checkpoint,
    key: str,
    folder: Path,
    out: Path | None,
    on_step: OnStep = lambda step, total: None,
    on_losses: OnLosses = lambda losses: None,
) -> None:
    from holdfast.engine.costs import Meter
    from holdfast.engine.low_rank import merge_adapters
    from holdfast.engine.profiling import Profiling
    from holdfast.engine.ranks import agreed, by_first, is_first
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import LastLosses, Reporting, Resumable, Streaming, walk

    name, safeguard = recipe.stages[index]
    domain = Domain.open(recipe.domain)
    savable = partial(check_savable, trust_remote_code=recipe.options.trust_remote_code)
    session = open_session(
        source, domain, "defender", recipe.seed, recipe.options,
        prepare=[savable, safeguard.prepare], base=base, initial=source,
    )  # fmt: skip
    meter, last, (state, losses) = Meter(session.data), LastLosses(), beside(folder)
    done = source.card["stages"] if index else recipe.model.card.get("stages", [])
    streaming = Streaming(
        path=losses, stage=len(done) + 1, preset=name, earlier=read_lines(source.folder / LOSSES) if done else ()
    )

    def report(step: int, total: int) -> None:
        on_losses(last.losses)
        on_step(step, total)

    reporting = Reporting(on_step=report, total=safeguard.outer_steps)
    tracked: tuple[Observer, ...] = ()
    profiled: tuple[Observer, ...] = ()
    if out is not None and recipe.options.track:
        tracked = _tracked(recipe, index, key, domain, tracking_folder(out, model=True))
    if out is not None and recipe.options.profile:
        profiled = (Profiling(folder=profile_folder(out, model=True), name=f"stage-{index + 1}"),)
    trained = bounded(safeguard, recipe.options.micro_batch)
    walk(session, trained, *profiled, meter, last, streaming, *tracked, reporting, Resumable(path=state, key=key))
    merge_adapters(session.model)
    config = describe(safeguard)
    stage = {
        "preset": name,
        "config": config,
        "seconds": round(session.run.seconds, 1),
        "tokens": meter.tokens,
        "flops": meter.flops,
        "last losses": _last_losses(losses, len(done) + 1),
    }
    if SOURCE in config:  # whoever attacks the model may not have the safeguard's code
        stage[TRAINED_AGAINST] = [attack.kind() for attack in safeguard.trains_against()]
    card = {
        "holdfast": version("holdfast"),
        "key": key,
        **agreed(_made_from(recipe) if is_first() else {}),
        "domain": domain.name,
        "data": domain.digest(*(role for role in DEFENDER_ROLES if domain.has(role))),
        "cuts": [asdict(cut) for cut in session.data.cuts],
        "seed": recipe.seed,
        "precision": recipe.options.precision,
        "stages": [*done, stage],
    }
    with by_first(lambda: new_entry(folder)) as temporary:
        save_checkpoint(
            session.model,
            session.tokenizer,
            temporary,
            card,
            readme(card, {}),
            recipe.saved(),
            recipe.options.trust_remote_code,
        )
        if is_first():
            copyfile(losses, temporary / LOSSES)


def _last_losses(path: Path, stage: int) -> Mapping[str, float]:
    """Those of the last update, which may have been made by a process that was stopped after it."""
    lines = [line for line in read_lines(path) if line.stage == stage]
    return lines[-1].losses if lines else {}


def check_offload(recipe: Recipe) -> None:
    """Raises:
    HoldfastError: outer state should wait on the host, and no stage has any.
    """
    if recipe.options.offload and not any(safeguard.outer_state for _, safeguard in recipe.stages):
        raise HoldfastError(
            "--offload is for safeguards with an inner and an outer loop, such as TAR, and no stage has them; leave it out"
        )


def bounded(safeguard: Any, rows: int | None) -> Any:
    """The safeguard with at most `rows` rows at once, where it has a field for that."""
    if rows is None or not hasattr(safeguard, "micro_batch"):
        return safeguard
    return replace(safeguard, micro_batch=min(rows, safeguard.micro_batch or rows))


def _tracked(recipe: Recipe, index: int, key: str, domain: Domain, folder: Path) -> tuple[Observer, ...]:
    """Ask a sample of the selection and ability questions now and then, and show a stage in the user's tools."""
    from holdfast.engine.trackers import Tracked
    from holdfast.engine.tracking import Tracking

    name, safeguard = recipe.stages[index]
    asked = Milestones(
        sample_of(domain), domain, recipe.model.tokenizer_digest, milestones_up_to(safeguard.outer_steps)
    )
    run = Tracked(
        name=f"{name}, seed {recipe.seed}", key=key, group="safeguards",
        config={"preset": name, "stage": index + 1, "seed": recipe.seed},
    )  # fmt: skip
    return asked, Tracking(tools=recipe.options.track, run=run, folder=folder, scores=asked.figures)
