"""Several processes that work on one model end where one process ends: every family, by the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from holdfast.campaign.on_ranks import on_ranks
from holdfast.cli.app import main
from holdfast.core.options import Options
from holdfast.core.presets import collect, pick
from holdfast.core.profiling import profile_folder
from holdfast.core.records import CampaignPlan, read_campaign
from holdfast.core.stopping import Stopped, listening
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.splitting import load
from holdfast.engine.state import read_state, write_state
from holdfast.runs.named import named_evaluations
from holdfast.runs.search.trial import Target, Trial, run_trial
from holdfast.runs.stages import Recipe, build
from holdfast.runs.study import tuning
from tests import shared_model
from tests.conftest import SmallTestbed
from tests.many_processes import Command, Ended, run, run_here

PAGE = Path(__file__).parent.parent / "docs" / "many-devices.md"

SMALL_LOOP = ("outer_steps=2", "inner_steps=4", "every=2", "tamper_resistance_batch_size=4", "retain_batch_size=8")
SMALL = ("outer_steps=4", "forget_batch_size=8", "retain_batch_size=8")

SAFEGUARDS: Mapping[str, Sequence[str]] = {
    "random-mapping": SMALL,
    "tar": (*SMALL_LOOP, "adversaries_per_step=2"),
    "tar-persistent": (
        *SMALL_LOOP,
        "persistent_adversaries=1",
        *(f"adversaries.{place}.attack.lora_rank=4" for place in range(3)),
    ),
    "booster": SMALL,
    "circuit-breakers-lat": SMALL,
    "grad-diff": SMALL,
    "llmu": (*SMALL, "micro_batch=2"),
    "max-entropy": SMALL,
    "min-posterior": SMALL,
    "mlac-ar": SMALL_LOOP,
    "npo-sam": SMALL,
    "refusal-sft": SMALL,
    "refusal-dpo": SMALL,
    "r2d2": ("outer_steps=2", "retain_batch_size=8", "suffixes.search_steps=1", "suffixes.candidates=8"),
    "rep-noise": SMALL,
    "rep-select": ("outer_steps=4", "forget_batch_size=64", "retain_batch_size=8"),
    "rmu": SMALL,
    "seam": SMALL,
    "simnpo": SMALL,
    "sophon-ar": SMALL_LOOP,
    "spec-def": ("outer_steps=1",),
    "undo": ("outer_steps=4", "distillation.batch_size=8"),
}
"""A preset of each family, and its settings over a few steps."""

REFUSALS = ("booster", "r2d2", "refusal-sft", "refusal-dpo")

ATTACKS: Mapping[str, Sequence[str]] = {
    "full-adamw-1e-3": (),
    "lora-r4-adamw-5e-3": (),
    "full-adadelta-1": (),
    "full-adagrad-3e-3": (),
    "full-lion-6e-5": (),
    "full-muon-5e-4": (),
    "full-sgd-nesterov-1e-1": (),
    "full-schedule-free-1e-3": (),
    "full-adamw-1e-3-mixed": ("max_grad_norm=0.1",),
    "full-adamw-1e-3-few-10": (),
    "abliterate": (),
    "defence-directions-4": (),
    "evolution-vectors-adam-1e-2": (),
    "int4-then-full-adamw-1e-3": (),
    "jailbreak-competing-adamw-1e-3": (),
    "kick-1e-2-settle-3e-4-kl": ("kick_steps=2",),
    "latent-pgd-three-layers": (),
    "low-rank-50": (),
    "merge-base-25": (),
    "noise-10-then-full-adamw-1e-3": (),
    "prune-50": (),
    "prune-units-25": (),
    "refold-then-lora-r4-adamw-5e-3": (),
    "soft-start-token-sign-1e-1": (),
    "transfer-full-adamw-1e-3": (),
    "sidestep-4-full-adamw-1e-3": (),
    "kick-aside-1e-2-settle-1e-3": ("kick_steps=2",),
    "strip-difference": (),
    "distil-half-fresh-adamw-3e-3": ("batch_size=16", "warmup_steps=2"),
    "head-offsets-half-adamw-1e-2": (),
    "own-outputs-benign-adamw-1e-3": ("outputs=16",),
    "preference-benign-10-adamw-3e-4": (),
    "reinforce-64-adamw-1e-3": (),
}

CLOSE = 2e-5
"""How far the weights of several processes may lie from those of one, as a share of the update. At most 7e-6 was measured here,
and other processors round otherwise."""

LOOSER: Mapping[str, float] = {
    "random-mapping": 3e-4,
    "tar": 2e-4,
    "tar-persistent": 1e-4,
    "mlac-ar": 2e-4,
    "simnpo": 2e-4,
    "sophon-ar": 4e-4,
    "full-muon-5e-4": 0.15,
    "evolution-vectors-adam-1e-2": 2e-3,
    "kick-aside-1e-2-settle-1e-3": 2e-4,
}
"""presets that lie further away, as one process does that takes its batch in two halves; the page has the figures"""

REPEATED = (
    "full-adamw-1e-3-few-10", "full-muon-5e-4", "abliterate", "defence-directions-4", "latent-pgd-three-layers", "low-rank-50",
    "refold-then-lora-r4-adamw-5e-3", "sidestep-4-full-adamw-1e-3", "kick-aside-1e-2-settle-1e-3", "strip-difference",
    "head-offsets-half-adamw-1e-2", "own-outputs-benign-adamw-1e-3", "preference-benign-10-adamw-3e-4",
    "reinforce-64-adamw-1e-3",
)  # fmt: skip
"""attacks of which every process computes some of the work, so that the FLOPs of all are more"""

SIZES: Mapping[str, float] = {"full-muon-5e-4": 3e-4}
"""presets whose update has another length by more than 1e-4: Muon's by 1.8e-4 on four processes; one process that takes its
batch in parts differs by 5e-5"""

UNKEPT = ("latent-pgd-three-layers", "head-offsets-half-adamw-1e-2")
"""attacks that leave weights which no file of the architecture has a place for"""

TIED = "-tied"
"""the end of a name whose model has one tensor for both embeddings"""

USUAL: Mapping[str, Sequence[str]] = {
    "tar-persistent-tied": ("--checkpointing",),
    "lora-r4-adamw-5e-3": (
        "--profile",
        *(("--matmul", "onednn") if torch.backends.mkldnn.is_available() else ()),  # type: ignore[no-untyped-call]
    ),
}
"""what the default run compares, and further options there"""


@dataclass(frozen=True)
class Benches:
    """Where the models are."""

    knowledge: Path
    """with a third model, `tied`"""
    refusal: Path

    def given(self, name: str) -> tuple[Path, list[str]]:
        """The model that a preset works on, and the options that name the model, the original and the data."""
        bench = self.refusal if name in REFUSALS else self.knowledge
        model, base = ("tied", "tied") if name.endswith(TIED) else ("model", "never_exposed")
        return bench / model, ["--model", str(bench / model), "--base", str(bench / base), "--domain", str(bench)]

    def words(self, name: str, out: Path) -> list[str]:
        """A short command for a preset; the result goes into a folder of the preset's name."""
        preset = name.removesuffix(TIED)
        settings = ("max_steps=4", *ATTACKS[preset]) if preset in ATTACKS else SAFEGUARDS[preset]
        words = [preset, *self.given(name)[1]]
        words += [word for setting in settings for word in ("--set", f"{preset}.{setting}")]
        words += USUAL.get(name, ())
        if preset in ATTACKS:
            words += ["--milestones", "4", "--resumable-attacks"]
            words += [] if preset in UNKEPT else ["--keep-attacked-weights"]
        return ["attack" if preset in ATTACKS else "safeguard", *words, "--out", str(out / name)]


