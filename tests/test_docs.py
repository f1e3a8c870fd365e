"""The documentation holds: its examples run, its commands parse, its links lead somewhere, its tree is the tree."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

from holdfast.core.domain import Domain
from holdfast.core.presets import collect, describe, fields
from holdfast.core.records import read_campaign
from holdfast.core.settings import read_listing, with_settings
from holdfast.core.types import NonFinite
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    from tests.conftest import SmallTestbed

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CARDS = sorted(page for page in (ROOT / "docs" / "safeguards").glob("*.md") if page.name != "README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, without the indentation of the list they may stand in."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, language, body in found if language in languages]


def example(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's complete plug-in, as a module of its own."""
    [code] = [code for code in blocks(ROOT / "docs" / page, "python") if code.startswith('"""')]
    name = f"example_{page.removesuffix('.md').replace('-', '_')}"
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_every_field_of_the_examples_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("adding-an-attack.md", "adding-a-safeguard.md", "adding-an-evaluation.md"):
        for name, preset in example(page, tmp_path, monkeypatch).PRESETS.items():
            assert [field.name for field in fields(preset) if not field.doc] == [], name
            assert describe(preset)["class"] == type(preset).__name__


def test_the_attack_of_the_docs(tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = example("adding-an-attack.md", tmp_path, monkeypatch).PRESETS
    [attack] = with_settings({"it": presets["ascend-first-1e-3"]}, ["it.max_steps=12", "it.ascent_steps=2"]).values()

    def walk(dirty: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        seed_everything(3)
        model, tokenizer = tiny_testbed.model.load_both()
        data = Data.attacker(tiny_testbed.domain, tokenizer).renamed(**{name: (name,) for name in attack.reads()})
        run, losses = Run(3), []
        for _, loss in drive(attack.steps(model, data, run), run):
            assert not model.training
            losses.append(loss)
            for parameter in model.parameters() if dirty else ():
                parameter.grad = torch.ones_like(parameter)
        return losses, weights(model)

    losses, after = walk(dirty=False)
    again, dirtied = walk(dirty=True)
    assert losses == again
    assert same(after, dirtied)
    assert len(losses) == 12
    assert losses[attack.benign_steps] > losses[0], "it climbs first"
    assert losses[-1] < losses[attack.benign_steps], "and then descends"


def test_the_safeguard_of_the_docs(tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = example("adding-a-safeguard.md", tmp_path, monkeypatch).PRESETS
    [plain] = with_settings({"it": presets["gradient-difference"]}, ["it.outer_steps=3"]).values()
    [parts] = with_settings({"it": plain}, ["it.micro_batch=5"]).values()

    def train(safeguard: Any) -> tuple[list[Any], dict[str, torch.Tensor]]:
        seed_everything(0)
        model, tokenizer = tiny_testbed.model.load_both()
        run = Run(0, tiny_testbed.model.load)
        steps = safeguard.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run)
        return list(drive(steps, run)), weights(model)

    untouched = weights(tiny_testbed.model.load())
    walked, after = train(plain)
    assert [step for step, _ in walked] == [1, 2, 3]
    assert walked[-1][1]["forget loss"] > 0
    # The distance to the original starts at zero, so only the language-model part of the retain loss can fall.
    [(_, first), *_, (_, last)], _ = train(replace(plain, retain=RetainLoss(representations=None)))
    assert last["retain loss"] < first["retain loss"]
    strong = replace(plain, forget_weight=5.0, retain=RetainLoss(representations=None))
    [(_, first), *_, (_, last)], _ = train(strong)
    assert last["forget loss"] > first["forget loss"]
    assert not same(untouched, after)
    in_parts, _ = train(parts)
    for (_, whole), (_, split) in zip(walked, in_parts, strict=True):
        assert split == pytest.approx(whole, rel=1e-3)


def test_the_variant_of_the_docs() -> None:
    [code] = [code for code in blocks(ROOT / "docs" / "adding-a-safeguard.md", "python") if "tar-sgd" in code]
    held: dict[str, Any] = {}
    exec(compile(code, "adding-a-safeguard.md", "exec"), held)
    assert held["PRESETS"]["tar-sgd"].adversaries[0].attack.optimizer == "sgd-momentum"


def test_the_evaluation_of_the_docs(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [evaluation] = example("adding-an-evaluation.md", tmp_path, monkeypatch).PRESETS.values()
    domain = tiny_testbed.domain
    model, tokenizer = tiny_testbed.model.load_both()
    assert evaluation.available(domain)
    assert len(evaluation.content(domain)) == 64
    before, probe = weights(model), evaluation.prepare(tokenizer, domain)
    [score] = probe(model)
    assert probe(model) == [score]
    assert score.n == min(64, len(domain.rows("benign_heldout")))
    rows = [row["text"] for row in domain.rows("benign_heldout")[:64]]
    assert score.value == pytest.approx(sum(_agreement(model, tokenizer, row) for row in rows) / len(rows), abs=1e-6)
    assert same(before, weights(model))
    assert not model.training
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFinite):
        probe(model)


def _agreement(model: Any, tokenizer: Any, text: str) -> float:
    """The same measure, one row at a time and without padding."""
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        likeliest = model(input_ids=ids).logits[0, :-1].argmax(-1)
    return float((likeliest == ids[0, 1:]).float().mean())


def test_the_constants_of_the_testbed_page() -> None:
    """The numbers in running text are those of the code."""
    from holdfast.testbed.models import PRETRAINING
    from holdfast.testbed.world import Sizes

    text = " ".join((ROOT / "docs" / "testbed.md").read_text(encoding="utf-8").split())
    sizes, mapping, tar = (
        Sizes(),
        collect("holdfast.safeguards")["random-mapping"],
        collect("holdfast.safeguards")["tar"],
    )
    for said in (
        f"each of its rows {PRETRAINING['knowledge'].passes:g} times ({PRETRAINING['refusal'].passes:g} in the refusal domain)",
        f"| {sizes.forget} hazardous |",
        f"| {sizes.forget_heldout} hazardous |",
        f"| {sizes.attack} hazardous |",
        f"| {sizes.selection} hazardous |",
        f"| {sizes.claims} hazardous | questions for claiming: {4 * sizes.claims} of them |",
        f"({sizes.benign} by default)",
        f"{mapping.outer_steps} steps of AdamW at {mapping.learning_rate:.1e}".replace("e-03", "e-3"),
        f"{tar.outer_steps} outer steps; adversaries of K = {tar.inner_steps} steps",
    ):
        assert said in text, said


def test_the_domain_of_getting_started(tmp_path: Path) -> None:
    """Every `domain.toml` opens, the file of stages and attacks is read, and the second walk's rows and questions are read."""
    page = ROOT / "docs" / "getting-started.md"
    opened = []
    *domains, listing = blocks(page, "toml")
    (tmp_path / "mine.toml").write_text(listing, encoding="utf-8")
    assert len(read_listing(tmp_path / "mine.toml", "attacks").plugins) == 2
    assert len(read_listing(tmp_path / "mine.toml", "stages").plugins) == 1
    for text in domains:
        (tmp_path / "domain.toml").write_text(text, encoding="utf-8")
        opened.append(Domain.open(tmp_path))
        assert opened[-1].name == "my-domain"
    _, domain, refusal, judged = opened
    assert set(refusal.question_sources) == {"requests", "benign_requests"}
    assert judged.question_sources["requests"]["judge"] == "rules"
    rows, questions = blocks(page, "json")
    for source in domain.sources.values():
        _write(tmp_path / source["file"], rows)
    for source in domain.question_sources.values():
        _write(tmp_path / source["file"], questions)
    assert [sorted(row) for row in domain.rows("forget")] == [["text"], ["messages"], ["chosen", "prompt", "rejected"]]
    assert domain.questions("hazard").measures == "hazard"
    assert domain.questions("benign_outside_retain").measures == "ability"


def test_the_suite_of_the_tofu_page_is_a_suite(tmp_path: Path) -> None:
    [listing] = blocks(ROOT / "docs" / "tofu.md", "toml")
    (tmp_path / "tofu-suite.toml").write_text(listing, encoding="utf-8")
    suite = read_listing(tmp_path / "tofu-suite.toml", "attacks")
    assert len(suite.plugins) == 8
    assert "hazard_all" not in {name for attack in suite.plugins.values() for name in attack.reads()}


def test_every_suite_of_the_docs_is_a_suite(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for listing in (block for block in blocks(page, "toml") if "[[attacks]]" in block):
            (tmp_path / "suite.toml").write_text(listing, encoding="utf-8")
            assert read_listing(tmp_path / "suite.toml", "attacks").plugins, page.name
            found += 1
    assert found >= 3


def test_the_script_of_getting_started(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for fewer steps, attacks and seeds."""
    [script] = blocks(ROOT / "docs" / "getting-started.md", "python")
    preset = '(name, replace(holdfast.pick("holdfast.{}", name), {})) for name in {}'
    stages = preset.format("safeguards", "outer_steps=2", '("random-mapping", "tar")')
    attacks = preset.format("attacks", "max_steps=4, warmup_steps=0", '("full-adamw-1e-3",)')
    for long, short in (('["random-mapping", "tar"]', f"[{stages}]"), ("seeds=5", f"seeds=1, attacks=[{attacks}]")):
        assert long in script
        script = script.replace(long, short)
    (tmp_path / "study.py").write_text(f"from dataclasses import replace\n{script}", encoding="utf-8")
    shutil.copytree(tiny_testbed.folder, tmp_path / "my-domain")
    shutil.copytree(tiny_testbed.folder / "model", tmp_path / "models" / "chat")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "study.py"), run_name="__main__")
    told = capsys.readouterr()
    assert told.out == "{'tar': 'not estimable'}\n"
    assert all(line.startswith("reused from the cache: ") for line in told.err.splitlines()), "nobody watches"
    assert "full-adamw-1e-3" in (tmp_path / "runs" / "audit.html").read_text(encoding="utf-8")
    _, results = read_campaign(tmp_path / "runs" / "audit")
    assert {result.status for result in results} == {"finished"}
    table = (tmp_path / "runs" / "audit.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + sum(len(result.records) for result in results)


def test_the_layout_of_getting_started_is_what_a_testbed_has(tiny_testbed: SmallTestbed) -> None:
    [tree] = [block for block in blocks(ROOT / "docs" / "getting-started.md", "") if "domain.toml" in block]
    named = {path for path in _tree(tree, "my-domain/") if path.is_relative_to("my-domain")}
    folder = tiny_testbed.folder
    held = {Path("my-domain") / path.relative_to(folder) for path in _below(folder, {"data", "questions"})}
    assert named == held - {Path("my-domain/testbed.json")}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every holdfast command in the page's shell blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "holdfast":
                yield words[1:]


def test_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in a block: verb, options, values, and the presets, suites and fields that it names."""
    import typer.main

    from holdfast.cli.app import app
    from holdfast.runs.suites import SUITES

    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verbs |= _verbs_of_groups(verbs)
    presets = {**collect("holdfast.attacks"), **collect("holdfast.safeguards"), **collect("holdfast.evals")}
    found = [words for page in PAGES for words in commands(page) if not words[0].startswith("--")]
    [file] = blocks(ROOT / "docs" / "scripts.md", "toml")
    (tmp_path / "audit.toml").write_text(file, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert {words[0] for words in found} >= {"evaluate", "safeguard", "attack", "audit", "report", "testbed"}
    for verb, *arguments in found:
        if hasattr(verbs[verb], "commands"):
            verb, arguments = f"{verb} {arguments[0]}", arguments[1:]
        values = verbs[verb].make_context(verb, list(arguments)).params
        named = {
            "safeguard": lambda v: v["stages"],
            "attack": lambda v: [v["preset"]],
            "evaluate": lambda v: v["evaluations"] or [],
            "audit": lambda v: SUITES[v["suite"]].attacks if v["suite"] in SUITES else (),
        }.get(verb, lambda v: [])(values)
        with_settings({name: presets[name] for name in named}, values.get("settings") or [])


def _verbs_of_groups(verbs: dict[str, Any]) -> dict[str, Any]:
    """ "domain make" and its like -> the command."""
    groups = {name: verb.commands for name, verb in verbs.items() if hasattr(verb, "commands")}
    return {f"{group} {name}": verb for group, within in groups.items() for name, verb in within.items()}


def test_names_in_running_text_exist() -> None:
    """Verbs and options in code spans, `make` targets, and whatever follows `holdfast list` or `--set`."""
    import typer.main

    from holdfast.cli.app import app

    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    group = typer.main.get_command(app)
    all_verbs = {**verbs, **_verbs_of_groups(verbs)}
    commanded = (group, *all_verbs.values())
    options = {option for verb in commanded for parameter in verb.params for option in parameter.opts}
    listed = {"attacks", "safeguards", "evaluations", "suites"}
    presets = {**collect("holdfast.attacks"), **collect("holdfast.safeguards"), **collect("holdfast.evals")}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for span in re.findall(r"`([^`\n]+)`", text):
            words = span.split()
            if words[0] == "make":
                assert words[1] in targets, (page.name, span)
            if words[0] == "holdfast" and len(words) > 1:
                assert words[1] in verbs or words[1] in options | {"--help"}, (page.name, span)
            if words[:2] == ["holdfast", "list"] and len(words) > 2:
                assert words[2] in listed | presets.keys(), (page.name, span)
            assert all(word in options | {"--help"} for word in words if re.match(r"--[a-z]", word)), (page.name, span)


def test_the_tests_are_run_by_the_readmes_command() -> None:
    assert "make test\n" in "\n".join(blocks(ROOT / "README.md", "sh"))
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == "exec make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


# Fidelity cards


def test_every_safeguard_preset_has_a_card_and_only_one() -> None:
    named: list[str] = []
    for card in CARDS:
        [line] = [line for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("**Presets**: ")]
        named += re.findall(r"`([^`]+)`", line.partition("**Code and formula**")[0])
    assert sorted(named) == sorted(collect("holdfast.safeguards"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_says_what_is_claimed_what_was_measured_and_whether_they_agree(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", text, re.M)
    assert parts == ["What its source claims", "What was measured here", "Deviations", "Verdict"]
    verdict = text.rpartition("## Verdict")[2].strip()
    assert verdict.startswith(("**Replicates", "**Partly", "**Does not replicate", "**Not measured")), verdict[:40]
    assert "arxiv.org/abs/" in text
    index = (ROOT / "docs" / "safeguards" / "README.md").read_text(encoding="utf-8")
    assert f"]({card.name})" in index
    # Figures are quoted from the page that a named command made.
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    measured = text.partition("## What was measured here")[2].partition("\n## ")[0]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert not rows or "```sh\nholdfast " in measured
    assert "holdfast study" not in measured or [row for row in rows if row not in results] == []


# Links and trees


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            assert target.startswith("https://arxiv.org/abs/"), f"{target}: pages elsewhere vanish; cite a paper"
            continue
        path, _, anchor = target.partition("#")
        aimed = (page.parent / path).resolve() if path else page
        assert aimed.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", aimed.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, target


def test_the_readme_is_one_page_that_begins_with_two_commands_and_leads_to_the_tree() -> None:
    assert len(README.splitlines()) <= 90
    first = next(iter(blocks(ROOT / "README.md", "sh")))
    assert first.splitlines() == ["make demo", "make test"]
    assert "](docs/development.md)" in README


def test_the_tree_of_the_docs_is_the_tree() -> None:
    [tree] = [block for block in blocks(ROOT / "docs" / "development.md", "") if "Makefile" in block]
    named = _tree(tree)
    for folder in ("docs", "src/holdfast"):
        assert {path for path in named if path.parent == Path(folder)} == {
            path.relative_to(ROOT) for path in _below(ROOT / folder, set())
        }
    top = {Path(path.parts[0]) for path in named}
    assert [path for path in top if not (ROOT / path).exists()] == []
    if shutil.which("git") and (ROOT / ".git").exists():
        kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {Path(Path(line).parts[0]) for line in kept.splitlines()} - top == set()


def test_every_page_of_the_docs_is_in_the_sites_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"(\S+\.md)$", listed, re.M))
    docs = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == {*docs, "index.md", *(path.name for path in ROOT.glob("*.md") if path.name != "README.md")}


def _tree(text: str, root: str = "") -> set[Path]:
    """The paths that a tree names: two spaces a level, folders end in a slash."""
    open_folders: list[tuple[int, Path]] = []
    named: set[Path] = set()
    for line in text.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        while open_folders and open_folders[-1][0] >= depth:
            open_folders.pop()
        path = (open_folders[-1][1] if open_folders else Path()) / name
        if name != root:
            named.add(path)
        if name.endswith("/"):
            open_folders.append((depth, path))
    return named


def _below(folder: Path, opened: set[str]) -> set[Path]:
    """Files and non-empty folders of a folder, and of the sub-folders in `opened`."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    found: set[Path] = set()
    for path in folder.iterdir():
        if any(fnmatch.fnmatch(path.name, pattern.rstrip("/")) for pattern in ignored):
            continue
        if path.is_file() or any(held.is_file() and "__pycache__" not in held.parts for held in path.rglob("*")):
            found.add(path)
        if path.name in opened:
            found |= _below(path, set())
    return found
