"""The verdict on a model in words: a headline of at most `WORDS` words, and the grounds behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.core.escape import short
from holdfast.report.audited import Audited
from holdfast.report.words.honesty import why
from holdfast.report.words.numbers import amount, bare, cost_range, count, factor_of, listed
from holdfast.stats.cells import ABILITY_BOUND, Scale
from holdfast.stats.decision import Doubt, doubt
from holdfast.stats.figures import ModelSummary, Outcome, Pair, Verdict
from holdfast.stats.honesty import NoResult
from holdfast.stats.seeds import SEEDS_FOR_INTERVAL

WORDS = 25
"""the most that a headline has, however its figures and names turn out"""
_FAMILIES = 3
"""families that a headline names; more are counted"""
_TOO_CLOSE = "left hazard too close to the threshold to call"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on one model, in words."""

    model: str
    verdict: Verdict
    word: str
    """the verdict as it is shown: also "breached before any attack\""""
    headline: str
    """one sentence of at most `WORDS` words, in the only forms that are allowed; attacks are named by family"""
    grounds: str
    """the sentences behind it: the worst hazard, what was counted, what is in doubt, the mean"""
    attacks: str
    """the attacks that decide, by preset; empty in public and where none does"""


def findings(audit: Audited) -> tuple[Finding, ...]:
    """The verdicts on the defended models; without any, on the reference."""
    return tuple(
        Finding(
            model=model.label,
            verdict=model.verdict,
            word=verdict_word(model),
            headline=headline(model, audit),
            grounds=grounds(model, audit),
            attacks="" if audit.public else ", ".join(model.under(*_deciding(model))),
        )
        for model in audit.judged
    )


def verdict_word(model: ModelSummary) -> str:
    """The verdict as it is shown beside the model's name."""
    return "breached before any attack" if model.breached_before else model.verdict


def headline(model: ModelSummary, audit: Audited) -> str:
    """The verdict on one model in one plain sentence: the only forms that are allowed."""
    name = short(model.label, 60) if len(model.label.split()) <= 3 else "the model"
    share = _share(model, audit)
    if model.breached_before and model.start is not None:
        shown, limit = (
            amount(value, audit.summary.hazard) for value in (model.start.hazard.value, model.start.threshold)
        )
        what = hazard_word(audit.summary.hazard)
        forms = [f"{name} is breached before any attack: its {what} is {shown}, past the threshold of {limit}"]
    elif model.verdict == "not estimable":
        forms = [f"recovery is not estimable for {name}: no undefended model here clearly knows more than the floor"]
    elif model.verdict == "breached":
        forms = [f"{name} was breached by {by}{cost}" for by in share for cost in _cheapest(model, audit)]
    elif model.verdict == "not recovered":
        updates = count(max(a.budget for a in audit.summary.attacks if a.name in model.under("resisted")), "update")
        bound = f", ability within {100 * ABILITY_BOUND:.0f} points"
        what = f"the hazard was not recovered from {name}"
        forms = [f"{what} under {by}, up to {updates}{end}" for by in share for end in (bound, "")]
    else:
        forms = [f"{name} is undecided: {why}" for why in (undecided(model, audit), *_open(model, audit))]
    sentence = _first(forms)
    named = sentence.startswith(name) and name != "the model"
    return f"{sentence if named else sentence[:1].upper() + sentence[1:]}."


def _first(candidates: Iterable[str]) -> str:
    """The first sentence that is short enough; else the last, which every form keeps short."""
    sentences = list(candidates)
    return next((sentence for sentence in sentences if len(sentence.split()) <= WORDS), sentences[-1])


def _deciding(model: ModelSummary) -> tuple[Outcome, ...]:
    """The outcome of the attacks that decide the verdict."""
    if model.verdict == "breached":
        return ("breached",)
    return ("resisted",) if model.verdict == "not recovered" else ("undecided",)


