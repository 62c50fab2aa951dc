"""surefoot check: on this model and these rows, is the path that training takes the textbook one?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from pydantic import Field
from rich.table import Table

from surefoot.commands.options import plainly_said
from surefoot.commands.recipe import RecipeOptions, parse_recipe
from surefoot.config import SFTConfig
from surefoot.console import text_console
from surefoot.errors import UserError

if TYPE_CHECKING:
    from surefoot.train.selfcheck import Verdict

READ = 1_000
"""Rows of the data to choose from."""


class CheckOptions(RecipeOptions):
    """What `surefoot check` takes beside the options of training."""

    rows: int = Field(4, gt=0)
    """Rows of the step that is compared whole, one row at a time, and split in two."""


class _Flags(CheckOptions, SFTConfig):
    """All of them."""


def run(argv: list[str]) -> int:
    """Parse, compare, print. 0: the path that training takes is exact; 1: it is not."""
    own, options, as_json = parse_recipe(
        _Flags,
        CheckOptions,
        argv,
        prog="surefoot check",
        about="Compare loss and gradient of training's fast path with the plain reference, on this model and some "
        "of these rows. Nothing is trained or written.",
    )
    if "model_name_or_path" not in options or "dataset_name" not in options:
        raise UserError("surefoot check --model MODEL --data FILE, or a recipe that names both")
    with plainly_said():
        args = SFTConfig(**options)
        verdict, refusal = _check(args, own.rows)
    exact = verdict.exact and not verdict.refused and refusal is None
    conclusion = _conclusion(verdict, refusal)
    if as_json:
        found = {"model": args.model_name_or_path, "data": args.dataset_name, **verdict.to_dict()}
        print(json.dumps({**found, "exact": exact, "conclusion": conclusion}))
    else:
        _print(verdict, conclusion)
    return 0 if exact else 1


def _check(args: SFTConfig, rows: int) -> tuple[Verdict, str | None]:
    """The full form on the path that the short form leaves to training; with why training would refuse."""
    from surefoot.train.loading import prepare_model, prepare_network
    from surefoot.train.selfcheck import check, quick
    from surefoot.train.setup import open_data, read_data

    source = open_data(args.dataset_name, args.dataset_train_split, args, READ)
    prepared = prepare_model(None, args, None)
    examples = read_data(source, prepared, args, None, max(READ, rows)).examples
    network = prepare_network(prepared, examples, args)
    refusal = None
    try:
        network = quick(network, examples).network
    except UserError as error:
        refusal = str(error)
    return check(network, examples, rows), refusal


def _conclusion(verdict: Verdict, refusal: str | None) -> str:
    """One sentence: exact, or what is not and what is done about it."""
    path = verdict.to_dict()["path"]
    ways = [
        "common prefixes shared" if path["merged"] else "",
        "rows side by side" if path["packed"] else "rows one at a time",
        "logits of targets only" if path["head"] else "logits by the model itself",
    ]
    named = ", ".join(way for way in ways if way)
    if refusal is not None:
        return f"not exact, and training refuses: {refusal}"
    if not verdict.refused:
        because = "".join(f"; {reason}" for reason in verdict.network.reasons)
        return f"exact: training ({named}) computes the textbook loss and gradient, within rounding{because}"
    what = "; ".join(verdict.refused)
    instead = f"only this path is exact: {named}" if verdict.exact else "no path is exact"
    return (
        f"not exact: {what}; {instead}. The short check before training does not see it: do not train like this, "
        "and report it, please, with what --json prints"
    )


def _print(verdict: Verdict, conclusion: str) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("rows", "compared", "error", "plain path", "allowed", ""):
        table.add_column(name, justify="right" if name in ("error", "plain path", "allowed") else "left")
    shown = ""
    for found in verdict.comparisons:
        precision = verdict.reference if found.level == "formula" else "run's precision"
        table.add_row(
            found.case if found.case != shown else "",
            f"{found.what if found.weight is None else found.weight}, {precision}",
            f"{found.error:.1e}",
            "" if found.naive is None else f"{found.naive:.1e}",
            f"{found.budget:.1e}",
            "ok" if found.ok else "OFF",
        )
        shown = found.case
    console = text_console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    off = "; dropout was off" if verdict.dropout else ""
    console.print(
        f"\nreference: the model's own forward, row by row, {verdict.reference}{off}; {verdict.tokens:,} tokens in "
        f"{verdict.seconds:.0f} s\n{conclusion}",
        soft_wrap=True,
    )
