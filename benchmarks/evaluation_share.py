"""What share of an audit's working time its evaluations took, from the records of any audit or demo.

python benchmarks/evaluation_share.py runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from holdfast.core.records import CellResult, read_campaign


def share(results: list[CellResult]) -> float:
    return sum(result.evaluation_seconds for result in results) / sum(result.seconds for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    _, results = read_campaign(parser.parse_args().folder)
    attacked = [result for result in results if result.attack != "none"]
    print(f"{len(attacked)} attacks, {sum(result.seconds for result in attacked):.0f} s of work")
    print(f"evaluations along attacks: {share(attacked):.1%}")
    print(f"with what is measured on untouched models: {share(results):.1%}")


if __name__ == "__main__":
    main()
