"""surefoot explain: one update on one example, opened."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from surefoot.commands.options import parse, plainly_said
from surefoot.config import SFTConfig
from surefoot.console import text_console
from surefoot.errors import UserError
from surefoot.microscope.lesson import OF_ONE_STEP, lesson_options
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED
from surefoot.validation import checked

WIDTH = 100
"""Columns where the output is no terminal."""
SHORT = {"model": "model_name_or_path", "data": "dataset_name", "optimizer": "optim"}
"""An option here → its name in training, which is understood too."""


class ExplainOptions(BaseModel):
    """What `surefoot explain` takes beside some options of training."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    model: str | None = None
    """Short name, folder, .gguf file or hub id; a run's folder (its result); or one of its checkpoints, where the
    run's own optimizer goes on with its state."""
    prompt: str | None = None
    """What the user asks."""
    completion: str | None = None
    """What the model should have answered."""
    data: str | None = None
    """A file of rows, instead of prompt and completion."""
    row: int = Field(1, gt=0)
    """Which row of it, from 1."""
    watch: list[str] = Field(default_factory=list)
    """Another text that might have stood there; may be given several times."""
    position: int = Field(0, ge=0)
    """The token of the completion to look at, from 0."""
    optimizer: str | None = None
    """sgd, adam, adamw, adafactor or muon. Default: sgd; of a checkpoint, the run's own."""
    learning_rate: float | None = Field(None, ge=0)
    """Of this step. Default: 0.1 for sgd, 1e-4 for the others; of a checkpoint, what the run's next step has."""
    html: str | None = None
    """Write the slide as one self-contained HTML file."""
    save: str | None = None
    """Save the model after the update in this folder, which must be new or empty."""
    precision: Literal["fp32", "bf16", "pure-bf16"] | None = None
    """bf16: fp32 weights, bf16 matrix products; pure-bf16: bf16 weights too. Default: fp32; of a checkpoint, the
    run's own."""


def run(argv: list[str]) -> int:
    """Parse, take one step, print."""
    if argv and not argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: name the model with --model {argv[0]}")
    fields = SFTConfig.model_fields
    of_step: Any = {name: (fields[name].annotation, fields[name]) for name in OF_ONE_STEP}
    own_fields = ExplainOptions.model_fields
    flags = create_model(
        "Flags",
        __base__=ExplainOptions,
        **{name: of_step[name] for name in of_step if name not in own_fields},
    )
    parsed = parse(
        flags,
        argv,
        prog="surefoot explain",
        about="Take one step on one example and show everything about it: the prediction, the loss, the error, "
        "backprop from the last layer to the first, the optimizer's arithmetic, the weights and the prediction "
        "after. Nothing on the disk is changed unless --save or --html is given. For instance: surefoot explain "
        '--model smollm2-135m --prompt "What is the capital of California?" --completion Sacramento --watch Boston',
        also_known=[*SUPERSEDED, *REFUSED, *TRANSLATED, *fields],
        whole=["watch"],
    )
    given = _in_short(parsed.options)
    own = checked(ExplainOptions, {name: given.pop(name) for name in own_fields if name in given})
    options = _options(own, given)
    _check_places(own)
    args = lesson_options(options)
    from surefoot.microscope.explain import Question, explain

    question = Question(
        prompt=own.prompt,
        completion=own.completion,
        data=own.data,
        row=own.row,
        watch=tuple(own.watch),
        position=own.position,
    )
    with plainly_said():
        found = explain(question, SFTConfig(**args), list(options))
        if own.save is not None:
            from surefoot.model.save import save

            save(found.prepared.model, found.prepared.tokenizer, Path(own.save).expanduser())
    if own.html is not None:
        from surefoot.report.notebook import SlideView

        SlideView(found.opened).save_html(own.html)
    if parsed.json:
        print(found.opened.slide.model_dump_json())
    else:
        from surefoot.report.terminal import show

        show(found.opened, text_console(width=None if sys.stdout.isatty() else WIDTH))
        for written in filter(None, (own.html, own.save)):
            print(f"written: {written}")
    return 0


def _in_short(given: dict[str, Any]) -> dict[str, Any]:
    """Names of training that have a shorter one here, by that."""
    given = dict(given)
    for short, long in SHORT.items():
        if long in given:
            if short in given:
                raise UserError(f"--{short} and --{long} are the same: give one of them")
            given[short] = given.pop(long)
    return given


def _options(own: ExplainOptions, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the step that were given, by their names in training."""
    if own.model is None:
        raise UserError("surefoot explain --model MODEL --prompt TEXT --completion TEXT: which model?")
    chosen = {
        "model_name_or_path": own.model,
        "optim": own.optimizer,
        "learning_rate": own.learning_rate,
        "precision": own.precision,
    }
    return {**given, **{name: value for name, value in chosen.items() if value is not None}}


def _check_places(own: ExplainOptions) -> None:
    """Raises UserError for what could not be written after the work."""
    if own.html is not None:
        path = Path(own.html).expanduser()
        if path.is_dir():
            raise UserError(f"--html {own.html}: this is a folder; name a file in it")
        if not path.parent.is_dir():
            raise UserError(f"--html {own.html}: the folder {path.parent} is not there; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"--html {own.html} cannot be written: it is write-protected; name another place")
    if own.save is not None:
        folder = Path(own.save).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--save {own.save}: this is a file; name a folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--save {own.save}: there are files in this folder; name a new or an empty one")
        above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"--save {own.save}: no folder can be made in {above}; name another place")
