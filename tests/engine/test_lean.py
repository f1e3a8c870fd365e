"""Lean precision: what is kept in few bits is right in expectation, and a run goes on bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.engine.costs import update
from holdfast.engine.data import Data
from holdfast.engine.fresh import shrink_and_perturb
from holdfast.engine.lean import LeanOptimizer
from holdfast.engine.low_rank import merge_adapters
from holdfast.engine.optimizers import OptimizerName, make_optimizer, published_point, training_point
from holdfast.engine.packed import Packed
from holdfast.engine.rounding import rounded, shift
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.session import open_session
from holdfast.engine.sharded import GradientSum, rewrite
from holdfast.engine.walk import drive, walk
from holdfast.stats.suspicion import STUCK, STUCK_STEPS
from holdfast.testing import small
from tests.conftest import SmallTestbed
from tests.safeguards.test_contract import FIRST, shortened

STEPS = 64
START = (0.02 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0))).bfloat16()
SLOPE = 1e-3 * torch.randn(128, 128, generator=torch.Generator().manual_seed(1))


def gradient(step: int) -> torch.Tensor:
    """A slope and as much noise."""
    return SLOPE + 1e-3 * torch.randn(128, 128, generator=torch.Generator().manual_seed(step + 2))


def moved(make: Callable[[nn.Parameter], Any], kind: torch.dtype = torch.float32) -> torch.Tensor:
    """How 64 updates move the weights."""
    torch.manual_seed(0)
    weight = nn.Parameter(START.to(kind, copy=True))
    weight.grad_dtype = None
    optimizer = make(weight)
    for step in range(STEPS):
        weight.grad = gradient(step).bfloat16().float()
        if not isinstance(optimizer, LeanOptimizer):
            weight.grad = weight.grad.to(kind)
        optimizer.step()
    return weight.detach().float() - START.float()


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum() / left.norm() / right.norm())


@pytest.mark.parametrize("rate", [2e-6, 2e-5])
def test_small_updates_are_whole_in_expectation(rate: float) -> None:
    """Each step of a weight is a jump to a neighbour with the probability step / gap, so jumps add gap x step to the variance."""
    whole = moved(lambda weight: make_optimizer("adamw", [weight], rate))
    lean = moved(lambda weight: make_optimizer("adamw", [weight], rate), torch.bfloat16)
    pure = moved(lambda weight: torch.optim.AdamW([weight], rate, weight_decay=0.0), torch.bfloat16)
    gap = 2.0 ** (START.float().abs().log2().floor() - 7)
    # Adam's steps are at most the rate; by their sum the variance is bounded.
    variance = gap * rate * STEPS
    spread = float((whole.square() * variance).sum().sqrt() / whole.square().sum())
    projection = float((lean * whole).sum() / whole.square().sum())
    assert projection == pytest.approx(1.0, abs=0.03 + 4 * spread)  # packed second moments are a few percent off
    longest = float((1 + variance.sum() / whole.square().sum()).sqrt())
    assert 1.0 < float(lean.norm() / whole.norm()) < 1.05 * longest
    assert cosine(lean, whole) > 0.95 / longest
    # Of Poisson's jumps at least as many weights move as have an odd number of them: (1 - exp(-2 x mean)) / 2.
    jumps = whole.abs() / gap
    assert float((lean != 0).float().mean()) > float((1 - (-2 * jumps).exp()).mean()) / 2
    assert float((pure * whole).sum() / whole.square().sum()) < (0.1 if rate == 2e-6 else 0.5)
    assert float((pure != 0).float().mean()) < (STUCK if rate == 2e-6 else 0.5)
    assert float((whole != 0).float().mean()) > 0.99


def test_a_second_moment_falls_after_one_large_gradient_beside_steady_ones() -> None:
    """It falls by a thousandth at each step. To the nearest of 8 or 16 bits it would not: there it stands at 1e-3 or above."""

    def second_moment(kind: torch.dtype) -> torch.Tensor:
        weight = nn.Parameter(torch.zeros(4096, dtype=kind))
        weight.grad_dtype = torch.float32
        optimizer: Any = make_optimizer("adamw", [weight], 2e-6)
        large, steady = torch.ones(4096), torch.ones(4096)
        steady[1::2] = 1e-3
        for step in range(3001):
            weight.grad = large if step == 0 else steady
            optimizer.step()
        if kind == torch.float32:
            found: torch.Tensor = optimizer.state[weight]["exp_avg_sq"]
            return found
        return optimizer._parts[0]._packed[0]["exp_avg_sq"].unpacked(False, weight.shape).square()  # type: ignore[no-any-return]

    whole, lean = second_moment(torch.float32), second_moment(torch.bfloat16)
    assert float(lean[1::2].mean()) == pytest.approx(float(whole[1::2].mean()), rel=0.4)
    assert float(lean[::2].mean()) == pytest.approx(float(whole[::2].mean()), rel=0.05)


@pytest.mark.parametrize("signed", [False, True])
def test_packed_values_are_right_in_expectation_and_exact_at_zero(signed: bool) -> None:
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0)).pow(3)
    values = values if signed else values.abs()
    values[:3] = torch.tensor([0.0, 1e-9, 100.0])
    copies = torch.stack([Packed.of(values, signed).unpacked(signed, values.shape) for _ in range(400)])
    step = (values.abs() + values.abs().view(-1, 256).amax(1).repeat_interleave(256) * 2**-14) / (8 if signed else 16)
    assert bool(((copies - values).abs() <= 1.1 * step).all())
    sized = values.abs() > step  # roots of second moments below it are raised to it, for what is divided by them
    assert bool(((copies.mean(0) - values).abs() < 5 * step / 400**0.5)[sized].all())
    assert bool((copies[:, 0] == 0).all())
    assert bool((copies[:, 2] == 100).all()), "the greatest of a block stays as it is"
    if not signed:
        assert bool((copies[:, 1] > 0).all()), "no root of a second moment becomes zero, by which steps are divided"


def test_rounding_leaves_what_bfloat16_has_and_is_right_in_expectation_elsewhere() -> None:
    assert torch.equal(rounded(START.float(), torch.bfloat16), START)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    assert torch.equal(rounded(special, torch.bfloat16).float(), special)
    assert bool(rounded(torch.tensor([torch.nan]), torch.bfloat16).isnan())
    for value in (1.001, -0.0201):
        drawn = rounded(torch.full((40_000,), value), torch.bfloat16).float()
        assert len(drawn.unique()) == 2
        assert float(drawn.double().mean()) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_takes_the_steps_of_float32_in_expectation(name: OptimizerName) -> None:
    def path(kind: torch.dtype) -> torch.Tensor:
        torch.manual_seed(0)
        matrix, vector = (nn.Parameter(START.to(kind, copy=True)), nn.Parameter(torch.ones(64, dtype=kind)))
        weights = [matrix, vector, nn.Parameter(torch.ones(8, dtype=kind))]  # the last never gets a gradient
        for weight in weights:
            weight.grad_dtype = torch.float32
        rate = {"sgd": 1.0, "sgd-momentum": 0.1, "sgd-nesterov": 0.1, "adadelta": 1.0}.get(name, 1e-3)
        optimizer = make_optimizer(name, weights, rate, weight_decay=0.01)
        for step in range(12):
            training_point(optimizer)
            matrix.grad, vector.grad = gradient(step), gradient(step)[0, :64].clone()
            optimizer.step()
            published_point(optimizer)
        assert torch.equal(weights[2], torch.ones(8)), "what has no gradient stays"
        return torch.cat([matrix.detach().float().flatten() - START.float().flatten(), vector.detach().float() - 1])

    whole, lean = path(torch.float32), path(torch.bfloat16)
    assert float((lean * whole).sum() / whole.square().sum()) == pytest.approx(1.0, abs=0.05)
    assert torch.isfinite(lean).all()


def test_float16_has_no_optimizer() -> None:
    with pytest.raises(HoldfastError, match=r"pure float16 is refused, because few .* give --precision lean"):
        make_optimizer("adamw", [torch.ones(2, dtype=torch.float16, requires_grad=True)], 0.1)
    with pytest.raises(HoldfastError, match="pure bfloat16 is refused"):
        Options(precision="bfloat16")  # type: ignore[arg-type]


def test_sums_of_gradients_lose_nothing(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load(precision="lean")
    gradients = GradientSum(model)
    weight = next(model.parameters())
    for _ in range(600):  # in bfloat16 a sum of ones ends at 256
        weight.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.mean()) == 600  # type: ignore[union-attr]
    gradients.take(1.0)
    for _ in range(600):
        weight.grad = torch.ones_like(weight, dtype=torch.float32)
        gradients.take(1e-2)
    gradients.give()
    assert float(weight.grad.mean()) == pytest.approx(606, rel=1e-4)  # type: ignore[union-attr]


def test_changes_outside_of_optimizers_are_not_lost(tiny_testbed: SmallTestbed) -> None:
    """Edits, displacements, a pool's tampering and UNDO's shrinking go through float32 and are rounded at random."""
    weight = nn.Parameter(START.clone())
    rewrite(weight, lambda whole: whole * (1 - 1e-4))
    ratio = float((weight.detach().float() * START.float()).sum() / START.float().square().sum())
    assert ratio == pytest.approx(1 - 1e-4, abs=5e-5)
    weight = nn.Parameter(START.clone())
    shift([weight.detach()], [torch.full_like(weight, 1e-6, dtype=torch.float32)])
    assert float((weight.detach().float() - START.float()).mean()) == pytest.approx(1e-6, rel=0.5)
    model, before = tiny_testbed.model.load(precision="lean"), tiny_testbed.model.load(precision="lean")
    shrink_and_perturb(model, 1e-4, 0.0, 0)
    inner = sum(
        float((new.detach().float() * old.detach().float()).sum())
        for new, old in zip(model.parameters(), before.parameters(), strict=True)
    )
    norm = sum(float(old.detach().float().square().sum()) for old in before.parameters())
    assert inner / norm == pytest.approx(1 - 1e-4, abs=5e-5)


ATTACKS = (
    "lora-r4-adamw-5e-3",
    *{type(attack): name for name, attack in reversed(collect("holdfast.attacks").items())}.values(),
)


def attacked(attack: Any, testbed: SmallTestbed, model: Any, run: Run) -> list[torch.Tensor]:
    """The weights after every step of an attack."""
    data, path = Data.attacker(testbed.domain, testbed.model.load_tokenizer()), []
    for _ in drive(attack.steps(model, data, run), run):
        path.append(torch.cat([weight.detach().float().flatten() for weight in model.parameters()]))
    return path


def run_of(testbed: SmallTestbed, seed: int = 3) -> Run:
    return Run(seed, lambda: testbed.never_exposed.load(precision="lean"))


def each(names: Any, usual: set[str]) -> pytest.MarkDecorator:
    """The default run has the usual ones."""
    marked = [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


@each(ATTACKS, {"adaptive-full-adamw-3e-3-sgdr", "low-rank-50", "lora-r4-adamw-5e-3"})
def test_every_kind_of_attack_takes_steps(name: str, tiny_testbed: SmallTestbed) -> None:
    attack = small(collect("holdfast.attacks")[name], 2)
    seed_everything(3)
    model = tiny_testbed.model.load(precision="lean")
    attack.prepare(model)
    path = attacked(attack, tiny_testbed, model, run_of(tiny_testbed))
    assert len(path) == attack.max_steps
    assert torch.isfinite(path[-1]).all()
    assert not torch.equal(path[0], path[-1]) or len(path) == 1
    assert {w.dtype for n, w in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert update(model, tiny_testbed.model.folder).share > 0  # type: ignore[union-attr]


def test_low_rank_changes_of_the_weights_are_whole_in_expectation(tiny_testbed: SmallTestbed) -> None:
    """For an adversary, which changes no architecture, and where LoRA is merged; both start from the same weights."""
    attack = FineTune(lora_rank=2, lora_alpha=4.0, learning_rate=1e-4, max_steps=3, batch_size=4)

    def change(precision: Any, peft: bool) -> torch.Tensor:
        seed_everything(3)
        model = tiny_testbed.model.load(precision=precision)
        if precision == "float32":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.bfloat16())
        before = [weight.detach().float().clone() for weight in model.parameters()]
        if peft:
            attack.prepare(model)
        attacked(attack, tiny_testbed, model, run_of(tiny_testbed))
        if peft:
            merge_adapters(model)
        return torch.cat(
            [(w.detach().float() - was).flatten() for w, was in zip(model.parameters(), before, strict=True)]
        )

    for peft in (False, True):
        whole, lean = change("float32", peft), change("lean", peft)
        assert float((lean * whole).sum() / whole.square().sum()) == pytest.approx(1.0, abs=0.3)
        assert 0 < float(whole.abs().max()) < 1e-3


@each(FIRST, {"tar", "undo", "rmu"})
def test_every_kind_of_safeguard_takes_steps(
    name: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    from tests.safeguards.test_contract import Testbeds

    safeguard = shortened(name, 1)
    testbed = Testbeds(tiny_testbed, tiny_refusal_testbed).of(safeguard)
    seed_everything(3)
    model, tokenizer = testbed.model.load_both(precision="lean")
    before = copy.deepcopy(model.state_dict())
    run = Run(3, lambda: testbed.model.load(precision="lean"))
    [losses] = [
        losses for _, losses in drive(safeguard.steps(model, Data.defender(testbed.domain, tokenizer), run), run)
    ]
    assert losses
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert any(not torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "optimizer", ["schedule-free-adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "muon", "lion"))]
)
def test_an_attack_goes_on_bit_for_bit(optimizer: Any, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    attack = FineTune(optimizer=optimizer, max_steps=4, batch_size=4, learning_rate=1e-3)

    def walked(stop: int | None = None) -> list[torch.Tensor]:
        seed_everything(3)
        model, run = tiny_testbed.model.load(precision="lean"), run_of(tiny_testbed)
        run.resume(tmp_path / "state", model, "it")
        data, path = Data.attacker(tiny_testbed.domain, tiny_testbed.model.load_tokenizer()), []
        for step, _ in drive(attack.steps(model, data, run), run):
            path.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
            if step == stop:
                run.save(tmp_path / "state", model, step, "it")
                break
        return path

    whole = walked()
    walked(stop=2)
    assert all(map(torch.equal, walked(), whole[2:]))


def test_the_adversaries_of_tar_take_the_same_path_and_tar_goes_on_bit_for_bit(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    safeguard = replace(shortened("tar-persistent", 4), inner_steps=2, every=1, outer_learning_rate=1e-3)

    def walked(stop: int | None = None) -> list[torch.Tensor]:
        seed_everything(3)
        model, tokenizer = tiny_testbed.model.load_both(precision="lean")
        run = Run(3, lambda: tiny_testbed.model.load(precision="lean"))
        run.resume(tmp_path / "state", model, "it")
        path = []
        for step, _ in drive(safeguard.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run), run):
            path.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
            if step == stop:
                run.save(tmp_path / "state", model, step, "it")
                break
        return path

    whole = walked()
    walked(stop=2)
    assert all(map(torch.equal, walked(), whole[2:]))


@pytest.mark.parametrize(
    ("precision", "stuck"), [pytest.param("float32", False, marks=pytest.mark.slow), ("lean", False), ("pure", True)]
)
def test_the_check_on_updates_fires_where_they_are_lost(
    precision: Any, stuck: bool, tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(precision="lean" if precision == "pure" else precision)
    session = open_session(tiny_testbed.model, tiny_testbed.domain, "attacker", 0, options)
    if precision == "pure":
        for weight in session.model.parameters():
            weight.grad_dtype = torch.bfloat16
        monkeypatch.setattr(
            "holdfast.engine.lean.LeanOptimizer", lambda name, weights, make, aside: torch.optim.AdamW(weights, 2e-6)
        )
    walk(session, FineTune(learning_rate=2e-6, max_steps=STEPS, batch_size=4))
    share = update(session.model, tiny_testbed.model.folder).share  # type: ignore[union-attr]
    assert (share < STUCK) is stuck
    assert STEPS >= STUCK_STEPS
