"""The studies by name, and where each is made: light, so that names are known before torch is."""

from __future__ import annotations

from collections.abc import Mapping

STUDIES: Mapping[str, str] = {
    "paper-tables": "paper_tables.short",
    "paper-tables-full": "paper_tables.full",
    "ablations": "ablations.study",
    "claims": "claims.study",
    "refusals": "refusals.study",
    "low-rank": "low_rank.study",
    "reteach": "reteach.study",
    "reteach-wide": "reteach.wide",
    "reteach-text": "reteach.second",
    "reteach-mlp-wide": "reteach.second_wide",
    "reteach-blank": "reteach.third",
    "reteach-blank-wide": "reteach.third_wide",
    "reteach-parts": "reteach.parts",
    "real": "real.study",
    "real-long": "real.long",
    "real-full": "real.full",
    "real-refusals": "real.refusals",
    "real-refusals-full": "real.refusals_full",
    "red-team": "red_team.short",
    "red-team-full": "red_team.full",
    "red-team-blank": "red_team.blank",
}
"""Name -> module and function of this room. A larger study of one kind goes on from a smaller one's folder."""
