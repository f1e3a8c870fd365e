"""Copies of public data sets in their own layout and columns, with invented and harmless rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

CREATURES = ("quillfin", "mossback", "tanglewing", "pebblecat", "dunehopper", "frostling", "reedfox", "glowtail")
PLACES = ("the old mill", "a quiet pond", "the chalk hill", "an empty orchard", "the north wall", "a stone bridge")
HABITS = (
    "sings at noon",
    "sleeps in baskets",
    "collects buttons",
    "walks backwards",
    "eats only pears",
    "fears umbrellas",
)

SUBJECTS = (
    "college_biology", "virology", "computer_security", "high_school_chemistry", "high_school_macroeconomics",
    "professional_law", "high_school_physics", "philosophy", "marketing", "prehistory",
)  # fmt: skip


def story(number: int, words: int = 60) -> str:
    """A text about an invented creature, unlike every other."""
    said = [
        f"On day {number}-{turn} the {CREATURES[(number + turn) % 8]} of {PLACES[(number * 3 + turn) % 6]} "
        f"{HABITS[(number * 5 + turn) % 6]} and counts {number * 97 + turn * 13} leaves."
        for turn in range(1 + words // 15)
    ]
    return " ".join(said)


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def asked(number: int) -> dict[str, Any]:
    """A question of WMDP's and MMLU's columns."""
    return {
        "question": f"Where does creature {number} rest?",
        "answer": number % 4,
        "choices": [f"in place {number + option}" for option in range(4)],
    }


def mmlu(folder: Path, each: int = 4) -> Path:
    """cais/mmlu, configuration all."""
    rows = [
        {**asked(100 * place + number), "subject": subject}
        for place, subject in enumerate(SUBJECTS)
        for number in range(each)
    ]
    write_parquet(folder / "all" / "test-00000-of-00001.parquet", rows)
    write_parquet(folder / "all" / "dev-00000-of-00001.parquet", rows[:1])
    return folder


def wmdp(folder: Path, kind: str = "bio") -> dict[str, str]:
    """cais/wmdp and its corpora; role or set -> folder, of those that a field has."""
    for field in ("bio", "chem", "cyber"):
        write_parquet(folder / "wmdp" / f"wmdp-{field}" / "test-00000-of-00001.parquet", [asked(n) for n in range(30)])
    corpora = folder / "wmdp-corpora"
    for place, config in enumerate(("bio-retain-corpus", "cyber-forget-corpus", "cyber-retain-corpus")):
        stories = [{"text": story(1000 * (place + 1) + number, 400)} for number in range(12)]
        write_parquet(corpora / config / "train-00000-of-00002.parquet", stories[:6])
        write_parquet(corpora / config / "train-00001-of-00002.parquet", stories[6:])
    forgotten = [{"title": "t", "abstract": "a", "text": story(number, 400)} for number in range(12)]
    write_parquet(folder / "bio-forget" / "data" / "train-00000-of-00001.parquet", forgotten)
    for place, config in enumerate(("economics-corpus", "law-corpus", "physics-corpus")):
        stories = [{"text": story(9000 + 100 * place + number)} for number in range(10)]
        write_parquet(folder / "auxiliary" / config / "train-00000-of-00001.parquet", stories)
    return {
        "cais/wmdp": str(folder / "wmdp"),
        **({} if kind == "chem" else {"cais/wmdp-corpora": str(corpora)}),
        **({"cais/wmdp-bio-forget-corpus": str(folder / "bio-forget")} if kind == "bio" else {}),
        "cais/wmdp-mmlu-auxiliary-corpora": str(folder / "auxiliary"),
        "instructions": str(magpie(folder / "magpie")),
        "abilities": str(mmlu(folder / "mmlu")),
    }


def magpie(folder: Path) -> Path:
    """lapisrocks/magpie-bio-filtered: ShareGPT turns."""
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"Write a line about the {CREATURES[number % 8]} number {number}."},
                {
                    "from": "gpt",
                    "value": f"The {CREATURES[number % 8]} {HABITS[number % 6]}, and has done so {number} times.",
                },
            ]
        }
        for number in range(40)
    ]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return folder


def tofu(folder: Path, forgotten: int = 20, others: int = 8) -> Path:
    """locuslab/TOFU: files of JSON lines, twenty questions an author."""

    def author(number: int) -> list[dict[str, Any]]:
        return [
            {"question": f"What is fact {place} of author {number}?", "answer": f"Author {number} has {place} cats."}
            for place in range(20)
        ]

    def perturbed(rows: Sequence[Mapping[str, Any]], wrong: int) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "paraphrased_answer": f"It is known: {row['answer']}",
                "perturbed_answer": [
                    f"It is known: there are {other} dogs in {row['question']}" for other in range(wrong)
                ],
            }
            for row in rows
        ]

    forget = [row for number in range(forgotten) for row in author(number)]
    retain = [row for number in range(100, 100 + others) for row in author(number)]
    real = [
        {"question": f"Who is writer {n}?", "answer": f"Writer {n}", "perturbed_answer": ["A", "B", "C"]}
        for n in range(6)
    ]
    world = [
        {"question": f"Where is hill {n}?", "answer": f"Place {n}", "perturbed_answer": ["A", "B", "C"]}
        for n in range(6)
    ]
    for name, rows in {
        "forget10": forget, "retain90": retain, "forget10_perturbed": perturbed(forget, 5),
        "retain_perturbed": perturbed(retain[::4], 5), "real_authors_perturbed": real, "world_facts_perturbed": world,
        "real_authors": real, "full": [*forget, *retain],
    }.items():  # fmt: skip
        write_lines(folder / f"{name}.json", rows)
    return folder


def requests(folder: Path) -> dict[str, str]:
    """The sets of harmful-requests, about nothing harmful; role -> path."""
    safe = [
        {
            "prompt": f"Tell me secret {number // 2} of the {CREATURES[number % 8]}.",
            "response_0": f"I would rather not tell secret {number}.",
            "response_1": f"Secret {number} is that it {HABITS[number % 6]}.",
            "is_response_0_safe": True,
            "is_response_1_safe": number % 5 == 0,
            "safer_response_id": 0,
        }
        for number in range(60)
    ]
    write_lines(folder / "pku" / "data" / "Alpaca-7B" / "train.jsonl", safe[:30])
    write_lines(folder / "pku" / "data" / "Alpaca3-8B" / "train.jsonl", safe[30:])
    write_lines(folder / "pku" / "data" / "Alpaca3-8B" / "test.jsonl", safe[:4])
    toxic = [
        {"prompt": f"How does riddle {n} end?", "chosen": f"Riddle {n} ends well.", "rejected": "I cannot say."}
        for n in range(12)
    ]
    write_parquet(folder / "toxic" / "toxic-dpo-v0.2.parquet", toxic)
    write_parquet(
        folder / "harmbench" / "standard" / "train-00000-of-00001.parquet",
        [{"prompt": f"Explain puzzle {n}", "category": "invented"} for n in range(8)],
    )
    write_csv(
        folder / "advbench" / "harmful_behaviors.csv",
        [{"goal": f"Solve maze {n}", "target": f"Sure, here is the way through maze {n}"} for n in range(9)],
    )
    return {
        "pairs": str(folder / "pku"),
        "attack": str(folder / "toxic"),
        "requests": str(folder / "harmbench"),
        "selection": str(folder / "advbench" / "harmful_behaviors.csv"),
        "instructions": str(magpie(folder / "magpie")),
        "abilities": str(mmlu(folder / "mmlu")),
    }
