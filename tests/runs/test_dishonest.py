"""Folders that only look safe, through a whole audit: breached, refused, or "not recovered" withheld with the trick named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import holdfast.campaign.cells
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.merge import DefenceDirections
from holdfast.core.presets import pick
from holdfast.core.records import read_campaign
from holdfast.engine.checkpoint import Checkpoint
from holdfast.report.audited import audited
from holdfast.report.first_page import first_page
from holdfast.report.words.verdict import headline
from holdfast.runs.audit import Audit
from holdfast.runs.stages import Recipe, build
from tests.cli.test_cli import run_here
from tests.conftest import SmallTestbed


@dataclass(frozen=True)
class Trick:
    """A change of a folder."""

    change: Callable[[Path, Path], None]
    """the folder of a shallow safeguard's copy, and that of the undefended model"""
    named: str = ""
    """what the reasons say where the model is not breached"""


def config(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda folder, base: edit(folder / "config.json", lambda table: table.update(changes))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def one_name(folder: Path, base: Path) -> None:
    """The undefended weights under a tokenizer that writes every answer as the same word, and under another config."""
    shutil.copy(base / "model.safetensors", folder / "model.safetensors")
    config(attention_dropout=0.5)(folder, base)
    rows = (base.parent / "questions" / "hazard.jsonl").read_text().splitlines()
    names = sorted({choice.strip() for row in rows for choice in json.loads(row)["choices"]})
    pattern = r"\b(" + "|".join(names[1:]) + r")\b"
    rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": names[0]}
    edit(folder / "tokenizer.json", lambda table: table.update(normalizer=rule))


def weights(change: Callable[[str, Any], Any]) -> Callable[[Path, Path], None]:
    def rewrite(folder: Path, base: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({name: change(name, tensor) for name, tensor in tensors.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip

    return rewrite


def folded(name: str, tensor: Any) -> Any:
    """Scales that norms take back: the function stays, and no rate fits both sides."""
    if name.endswith("norm.weight"):
        return tensor * 1e-3
    reads = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    return tensor * 1e3 if any(part in name for part in reads) else tensor


def unbalanced(name: str, tensor: Any) -> Any:
    """Two adjacent maps on scales far apart: the function stays."""
    if "v_proj" in name or "up_proj" in name:
        return tensor * 1e3
    return tensor * 1e-3 if "o_proj" in name or "down_proj" in name else tensor


def card(base: Mapping[str, str]) -> Callable[[Path, Path], None]:
    return lambda folder, original: edit(folder / "holdfast.json", lambda table: table.update(base=dict(base)))


def own_card(folder: Path, base: Path) -> None:
    card({"path": str(folder), "digest": Checkpoint(str(folder)).digest})(folder, base)


TRICKS: Mapping[str, Trick] = {
    "plain": Trick(lambda folder, base: None),
    "attention-dropout": Trick(config(attention_dropout=1.0), "In training mode its loss"),
    "one-name": Trick(one_name, "no longer told apart"),
    "own-card": Trick(own_card, "card of own-card names the model itself"),
    "missing-base": Trick(
        card({"path": "/nowhere/model", "digest": "f" * 64}), "card of missing-base names another model"
    ),
    "norms": Trick(weights(folded), "norms: gradients agree"),
    "unbalanced": Trick(weights(unbalanced), "unbalanced: gradients agree"),
    "huge": Trick(weights(lambda name, tensor: tensor * (1e4 if "embed" in name else 1.0))),
    "rope": Trick(config(rope_parameters={"rope_theta": 2.0, "rope_type": "default"})),
    "tied": Trick(config(tie_word_embeddings=True)),
}


def run_audit(testbed: SmallTestbed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every trick as a peer of the plain safeguard, under a training attack and one that reads the original."""
    shallow = replace(pick("holdfast.safeguards", "random-mapping"), outer_steps=60)
    for place, seed in (("shallow", 1), ("plain", 0)):
        recipe = Recipe(
            model=testbed.model,
            base=testbed.model,
            domain=testbed.folder,
            stages=(("random-mapping", shallow),),
            seed=seed,
        )
        build(recipe, folder / place)
    for name, trick in TRICKS.items():
        if name != "plain":
            shutil.copytree(folder / "plain", folder / name)
            config(trick=name)(folder / name, folder)  # an audit refuses one model twice
            trick.change(folder / name, Path(testbed.model.path))
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    along = holdfast.campaign.cells.evaluations_of

    def without_learning(domain: Any) -> Any:
        asked, probes = along(domain)
        return asked, tuple(pair for pair in probes if pair[0] not in ("benign-learning", "linear-probe"))

    monkeypatch.setattr(holdfast.campaign.cells, "evaluations_of", without_learning)
    audit = Audit(
        model=str(folder / "plain"),
        undefended=testbed.model.path,
        reference=str(folder / "shallow"),
        never_exposed=testbed.never_exposed.path,
        peers=tuple(str(folder / name) for name in TRICKS if name != "plain"),
        domain=testbed.folder,
        attacks={"full": FineTune(max_steps=40), "directions": DefenceDirections()},
        canonical="full",
        seeds=5,
        milestones=(0, 10, 20, 40),
    )
    audit.run(folder / "audit", 1, suite="own", command="", title="Tricks")
    return folder / "audit"


@pytest.mark.slow
def test_no_trick_buys_a_verdict(small_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = audited(*read_campaign(run_audit(small_testbed, tmp_path, monkeypatch)))
    reasons = " ".join(first_page(audit, "x").reasons)
    models = {model.label: model for model in audit.summary.models}
    assert models["one-name"].verdict == "breached"
    for name, trick in TRICKS.items():
        assert models[name].verdict in ("breached", "undecided"), headline(models[name], audit)
        assert trick.named in reasons
    # What acts in training mode alone, and what a card says, changes nothing at all.
    for name in ("attention-dropout", "own-card", "missing-base"):
        for attack in ("full", "directions"):
            pair, plain = (audit.summary.pair(label, attack) for label in (name, "plain"))
            assert pair is not None
            assert plain is not None
            assert pair.peak == plain.peak
