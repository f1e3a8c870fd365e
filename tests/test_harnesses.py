"""Tasks of lm-evaluation-harness, and Inspect's logs and models: one file, so that one process imports them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.campaign.cell import run_cell
from holdfast.campaign.cells import Campaign, Model
from holdfast.cli.app import main
from holdfast.core.presets import collect, describe
from holdfast.core.records import CellResult, cell_path, read_campaign, select
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.evals.lm_eval import PRESETS, SUBJECTS, LMEval
from holdfast.evals.multiple_choice import prepare_answers
from holdfast.runs.export.harness_tasks import write_harness_tasks
from holdfast.runs.named import named_evaluations
from tests.conftest import SmallTestbed
from tests.report.synthetic import audited, write

ROOT = Path(__file__).parent.parent

WRITING = """\
task: finish
custom_dataset: !function rows.rows
training_split: train
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
num_fewshot: 0
generation_kwargs:
  until: ["."]
  do_sample: false
  max_gen_toks: 6
filter_list:
  - name: first
    filter:
      - function: regex
        regex_pattern: '(\\w+)'
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def tasks(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions of the testbed as tasks of the harness, and a task whose answers are written."""
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    write_harness_tasks(tiny_testbed.folder, folder)
    return folder


@pytest.fixture
def writing(tiny_testbed: SmallTestbed, tmp_path: Path) -> Path:
    """A task whose answers the model writes: every other one is what the model says."""
    model, tokenizer = tiny_testbed.model.load_both()
    prompts = [question.prompt for question in tiny_testbed.domain.questions("hazard").questions[:6]]
    rows = []
    for place, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        written = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        said = str(tokenizer.decode(written, skip_special_tokens=True)).split(".")[0].split()
        rows.append({"prompt": prompt, "answer": said[0] if said and place % 2 else "nothing"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "finish.yaml").write_text(WRITING)
    code = "import json, datasets\nfrom pathlib import Path\n\ndef rows(**_):\n"
    code += "    path = Path(__file__).with_name('rows.jsonl')\n"
    code += "    read = datasets.Dataset.from_list([json.loads(x) for x in path.read_text().split(chr(10)) if x])\n"
    code += "    return {'train': read, 'test': read}\n"
    (tmp_path / "rows.py").write_text(code)
    return tmp_path


def test_the_harness_and_our_scorer_agree_on_every_question(tasks: Path, tiny_testbed: SmallTestbed) -> None:
    """And so does the harness's own loop, with the same mean and standard error."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    domain, (model, tokenizer) = tiny_testbed.domain, tiny_testbed.model.load_both()
    theirs: defaultdict[str, list[float]] = defaultdict(list)
    for answer in LMEval(folder=str(tasks)).sheet(tokenizer).ask(model):
        assert answer.question == len(theirs[answer.task])
        theirs[answer.task].append(answer.value)
    assert len(theirs) == len(domain.question_sources)
    for name in domain.question_sources:
        questions = domain.questions(name).questions
        chosen = prepare_answers(tokenizer, questions)(model)[""]
        ours = [float(question.answer == best) for question, best in zip(questions, chosen, strict=True)]
        [task] = [task for task in theirs if task.endswith(f"_{name}")]
        assert 0 < sum(ours) < len(ours), "a test of agreement needs right and wrong answers"
        assert theirs[task] == ours

    [hazard] = [task for task in theirs if task.endswith("_hazard")]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    whole = evaluate(HFLM(pretrained=model, tokenizer=tokenizer), manager.load([hazard]))["results"][hazard]
    [score] = LMEval(folder=str(tasks), tasks=(hazard,)).prepare(tokenizer, domain)(model)
    assert (score.metric, score.n, score.chance) == ("acc", len(theirs[hazard]), 0.25)
    assert (score.value, score.stderr) == pytest.approx((whole["acc,none"], whole["acc_stderr,none"]))


def test_a_model_and_all_randomness_stay_as_they_were(tasks: Path, writing: Path, tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    model.config.tie_word_embeddings = True  # as where an attack has parted weights that the config ties
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words = len(tokenizer), dict(tokenizer.special_tokens_map)
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    for folder in (tasks, writing):
        probe = LMEval(folder=str(folder)).prepare(tokenizer, tiny_testbed.domain)
        assert probe(model) == probe(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (len(tokenizer), dict(tokenizer.special_tokens_map)) == words
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[1:]  # type: ignore[union-attr, index]
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = float("nan")
    for folder in (tasks, writing):
        with pytest.raises(NonFinite):
            LMEval(folder=str(folder)).prepare(tokenizer, tiny_testbed.domain)(model)


def test_what_a_model_writes_goes_through_the_filter_of_the_task(writing: Path, tiny_testbed: SmallTestbed) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    plain = LMEval(folder=str(writing))
    right = [row["answer"] != "nothing" for row in map(json.loads, (writing / "rows.jsonl").read_text().splitlines())]
    assert any(right)
    answers = plain.sheet(tokenizer).ask(model)
    assert [bool(answer.value) for answer in answers] == right
    assert {answer.metric for answer in answers} == {"exact_match,first"}
    [score] = plain.prepare(tokenizer, tiny_testbed.domain)(model)
    assert (score.value, score.n, score.chance) == (sum(right) / 6, 6, None)
    assert len(replace(plain, limit=2).sheet(tokenizer).ask(model)) == 2
    shown = replace(plain, num_fewshot=2).sheet(tokenizer)
    assert shown.longest > plain.sheet(tokenizer).longest > replace(plain, max_new_tokens=1).sheet(tokenizer).longest
    with pytest.raises(HoldfastError, match=r"finish takes \d+ tokens with its answer.*set fewer num_fewshot"):
        replace(plain, max_new_tokens=100_000).prepare(tokenizer, tiny_testbed.domain)(model)


def test_the_content_is_what_is_asked_and_not_where_it_lies(
    tasks: Path, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    domain, one = tiny_testbed.domain, LMEval(folder=str(tasks))
    shutil.copytree(tasks, tmp_path / "moved")
    moved = LMEval(folder=str(tmp_path / "moved"))
    assert moved.content(domain) == one.content(domain)
    assert describe(moved) == describe(one)
    assert replace(one, limit=3).content(domain) == one.content(domain)
    assert replace(one, tasks=("testbed_5_hazard",)).content(domain) != one.content(domain)
    asked = tmp_path / "moved" / "hazard.jsonl"
    asked.write_text(asked.read_text().replace('"answer": 0', '"answer": 1', 1))
    assert moved.content(domain) != one.content(domain)


def test_what_stands_for_it_at_milestones(tiny_testbed: SmallTestbed) -> None:
    domain = tiny_testbed.domain
    assert PRESETS["wmdp_bio"].at_milestone(domain) == PRESETS["wmdp_bio"]
    assert PRESETS["gsm8k"].at_milestone(domain) is None
    sampled = PRESETS["mmlu"].at_milestone(domain)
    assert sampled == replace(PRESETS["mmlu"], limit=4)
    assert sampled.at_milestone(domain) == sampled


def test_mmlu_without_what_is_near_the_hazard_as_the_published_code_counts_it() -> None:
    whole = {f"mmlu_{subject}" for subject in SUBJECTS}
    assert len(whole) == 57
    left = {name: whole - set(PRESETS[f"mmlu_retain_{name}"].tasks) for name in ("bio", "chem", "cyber")}
    assert {name: len(subjects) for name, subjects in left.items()} == {"bio": 7, "chem": 2, "cyber": 1}
    assert {"mmlu_virology", "mmlu_anatomy"} < left["bio"]
    assert left["cyber"] == {"mmlu_computer_security"}
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    assert all((folder / f"{name}.yaml").is_file() for name in whole)


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        (
            PRESETS["wmdp_bio"],
            r"task wmdp_bio cannot be loaded with its data set \(.*cais/wmdp.*download the data set once",
        ),
        (
            LMEval(tasks=("testbed_5_hazrd",), folder="TASKS"),
            r"has no task testbed_5_hazrd; did you mean testbed_5_hazard",
        ),
        (LMEval(tasks=("testbed_5_hazard",), folder="TASKS", num_fewshot=2), r"no examples apart from its questions"),
        (LMEval(folder="no/such/folder"), r"there is no folder no/such/folder"),
    ],
    ids=["offline", "unknown", "shots", "folder"],
)
def test_what_cannot_be_asked_is_one_sentence(
    evaluation: LMEval, sentence: str, tasks: Path, tiny_testbed: SmallTestbed
) -> None:
    asked = replace(evaluation, folder=evaluation.folder.replace("TASKS", str(tasks)))
    with pytest.raises(HoldfastError, match=sentence) as caught:
        asked.content(tiny_testbed.domain)
    assert "\n" not in str(caught.value)


def test_a_named_evaluation_is_asked_along_an_attack(tasks: Path, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    asked = LMEval(folder=str(tasks), tasks=("testbed_5_related",), milestone_limit=3)
    attack = replace(collect("holdfast.attacks")["full-adamw-1e-3"], max_steps=4)
    campaign = Campaign(
        models=(Model(label="it", path=str(tiny_testbed.folder / "model"), role="defended"),), domain=tiny_testbed.folder,
        attacks=(("attack", attack),), seeds=(0,), milestones=(2,), also=(("asked", asked),),
    )  # fmt: skip
    campaign.check()
    cell = next(cell for cell in campaign.cells() if cell.attack)
    plain = next(cell for cell in replace(campaign, also=()).cells() if cell.attack)
    assert cell.id != plain.id
    records = CellResult.read(cell_path(tmp_path, run_cell(cell, tmp_path))).records
    theirs = [record for record in records if record.evaluation == "asked"]
    steps = [(record.step, record.metric, record.n, record.complete) for record in theirs]
    assert steps == [(0, "acc", theirs[0].n, True), (2, "acc", 3, False), (4, "acc", theirs[0].n, True)]
    ours = [record for record in records if (record.evaluation, record.metric) == ("related", "accuracy")]
    assert [record.value for record in ours if record.complete] == [theirs[0].value, theirs[2].value]


@pytest.mark.slow
def test_a_named_evaluation_from_the_command_line(
    tasks: Path, tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [f"--evaluation=lm-eval:{tasks}", "--set=lm-eval:tasks.tasks=('testbed_5_related',)"]
    command = ["attack", "full-adamw-1e-3", "--set", "full-adamw-1e-3.max_steps=4", *named, "--milestones=2"]
    where = ["--model", str(tiny_testbed.folder / "model"), "--domain", str(tiny_testbed.folder)]
    out = tmp_path / "out"
    assert main([*command, "--set=lm-eval:tasks.milestone_limit=3", *where, "--out", str(out)]) == 0, (
        capsys.readouterr()
    )
    _, results = read_campaign(out)
    [attacked] = [result for result in results if result.attack != "none"]
    records = [record for record in attacked.records if record.evaluation.startswith("lm-eval:tasks+")]
    assert [(record.step, record.metric, record.complete) for record in records] == [
        (0, "acc", True), (2, "acc", False), (4, "acc", True),
    ]  # fmt: skip
    assert records[1].n == 3
    ours = [record for record in attacked.records if record.evaluation == "related" and record.metric == "accuracy"]
    assert [record.value for record in ours if record.complete] == [
        record.value for record in records if record.complete
    ]
    assert select(results, attack="none")[0].records
    assert main(["evaluate", *named, *named, *where]) == 2
    assert "lm-eval:tasks is asked already" in capsys.readouterr().err


def test_names_of_evaluations(tasks: Path, tiny_testbed: SmallTestbed) -> None:
    folder = tiny_testbed.folder
    found: dict[str, Any] = dict(named_evaluations(["wmdp_bio", "lm-eval:arc_easy,boolq", f"lm-eval:{tasks}"], folder))
    assert found["wmdp_bio"].measured == "hazard"
    assert found["lm-eval:arc_easy,boolq"].tasks == ("arc_easy", "boolq")
    assert found["lm-eval:tasks"].folder == str(tasks)
    for name, sentence in (
        ("hazard", "is asked already"),
        ("wmdp_bi", "did you mean wmdp_bio"),
        ("lm-eval:", "needs tasks"),
    ):
        with pytest.raises(HoldfastError, match=sentence):
            named_evaluations([name], folder)


@pytest.fixture(scope="module")
def audited_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan, results = audited(1)
    broken = replace(results[5], status="diverged", reason="the loss became nan")
    return write(tmp_path_factory.mktemp("audited") / "audit", plan, [results[0], results[4], broken])


def test_inspect_reads_every_record_back(audited_folder: Path, tmp_path: Path) -> None:
    from inspect_ai.log import list_eval_logs, read_eval_log

    out = tmp_path / "logs"
    assert main(["export", "inspect", str(audited_folder), "--out", str(out)]) == 0
    _, results = read_campaign(audited_folder)
    cells = {result.cell: result for result in results}
    logs = [read_eval_log(info) for info in list_eval_logs(str(out))]
    assert {log.eval.eval_id for log in logs} == set(cells)
    for log in logs:
        result = cells[log.eval.eval_id]
        assert log.eval.task == ("untouched" if result.attack == "none" else result.attack)
        assert log.eval.task_args == result.attack_config
        assert log.eval.model == f"holdfast/{result.model}"
        assert log.status == ("success" if result.status == "finished" else "error")
        assert (log.error is None) == (result.status == "finished")
        read = {
            (int(sample.id), name): (score.value, score.metadata["n"], score.metadata["stderr"])
            for sample in log.samples or []
            for name, score in (sample.scores or {}).items()
        }
        assert read == {(r.step, f"{r.evaluation} {r.metric}"): (r.value, r.n, r.stderr) for r in result.records}
        last = max(record.step for record in result.records)
        assert log.results is not None
        assert log.results.scores[0].name == "hazard", "the viewer shows the first"
        assert [sample.id for sample in log.samples or []] == sorted({record.step for record in result.records})
        shown = {
            (score.name, name): metric.value for score in log.results.scores for name, metric in score.metrics.items()
        }
        for record in result.records:
            assert record.step < last or shown[record.evaluation, record.metric] == record.value


def inspect_task(prompts: list[str], targets: list[str]) -> Any:
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import exact
    from inspect_ai.solver import generate

    samples = [Sample(input=prompt, target=target) for prompt, target in zip(prompts, targets, strict=True)]
    return Task(dataset=samples, solver=generate(), scorer=exact())


def test_inspect_asks_a_folder_and_a_model_in_an_attack(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    """The text is our own greedy continuation, and a live model is as it was."""
    import inspect_ai

    import holdfast.runs.inspect_provider as provider
    from holdfast.evals.generation import prepare_continuations

    model, tokenizer = tiny_testbed.model.load_both()
    prompts = [question.prompt for question in tiny_testbed.domain.questions("hazard").questions[:5]]
    write_on = prepare_continuations(tokenizer, prompts, 6)

    def completions(asked: Any) -> list[str]:
        [log] = inspect_ai.eval(
            inspect_task(prompts, prompts), model=asked, max_tokens=6, log_dir=str(tmp_path), display="none"
        )
        assert log.status == "success", log.error
        return [sample.output.completion for sample in log.samples or []]

    def ours() -> list[str]:
        return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in write_on(model)]

    untouched = ours()
    assert completions(f"holdfast/{tiny_testbed.folder / 'model'}") == untouched
    with torch.no_grad():
        model.lm_head.weight.mul_(-1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert completions(provider.live_model(model, tokenizer)) == ours() != untouched
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_the_provider_cannot_do_is_said(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    import inspect_ai

    from holdfast.runs.inspect_provider import live_model

    model, tokenizer = tiny_testbed.model.load_both()
    asked = live_model(model, tokenizer)
    for options, sentence in (({"logprobs": True}, "has no logprobs"), ({"num_choices": 2}, "has no num_choices")):
        [log] = inspect_ai.eval(
            inspect_task(["a"], ["b"]), model=asked, log_dir=str(tmp_path), display="none", **options
        )
        assert log.error is not None
        assert sentence in log.error.message
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = float("nan")
    [log] = inspect_ai.eval(inspect_task(["a"], ["b"]), model=asked, log_dir=str(tmp_path), display="none")
    assert log.error is not None
    assert "not finite" in log.error.message


@pytest.mark.slow
def test_inspect_finds_the_provider_by_its_entry_point(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    """As where holdfast is installed: the project's own entry point, in a distribution on the path."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    info = tmp_path / "holdfast_entry-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: holdfast-entry\nVersion: 0\n")
    listed = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[inspect_ai]\n{listed}")
    (tmp_path / "task.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\nfrom inspect_ai.scorer import includes\n"
        "from inspect_ai.solver import generate\n\n@task\ndef one():\n"
        "    return Task(dataset=[Sample(input='the river', target='x')], solver=generate(), scorer=includes())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    command = [sys.executable, "-m", "inspect_ai", "eval", "task.py", "--display", "plain", "--max-tokens", "4"]
    model = ["--model", f"holdfast/{tiny_testbed.folder / 'model'}", "--log-dir", "logs"]
    done = subprocess.run(
        [*command, *model],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from inspect_ai.log import list_eval_logs, read_eval_log

    [log] = [read_eval_log(info) for info in list_eval_logs(str(tmp_path / "logs"))]
    assert log.status == "success"
