"""lm-evaluation-harness: finds and loads its tasks, and asks their questions of a live model.

This file imports the harness only in the functions that use the harness. Tasks, prompts, few-shot examples, filters and metrics
are the harness's own. The order is ours: the data of a task is read once, its requests are built once, and a live model answers
the requests at every milestone. The harness would cut a prompt that is too long, or show a question its own answer; we refuse
both.
"""

from __future__ import annotations

import copy
import io
import logging
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.domain import nearest
from holdfast.core.escape import short
from holdfast.core.reading import line
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.evals.memory import rows_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWSHOT_SEED = 1234
"""What the harness's own command draws examples with (lm-eval 0.4.13, `simple_evaluate`)."""

NEW_TOKENS = 256
"""What the harness writes at most where a task does not say (lm-eval 0.4.13, `HFLM.max_gen_toks`)."""


@dataclass(frozen=True)
class Answer:
    """One question of a task, scored by one metric."""

    task: str
    question: int
    """index of the question in the task, from 0"""
    metric: str
    """the metric's name in the harness; where the task names its filters, followed by a comma and the filter:
    "exact_match,strict-match\""""
    value: Any
    """a number for most metrics; for other metrics, the input of the metric's own aggregation"""


def check_installed() -> None:
    """Check that the harness can be imported.

    Raises:
        HoldfastError: lm-eval is not installed.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise HoldfastError("lm-eval is not installed; install it with: pip install 'holdfast[lm-eval]'") from error


def version() -> str:
    """The harness's version, which says what its own tasks are."""
    from importlib.metadata import version as version_of

    return version_of("lm-eval")


def load_tasks(names: Sequence[str], folder: Path | None, num_fewshot: int | None, new_tokens: int | None) -> list[Any]:
    """The harness's tasks of these names with their data; a group or a tag stands for its tasks.

    Args:
        names: of tasks, groups or tags; none: every task in `folder`.
        folder: with task files of the user's; None: the harness's own tasks.
        num_fewshot: examples shown before each question; None: as each task says.
        new_tokens: the most that is written after a prompt; None: as each task says.

    Raises:
        HoldfastError: there is no such task, its data is not within reach, or it has no examples to show.
    """
    check_installed()
    tasks: dict[str, Any] = {}
    with quiet(), _own_randomness():
        for name in names or _names_in(folder):
            manager = _manager(name, folder)
            try:
                tasks |= manager.load([name])["tasks"]
            except ImportError as error:
                raise HoldfastError(
                    f"the lm-eval task {short(name)} needs a package that is not here ({line(str(error))}); install that package"
                ) from error
            except Exception as error:  # data sets, hub clients and task files have many ways to fail
                raise HoldfastError(
                    f"the lm-eval task {short(name)} cannot be loaded with its data set "
                    f"({line(str(error)) or type(error).__name__}); download the data set once while online, and ask for access "
                    "on its page where it is gated"
                ) from error
    for task in tasks.values():
        _set_up(task, num_fewshot, new_tokens)
    return list(tasks.values())


def name_of(task: Any) -> str:
    """A task's name; the harness's own property draws a random number each time."""
    return str(task.config.task)


def _set_up(task: Any, num_fewshot: int | None, new_tokens: int | None) -> None:
    if num_fewshot and not _has_examples(task):
        raise HoldfastError(
            f"the lm-eval task {short(name_of(task))} has no examples apart from its questions; set num_fewshot to 0"
        )
    if num_fewshot is None:
        num_fewshot = task.get_config("num_fewshot") or 0
    task.set_config(key="num_fewshot", value=num_fewshot)
    if new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        settings = task.get_config("generation_kwargs") or {}
        kept = {name: value for name, value in settings.items() if name not in _LENGTHS}
        task.set_config(key="generation_kwargs", value={**kept, "max_gen_toks": new_tokens})


_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
"""What task files call the most that is written."""


def _has_examples(task: Any) -> bool:
    """Whether examples come from elsewhere than the questions: the harness would show a question its own answer otherwise."""
    shown = getattr(task, "fewshot_cfg", None)
    return bool(
        task.has_training_docs()
        or task.has_validation_docs()
        or (shown is not None and (shown.split is not None or shown.samples is not None))
    )


