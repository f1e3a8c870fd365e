"""A domain's questions as a folder of lm-evaluation-harness tasks: one task a question set, with its questions beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from holdfast.core.domain import Domain, QuestionSet
from holdfast.core.files import atomic_folder, claim_output, only_writer
from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError

_READER = '''"""Reads the questions that lie beside this file."""

import json
from pathlib import Path

import datasets


def questions(name, **_):
    lines = Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8").split("\\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}
'''

_TASK = """\
task: {task}
custom_dataset: !function questions.questions
dataset_kwargs:
  name: {name}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_harness_tasks(folder: Path, out: Path) -> list[str]:
    """Write a task of the harness for each question set of a domain; return the names of the tasks.

    The harness then asks as holdfast does: the prompt as it stands, and each option as it stands behind the prompt.

    Args:
        folder: of the domain.
        out: a new or empty folder, which can be moved afterwards.

    Raises:
        HoldfastError: the domain has no questions, a set's name cannot be a file's, or `out` holds something.
    """
    domain = Domain.open(folder)
    if not domain.question_sources:
        raise HoldfastError(f"{folder} has no questions to export; add a [questions.…] section to its domain.toml")
    sets = {_name(domain, name): domain.questions(name) for name in domain.question_sources}
    claim_output(out, folder)
    with only_writer(out), atomic_folder(out) as made:
        (made / "questions.py").write_text(_READER, encoding="utf-8")
        for task, questions in sets.items():
            (made / f"{questions.name}.jsonl").write_text(_rows(questions), encoding="utf-8")
            quoted = {"task": json.dumps(task), "name": json.dumps(questions.name)}
            (made / f"{questions.name}.yaml").write_text(_TASK.format(**quoted), encoding="utf-8")
    return list(sets)


def _name(domain: Domain, name: str) -> str:
    if not re.fullmatch(r"[\w-]{1,100}", name):
        raise HoldfastError(
            f"the question set {excerpt(name)} of {domain.folder} cannot be a file's name; use letters, digits, - and _"
        )
    return f"{re.sub(r'[^a-z0-9]+', '_', domain.name.lower()).strip('_') or 'domain'}_{name}"


def _rows(questions: QuestionSet) -> str:
    return "".join(
        json.dumps({"prompt": question.prompt, "choices": list(question.choices), "answer": question.answer}) + "\n"
        for question in questions.questions
    )
