"""The options that verbs share, and their checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import divert
from holdfast.cli.terminal import fail
from holdfast.core.processes import started_by_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.core.options import Options
    from holdfast.core.types import NumberType
    from holdfast.evals.endpoint import Endpoint
    from holdfast.safeguards.base import Safeguard

RENAMED = {"dtype": "precision"}
"""what earlier versions called an option"""

THREADS = max(64, os.cpu_count() or 1)
"""Far more than this kill the process while it starts them."""

WORKERS = max(256, os.cpu_count() or 1)
"""Every process has a copy of torch and of a model."""

ModelOption = Annotated[
    str, typer.Option("--model", help="Hugging Face folder of a causal language model, or a hub id.")
]


DomainOption = Annotated[
    Path, typer.Option("--domain", help="Folder with domain.toml, which names data and questions.")
]


OutOption = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


SetOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        autocompletion=complete.settings,
        help="PRESET.FIELD=VALUE, repeatable; `holdfast list PRESET` shows fields.",
    ),
]


PluginsOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--plugins",
        metavar="FILE_OR_MODULE",
        help="Load plug-ins from a Python file, a package's folder or a module; repeatable. They are code and run as you.",
    ),
]


EvaluationsOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--evaluation",
        help="Ask this too, repeatable: a preset such as wmdp_bio or mmlu, lm-eval:TASK, or lm-eval:FOLDER of task files.",
    ),
]


JudgeUrlOption = Annotated[
    Optional[str],
    typer.Option(
        "--judge-url",
        help="Server of a language model that judges replies (protocol of OpenAI's chat); replies are sent there. "
        "The key stands in HOLDFAST_JUDGE_KEY.",
    ),
]


JudgeModelOption = Annotated[Optional[str], typer.Option("--judge-model", help="What the server calls that model.")]


DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]


PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        autocompletion=complete.precisions,
        help="float32; mixed: float32 weights, bfloat16 products; or lean: bfloat16 weights, 8-bit optimizer states.",
    ),
]


MicroBatchOption = Annotated[
    Optional[int],
    typer.Option(
        "--micro-batch",
        min=1,
        metavar="ROWS",
        help="Rows that go through the model at once while it is trained; less memory, the same averages.",
    ),
]


MatmulOption = Annotated[
    str,
    typer.Option(
        "--matmul",
        autocompletion=complete.matmuls,
        help="Library for the float32 matrix products of linear layers on a CPU: torch (MKL, mostly) or onednn, which is "
        "faster on AMD processors with AVX-512. The last digits differ.",
    ),
]


CheckpointingOption = Annotated[
    bool,
    typer.Option(
        "--checkpointing",
        help="Compute what is inside of layers again in the backward pass: less memory, more time, the same numbers.",
    ),
]


OffloadOption = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep on the host what only the outer loop needs (weights before the inner loop, sum of gradients, outer optimizer, "
        "original model): less memory on a GPU, the same numbers.",
    ),
]


MemoryPlanOption = Annotated[
    bool, typer.Option("--plan", help="Only say what memory it will take, by part; no model is loaded.")
]


MemoryOption = Annotated[
    Optional[str],
    typer.Option(
        "--memory",
        metavar="auto|SIZE",
        help="Turn --offload, --checkpointing and then --micro-batch as far as needed to fit into what is free (auto) "
        "or into a size such as 24GB; say what was turned.",
    ),
]


SavedPrecisionOption = Annotated[
    Optional[str],
    typer.Option(
        "--save-dtype",
        autocompletion=complete.number_types,
        help="Type of the saved weights: float32, bfloat16 or float16; by default that of MODEL's files.",
    ),
]


RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Off unless you say so.")
]


def _at_most(most: int) -> Callable[[int], int]:
    def check(count: int) -> int:
        if count > most:
            raise typer.BadParameter(f"at most {most} make sense on this machine, not {count}")
        return count

    return check


ThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=1, callback=_at_most(THREADS), help="Processor threads of this process."),
]


def _workers(context: typer.Context, count: int) -> int:
    """Only the processes of this machine have a limit."""
    return _at_most(WORKERS)(count) if context.params.get("executor", "local") == "local" else count


WorkersOption = Annotated[int, typer.Option("--workers", min=1, callback=_workers, help="Processes at a time.")]


SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")]


MilestonesOption = Annotated[
    Optional[str], typer.Option("--milestones", help="Steps to measure at, such as 0,8,64,512; default 0,5,10,20,40,…")
]


def _status(context: typer.Context, folder: Optional[Path]) -> None:
    from holdfast.cli.say import show_status

    if folder is None or context.resilient_parsing:
        return
    # This option ends the command before those that stand behind it are looked at.
    if "--json" in (context.find_root().obj or ()):
        divert(context)
    show_status(context, folder)


StatusOption = Annotated[
    Optional[Path],
    typer.Option("--status", metavar="DIR", is_eager=True, callback=_status, help="Only say how a run stands."),
]


KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-attacked-weights", help="Keep each attacked model, in a folder named TAMPERED-…; off by default."
    ),
]


ResumableOption = Annotated[
    bool,
    typer.Option(
        "--resumable-attacks", help="Keep an attack's state on disk while it runs, so that it survives a kill."
    ),
]


TrackOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--track",
        help="Show the run in tensorboard, wandb, mlflow or trackio while it goes on; repeatable. Only figures and the names of "
        "presets are sent. Off by default.",
    ),
]


ProfileOption = Annotated[
    bool,
    typer.Option("--profile", help="Write a trace of the first two updates, which shows where their time goes."),
]


ReleaseOption = Annotated[
    Optional[Path],
    typer.Option(
        "--release", help="What a person states about the release, TOML; `holdfast release DIR` writes a start."
    ),
]


def start_torch(threads: int, device: str, precision: str) -> None:
    import torch

    from holdfast.core.options import check_precision

    check_precision(precision)
    check_device(device)
    torch.set_num_threads(threads)


def check_device(device: str) -> None:
    import torch

    from holdfast.core.reading import excerpt

    if started_by_torchrun() and device.startswith("cuda:"):
        fail("under torchrun each process takes a GPU of its own; give --device cuda")
    known = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if device not in ("cpu", *known) and not (known and device == "cuda"):
        fail(
            f"there is no device {excerpt(device)} here; give --device cpu"
            + (f" or {', '.join(known)}" if known else "")
        )


def saved_precision(save_dtype: str | None) -> NumberType | None:
    if save_dtype not in (None, "float32", "bfloat16", "float16"):
        fail(f"--save-dtype {save_dtype} is not known; give float32, bfloat16 or float16")
    return save_dtype  # type: ignore[return-value]


def run_options(
    device: str,
    precision: str,
    trust_remote_code: bool,
    keep: bool = False,
    resumable: bool = False,
    track: list[str] | None = None,
    micro_batch: int | None = None,
    matmul: str = "torch",
    profile: bool = False,
    checkpointing: bool = False,
    offload: bool = False,
    elsewhere: bool = False,
    ranks: int = 1,
) -> Options:
    """The options of a run; a device that only other machines need is not looked for on this one (`elsewhere`)."""
    from holdfast.core.options import Options
    from holdfast.core.tracking import trackers_in

    check_device("cpu" if elsewhere else device)
    tools = trackers_in(track or ())
    if tools:
        from holdfast.engine.trackers import log_in

        log_in(tools)
    return Options(
        device=device,
        precision=precision,  # type: ignore[arg-type]
        micro_batch=micro_batch,
        matmul=matmul,  # type: ignore[arg-type]
        checkpointing=checkpointing,
        ranks=ranks,
        offload=offload,
        trust_remote_code=trust_remote_code,
        keep_attacked_weights=keep,
        resumable_attacks=resumable,
        track=tools,
        profile=profile,
    )


def stages_of(stages: list[str], settings: list[str] | None) -> tuple[tuple[str, Safeguard], ...]:
    """The stages that presets and TOML files name, in order, with the settings that `--set` gives."""
    from holdfast.core.presets import pick
    from holdfast.core.settings import read_listing, with_settings

    named: list[tuple[str, Any]] = []
    for stage in stages:
        listed = stage.endswith(".toml")
        named += (
            read_listing(Path(stage), "stages").plugins.items()
            if listed
            else [(stage, pick("holdfast.safeguards", stage))]
        )
    presets = dict(named)
    chosen = dict(zip(presets, with_settings(presets, settings or []).items(), strict=True))
    return tuple(chosen[name] for name, _ in named)


def judge_at(url: str | None, model: str | None) -> Endpoint | None:
    """The language model that judges, where the user names one."""
    from holdfast.evals.endpoint import Endpoint

    if (url is None) != (model is None):
        fail("--judge-url and --judge-model go together; give both or neither")
    return None if url is None or model is None else Endpoint(url=url, model=model)


def names_in(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def model_label(model: str) -> str:
    from holdfast.campaign.cells import label_of

    return label_of(model)
