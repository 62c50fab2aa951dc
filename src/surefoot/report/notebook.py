"""A slide in a notebook: it shows itself, and gives its numbers as tables."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.errors import UserError, nearest
from surefoot.microscope.slide import Opened, Slide
from surefoot.report.page import render

if TYPE_CHECKING:
    import pandas

HEIGHT = 820
"""Of the frame in a notebook, in CSS pixels."""

Row = dict[str, Any]


class SlideView:
    """An opened step that a notebook can show."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    @property
    def slide(self) -> Slide:
        """The numbers, checked."""
        return self.opened.slide

    def __repr__(self) -> str:
        return f"SlideView(step {self.slide.step} of {self.slide.model}: {self.slide.headline})"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its styles and scripts and the notebook's do not meet."""
        page = html.escape(render([self.opened]), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-modals" title="one step, opened" '
            f'style="width:100%;height:{HEIGHT}px;border:1px solid #8884;border-radius:10px"></iframe>'
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, arrays as lists in `arrays`."""
        return self.opened.to_dict()

    def to_dataframe(self, table: str = "candidates") -> pandas.DataFrame:
        """One of the tables as a pandas DataFrame.

        candidates  a row a candidate token and position: probabilities, ranks, errors
        head_rows   a row of the head a row: for each position, and for the whole step (position is empty)
        layers      from the last to the first
        tensors     with a column a stage of the optimizer's arithmetic: "rms g", "rms Δ", ...
        chosen      a row a line of the arithmetic of a chosen weight
        batch       a row a token of an example

        Raises UserError for another name, and when pandas is not installed.
        """
        if table not in TABLES:
            raise UserError(
                f"table: there is no {table!r}, only {', '.join(TABLES)}.{nearest(table, list(TABLES))}"
            )
        try:
            import pandas
        except ImportError:
            raise UserError("to_dataframe needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame(TABLES[table](self.slide))

    def save_html(self, path: str | Path) -> Path:
        """Write the page as one file that opens without network. Raises UserError when it cannot be written."""
        path = Path(path).expanduser()
        try:
            path.write_text(render([self.opened]), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        return path


def explain(
    model: str | Path,
    prompt: str | None = None,
    completion: str | None = None,
    *,
    watch: Sequence[str] = (),
    data: str | Path | None = None,
    row: int = 1,
    position: int = 0,
    **options: Any,
) -> SlideView:
    """Take one step on one example, under the microscope; nothing on the disk is changed.

    Args:
        model: as for training; also a run folder, or one of its checkpoints.
        prompt, completion: what is asked, and what should have been answered.
        watch: other texts that might have stood there.
        data, row: a file of rows and which of them, from 1, instead of prompt and completion.
        position: the token of the completion to look at first, from 0.
        options: those of `SFTConfig`, such as optim="adamw_torch", learning_rate=1e-4, slide_mountain="surface".

    Raises UserError for what cannot be explained.
    """
    # torch comes with these: who reads slides needs none.
    from surefoot.config import SFTConfig
    from surefoot.microscope.explain import Question
    from surefoot.microscope.explain import explain as explained
    from surefoot.microscope.lesson import lesson_options

    question = Question(
        prompt=prompt,
        completion=completion,
        data=str(data) if data is not None else None,
        row=row,
        watch=tuple(watch),
        position=position,
    )
    args = SFTConfig(**lesson_options({**options, "model_name_or_path": str(model)}))
    return SlideView(explained(question, args, list(options)).opened)


def open_slide(path: str | Path) -> SlideView:
    """Read a slide's folder, such as RUN/slides/step-00000340. Raises UserError when it is none."""
    return SlideView(Opened.load(path))


def _candidates(slide: Slide) -> list[Row]:
    return [
        {"position": number, "where": position.where, "index": position.index, **candidate.model_dump()}
        for number, position in enumerate(slide.positions)
        for candidate in position.candidates
    ]


def _head_rows(slide: Slide) -> list[Row]:
    rows: list[Row] = [
        {"position": number, **row.model_dump()}
        for number, position in enumerate(slide.positions)
        for row in position.head_rows
    ]
    return [*rows, *({"position": None, **row.model_dump()} for row in slide.head.rows)]


def _layers(slide: Slide) -> list[Row]:
    return [layer.model_dump() for layer in slide.layers]


def _tensors(slide: Slide) -> list[Row]:
    return [
        {
            **tensor.model_dump(exclude={"rms"}),
            **{f"rms {stage}": value for stage, value in tensor.rms.items()},
        }
        for tensor in slide.tensors
    ]


def _chosen(slide: Slide) -> list[Row]:
    return [
        {
            "tensor": weight.tensor,
            "index": tuple(weight.index),
            "stage": name,
            "formula": formula,
            "value": value,
        }
        for weight in slide.chosen
        for name, formula, value in (
            ("before", "", weight.before),
            *((stage.name, stage.formula, stage.value) for stage in weight.stages),
            ("after", "", weight.after),
        )
    ]


def _batch(slide: Slide) -> list[Row]:
    return [
        {
            "example": number,
            "where": example.where,
            "slot": example.left_out + slot,
            **token.model_dump(),
            "learned": token.loss is not None,
        }
        for number, example in enumerate(slide.batch.examples)
        for slot, token in enumerate(example.tokens)
    ]


TABLES: dict[str, Callable[[Slide], list[Row]]] = {
    "candidates": _candidates,
    "head_rows": _head_rows,
    "layers": _layers,
    "tensors": _tensors,
    "chosen": _chosen,
    "batch": _batch,
}
"""What `to_dataframe` can give."""
