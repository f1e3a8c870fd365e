"""Every family of models and every plug-in: a plug-in works, or refuses in one sentence; docs/architectures.md says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from holdfast.core.domain import Domain
from tests.families.small import FAMILIES
from tests.families.trial import COLUMNS, Family, one_of_each, tokenizer, tried, write_domain

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

USUAL = ("gpt2", "gemma2", "mixtral", "deepseek_v3", "mamba")
"""Five that differ in what this code looks at: attention, MLP, experts, norms, positions, embeddings, kept state."""

ALIKE = ("qwen3_next", "llama", "cohere", "gpt_neox", "opt", "phi3", "gemma3", "bloom", "gpt_oss", "jamba", "rwkv")
"""Eleven more, each near to one of those; all other tests have a model of the first."""


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return write_domain(tmp_path_factory.mktemp("families") / "domain")


def documented() -> dict[str, dict[str, str]]:
    """What the page says of each family and plug-in."""
    rows = [re.findall(r"[^|]+", line.strip().strip("|")) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    rows = [[cell.strip().strip("`") for cell in row] for row in rows if len(row) == len(COLUMNS) + 1]
    head, *body = rows
    assert tuple(head[1:]) == COLUMNS
    return {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in body}


@pytest.mark.parametrize("name", [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)])
def test_every_plug_in_works_or_refuses_in_one_sentence(name: str, domain: Domain, tmp_path: Path) -> None:
    family, page = Family(name, domain, tokenizer()), documented()
    outcomes = {plugin: tried(family, plugin, tmp_path / "model") for plugin in one_of_each()}
    assert {plugin: outcome.says for plugin, outcome in outcomes.items() if outcome.verdict == "broken"} == {}
    lost = {plugin: outcomes[plugin].says for plugin in COLUMNS if page[name][plugin] == "yes"}
    assert {plugin: says for plugin, says in lost.items() if outcomes[plugin].verdict != "works"} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_does_what_the_page_says(name: str, domain: Domain, tmp_path: Path) -> None:
    page = documented()
    if name not in page:
        pytest.skip(
            "the page does not have this family: its small configuration cannot be built, or transformers is newer"
        )
    family = Family(name, domain, tokenizer())
    outcomes = {plugin: tried(family, plugin, tmp_path / "model") for plugin in COLUMNS}
    cells = {"works": "yes", "refused": "no", "broken": "FAULT"}
    assert {plugin: cells[outcome.verdict] for plugin, outcome in outcomes.items()} == page[name], outcomes


def test_the_page_has_over_a_hundred_families_and_each_plug_in_works_on_some() -> None:
    page = documented()
    families = {name: cells for name, cells in page.items() if name in FAMILIES}
    assert len(families) > 100
    assert {cell for cells in families.values() for cell in cells.values()} == {"yes", "no"}
    assert all(any(cells[plugin] == "yes" for cells in families.values()) for plugin in COLUMNS)
