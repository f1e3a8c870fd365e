"""What every plug-in and every domain keeps, as functions that a test calls; they bring a tiny model and a domain of their own.

    PRESETS = testing.presets_of("my_attack.py")

    @pytest.mark.parametrize("check", testing.ATTACK, ids=testing.name_of)
    @pytest.mark.parametrize("name", PRESETS)
    def test_it_keeps_the_contract(name, check):
        check(testing.small(PRESETS[name]), testing.bench())

holdfast's own plug-ins are tested by these very functions.
"""

from holdfast.testing.attacks import ATTACK
from holdfast.testing.bench import SMALL, Bench, bench, make_bench
from holdfast.testing.domains import DOMAIN
from holdfast.testing.evaluations import EVALUATION
from holdfast.testing.presets import name_of, presets_of, small
from holdfast.testing.safeguards import SAFEGUARD

__all__ = [
    "ATTACK",
    "DOMAIN",
    "EVALUATION",
    "SAFEGUARD",
    "SMALL",
    "Bench",
    "bench",
    "make_bench",
    "name_of",
    "presets_of",
    "small",
]
