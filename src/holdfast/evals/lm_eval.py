"""Tasks of lm-evaluation-harness: WMDP, MMLU, MMLU-Pro, IFEval, GSM8K, and any task of the user.

Tasks run where the user names them (`--evaluation wmdp_bio`), on the live model, as every other evaluation does. Scores equal
those of the harness's own command on the same checkpoint with the same settings. The score of a group is the mean over all its
questions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.files import digest, file_digest
from holdfast.core.presets import apart
from holdfast.core.types import HoldfastError, Measure, Score
from holdfast.evals.base import Evaluation
from holdfast.evals.memory import fits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.evals.base import Probe
    from holdfast.evals.harness import Answer, Sheet


@dataclass(frozen=True, kw_only=True)
class LMEval(Evaluation):
    """Tasks of lm-evaluation-harness; the questions of all tasks are pooled."""

    only_by_name: ClassVar[bool] = True

    tasks: tuple[str, ...] = ()
    """names of tasks, groups or tags; empty: every task in `folder`"""
    folder: str = apart("")
    """a folder with the user's task files; empty: the harness's own tasks"""
    measured: Measure = "ability"
    """what the scores measure: hazard, ability or refusal"""
    num_fewshot: int | None = None
    """number of examples before each question; None: the task's own number"""
    limit: int | None = None
    """number of questions of each task, taken from the start, as the harness's --limit; None: all"""
    milestone_limit: int = 32
    """the same limit between the first and the last step of an attack; 0: no questions; hazard questions are always asked in
    full"""
    chat_template: bool = False
    """True: each prompt goes into the tokenizer's chat template, with examples as turns"""
    max_new_tokens: int | None = None
    """maximum number of tokens written after a prompt; None: the task's own maximum"""

    def __post_init__(self) -> None:
        if not self.tasks and not self.folder:
            raise HoldfastError("an lm-eval evaluation needs tasks, or a folder of tasks; name one of them")
        for name, value, least in (
            ("num_fewshot", self.num_fewshot, 0),
            ("limit", self.limit, 1),
            ("milestone_limit", self.milestone_limit, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
        ):
            if value is not None and value < least:
                raise HoldfastError(f"{name} must be at least {least}, not {value}")

    def measures(self, domain: Domain) -> Measure:
        return self.measured

    def available(self, domain: Domain) -> bool:
        return True

    def content(self, domain: Domain) -> str:
        """Hash of the tasks as the harness reads them, of all their questions and examples, and of the harness's version."""
        return _content(replace(self, limit=None), _files(self.folder))

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        if self.measured == "hazard":
            return self
        if not self.milestone_limit:
            return None
        return replace(self, limit=min(self.milestone_limit, self.limit or self.milestone_limit))

    def positions(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> int:
        return self.sheet(tokenizer).longest

    def sheet(self, tokenizer: PreTrainedTokenizerBase) -> Sheet:
        """The questions for a tokenizer, whose `ask` gives a live model's answer to each of them.

        Raises:
            HoldfastError: as `load_tasks`.
        """
        from holdfast.evals.harness import Sheet

        return Sheet(_tasks(self, _files(self.folder)), tokenizer, self.limit, self.chat_template)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        sheet = self.sheet(tokenizer)

        def probe(model: PreTrainedModel) -> list[Score]:
            with fits(", ".join(self.tasks) or Path(self.folder).name):
                return scores(sheet, sheet.ask(model))

        return probe


def scores(sheet: Sheet, answers: Iterable[Answer]) -> list[Score]:
    """One score for each metric of which more is better, over the questions of all tasks that have it.

    Raises:
        HoldfastError: no metric is such.
    """
    from lm_eval.api.metrics import mean

    from holdfast.evals.harness import name_of

    tasks = {name_of(task): task for task, _ in sheet.tasks}
    by_metric: dict[str, list[Answer]] = {}
    for answer in answers:
        by_metric.setdefault(answer.metric, []).append(answer)
    found = []
    for metric, judged in by_metric.items():
        name, holders = metric.partition(",")[0], {answer.task: tasks[answer.task] for answer in judged}
        first = next(iter(holders.values()))
        if not first.higher_is_better().get(name, True):
            continue
        guessed = {task: sheet.options(holder) if name.startswith("acc") else None for task, holder in holders.items()}
        known = [chance for answer in judged if (chance := guessed[answer.task]) is not None]
        values = [answer.value for answer in judged]
        plain = first.aggregation().get(name, mean) is mean
        found.append(
            Score(
                metric=metric,
                value=float(first.aggregation().get(name, mean)(values)),
                stderr=_stderr(values) if plain else None,
                n=len(values),
                chance=sum(known) / len(known) if len(known) == len(judged) else None,
            )
        )
    if not found:
        raise HoldfastError(
            f"the tasks {', '.join(tasks)} have only metrics of which less is better, such as perplexity; name others"
        )
    return found


def _stderr(values: list[Any]) -> float | None:
    """The standard error of a mean, as the harness gives it."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5)


def _files(folder: str) -> str:
    """Content hash of a folder of the user's, whose code and data may lie beside its task files."""
    if not folder:
        return ""
    if not Path(folder).is_dir():
        raise HoldfastError(f"there is no folder {folder} of lm-eval tasks; give one that is there")
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths])


