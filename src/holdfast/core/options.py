"""How work is run: device, precision, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from holdfast.core.reading import line
from holdfast.core.types import HoldfastError, Matmul, Precision


@dataclass(frozen=True, kw_only=True)
class Options:
    """How cells are run; nothing here changes a number on the same hardware."""

    device: str = "cpu"
    precision: Precision = "float32"
    """of weights, products and updates"""
    micro_batch: int | None = None
    """rows that go through the model at once while it is trained; None: what the plug-in says, else the whole batch"""
    matmul: Matmul = "torch"
    """which library multiplies the float32 matrices of linear layers on a CPU; `torch` is what torch takes by itself"""
    checkpointing: bool = False
    """keep only what enters the layers between a forward and a backward pass, and compute the rest again"""
    ranks: int = 1
    """processes that share the model of a job, each on a device of its own (`campaign.on_ranks`); sums of their shares are
    rounded otherwise than those of one process"""
    offload: bool = False
    """keep what only the outer loop of a safeguard needs on the host"""
    trust_remote_code: bool = False
    keep_attacked_weights: bool = False
    """write the attacked model of each cell into a folder named TAMPERED-…"""
    resumable_attacks: bool = False
    """keep an attack's state on disk while its cell runs, so that it goes on after a kill"""
    track: tuple[str, ...] = ()
    """tools that show a run while it goes on (`core.tracking`)"""
    profile: bool = False
    """write a trace of the first updates (`core.profiling`)"""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise HoldfastError(f"micro_batch must be at least 1, not {self.micro_batch}")
        if self.ranks < 1:
            raise HoldfastError(f"ranks must be at least 1, not {self.ranks}")
        if self.ranks > 1 and self.precision == "lean":
            raise HoldfastError(f"--precision lean does not go with --ranks {self.ranks}; give float32 or mixed")
        if self.ranks > 1 and self.device.startswith("cuda:"):
            raise HoldfastError(f"each process of --ranks {self.ranks} takes a GPU of its own; give --device cuda")
        if self.matmul not in get_args(Matmul):
            raise HoldfastError(f"--matmul {line(self.matmul)} is not known; give torch or onednn")
        if self.matmul == "onednn" and (self.device != "cpu" or self.precision != "float32"):
            raise HoldfastError("--matmul onednn is for --device cpu and --precision float32; leave it out here")

    @property
    def aside(self) -> str | None:
        """The device for what an inner loop does not need; None: that of the model."""
        return "cpu" if self.offload else None

    @property
    def arithmetic(self) -> dict[str, Any]:
        """What changes a number beside the inputs, as a part of identities."""
        # Microbatches and oneDNN add up in another order. They stand here only where they are given, so earlier keys stay known.
        bound = {} if self.micro_batch is None else {"micro_batch": self.micro_batch}
        matmul = {} if self.matmul == "torch" else {"matmul": self.matmul}
        # Since the second way, the gradient of a single pass has the type of its weight.
        lean = {"lean": 2} if self.precision == "lean" else {}
        return {"precision": self.precision, "device": self.device.partition(":")[0], **bound, **matmul, **lean}


PURE = ("bfloat16", "float16")
"""precisions of earlier versions, in which small updates were lost"""


def check_precision(precision: str) -> None:
    """Raises:
    HoldfastError: the precision is unknown, or would lose small updates.
    """
    if precision in PURE:
        raise HoldfastError(
            f"training in pure {precision} is refused, because few of its weights move at a rate of 2e-6 and Adam's second "
            "moment cannot decay, so that a weak attack reads as robustness; give --precision lean or mixed"
        )
    if precision not in get_args(Precision):
        raise HoldfastError(f"--precision {line(precision)} is not known; give float32, mixed or lean")