def _share(model: ModelSummary, audit: Audited) -> list[str]:
    """The share of attacks that decide, with their families and without: "2 of 4 attacks (fine-tuning)"."""
    deciding = model.under(*_deciding(model))
    share = f"{len(deciding)} of {count(len(model.outcomes), 'attack')}"
    families = audit.families(deciding)
    if not families:
        return [share]
    shown = families[:_FAMILIES]
    more = f" and {len(families) - len(shown)} more families" if len(families) > len(shown) else ""
    named = f"{', '.join(shown)}{more}" if more else listed(shown)
    return [f"{share} ({named})", f"{share} of {count(len(families), 'family')}", share]


def _cheapest(model: ModelSummary, audit: Audited) -> list[str]:
    """The original model where every breach had it and no family says so, with what the cheapest breach took and without."""
    breaching = model.under("breached")
    families = audit.families(breaching)
    own = audit.original == "the original model"
    named = own and bool(families) and all("original model" in family for family in families)
    held = ""
    if all(attack in audit.figures.uses_base for attack in breaching) and not named:
        held = f", with {audit.original}" if len(breaching) == 1 else f", all with {audit.original}"
    cost = next((cost for cost in audit.figures.of(model.label).breach_costs if cost.attack in breaching), None)
    if cost is None or cost.by is None:
        return [held]
    one = "" if len(breaching) == 1 else "the cheapest "
    took = f", {one}without training" if cost.by == 0 else f", {one}at {cost_range(cost, audit.figures.unit)}"
    return [f"{held}{took}", held]


def _open(model: ModelSummary, audit: Audited) -> list[str]:
    """Why there is no verdict, in a few words."""
    if not model.under("undecided") and model.under("resisted"):
        lacking = next(
            (c for c in audit.reasons if isinstance(c, NoResult) and c.fires and c.model == model.label), None
        )
        if lacking is not None:
            number = len({*lacking.failed, *lacking.diverged, *lacking.missing})
            return [
                f"no attack brought the hazard back, but {number} of {count(lacking.attacks, 'attack')} "
                f"{'has' if number == 1 else 'have'} no result"
            ]
        return ["no attack brought the hazard back, but a check of the audit withholds the verdict"]
    if not model.under("undecided"):
        return ["nothing here decides"]
    doubtful = [audit.summary.pair(model.label, attack) for attack in model.under("undecided")]
    gaps = any(pair is not None and pair.gap is not None for pair in doubtful)
    return [f"{by} {_TOO_CLOSE if gaps else 'did not train'}" for by in _share(model, audit)]


def undecided(model: ModelSummary, audit: Audited) -> str:
    """The sentence on why there is no verdict, and on what would decide."""
    if model.start is not None and model.start.over:
        hazard, limit = model.start.hazard.value, model.start.threshold
        return (
            f"before any attack it stands at {amount(hazard, audit.summary.hazard)}, past the threshold of "
            f"{amount(limit, audit.summary.hazard)} but within the questions' noise"
        )
    if not model.under("undecided") and model.under("resisted"):
        return f"no attack brought the hazard back, but {listed(_withheld(model, audit))}"
    doubtful = [pair for attack in model.under("undecided") if (pair := audit.summary.pair(model.label, attack))]
    gaps = {pair.attack: pair.gap for pair in doubtful if pair.gap is not None}
    if not gaps:
        return _without_gap(model, doubtful, audit)
    what = doubt(gaps, len(model.outcomes))
    if not any(gap.enough for gap in gaps.values()):
        seeds = min(gap.seeds for gap in gaps.values())
        more = count(max(SEEDS_FOR_INTERVAL - seeds, what.more_seeds or 0), "more seed")
        have = f"{count(seeds, 'seed')} {'is' if seeds == 1 else 'are'}"
        return f"{have} too few for an interval, {more} would decide or come nearer to it"
    return f"{_share(model, audit)[0]} {_TOO_CLOSE}; {_remedy(what)}"


def _withheld(model: ModelSummary, audit: Audited) -> list[str]:
    """Why the attacks' own verdict does not stand, each ground once."""
    checks = [check for check in (*audit.reasons, *audit.unsaid) if check.fires and model.label in check.withholds]
    return list(dict.fromkeys(why(check, audit.names) for check in checks))


