"""surefoot explain: one update on one example, opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from surefoot.commands.options import parse, plainly_said
from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED
from surefoot.validation import checked


class ExplainOptions(BaseModel):
    """What `surefoot explain` takes beside the options of training."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str | None = None
    """Short for model_name_or_path; also a run folder, or one of its checkpoints."""
    prompt: str | None = None
    """What the user asks."""
    completion: str | None = None
    """What the model should have answered."""
    data: str | None = None
    """A file of rows, instead of prompt and completion."""
    row: int = Field(1, gt=0)
    """Which row of it, from 1."""
    watch_for: list[str] = Field(default_factory=list)
    """Another text that might have stood there; may be given several times (--watch for short)."""
    position: int = Field(0, ge=0)
    """The token of the completion to look at, from 0."""
    optimizer: str | None = None
    """Short for optim; sgd if neither is given."""
    html: str | None = None
    """Write the slide as one self-contained HTML file."""
    save: str | None = None
    """Save the model after the update in this folder."""


class _Flags(ExplainOptions, SFTConfig):
    """All of them."""


def run(argv: list[str]) -> int:
    """Parse, take one step, print."""
    parsed = parse(
        _Flags,
        ["--watch_for" + word[7:] if word.partition("=")[0] == "--watch" else word for word in argv],
        prog="surefoot explain",
        about="Take one step on one example and show everything about it: the prediction, the loss, the error, "
        "backprop from the last layer to the first, the optimizer's arithmetic, the weights and the prediction "
        "after. Nothing is saved unless --save is given. Other options as in surefoot train; the defaults are one "
        "step of plain SGD in float32.",
        also_known=[*SUPERSEDED, *REFUSED, *TRANSLATED],
        whole=["watch_for"],
    )
    given = {name: parsed.options.pop(name) for name in ExplainOptions.model_fields if name in parsed.options}
    own = checked(ExplainOptions, given)
    options = _options(own, parsed.options)
    from surefoot.microscope.explain import Question, explain

    question = Question(
        prompt=own.prompt,
        completion=own.completion,
        data=own.data,
        row=own.row,
        watch=tuple(own.watch_for),
        position=own.position,
    )
    with plainly_said():
        args = SFTConfig(**options)
        found = explain(question, args, [*parsed.options, *(["optim"] if own.optimizer else [])])
    if own.save is not None:
        from surefoot.model.load import save

        save(found.prepared.model, found.prepared.tokenizer, Path(own.save))
    if own.html is not None:
        from surefoot.report.notebook import SlideView

        SlideView(found.opened).save_html(own.html)
    if parsed.json:
        print(found.opened.slide.model_dump_json())
    else:
        from surefoot.report.terminal import show

        show(found.opened, Console(width=None if sys.stdout.isatty() else 100))
    for folder in (own.html, own.save):
        if folder is not None and not parsed.json:
            print(f"written: {folder}")
    return 0


def _options(own: ExplainOptions, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the step."""
    from surefoot.microscope.explain import lesson_options

    options = {**given, **({"model_name_or_path": own.model} if own.model else {})}
    if "model_name_or_path" not in options:
        raise UserError("surefoot explain --model MODEL --prompt TEXT --completion TEXT")
    return lesson_options({**options, **({"optim": own.optimizer} if own.optimizer else {})})