_loaded: dict[tuple[Any, ...], list[Any]] = {}
"""Tasks with their data, by what changes them: within a process a data set is read once, however often it is asked."""


def _tasks(evaluation: LMEval, files: str) -> list[Any]:
    from holdfast.evals.harness import load_tasks

    key = evaluation.tasks, evaluation.folder, files, evaluation.num_fewshot, evaluation.max_new_tokens
    if key not in _loaded:
        folder = Path(evaluation.folder) if evaluation.folder else None
        _loaded[key] = load_tasks(evaluation.tasks, folder, evaluation.num_fewshot, evaluation.max_new_tokens)
    return _loaded[key]


@cache
def _content(evaluation: LMEval, files: str) -> str:
    from holdfast.evals.harness import name_of, quiet, version

    tasks = []
    with quiet():
        for task in _tasks(evaluation, files):
            config = {name: value for name, value in task.dump_config().items() if name not in _PLACES}
            examples = list(task.sampler.df) if hasattr(task, "sampler") else []
            tasks.append(_plain([name_of(task), config, list(task.eval_docs), examples]))
    return digest([version(), files, tasks])


_PLACES = ("metadata", "dataset_kwargs")
"""What a task's settings say of where things lie; what lies there is in the hash."""


def _plain(value: Any) -> Any:
    """A value as JSON holds it: functions as their source, everything else that JSON lacks as Python writes it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
""".split()
"""of MMLU (arXiv 2009.03300)"""

NEAR_BIOLOGY = """
    college_biology high_school_biology medical_genetics virology college_medicine anatomy clinical_knowledge
""".split()
"""Left out of MMLU for biosecurity by TAR's published code (red_teaming/mmlu_eval/categories.py, `bio_forget_subjects`)."""

NEAR_SECURITY = ["computer_security"]
"""Left out for cybersecurity by the same file, which writes the name with a blank that no subject has."""

NEAR_CHEMISTRY = ["college_chemistry", "high_school_chemistry"]
"""Left out for chemistry: ours, the published code has no such list."""


def _retain(near: Sequence[str]) -> LMEval:
    """MMLU without the subjects near a hazard, with five examples as TAR's published code shows."""
    tasks = tuple(f"mmlu_{subject}" for subject in SUBJECTS if subject not in near)
    return LMEval(tasks=tasks, num_fewshot=5, milestone_limit=4)


PRESETS = {
    "wmdp_bio": LMEval(tasks=("wmdp_bio",), measured="hazard"),
    "wmdp_chem": LMEval(tasks=("wmdp_chem",), measured="hazard"),
    "wmdp_cyber": LMEval(tasks=("wmdp_cyber",), measured="hazard"),
    "mmlu": LMEval(tasks=("mmlu",), milestone_limit=4),
    "mmlu_retain_bio": _retain(NEAR_BIOLOGY),
    "mmlu_retain_chem": _retain(NEAR_CHEMISTRY),
    "mmlu_retain_cyber": _retain(NEAR_SECURITY),
    "mmlu_pro": LMEval(tasks=("mmlu_pro",), milestone_limit=0),
    "ifeval": LMEval(tasks=("ifeval",), milestone_limit=0),
    "gsm8k": LMEval(tasks=("gsm8k",), milestone_limit=0),
}