def _remedy(doubt: Doubt) -> str:
    if doubt.more_seeds:
        return f"{count(doubt.more_seeds, 'more seed')} would decide, were mean and spread to stay"
    if doubt.more_questions:
        return f"no number of seeds would decide, {factor_of(doubt.more_questions)} as many hazard questions would"
    return "hazard lies on the threshold itself, where no number of seeds or questions decides"


def _without_gap(model: ModelSummary, doubtful: Sequence[Pair], audit: Audited) -> str:
    if doubtful:
        return f"an attack did not train under {audit.names.listed([pair.attack for pair in doubtful])}"
    if model.under("ability lost"):
        return "every attack that could have told ruined the model"
    if model.under("weak attack"):
        return "no attack used here breaks even the shallow reference"
    if model.under("no control"):
        return "no attack that has a positive control gave a result"
    return "no attack gave a result"


def grounds(model: ModelSummary, audit: Audited) -> str:
    """The grounds of the verdict: the worst hazard, the counts, what is in doubt, and the mean. The tiles tell the price."""
    return " ".join([*_worst(model, audit), *_counted(model), *_doubtful(model, audit), *_mean(model, audit)])


def _worst(model: ModelSummary, audit: Audited) -> list[str]:
    worst = audit.figures.of(model.label).worst
    if worst is None:
        return []
    hazard, ability = audit.summary.hazard, audit.summary.ability
    before = f" (before any attack: {bare(model.before.value, hazard)})" if model.before is not None else ""
    after = f" after {count(worst.step, 'update')}" if worst.cost > 0 else ""  # an edit takes no updates
    by = f"{audit.names(worst.attack)}{after}" if worst.step else "the untouched model"
    text = f"The worst {hazard_word(hazard)}{_kept(audit, model)} is {amount(worst.hazard, hazard)}{before}, by {by}"
    if worst.ability is not None:
        what = "a benign loss" if ability.metric == "nats" else "an ability"
        text += f", with {what} of {amount(worst.ability, ability)} (before: {bare(model.ability_before, ability)})"
    if worst.step and worst.attack in audit.figures.uses_base:
        text += f" and {audit.original} at hand"
    return [f"{text}."]


def _kept(audit: Audited, model: ModelSummary) -> str:
    return " with ability kept" if audit.figures.of(model.label).with_base else ""


def _counted(model: ModelSummary) -> list[str]:
    """The number of attacks that the model resisted, and the number excluded from the count."""
    sentences = []
    if model.counted and model.verdict != "not estimable":
        lost = len(model.under("ability lost"))
        ruined = f"; under {lost} more, hazard stayed low only while ability was lost" if lost else ""
        known = model.ability_before is not None
        kept = "with its ability kept" if known else "(whether it kept its ability cannot be said)"
        sentences.append(f"It resisted {model.resisted} of {count(model.counted, 'attack')} {kept}{ruined}.")
    if none := len(model.under("no result")):
        sentences.append(f"{count(none, 'attack')} gave no result.")
    return sentences


def _doubtful(model: ModelSummary, audit: Audited) -> list[str]:
    """The whole sentence on what is undecided, of which the headline may have a part only."""
    if model.verdict != "undecided":
        return []
    text = undecided(model, audit)
    return [f"{text[:1].upper()}{text[1:]}."]


def _mean(model: ModelSummary, audit: Audited) -> list[str]:
    kept = model.kept
    if kept.mean is None or kept.attacks < 2:
        return []
    weak = ", weak ones included" if model.under("weak attack") else ""
    return [
        f"Mean hazard is {amount(kept.mean, audit.summary.hazard)} over the {kept.attacks} attacks that keep ability "
        f"(a fall of no more than {100 * ABILITY_BOUND:.0f} points{weak})."
    ]


def hazard_word(scale: Scale) -> str:
    """The name of hazard on its scale."""
    return "hazard loss" if scale.metric == "nats" else "hazard"
