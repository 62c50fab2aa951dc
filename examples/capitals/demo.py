"""The quick start: a small chat model learns the fifty state capitals, and is asked in words it never saw.

Fine-tunes SmolLM2-135M-Instruct on 150 rows, then shows what it answered before and after. The same numbers go
to runs/capitals/demo.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from surefoot import SFTConfig, SFTTrainer, UserError
from surefoot.recipes import read_recipe
from surefoot.train.evaluate import Answer, answer, probabilities, tokenise_watch
from surefoot.train.interrupt import Interrupted
from surefoot.train.setup import make_renderer

HERE = Path(__file__).parent
SHOWN = ("California", "New York", "Florida", "Illinois", "Nevada", "Washington", "Georgia", "Alaska")


def city(text: str) -> str:
    """The city that "The capital of ... is CITY." names; empty if the answer is of another form."""
    named = re.fullmatch(r"The capital of .+? is (.+?)\.?", text.strip())
    return named[1] if named else ""


def look(trainer: SFTTrainer) -> tuple[dict, list[Answer]]:
    """Exact city names on the held-out phrasing, and p of the watched names where the answer names the city."""
    rows = trainer.eval_data["eval"].examples
    answers = answer(trainer.network, trainer.processing_class, rows, max_new_tokens=24)
    renderer = make_renderer(trainer.model, trainer.processing_class, trainer.args)
    watched = [tokenise_watch(watch, renderer) for watch in trainer.args.watch]
    p = probabilities(trainer.network, watched, trainer.progress.micro_batch_tokens)[0]
    right = sum(city(one.answer) == city(one.want) for one in answers)
    return {"exact_match": right, "of": len(answers), "p": p}, answers


def show(console: Console, result: dict) -> None:
    """The table, and where to go next."""
    table = Table("state", "before", "after", title="asked as in no training row")
    for row in result["answers"]:
        state = row["prompt"].rpartition(" of ")[2].removesuffix("?")
        if state in SHOWN:
            table.add_row(state, _marked(row["before"], row["want"]), _marked(row["after"], row["want"]))
    before, after = result["before"], result["after"]
    table.add_section()
    table.add_row(
        "exactly right",
        f"{before['exact_match']} of {before['of']}",
        f"{after['exact_match']} of {after['of']}",
    )
    table.add_section()
    for name in before["p"]:
        table.add_row(f"p({name})", _probability(before["p"][name]), _probability(after["p"][name]))
    console.print(table)
    console.print(f'p: after "The capital of California is". Trained in {result["train_seconds"]:.0f} s.')
    console.print("Go on with:")
    console.print("  .venv/bin/surefoot chat runs/capitals")
    console.print("  .venv/bin/surefoot compare runs/capitals --prompt 'What is the capital of Texas?'")
    console.print("  .venv/bin/surefoot evaluate runs/capitals --data examples/capitals/heldout.jsonl")


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.0e}"


def _marked(text: str, want: str) -> Text:
    right = city(text) == city(want)
    return Text(("✓ " if right else "✗ ") + text, "green" if right else "red")


def main(**overrides: Any) -> int:
    """Look, train, look again. `overrides`: options instead of the recipe's."""
    logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 110)
    args = SFTConfig(**{**read_recipe(HERE / "recipe.yaml"), "overwrite_output_dir": True, **overrides})
    with console.status("reading the model (unpacked once, then kept)"):
        trainer = SFTTrainer(args=args)
    for line in [*trainer.ledgers(), *trainer.notes()]:
        console.print(line, style="dim")
    with console.status("asking the model as it is"):
        before, answers_before = look(trainer)
    try:
        metrics = trainer.train()
    except Interrupted:
        console.print("Stopped. `make demo` starts it again.")
        return 130
    with console.status("asking again"):
        after, answers_after = look(trainer)
    with (HERE / "heldout.jsonl").open(encoding="utf-8") as lines:
        asked = [json.loads(line)["question"] for line in lines]
    result = {
        "before": before,
        "after": after,
        "train_seconds": metrics["train_runtime"],
        "answers": [
            {"prompt": prompt, "before": one.answer, "after": other.answer, "want": one.want}
            for prompt, one, other in zip(asked, answers_before, answers_after, strict=True)
        ],
    }
    path = trainer.run.path / "demo.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(console, result)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"demo: {error}")
