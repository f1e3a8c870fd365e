"""Sentences on what `holdfast verify` found."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.report.verify import Disagreement, Verified
from holdfast.report.words.numbers import count, listed

SHOWN = 12
"""disagreements that are listed one by one"""


def sentences(found: Sequence[Verified]) -> list[str]:
    """What was checked, one sentence a check, each followed by what disagrees; the outcome last."""
    texts = []
    for one in found:
        texts.append(_sentence(one))
        texts += [f"  {_wrong(wrong)}" for wrong in one.wrong[:SHOWN]]
        if len(one.wrong) > SHOWN:
            texts.append(f"  … and {len(one.wrong) - SHOWN} more.")
        if one.strays:
            texts.append(f"  {_strays(one.strays)}")
        if one.withheld:
            texts.append(
                f'  The attacks alone would say "not recovered" of {listed(one.withheld)}; the page says undecided, because a '
                "check of the page withholds the verdict."
            )
    return [*texts, outcome(found)]


def outcome(found: Sequence[Verified]) -> str:
    """The sentence on all checks together."""
    wrong = sum(len(one.wrong) for one in found)
    if wrong:
        return f"{count(wrong, 'disagreement')} found: this folder is not what one audit left behind."
    skipped = sum(bool(one.skipped) for one in found)
    return "All that was checked agrees" + (f"; {count(skipped, 'check')} could not be made." if skipped else ".")


def _sentence(one: Verified) -> str:
    if one.skipped:
        return _skipped(one)
    right = one.checked - len(one.wrong)
    match one.kind:
        case "identities":
            return f"{right} of {count(one.checked, 'record file')}: the name is the hash of what was run."
        case "plan" if not one.wrong:
            return f"The plan names the weights that were measured, for {count(one.checked, 'model')}."
        case "plan":
            return "The plan and the records disagree:"
        case "seal":
            return f"{right} of {count(one.checked, 'file')}: the content has the hash that reproduce.json holds."
        case "models" if not one.wrong:
            return f"{one.name}: the folder has the weights that were audited."
        case "models":
            return f"{one.name}: the folder has other weights than those that were audited."
        case "numbers":
            return f"{one.name}: {right} of {one.checked} numbers are those that the plain script computes from the records."
    return f"{one.name}: {right} of {one.checked} forms of the page are what holdfast writes from the records."


def _skipped(one: Verified) -> str:
    match one.skipped:
        case "no seal":
            return (
                "There is no reproduce.json, so a changed measurement shows only where a number of the page depends on it; run "
                "the audit's command again to write the file."
            )
        case "no page":
            return f"There is no page {one.name} to check; holdfast report makes one."
        case "several audits":
            return f"{one.name} is about several audits and was not checked; give the page of this audit alone."
        case "no figures":
            return f"{one.name} is the public form, which has no table of figures; the page itself is made anew below."
        case "other version":
            return (
                f"{one.name} was made by another version of holdfast and was not made anew; its numbers were checked."
            )
    return f"{one.name}: the model is not where the plan says; give its folder with --model to check the weights."


def _strays(names: Sequence[str]) -> str:
    shown = listed([*names[:SHOWN], *(["others"] if len(names) > SHOWN else [])])
    return (
        f"{count(len(names), 'record file')} of runs that the plan does not name ({shown}), such as those of an earlier plan or "
        "version: no figure counts them."
    )


def _wrong(wrong: Disagreement) -> str:
    stored, found = (repr(text) if text else "nothing" for text in (wrong.stored, wrong.found))
    return f"{wrong.where}: stored is {stored}, found is {found}."
