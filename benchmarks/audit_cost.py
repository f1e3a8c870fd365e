"""What an audit of a large model costs in GPU hours: derived from its suite and stated assumptions, not measured.

python -m benchmarks.audit_cost [--suite standard-large] [--weights 8.03e9] [--gpus 8] [--seeds 5] [--share 0.4]

The models are those of an audit with all its controls. The model under test, a reference and a never-exposed model go through
every attack. The undefended and the destroyed model go through the canonical attack and the longest, which stands for the worst.
A token costs 8 FLOPs a weight where all weights are trained (forward 2, backward 4, forward again for the activations 2), 6 where
a low-rank adapter is trained, and 2 where the token is only read. Every row is as long as the domain's rows may be.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from holdfast.attacks.base import Attack
from holdfast.runs.suites import attacks_of, canonical_of

WITHOUT_BASE = 1
"""models among the three for which there is no model before the safeguard: the never-exposed one"""


@dataclass(frozen=True)
class Assumptions:
    """Everything that the suite does not say."""

    weights: float
    row: int
    """tokens of a row"""
    asked: int
    """tokens of all questions that are asked at a milestone"""
    peak: float
    """FLOPs a second of a GPU"""
    share: float
    """of the peak that is reached"""
    loading: float
    """seconds in which a cell's GPUs wait: for the model, to begin, to end"""

    def seconds(self, attack: Attack) -> tuple[float, float]:
        """GPU seconds of training and of measuring of one cell."""
        milestones = 2 + sum(5 * 2**i < attack.max_steps for i in range(64))
        each = 6 if getattr(attack, "lora_rank", 0) else 8
        trained = attack.max_steps * attack.rows_per_step * self.row * each * self.weights
        asked = milestones * self.asked * 2 * self.weights
        return trained / (self.peak * self.share), asked / (self.peak * self.share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="standard-large")
    parser.add_argument("--weights", type=float, default=8.03e9)
    parser.add_argument("--row", type=int, default=256, help="tokens of a row")
    parser.add_argument("--asked", type=int, default=400_000, help="tokens of all questions asked at a milestone")
    parser.add_argument(
        "--peak", type=float, default=989e12, help="dense bfloat16 FLOPs a second of a GPU (H100: 989e12)"
    )
    parser.add_argument("--share", type=float, default=0.4, help="of the peak")
    parser.add_argument("--loading", type=float, default=60.0, help="seconds a cell")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    held = Assumptions(given.weights, given.row, given.asked, given.peak, given.share, given.loading)
    attacks = attacks_of(given.suite)
    controls = {canonical_of(given.suite, attacks), max(attacks, key=lambda name: sum(held.seconds(attacks[name])))}
    total = cells = 0.0
    print(f"{'attack':45} {'cells':>5} {'updates':>7} {'training':>9} {'measuring':>9} {'GPU h, all cells':>16}")
    for name, attack in attacks.items():
        models = 3 - WITHOUT_BASE * attack.uses_base + 2 * (name in controls)
        count = models * (given.seeds if attack.draws else 1)
        training, measuring = held.seconds(attack)
        hours = count * (training + measuring + given.loading) / 3600
        total, cells = total + hours, cells + count
        print(f"{name:45} {count:5} {attack.max_steps:7} {training:8.0f}s {measuring:8.0f}s {hours:16.1f}")
    print(
        f"{cells:.0f} cells, {total:.0f} GPU hours, {total / given.gpus:.0f} hours on {given.gpus} GPUs; derived, not measured"
    )


if __name__ == "__main__":
    main()
