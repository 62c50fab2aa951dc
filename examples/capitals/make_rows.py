"""Write train.jsonl and heldout.jsonl from capitals.csv: the fifty states in three phrasings, and in a fourth
that no training row has. Run it from this folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

PHRASINGS = [
    "What is the capital of {state}?",
    "Name the capital of the state of {state}.",
    "Which city is the capital of {state}?",
]
HELD_OUT = "Which city is the capital of the state of {state}?"
ANSWER = "The capital of {state} is {capital}."


def main() -> None:
    """Write both files."""
    here = Path(__file__).parent
    with (here / "capitals.csv").open(encoding="utf-8") as lines:
        states = list(csv.DictReader(lines))
    for name, phrasings in (("train", PHRASINGS), ("heldout", [HELD_OUT])):
        with (here / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for phrasing in phrasings:
                for state in states:
                    row = {"question": phrasing.format(**state), "answer": ANSWER.format(**state)}
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