def _manager(name: str, folder: Path | None) -> Any:
    """A task manager that knows a name.

    The harness has 14 000 task files, which take half a minute to read. A task lies in a folder that its name begins with, as a
    rule; only where that fails are all of them read.

    Raises:
        HoldfastError: no task is called so.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    named = sorted((home for home in root.iterdir() if name.startswith(home.name)), key=lambda home: -len(home.name))
    for home in (folder,) if folder is not None else (*named, root):
        manager = _index(home) if folder is not None else _own_index(home)
        if name in manager.task_index:
            return manager
    where = f"{folder} has" if folder is not None else "lm-eval has"
    raise HoldfastError(f"{where} no task {short(name)}; {nearest(name, manager.all_tasks)}")


def _index(home: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(home), include_defaults=False)


_own_index = cache(_index)


def _names_in(folder: Path | None) -> list[str]:
    """Every task in a folder of the user's.

    Raises:
        HoldfastError: there is none.
    """
    names = list(_index(folder).all_subtasks) if folder is not None and folder.is_dir() else []
    if not names:
        raise HoldfastError(f"{folder} holds no lm-eval task; give a folder with task files that end in .yaml")
    return names


class Sheet:
    """The requests of some tasks, built once; `ask` lets a live model answer them.

    Args:
        tasks: as `load_tasks` gives them.
        tokenizer: whose chat template is used, and whose tokens are counted.
        limit: how many questions of each task, the first ones, as the harness's `--limit`; None: all.
        chat: whether each prompt goes through the chat template, with examples as turns.
    """

    def __init__(
        self, tasks: Sequence[Any], tokenizer: PreTrainedTokenizerBase, limit: int | None = None, chat: bool = False
    ) -> None:
        # The harness adds a pad token to what it is given.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tasks: list[tuple[Any, list[Any]]] = []
        for task in tasks:
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            with quiet(), _own_randomness():
                task.build_all_requests(
                    limit=limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    chat_template=self._rendered if chat else None,
                    tokenizer_name=type(tokenizer).__name__ if chat else "",
                )
            self.tasks.append((task, task.instances))
        self.longest = max(_tokens(self.tokenizer, request) for _, requests in self.tasks for request in requests)

    def _rendered(self, history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        from holdfast.engine.chat import render

        begun = "" if add_generation_prompt else history[-1]["content"]
        turns = history if add_generation_prompt else history[:-1]
        try:
            return render(self.tokenizer, turns, prompt=True) + begun
        except HoldfastError:  # as the harness: some templates know no system turn
            return render(self.tokenizer, [turn for turn in turns if turn["role"] != "system"], prompt=True) + begun

    def options(self, task: Any) -> float | None:
        """What guessing scores in a task of options: the mean of one over their number; None in any other task."""
        if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
            return None
        counts = {request.doc_id: len(task.doc_to_choice(request.doc)) for request in self._requests(task)}
        return sum(1 / count for count in counts.values()) / len(counts)

    def _requests(self, task: Any) -> list[Any]:
        return next(requests for known, requests in self.tasks if known is task)

    def ask(self, model: PreTrainedModel) -> list[Answer]:
        """Every question's answer as each metric of its task judges it. The model and all randomness stay as they were.

        Raises:
            HoldfastError: a prompt and its answer are longer than what the model reads.
            NonFinite: the model's logits are not finite.
        """
        with quiet(), _own_randomness():
            answering = _live(model, self.tokenizer, rows_at_once(model, self.longest))
            if self.longest > answering.max_length:
                names = short(", ".join(name_of(task) for task, _ in self.tasks))
                raise HoldfastError(
                    f"the longest question of {names} takes {self.longest} tokens with its answer, and the model reads "
                    f"{answering.max_length}; set fewer num_fewshot or max_new_tokens, or leave these tasks out"
                )
            kinds: defaultdict[str, list[Any]] = defaultdict(list)
            for request in (request for _, requests in self.tasks for request in requests):
                request.resps, request.filtered_resps = [], {}
                kinds[request.request_type] += [request] * request.repeats
            for kind, requests in kinds.items():
                for request, response in zip(
                    requests, getattr(answering, kind)(requests, disable_tqdm=True), strict=True
                ):
                    request.resps.append(response)
            return [answer for task, requests in self.tasks for answer in _judged(task, requests)]


def _judged(task: Any, requests: Sequence[Any]) -> Iterator[Answer]:
    task._instances = requests
    task.apply_filters()
    questions: defaultdict[int, list[Any]] = defaultdict(list)
    for request in requests:
        questions[request.doc_id].append(request)
    for kept in requests[0].filtered_resps:
        for place, asked in sorted(questions.items()):
            asked.sort(key=lambda request: request.idx)
            values = task.process_results(asked[0].doc, [request.filtered_resps[kept] for request in asked])
            for metric, value in values.items():
                yield Answer(name_of(task), place, metric if kept == "none" else f"{metric},{kept}", value)


def _tokens(tokenizer: PreTrainedTokenizerBase, request: Any) -> int:
    """How many tokens of a request a model reads and writes."""
    if request.request_type == "generate_until":
        prompt, settings = request.args
        written = next((settings[name] for name in _LENGTHS if name in settings), NEW_TOKENS)
        return len(tokenizer(prompt)["input_ids"]) + int(written)
    if request.request_type == "loglikelihood_rolling":
        return 0  # read in windows that fit
    return len(tokenizer("".join(request.args[:2]))["input_ids"])


def _live(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int) -> Any:
    """The harness's reader of a model, on one that is in memory: no weights are tied, and a logit that is not finite raises."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import LogitsProcessorList

    def finite(logits: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(logits).all():
            raise NonFinite("the model's logits are not finite, so it has no score")
        return logits

    def same(*_: Any, **__: Any) -> None:
        """Ties nothing: weights that an attack has parted stay parted."""

    model.tie_weights = same  # type: ignore[method-assign]
    try:
        reader: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows)
    finally:
        del model.tie_weights
    call, generate = reader._model_call, reader._model_generate
    checks = LogitsProcessorList([lambda ids, scores: finite(scores)])
    reader._model_call = lambda *inputs, **more: finite(call(*inputs, **more))
    reader._model_generate = lambda *inputs, **more: generate(*inputs, logits_processor=checks, **more)
    return reader


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The same random numbers every time, and those of the run afterwards as if nothing had been drawn."""
    import numpy as np
    import torch

    before, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            yield
        finally:
            random.setstate(before)
            np.random.set_state(of_numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no log lines of the harness's; what it raises is said in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
