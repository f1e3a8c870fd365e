"""holdfast: tamper-resistant safeguards for open-weight language models, and what it costs to remove them.

The names below are the public ones. Each is loaded when it is first asked for, so `import holdfast` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.api.results import Results, Scores
    from holdfast.api.run import evaluate, make_testbed, run, study
    from holdfast.attacks.base import Attack
    from holdfast.attacks.finetune import FineTune
    from holdfast.campaign.cells import Campaign, Model
    from holdfast.campaign.run import run_campaign
    from holdfast.core.domain import Domain
    from holdfast.core.options import Options
    from holdfast.core.outside import load_plugins
    from holdfast.core.presets import collect, pick
    from holdfast.core.records import CellResult, Record, read_campaign
    from holdfast.core.types import HoldfastError, NonFinite, Score
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run
    from holdfast.engine.session import Session, open_session
    from holdfast.engine.walk import drive, walk
    from holdfast.evals.base import Evaluation
    from holdfast.report.page import Report, build_report
    from holdfast.runs.audit import Audit
    from holdfast.runs.search.attacker import Found, search_and_confirm
    from holdfast.runs.search.search import Budget, Search
    from holdfast.runs.stages import Recipe, build
    from holdfast.runs.suites import SUITES, Suite
    from holdfast.safeguards.base import Safeguard
    from holdfast.safeguards.parts.adversary import Adversary
    from holdfast.safeguards.random_mapping import RandomMapping
    from holdfast.safeguards.tar import TAR

_HOMES = {
    "api.results": ("Results", "Scores"),
    "api.run": ("evaluate", "make_testbed", "run", "study"),
    "attacks.base": ("Attack",),
    "attacks.finetune": ("FineTune",),
    "campaign.cells": ("Campaign", "Model"),
    "campaign.run": ("run_campaign",),
    "core.domain": ("Domain",),
    "core.options": ("Options",),
    "core.outside": ("load_plugins",),
    "core.presets": ("collect", "pick"),
    "core.records": ("CellResult", "Record", "read_campaign"),
    "core.types": ("HoldfastError", "NonFinite", "Score"),
    "engine.checkpoint": ("Checkpoint",),
    "engine.data": ("Data",),
    "engine.run": ("Run",),
    "engine.session": ("Session", "open_session"),
    "engine.walk": ("drive", "walk"),
    "evals.base": ("Evaluation",),
    "report.page": ("Report", "build_report"),
    "runs.audit": ("Audit",),
    "runs.search.attacker": ("Found", "search_and_confirm"),
    "runs.search.search": ("Budget", "Search"),
    "runs.stages": ("Recipe", "build"),
    "runs.suites": ("SUITES", "Suite"),
    "safeguards.base": ("Safeguard",),
    "safeguards.parts.adversary": ("Adversary",),
    "safeguards.random_mapping": ("RandomMapping",),
    "safeguards.tar": ("TAR",),
}

__all__ = [
    "SUITES",
    "TAR",
    "Adversary",
    "Attack",
    "Audit",
    "Budget",
    "Campaign",
    "CellResult",
    "Checkpoint",
    "Data",
    "Domain",
    "Evaluation",
    "FineTune",
    "Found",
    "HoldfastError",
    "Model",
    "NonFinite",
    "Options",
    "RandomMapping",
    "Recipe",
    "Record",
    "Report",
    "Results",
    "Run",
    "Safeguard",
    "Score",
    "Scores",
    "Search",
    "Session",
    "Suite",
    "build",
    "build_report",
    "collect",
    "drive",
    "evaluate",
    "load_plugins",
    "make_testbed",
    "open_session",
    "pick",
    "read_campaign",
    "run",
    "run_campaign",
    "search_and_confirm",
    "study",
    "walk",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"holdfast.{module}"), name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
