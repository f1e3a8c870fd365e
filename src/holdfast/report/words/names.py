"""The names of attacks on a page: their presets, or in public their families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.report.words.numbers import listed

INTERNAL = "Internal: this report holds settings of attacks that worked. Publish the public form of it."
PUBLIC = "Public form: attacks are named by family, without settings."


@dataclass(frozen=True, kw_only=True)
class Names:
    """The name that a page gives each attack."""

    families: Mapping[str, str] = field(default_factory=dict)
    """in public: stand-in -> family; internally empty, and every attack is called by its preset"""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """in public: attack -> stand-in, for what was found in the records before they were made public"""

    def __call__(self, attack: str) -> str:
        attack = self.stand_ins.get(attack, attack)
        return self.families.get(attack, attack)

    def listed(self, attacks: Sequence[str]) -> str:
        """Each name once, with commas and a last "and"."""
        return listed(list(dict.fromkeys(map(self, attacks))))
