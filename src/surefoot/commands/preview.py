"""surefoot preview: rows → tokens, what is prompt and what is learned, and the ledger."""

from __future__ import annotations

import json
import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

from surefoot.commands.options import parse, plainly_said
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.validation import checked


class PreviewOptions(BaseModel):
    """Options of `surefoot preview`; the rendering ones are those of training."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data: str | None = None
    """Rows: a file, a folder or a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column is what: prompt=question,completion=answer."""
    limit: int = Field(3, ge=0)
    """Examples to show; the ledger is over all rows."""
    max_length: int | None = Field(None, gt=1)
    """Longest example in tokens. Default: what the model's positions allow."""
    completion_only_loss: bool = True
    """Learn the completion (every assistant turn) only."""
    last_turn_only: bool = False
    """Learn only the last assistant turn of a conversation."""
    chat_template_path: str | None = None
    """Another chat template than the model's."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with rows that cannot be read or learned: stop, or list them in the ledger."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you say so; a model cannot turn it on."""


def run(argv: list[str]) -> int:
    """Parse, render, print."""
    parsed = parse(
        PreviewOptions,
        argv,
        prog="surefoot preview",
        about="Show how rows become tokens for a model. Nothing is trained, no weights are read.",
        positional={"model": ("?", "whatever names a model")},
    )
    options, model = checked(PreviewOptions, parsed.options), parsed.positional["model"]
    if model is None or options.data is None:
        raise UserError("surefoot preview MODEL --data FILE: both are needed")
    with plainly_said():
        _preview(model, options.data, options, as_json=parsed.json)
    return 0


def _preview(model: str, path: str, options: PreviewOptions, *, as_json: bool) -> None:
    from surefoot.data.cache import cache_folder
    from surefoot.data.dataset import read
    from surefoot.data.render import Renderer
    from surefoot.data.sources import open_source
    from surefoot.model.load import chat_template, load_tokenizer, locate, positions

    place = locate(model)
    tokenizer = load_tokenizer(place, trust_remote_code=options.trust_remote_code)
    if options.chat_template_path is not None:
        tokenizer.chat_template = chat_template(options.chat_template_path)
    positioned = positions(place, trust_remote_code=options.trust_remote_code)
    renderer = Renderer(
        tokenizer,
        max_length=options.max_length or positioned or 1 << 20,
        completion_only_loss=options.completion_only_loss,
        last_turn_only=options.last_turn_only,
    )
    data = read(
        open_source(path),
        renderer,
        columns=options.columns,
        on_bad_row=options.on_bad_row,
        cache=cache_folder() / "examples",
    )
    shown = data.examples[: options.limit]
    if as_json:
        examples = [
            {
                "where": e.where,
                "prompt_ids": e.prompt_ids.tolist(),
                "completion_ids": e.completion_ids.tolist(),
            }
            for e in shown
        ]
        print(json.dumps({"examples": examples, "ledger": data.ledger.to_dict()}))
        return
    console = text_console()
    for example in shown:
        console.rule(f"{example.where}: {example.tokens} tokens, {example.targets} learned")
        text = Text()
        for ids, style in ((example.prompt_ids, "dim"), (example.completion_ids, "bold green")):
            for number, token in enumerate(ids.tolist()):
                text.append(str(tokenizer.decode([token])), style if number % 2 else f"{style} underline")
        console.print(text)
    console.rule("ledger")
    for line in [*data.ledger.lines(), *data.notes]:
        console.print(line)
    if data.from_cache:
        console.print("(tokenised by an earlier run)")
    if not sys.stdout.isatty():
        console.print("(in a terminal, the learned tokens are green and the prompt is dim)")
