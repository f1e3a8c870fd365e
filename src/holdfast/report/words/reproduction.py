"""Sentences on an audit that is to be made again, and on what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core.reproduction import Reproduction
from holdfast.report.words.numbers import count, duration, listed, percent
from holdfast.stats.reproduction import Compared, Figure


def plan(first: Reproduction) -> list[str]:
    """What the first audit was, and what making it again takes."""
    models = [
        f"{model.label} ({model.role}, {model.digest[:12]})" for model in first.models if model.role != "destroyed"
    ]
    draws = "with hazard asked between its milestones too" if first.milestones is None else f"at {first.milestones}"
    return [
        f"{first.title}: domain {first.domain}, suite {first.suite}, {count(len(first.attacks), 'attack')}, "
        f"{count(len(first.seeds), 'seed')}, {first.precision} on {first.device}, {draws}.",
        f"Models by content: {listed(models)}.",
        *([f"The attacker holds a sibling of the original model ({first.sibling[:12]})."] if first.sibling else []),
        f"{count(len(first.runs), 'run')} took {duration(first.seconds)} of one process in all.",
    ]


def versions(other: Mapping[str, tuple[str, str]]) -> list[str]:
    """What is installed otherwise here."""
    if not other:
        return [
            "Versions and processor are those of the first audit, so every value should be equal to the last digit."
        ]
    differing = [f"{name} {there or 'unknown'} (here {here or 'unknown'})" for name, (there, here) in other.items()]
    return [f"Other than in the first audit: {listed(differing)}. Last digits may differ; figures should not."]


def other_input(kind: str, name: str, there: str, here: str) -> str:
    """One input that is not as it was."""
    found = f"{here[:16]} here" if here else "missing here"
    match kind:
        case "model":
            return f"the weights of {name} are {there[:16]} in the first audit and {found}"
        case "sibling":
            return f"the weights of the sibling are {there[:16]} in the first audit and {found}"
        case "tokenizer":
            return f"the tokenizer of {name} is {there[:16]} in the first audit and {found}"
        case "rows":
            return f"the rows of {name} are {there[:16]} in the first audit and {found}"
        case "questions":
            return f"what {name} asks is {there[:16]} in the first audit and {found}"
        case "protocol":
            return f"the first audit followed protocol {there}, this holdfast follows {here}, so install the holdfast it names"
    return f"max_length is {there} in the first audit and {here} here"


def known(runs: int, of: int) -> str:
    """How many runs have the identity of the first audit's."""
    if runs == of:
        return f"All {of} runs have the identity that they had in the first audit."
    return f"{runs} of {of} runs have the identity that they had in the first audit; the device or the protocol is another."


def compared(outcome: Compared) -> list[str]:
    """What came of making an audit again; the conclusion last."""
    texts = [f"{outcome.equal} of {count(outcome.runs, 'run')}: every value is equal to the last digit."]
    if outcome.same_place and outcome.equal < outcome.runs:
        texts.append("Versions and processor are the same, so all of them should be equal.")
    texts += [
        f"{run.label} under {run.attack}, seed {run.seed}: {run.status} in the first audit, and without the same end here."
        for run in outcome.missing
    ]
    within = sum(figure.agrees for figure in outcome.figures)
    texts.append(f"{within} of {count(len(outcome.figures), 'mean')} of hazard agree within the error of both audits.")
    texts += [_figure(figure) for figure in outcome.figures if not figure.agrees]
    texts += [
        f"{label}: {there}, as in the first audit."
        if there == here
        else f"{label}: {there} in the first audit, {here} here."
        for label, (there, here) in outcome.verdicts.items()
    ]
    return [*texts, "The audit was reproduced." if outcome.agrees else "The audit was not reproduced."]


def _figure(figure: Figure) -> str:
    there, here, half = (percent(value, 1) for value in (figure.there, figure.here, figure.half))
    return (
        f"{figure.model} under {figure.attack}, at the {figure.place}: {there} in the first audit and {here} here, more than "
        f"{half} apart."
    )


def mismatch(texts: Sequence[str]) -> str:
    """The sentence that ends the command: what is not as it was, at most three of them."""
    more = [] if len(texts) <= 3 else [count(len(texts) - 3, "other input")]
    return f"this would be another audit: {listed([*texts[:3], *more])}; give the inputs of the first audit"
