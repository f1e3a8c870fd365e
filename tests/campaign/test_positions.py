"""A model with a table of positions is held against the longest text that will be read, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from holdfast.campaign.cells import Campaign, Model, check_positions, evaluations_of
from holdfast.campaign.run import check_campaign
from holdfast.cli.app import main
from holdfast.core.domain import Domain
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
from tests.families.small import build
from tests.families.trial import PLUGINS, shortened, tokenizer, write_domain

NAMES = (
    "hazard",
    "degeneracy",
    "compliance",
    "compliance_likelihood",
    "compliance_prefilled",
    "linear-probe",
    "benign-learning",
)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return write_domain(tmp_path_factory.mktemp("positions") / "domain")


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_needs_exactly_the_positions_that_it_says(name: str, domain: Domain) -> None:
    evaluation, words = shortened(PLUGINS[name]), tokenizer()
    needed = evaluation.positions(words, domain)
    probe = evaluation.prepare(words, domain)
    # The rows of benign-learning are longer than its questions.
    trained = 16 if name == "benign-learning" else 0
    probe(build("gpt2", len(words), n_positions=max(needed, trained)))
    if needed > trained:
        with pytest.raises(IndexError), torch.no_grad():
            probe(build("gpt2", len(words), n_positions=needed - 1))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has positions for every row, and not for all that it would write."""
    folder = tmp_path_factory.mktemp("short") / "model"
    save_checkpoint(build("gpt2", len(tokenizer()), n_positions=18), tokenizer(), folder, {}, "short\n")
    return folder


def test_a_campaign_is_refused_before_it_runs(short: Path, domain: Domain) -> None:
    campaign = Campaign(
        models=(Model(label="short", path=str(short), role="defended"),), domain=domain.folder,
        attacks=(("full-adamw-1e-3", PLUGINS["full-adamw-1e-3"]),), seeds=(0,),
    )  # fmt: skip
    with pytest.raises(HoldfastError, match=r"degeneracy reads up to 22 tokens.* only 18 positions"):
        check_campaign(campaign)


@pytest.mark.parametrize("command", [["safeguard", "random-mapping"], ["evaluate"]])
def test_a_command_is_refused_in_one_sentence(
    command: list[str], short: Path, domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")] if command[0] == "safeguard" else []
    assert main([*command, "--model", str(short), "--domain", str(domain.folder), *out]) != 0
    said = capsys.readouterr().err
    assert "22 tokens" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_rotary_positions_go_on(tmp_path: Path, domain: Domain) -> None:
    save_checkpoint(build("llama", 40, max_position_embeddings=8), tokenizer(), tmp_path / "model", {}, "rotary\n")
    checkpoint = Checkpoint(str(tmp_path / "model"))
    assert checkpoint.positions() is None
    for evaluations in evaluations_of(domain):
        check_positions(checkpoint, domain, evaluations)
