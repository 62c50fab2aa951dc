"""surefoot compare: answers before and after, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table
from rich.text import Text

from surefoot.commands.options import parse, plainly_said
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.regular import text_of
from surefoot.runfolder import MOST_CONFIG
from surefoot.validation import checked


class CompareOptions(BaseModel):
    """Options of `surefoot compare`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data: str | None = None
    """Rows whose prompts are asked and whose completions are wanted."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column is what: prompt=question,completion=answer."""
    prompt: list[str] = Field(default_factory=list)
    """Prompts to ask instead of rows (may be given several times)."""
    limit: int = Field(10, gt=0)
    """At most so many rows."""
    max_new_tokens: int = Field(64, gt=0)
    """Longest answer, in tokens."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with rows that cannot be read or learned: stop, or leave them out."""
    use_cpu: bool = False
    """Use the CPU even when there is a GPU."""
    trust_remote_code: bool = False
    """Run Python code that ships with the models. Off unless you say so; a model cannot turn it on."""


def run(argv: list[str]) -> int:
    """Parse, ask both models, print."""
    parsed = parse(
        CompareOptions,
        argv,
        prog="surefoot compare",
        about="Ask two models the same. With one run folder: its base model, and its result.",
        positional={"models": ("*", "a run folder; or two models, before and after")},
        whole=["prompt"],
    )
    options = checked(CompareOptions, parsed.options)
    before, after = _two(parsed.positional["models"])
    if bool(options.prompt) == (options.data is not None):
        raise UserError("ask something, with either --prompt TEXT or --data FILE")
    with plainly_said():
        result = compare(before, after, options)
    if parsed.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _show(result, before, after)
    return 0


def _two(models: Sequence[str]) -> tuple[str, str]:
    if len(models) == 2:
        return models[0], models[1]
    if len(models) == 1:
        config = Path(models[0]) / "run.json"
        if config.is_file():
            try:
                return str(json.loads(text_of(config, MOST_CONFIG))["model"]["name"]), models[0]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{config}: this does not name the run's base model") from None
        raise UserError(f"{models[0]} is no run folder (no run.json); name two models instead")
    raise UserError("surefoot compare RUN, or surefoot compare BEFORE AFTER")


def compare(before: str, after: str, options: CompareOptions) -> dict[str, Any]:
    """`answers`: [{prompt, before, after, want}]; for rows, also `exact_match` of both and `of`."""
    from surefoot.commands.answers import Answerer, Question, questions

    answers: list[list[str]] = []
    asked: list[Question] = []
    for name in (before, after):
        answerer = Answerer(name, options.use_cpu, options.trust_remote_code)
        if options.data is not None:
            data, on_bad_row = options.data, options.on_bad_row
            asked = questions(answerer, data, options.columns, options.limit, on_bad_row)
        else:
            texts = options.prompt
            asked = [Question(answerer.prompt_ids([{"role": "user", "content": t}]), t) for t in texts]
        answers.append(answerer.answer([question.ids for question in asked], options.max_new_tokens))
    rows = [
        {"prompt": question.shown, "before": one, "after": other, "want": question.want}
        for question, one, other in zip(asked, *answers, strict=True)
    ]
    result: dict[str, Any] = {"answers": rows}
    if options.data is not None:
        for which in ("before", "after"):
            result[which] = {
                "exact_match": sum(row[which].strip() == (row["want"] or "").strip() for row in rows)
            }
        result["of"] = len(rows)
    return result


def _show(result: dict[str, Any], before: str, after: str) -> None:
    table = Table("prompt", f"before: {before}", f"after: {after}", show_lines=True)
    wanted = "exact_match" in result.get("before", {})
    if wanted:
        table.add_column("wanted")
    for row in result["answers"]:
        cells = [row["prompt"], row["before"], row["after"], *([row["want"]] if wanted else [])]
        table.add_row(*map(Text, cells))
    console = text_console()
    console.print(table)
    if wanted:
        counts = (result["before"]["exact_match"], result["after"]["exact_match"], result["of"])
        console.print("exactly right: {} before, {} after, of {}".format(*counts))