@pytest.fixture(scope="module")
def benches(
    tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory
) -> Benches:
    folder = tmp_path_factory.mktemp("benches") / "knowledge"
    shutil.copytree(tiny_testbed.folder, folder)
    config = LlamaForCausalLM.config_class.from_pretrained(folder / "model")
    config.tie_word_embeddings = True
    torch.manual_seed(2)
    LlamaForCausalLM(config).save_pretrained(folder / "tied")
    Checkpoint(str(folder / "model")).load_tokenizer().save_pretrained(folder / "tied")
    return Benches(folder, tiny_refusal_testbed.folder)


class Alone:
    """What one process leaves, run when it is first asked for."""

    def __init__(self, benches: Benches, out: Path) -> None:
        self._benches, self.out = benches, out

    def __call__(self, name: str) -> Path:
        if not (self.out / name).exists():
            with caching_in(self.out / "cache"):
                assert run_here(Command(self._benches.words(name, self.out))) == 0
        return self.out / name


@pytest.fixture(scope="module")
def alone(benches: Benches, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(benches, tmp_path_factory.mktemp("alone"))


@contextmanager
def caching_in(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_CACHE", str(folder))
        yield


def weights_in(out: Path) -> dict[str, torch.Tensor]:
    """The weights that a command has left, of the safeguarded or of the attacked model."""
    [file] = [*out.glob("model.safetensors"), *out.glob("TAMPERED-*/model.safetensors")]
    return load_file(file)


def apart(start: Path, one: Path, many: Path) -> float:
    """The distance between what two runs have left, as a share of the update that one of them made."""
    before, ours, theirs = load_file(start / "model.safetensors"), weights_in(one), weights_in(many)
    assert ours.keys() == theirs.keys()
    difference = [ours[key].double() - theirs[key].double() for key in ours]
    update = [ours[key].double() - before.get(key, torch.zeros(())).double() for key in ours]
    return float(torch.nn.utils.get_total_norm(difference) / torch.nn.utils.get_total_norm(update))


def check(name: str, benches: Benches, one: Path, many: Path) -> None:
    """Compare what two runs of a preset have left: weights, records, losses and counts."""
    preset = name.removesuffix(TIED)
    far = LOOSER.get(preset, CLOSE)
    if preset not in UNKEPT:
        distance = apart(benches.given(name)[0], one, many)
        print(f"{many.parent.name}: {name} lies {distance:.0e} from one process")  # `pytest -rP` shows it, for the page
        assert distance <= far
    close = min(far, 1e-4)
    if preset in SAFEGUARDS:
        ours, theirs = (Checkpoint(str(folder)).card["stages"] for folder in (one, many))
        for stage, other in zip(ours, theirs, strict=True):
            assert other["last losses"] == pytest.approx(stage["last losses"], rel=close, abs=1e-5)
            assert other["tokens"] == stage["tokens"]
        return
    for cell, other in zip(*(read_campaign(folder)[1] for folder in (one, many)), strict=True):
        assert cell.status == other.status == "finished"
        assert other.tokens == cell.tokens
        if cell.flops:
            assert other.flops is not None
            assert other.flops >= (1 - 1e-6) * cell.flops
            assert preset in REPEATED or other.flops == pytest.approx(cell.flops, rel=1e-6)
        assert (other.update_size or 0.0) == pytest.approx(cell.update_size or 0.0, rel=SIZES.get(preset, close))
        assert [loss for _, loss in other.losses] == pytest.approx([loss for _, loss in cell.losses], rel=close)
        for record, same in zip(cell.records, other.records, strict=True):
            assert (same.evaluation, same.metric, same.step) == (record.evaluation, record.metric, record.step)
            assert record.metric != "nats" or same.value == pytest.approx(record.value, rel=1e-3, abs=1e-5)


class Together:
    """What several processes leave."""

    def __init__(self, names: Sequence[str], processes: int, benches: Benches, out: Path, *more: Command) -> None:
        """Run a command for each preset, and then more."""
        self.out, self.cache = out, out / "cache"
        ended = run([*(Command(benches.words(name, out)) for name in names), *more], processes, out, self.cache)
        self.ended = dict(zip(names, ended, strict=False))
        self.more = ended[len(names) :]


@pytest.fixture(scope="module")
def usual(benches: Benches, tmp_path_factory: pytest.TempPathFactory) -> Together:
    out = tmp_path_factory.mktemp("usual")
    plugin = out / "whole.py"
    plugin.write_text(WHOLE)
    given = benches.given("")[1]
    model = [word for word in given if word not in given[2:4]]
    return Together(
        tuple(USUAL), 2, benches, out,
        Command(["evaluate", *model, "--out", str(out / "scores.json")]),
        Command([*benches.words("random-mapping", out / "user"), "--seed", "1"], stopped_after=1),
        Command([*benches.words("random-mapping", out / "system"), "--seed", "2"], stopped_after=2, by="system"),
        *(Command(words) for words in refused(model, plugin, out)),
    )  # fmt: skip


def refused(model: Sequence[str], plugin: Path, out: Path) -> list[list[str]]:
    """Commands that end with a sentence."""
    attack = ["attack", "full-adamw-1e-3", *model, "--out", str(out / "attack")]
    return [
        ["attack", "whole", *model, "--plugins", str(plugin), "--out", str(out / "whole")],
        ["audit", *model, "--undefended", "x", "--out", str(out / "audit")],
        ["attack", "full-adamw-1e-3", *model],
        [*attack, "--precision", "lean"],
        [*attack, "--plan"],
        [*attack, "--executor", "ray"],
    ]


SENTENCES = (
    "whole cannot run on a model that is split over several devices, because it looks at all weights together; run the",
    "audit does not run under torchrun, which is for safeguard, attack and evaluate of one large model; run it without",
    "missing option '--out'",
    "lean precision does not run on a model that is split over several devices; give --precision float32 or mixed",
    "--plan foretells the memory of a model that is not split over several devices; run the command without torchrun",
    "--executor ray does not go with torchrun, whose processes run every cell together; leave one of them out",
)

WHOLE = """
from dataclasses import dataclass
from holdfast.attacks.finetune import FineTune

@dataclass(frozen=True, kw_only=True)
class Whole(FineTune):
    @property
    def on_one_device(self):
        return "it looks at all weights together"

PRESETS = {"whole": Whole()}
"""


@pytest.mark.parametrize("name", USUAL)
def test_two_processes_end_where_one_ends(name: str, usual: Together, alone: Alone, benches: Benches) -> None:
    assert usual.ended[name].statuses == (0, 0)
    check(name, benches, alone(name), usual.out / name)


def test_one_process_speaks(usual: Together) -> None:
    for ended in (*usual.ended.values(), usual.more[0]):
        assert ended.printed[0]
        assert ended.printed[1] == ""
        assert "Warning" not in ended.said


def test_the_first_process_alone_writes_a_trace(usual: Together, alone: Alone) -> None:
    name = "lora-r4-adamw-5e-3"
    folders = (profile_folder(out) for out in (alone(name), usual.out / name))
    here, there = ({path.name for path in folder.iterdir()} for folder in folders)
    assert there == here
    assert len(there) == 2


def test_an_evaluation_gives_the_scores_of_one_process(usual: Together, benches: Benches, tmp_path: Path) -> None:
    assert usual.more[0].statuses == (0, 0)
    model, _, domain = zip(*[iter(benches.given("")[1])] * 2, strict=True)
    assert run_here(Command(["evaluate", *model, *domain, "--out", str(tmp_path / "scores.json")])) == 0
    many, one = (json.loads((folder / "scores.json").read_bytes()) for folder in (usual.out, tmp_path))
    assert [(row["evaluation"], row["metric"]) for row in many] == [(row["evaluation"], row["metric"]) for row in one]
    for row, other in zip(one, many, strict=True):
        # A step of the gradient check is so small that rounding shows in what it finds.
        close = {"rel": 1e-2, "abs": 2e-3} if row["measures"] == "masking" else {"rel": 1e-4, "abs": 1e-6}
        assert other["value"] == pytest.approx(row["value"], **close), row


@pytest.mark.parametrize("place", range(len(SENTENCES)))
def test_what_cannot_run_on_several_processes_says_so_once(place: int, usual: Together) -> None:
    ended: Ended = usual.more[3 + place]
    assert all(ended.statuses)
    assert ended.status == 2
    assert len(ended.said.splitlines()) == 1
    assert ended.said.startswith(f"holdfast: {SENTENCES[place]}")


@pytest.mark.parametrize(("place", "who", "statuses"), [(1, "user", (130, 130)), (2, "system", (143, 143))])
def test_one_process_goes_on_where_two_were_stopped(
    place: int, who: str, statuses: tuple[int, ...], usual: Together, benches: Benches, tmp_path: Path
) -> None:
    """By the system: one process alone is asked, and both save the state and end."""
    stopped, more = usual.more[place], ["--seed", str(place)]
    assert stopped.statuses == statuses
    assert len(stopped.said.splitlines()) == 1
    with caching_in(usual.cache):
        assert len([*(usual.cache / "stages").glob("*.part")]) >= 1
        assert run_here(Command([*benches.words("random-mapping", usual.out / who), *more])) == 0
    with caching_in(tmp_path / "cache"):
        assert run_here(Command([*benches.words("random-mapping", tmp_path), *more])) == 0
    check("random-mapping", benches, tmp_path / "random-mapping", usual.out / who / "random-mapping")


def test_more_processes_than_gpus_is_a_sentence(benches: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.splitting.rank_of", lambda: (0, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(HoldfastError, match="split over 2 processes of a machine that shows them 1 GPUs"):
        load(Checkpoint(str(benches.knowledge / "model")), "cuda", "float32", False)


def test_a_rank_that_finds_another_state_than_rank_0_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path / "state", {"weight": torch.ones(2)})
    monkeypatch.setattr("holdfast.engine.state.agreed", lambda value: bytes(32))
    with pytest.raises(HoldfastError, match="is not the same on all machines of this run"):
        read_state(tmp_path / "state")


def test_no_judge_is_asked_by_several_processes(benches: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HoldfastError, match="each process that shares the model would ask"):
        named_evaluations(["compliance_rubric"], benches.refusal)


EVERY = (*SAFEGUARDS, *ATTACKS, "random-mapping-tied", "tar-persistent-tied", "lora-r4-adamw-5e-3-tied")

SEVERAL = (
    "random-mapping-tied", "tar-persistent-tied", "tar", "r2d2", "rep-noise", "rep-select", "seam", "undo",
    "full-adamw-1e-3", "full-adamw-1e-3-few-10", "full-muon-5e-4", "full-schedule-free-1e-3", "lora-r4-adamw-5e-3", "abliterate",
    "head-offsets-half-adamw-1e-2", "preference-benign-10-adamw-3e-4", "sidestep-4-full-adamw-1e-3", "transfer-full-adamw-1e-3",
)  # fmt: skip
"""what runs on four processes too, and goes on with other numbers: what keeps a state of its own, or needs whole tensors"""

WAYS = {"on_two": ((2,), EVERY), "on_four": ((4,), SEVERAL), "going_on": ((2, 4, 1), SEVERAL)}
"""numbers of processes, and what runs on them; on several numbers a run is stopped and goes on with the next"""


@pytest.fixture(scope="module")
def together(benches: Benches, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with what the presets of a way leave, which are run when the first of them is asked for."""

    @cache
    def run_way(way: str) -> Path:
        out, (numbers, names) = tmp_path_factory.mktemp(way), WAYS[way]
        for number, stop in zip(numbers, (1, 2, None) if len(numbers) > 1 else (None,), strict=True):
            commands = [Command(benches.words(name, out), stopped_after=stop) for name in names]
            if number > 1:
                for ended in run(commands, number, out, out / "cache"):
                    assert ended.status == (0 if stop is None else 130), ended
            else:
                with caching_in(out / "cache"):
                    assert {run_here(command) for command in commands} == {0}
        return out

    return run_way


@pytest.mark.slow
@pytest.mark.parametrize(("way", "name"), [(way, name) for way, (_, names) in WAYS.items() for name in names])
def test_several_processes_end_where_one_ends_whatever_the_preset(
    way: str, name: str, together: Callable[[str], Path], alone: Alone, benches: Benches
) -> None:
    check(name, benches, alone(name), together(way) / name)


def test_the_table_has_every_family_and_the_page_shows_the_table() -> None:
    for room, tested in (("holdfast.safeguards", SAFEGUARDS), ("holdfast.attacks", ATTACKS)):
        presets = collect(room)
        split = {type(preset) for preset in presets.values() if not preset.on_one_device}
        assert split == {type(presets[name]) for name in tested}
    shown = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown == [*SAFEGUARDS, *ATTACKS]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of `on_ranks` end soon where one of them has ended."""
    monkeypatch.setattr("holdfast.campaign.on_ranks._GRACE", 0.5)


@pytest.mark.usefixtures("quick")
def test_all_processes_call_the_function_and_rank_0_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    result = on_ranks(3, shared_model.add, {"on_step": lambda done, total: told.append((done, total))}, number=3)
    assert result == (3 + 4 + 5, 1, "3")
    assert {done / total for done, total in told} - {0.0} == {0.5, 1.0}
    assert told[-1][0] == told[-1][1], "that all is done is told in any case"


def test_one_process_calls_the_function_itself() -> None:
    assert on_ranks(1, os.getpid) == os.getpid()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (shared_model.refuse, HoldfastError, "no 2"),
        (shared_model.diverge, NonFinite, "the loss became nan"),
        (shared_model.stumble_on_second, HoldfastError, "ValueError: only here"),
    ],
)
def test_what_fails_comes_back_as_it_is(call: Callable[..., Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(HoldfastError, match=f"^{said}$") as caught:
        on_ranks(2, call)
    assert type(caught.value) is kind


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_twice_is_one_sentence(rank: int, tmp_path: Path) -> None:
    said = f"process {rank + 1} of the 2 that share the model died (signal 9), perhaps for lack of memory: give more --ranks"
    with pytest.raises(HoldfastError, match=re.escape(said)):
        on_ranks(2, shared_model.die, rank=rank, folder=tmp_path)
    assert len([*tmp_path.glob(f"*-{rank}")]) == 2


@pytest.mark.usefixtures("quick")
def test_a_process_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    assert on_ranks(2, shared_model.die_at_first, folder=tmp_path) == 2.0


@pytest.fixture
def stopper(tmp_path: Path) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Call something when both processes are at work."""

    def stop_when_at_work(stop: Callable[[], None]) -> None:
        def wait() -> None:
            while len([*tmp_path.glob("at-work-*")]) < 2:
                time.sleep(0.05)
            stop()

        thread = threading.Thread(target=wait)
        thread.start()
        threads.append(thread)

    threads: list[threading.Thread] = []
    yield stop_when_at_work
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("quick")
def test_the_system_stops_the_worker_and_all_save(
    stopper: Callable[[Callable[[], None]], None], tmp_path: Path
) -> None:
    stopper(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with listening(), pytest.raises(Stopped):
        on_ranks(2, shared_model.until_asked, folder=tmp_path)
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    for path in tmp_path.glob("at-work-*"):
        assert not Path(f"/proc/{path.read_text()}/status").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_cell_may_be_a_run_of_several_processes(alone: Alone, benches: Benches, tmp_path: Path) -> None:
    name = "lora-r4-adamw-5e-3"
    with caching_in(tmp_path / "cache"):
        assert run_here(Command([*benches.words(name, tmp_path), "--ranks", "2"])) == 0
    check(name, benches, alone(name), tmp_path / name)
    assert CampaignPlan.read(tmp_path / name).cells == CampaignPlan.read(alone(name)).cells


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["full-adamw-1e-3", "--precision", "lean"],
            "--precision lean does not go with --ranks 2; give float32 or mixed",
        ),
        (
            ["full-adamw-1e-3", "--plan"],
            "--memory and --plan look at a model that is not split over several processes; leave them out with --ranks",
        ),
        (
            ["full-adamw-1e-3", "--evaluation", "compliance_rubric", "--judge-url", "http://x", "--judge-model", "x"],
            "compliance_rubric asks a language model for its verdict, and each process that shares the model would ask",
        ),
    ],
)
def test_what_cannot_share_a_model_says_so(
    words: list[str], said: str, benches: Benches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(benches.refusal / "model"), "--domain", str(benches.refusal)]
    assert run_here(Command(["attack", *words, *given, "--ranks", "2", "--out", str(tmp_path / "out")])) != 0
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


DIES = """
import os, signal
from dataclasses import dataclass
from holdfast.attacks.finetune import FineTune
from holdfast.engine.ranks import rank_of

@dataclass(frozen=True, kw_only=True)
class Dies(FineTune):
    def steps(self, model, data, run):
        for step, loss in enumerate(super().steps(model, data, run)):
            if step == 1 and rank_of() == (1, 2):
                os.kill(os.getpid(), signal.SIGKILL)
            yield loss

PRESETS = {"dies": Dies(max_steps=4)}
"""


@pytest.mark.slow
def test_an_audit_of_shared_models_has_the_records_of_one_process_and_a_killed_rank_costs_its_cell(
    benches: Benches, tmp_path: Path
) -> None:
    """Through the command, with workers of its own."""
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "suite.toml").write_text(
        '[[attacks]]\npreset = "full-adamw-1e-3"\nmax_steps = 4\n[[attacks]]\npreset = "dies"\n'
    )
    model, base = benches.given("")[0], benches.knowledge / "never_exposed"
    words = [
        "audit", "--model", str(model), "--undefended", str(base), "--domain", str(benches.knowledge), "--seeds", "1",
        "--suite", str(tmp_path / "suite.toml"), "--plugins", str(tmp_path / "dies.py"), "--workers", "1",
    ]  # fmt: skip
    with caching_in(tmp_path / "cache"):
        assert main([*words, "--out", str(tmp_path / "one")]) == 0
        assert main([*words, "--ranks", "2", "--out", str(tmp_path / "two")]) != 0
    one, two = ({c.cell: c for c in read_campaign(tmp_path / name)[1]} for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, cell in two.items():
        if cell.attack == "dies":
            assert cell.status == "failed"
            assert cell.reason.startswith("process 2 of the 2 that share the model died (signal 9)")
            continue
        assert cell.status == "finished"
        assert [loss for _, loss in cell.losses] == pytest.approx([loss for _, loss in one[key].losses], rel=1e-4)
        for record, same in zip(one[key].records, cell.records, strict=True):
            assert (same.evaluation, same.metric, same.step) == (record.evaluation, record.metric, record.step)
            if record.metric == "nats":
                assert same.value == pytest.approx(record.value, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_an_audit_can_be_made_again_with_models_that_processes_share(benches: Benches, tmp_path: Path) -> None:
    """Through the command, with workers of its own."""
    (tmp_path / "suite.toml").write_text('[[attacks]]\npreset = "full-adamw-1e-3"\nmax_steps = 4\n')
    model, base = benches.given("")[0], benches.knowledge / "never_exposed"
    inputs = ["--model", str(model), "--undefended", str(base), "--domain", str(benches.knowledge), "--workers", "1"]
    with caching_in(tmp_path / "cache"):
        suite = ["--suite", str(tmp_path / "suite.toml"), "--seeds", "1", "--out", str(tmp_path / "one")]
        assert main(["audit", *inputs, *suite]) == 0
        again = ["reproduce", str(tmp_path / "one" / "reproduce.json"), *inputs, "--ranks", "2"]
        assert main([*again, "--out", str(tmp_path / "two")]) == 0
    one, two = (CampaignPlan.read(tmp_path / name) for name in ("one", "two"))
    assert one.cells == two.cells


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_trials_and_safeguards_may_be_shared_by_several_processes(benches: Benches, tmp_path: Path) -> None:
    bed = benches.knowledge
    made, tried, tuned = dict[int, Path](), dict[int, Trial | None](), dict[int, tuning.Trial]()
    attack = replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=4)
    rmu = replace(pick("holdfast.safeguards", "rmu"), outer_steps=4, forget_batch_size=8, retain_batch_size=8)
    for ranks in (1, 2):
        options, out = Options(ranks=ranks), tmp_path / str(ranks)
        target = Target(model=bed / "model", domain=bed, options=options)
        recipe = Recipe(model=Checkpoint(str(bed / "model")), domain=bed, stages=(("rmu", rmu),), options=options)
        told = list[tuple[int, int]]()

        def tell(done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            told.append((done, total))

        with caching_in(out / "cache"):
            run_trial(target, "full", {}, attack, (), "key", out / "trial.json")
            made[ranks] = build(recipe, out / "model", tell)
            tuning.run_trial(
                out / "tuned.json", bed, bed / "model", (("rmu", rmu),), {}, ("full-adamw-1e-3",), "hazard_selection", 0,
                options, lambda done, total: None,
            )  # fmt: skip
        tried[ranks], tuned[ranks] = Trial.read(out / "trial.json"), tuning.Trial.read(out / "tuned.json")
        assert {total for _, total in told} == {4}
        assert told[-1] == (4, 4)
    assert apart(bed / "model", made[1], made[2]) <= CLOSE
    for trial in tried.values():
        assert trial is not None
        assert trial.status == "finished"
        assert [step for step, _, _ in trial.curve] == [0, 4]
    assert len({trial.tokens for trial in tried.values() if trial}) == 1
    assert tuned[1].key == tuned[2].key
    assert tuned[1].failed == tuned[2].failed == ""
    assert tuned[2].hazard.keys() == tuned[1].hazard.keys()
