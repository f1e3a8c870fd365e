"""The demo: on one world of the embedded testbed, why a shallow safeguard fails and what TAR buys."""

from __future__ import annotations

from holdfast.core.options import Options
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES, called

SUITE = "demo-2"
SEEDS = tuple(range(5))
"""of every attack: fewer give no interval, and so no verdict"""


def study(seed: int, options: Options) -> Study:
    """Random Mapping as the reference and TAR on top of it, between the controls of an audit, on the world of `seed`."""
    attacks = SUITES[SUITE].attacks
    part = Part(
        kind="knowledge",
        methods=(
            Method(label="random-mapping", stages=("random-mapping",), role="reference", size=18),
            Method(label="tar", stages=("random-mapping", "tar"), size=130),
        ),
        suite=called(SUITE),
        attacks=attacks,
        canonical=attacks[0],
        dense=True,
        details={"canonical": attacks[0]},
    )
    return Study(title="holdfast demo", parts=(part,), worlds=(seed,), seeds=SEEDS, options=options)
