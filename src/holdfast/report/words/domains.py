"""The sentences and tables on a domain folder: what it holds, and what cannot run for want of what."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.report.words.numbers import listed

_FEW = 12
"""names that a sentence lists"""


def wants(
    kind: str, needs: Sequence[str], families: Sequence[tuple[str, int, int]], names: Sequence[str], of: int
) -> str:
    """What presets of one kind cannot run without, such as "attack_ood is missing for 12 of 80 attacks: …".

    Args:
        kind: evaluations, safeguards or attacks.
        needs: what the domain lacks.
        families: the families that the presets are of, with how many of each, and of how many.
        names: of the presets.
        of: how many presets of the kind there are.
    """
    are = "is" if len(needs) == 1 else "are"
    if len(names) <= _FEW:
        which = ", ".join(names)
    else:
        which = "; ".join(
            f"{title.rstrip('.')} ({'all' if count == whole else f'{count} of {whole}'})"
            for title, count, whole in families
        )
    return f"{listed(needs)} {are} missing for {len(names)} of {of} {kind}: {which}"
