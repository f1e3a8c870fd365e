"""The tables of attacks: on each model, along their steps, run by run, with settings and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.report.audited import Audited
from holdfast.report.table import Entry, Table
from holdfast.report.tables.verdict import over_seeds
from holdfast.report.words.numbers import NOTHING, amount, breach_steps, change, duration, number, percent, written
from holdfast.report.words.threat import threat
from holdfast.stats.cells import NO_ATTACK, CellSummary, Flag, Point, Scale, describe
from holdfast.stats.figures import ANCHOR_ROLES, AttackSummary, CampaignSummary, ModelSummary, Outcome, Pair
from holdfast.stats.suspicion import mean_costs


def by_attack(
    summary: CampaignSummary, labels: Sequence[str], entry: Callable[[Pair | None], Entry]
) -> tuple[tuple[Entry, ...], ...]:
    """A table with a row for each attack and an entry for each model."""
    return tuple(
        (Entry(attack.name), *(entry(summary.pair(label, attack.name)) for label in labels))
        for attack in summary.attacks
    )


def tested(summary: CampaignSummary) -> list[str]:
    """Labels of the models that get a decision."""
    return [model.label for model in summary.models if model.role not in ANCHOR_ROLES]


def doubt(attack: AttackSummary) -> str:
    """The mark of an attack that says nothing about resistance."""
    return "weak" if attack.strength == "weak" else "" if attack.controlled else "no control"


def attack_by_model(audit: Audited) -> Table:
    """Every attack on every model: hazard after, the ability left, and how it ended."""
    summary, rows = audit.summary, []
    for attack in summary.attacks:
        held = f"with {audit.original}" if attack.name in audit.figures.uses_base else ""
        heading = Entry(
            text=attack.name,
            note="\n".join(filter(None, (f"{attack.budget:,} steps" if attack.budget else "", held))),
            tag=doubt(attack),
        )
        rows.append(
            (heading, *(_pair(summary.pair(model.label, attack.name), model, audit) for model in summary.models))
        )
    return Table(
        caption="Hazard after each attack on each model, with the ability left beside it",
        columns=("Attack", *(model.label for model in summary.models)),
        rows=tuple(rows),
        notes=(threat(audit),),
        look="heat",
    )


def _pair(pair: Pair | None, model: ModelSummary, audit: Audited) -> Entry:
    if pair is None:
        return Entry(NOTHING, note="not run")
    summary = audit.summary
    void = pair.diverged + pair.failed
    notes = [
        f"ability {change(pair.ability_before, pair.ability_after, summary.ability)}" if pair.after else "",
        over_seeds(pair.after, summary.hazard) if pair.finished > 1 else "",
        f"{void} of {void + pair.finished} void" if void else "",
        "seen in training" if pair.seen_in_training else "",
    ]
    value = pair.after.mean if pair.after else None
    tag: Outcome | str = "" if model.role in ANCHOR_ROLES else pair.outcome
    return Entry(
        text=amount(value, summary.hazard),
        note="\n".join(note for note in notes if note),
        tag=tag,
        shade=value if summary.hazard.metric != "nats" else None,
        link=audit.runs(pair.model, pair.attack),
    )


def by_family(audit: Audited) -> Table:
    """The greatest hazard that each family reached on each model, with the ability left: what may be public."""
    families: dict[str, list[str]] = {}
    for attack in audit.summary.attacks:
        families.setdefault(audit.names(attack.name), []).append(attack.name)
    labels = [model.label for model in audit.summary.models]
    return Table(
        caption="The greatest hazard of each family of attack on each model, with the ability left",
        columns=("Family", *labels),
        rows=tuple(
            (
                Entry(family, note=f"{len(attacks)} of the suite"),
                *(_worst_of(label, attacks, audit.summary) for label in labels),
            )
            for family, attacks in families.items()
        ),
        notes=(threat(audit),),
        look="heat",
    )


def _worst_of(model: str, attacks: Sequence[str], summary: CampaignSummary) -> Entry:
    pairs = [
        (pair.peak.mean, pair) for attack in attacks if (pair := summary.pair(model, attack)) is not None and pair.peak
    ]
    if not pairs:
        return Entry(NOTHING, note="not run")
    hazard, worst = max(pairs, key=lambda reached: summary.hazard.sign * reached[0])
    return Entry(
        text=amount(hazard, summary.hazard),
        note=f"ability {amount(worst.ability_at_peak, summary.ability)}",
        shade=hazard if summary.hazard.metric != "nats" else None,
    )


def steps_to_breach(audit: Audited) -> Table:
    """The steps until half of the hazard was back, by attack and model: an interval, or the budget as a lower bound."""
    labels = tested(audit.summary)
    return Table(
        caption="Attack steps until half of the hazard was back, earliest seed",
        columns=("Attack", *labels),
        rows=by_attack(audit.summary, labels, lambda pair: _steps(pair, audit.summary)),
        notes=(
            "Values are seen at milestones only: an interval of steps, or a lower bound where it never happened.",
            threat(audit),
        ),
    )


def _steps(pair: Pair | None, summary: CampaignSummary) -> Entry:
    if pair is None or pair.threshold is None:
        return Entry(NOTHING)
    if pair.breach is None and not pair.finished:
        return Entry(NOTHING, note="no result")
    attack = summary.attack(pair.attack)
    return Entry(
        text=breach_steps(pair.breach, attack.budget if attack else 0),
        note=f"at {amount(pair.threshold, summary.hazard)}, recovery {written(pair.recovery, '.2f')}",
    )


def curve(audit: Audited, attack: str) -> Table:
    """The numbers behind one relearning picture."""
    cells = [cell for cell in audit.summary.cells if cell.attack == attack and cell.curve]
    steps = sorted({point.step for cell in cells for point in cell.curve})
    rows = []
    for cell in cells:
        points = {point.step: point for point in cell.curve}
        entries = [_point(points.get(step), audit.summary.hazard) for step in steps]
        rows.append((Entry(cell.model, note=f"seed {cell.seed}", tag=_void(cell)), *entries))
    sampled = any(not point.complete for cell in cells for point in cell.curve)
    return Table(
        caption=f"Hazard along {attack}, by attack step",
        columns=("Model", *(f"{step:,}" for step in steps)),
        rows=tuple(rows),
        notes=("* taken on a sample of the questions.",) if sampled else (),
        look="plain",
    )


def _point(point: Point | None, scale: Scale) -> Entry:
    return Entry(NOTHING if point is None else amount(point.value, scale) + ("" if point.complete else "*"))


def _void(cell: CellSummary) -> str:
    return "" if cell.status == "finished" else cell.status


def overview(audit: Audited) -> Table:
    """The numbers behind the overview picture."""
    hazard, ability = audit.summary.hazard, audit.summary.ability
    return Table(
        caption="Ability and hazard after each attack",
        columns=("Model", "Attack", "Ability after", "Hazard after", "Attacker's best on the way"),
        rows=tuple(
            (
                Entry(pair.model),
                Entry(pair.attack),
                Entry(amount(pair.ability_after, ability, decimals=1)),
                Entry(amount(pair.after.mean if pair.after else None, hazard, decimals=1)),
                Entry(amount(pair.best.mean if pair.best else None, hazard, decimals=1)),
            )
            for pair in audit.summary.pairs
        ),
        look="plain",
    )


def cells(audit: Audited) -> Table:
    """Every run, finished or not, with its flags."""
    columns = ("Model and attack", "Seed", "Steps", "Hazard, last", "Attacker's best", "Ability", "Repetition")
    return Table(
        caption="Every run that ended, with what must be known before believing it",
        columns=(*columns, "Attacker's loss", "Time", "Flags", "Identity"),
        rows=tuple(_cell(cell, audit.summary, anchor) for cell, anchor in _anchored(audit)),
        look="long",
    )


def _anchored(audit: Audited) -> list[tuple[CellSummary, str]]:
    """Every run of an attack, with the id that figures link to at the first run of each attack on each model."""
    seen, runs = set[str](), []
    for cell in (cell for cell in audit.summary.cells if cell.attack != NO_ATTACK):
        anchor = audit.runs(cell.model, cell.attack)
        runs.append((cell, "" if anchor in seen else anchor))
        seen.add(anchor)
    return runs


def _cell(cell: CellSummary, summary: CampaignSummary, anchor: str) -> tuple[Entry, ...]:
    lossless = cell.first_loss is None or cell.last_loss is None
    return (
        Entry(cell.model, note=cell.attack, anchor=anchor),
        Entry(str(cell.seed)),
        Entry(str(cell.curve[-1].step) if cell.curve else NOTHING, tag=_void(cell)),
        Entry(amount(cell.last.value if cell.last else None, summary.hazard, decimals=1)),
        Entry(
            text=amount(cell.best.value if cell.best else None, summary.hazard, decimals=1),
            note=f"step {cell.best.step:,}" if cell.best else "",
        ),
        Entry(change(cell.ability_before, cell.ability_after, summary.ability)),
        Entry(percent(cell.repetition)),
        Entry(NOTHING if lossless else f"{cell.first_loss:.2f} → {cell.last_loss:.2f}"),
        Entry(duration(cell.seconds)),
        Entry("; ".join(_flag(flag, cell) for flag in cell.flags)),
        Entry(cell.cell),
    )


def _flag(flag: Flag, cell: CellSummary) -> str:
    match flag:
        case "failed":
            return f"failed: {cell.reason or 'no reason was recorded'}"
        case "diverged":
            return f"non-finite: stopped after step {cell.curve[-1].step if cell.curve else 0}"
        case "loss never fell":
            return "the attack's own loss never fell"
        case "stopped early":
            return cell.stopped
    return flag


def attack_costs(audit: Audited) -> Table:
    """The cost of each attack, over all models and seeds."""
    rows = []
    for attack in audit.summary.attacks:
        costs = mean_costs(result for result in audit.results if result.attack == attack.name)
        memory = costs.get("peak_memory")
        rows.append(
            (
                Entry(attack.name),
                Entry(f"{attack.budget:,}"),
                Entry(written(costs.get("tokens"), ",.0f")),
                Entry(number(costs["flops"]) if "flops" in costs else NOTHING),
                Entry(f"{memory / 1e9:.2g} GB" if memory is not None else NOTHING),
                Entry(duration(costs["seconds"]) if "seconds" in costs else NOTHING),
            )
        )
    return Table(
        caption="What each attack took, mean over models and seeds",
        columns=("Attack", "Updates", "Tokens", "FLOPs", "Peak memory", "Time, measuring left out"),
        rows=tuple(rows),
        notes=(
            "FLOPs are counted from the shapes of every forward and backward pass. Memory: the highest of any run, measuring "
            "included; on a CPU the whole process.",
        ),
    )


def attacks(audit: Audited) -> Table:
    """The exact settings of each attack."""
    return Table(
        caption="The attacks and their configurations",
        columns=("Attack", "Steps", "Against the reference", "Positive control", "Configuration"),
        rows=tuple(
            (
                Entry(attack.name),
                Entry(f"{attack.budget:,}"),
                Entry(attack.strength),
                Entry("yes" if attack.controlled else "none"),
                Entry(describe(attack.config) or NOTHING),
            )
            for attack in audit.summary.attacks
        ),
        look="facts",
    )
