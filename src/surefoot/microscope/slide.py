"""A slide: everything the microscope recorded of one update, as numbers. Pictures are made of it elsewhere.

On disk it is a folder: `slide.json` (all but the arrays), `arrays.safetensors`. Panels, in reading order: the
headline, `batch`, `positions` (prediction, error, head rows, after), `head`, `layers` and `tensors` (backwards),
`optimizer` and `chosen` (the arithmetic), `weights`, `mountain`, and what was asked for besides.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from surefoot.errors import UserError
from surefoot.microscope.panels import (
    Backward,
    Batch,
    ChosenWeight,
    Head,
    Influence,
    Layer,
    Mountain,
    NoiseScale,
    OptimizerRecord,
    Part,
    Position,
    TensorRecord,
    WatchedText,
    Weights,
)
from surefoot.model.folder import headers
from surefoot.regular import open_regular, text_of
from surefoot.validation import explain

FORMAT = 1
MOST_BYTES = 1 << 29
"""Of either file: a slide of a billion weights has a few million numbers."""


class Slide(Part):
    """Everything recorded of one update."""

    format: Literal[1] = FORMAT
    step: int
    """The update that made it so many finished steps: 1 is the first."""
    model: str
    opened_because: str
    precision: dict[str, str]
    """`weights` and `products`: their types."""
    headline: str
    notes: list[str]
    """What could not be recorded, and what to know when reading."""
    alerts: list[str]
    loss_before: float
    loss_after: float | None
    promised: float | None
    """g·Δ: what the slope promised the update would change."""
    obtained: float | None
    """loss_after − loss_before."""
    batch: Batch
    positions: list[Position]
    looked_at: int = 0
    """Index in `positions` of the one that is shown first."""
    watched: list[WatchedText] = Field(default_factory=list)
    head: Head
    backward: Backward
    layers: list[Layer]
    tensors: list[TensorRecord]
    optimizer: OptimizerRecord
    chosen: list[ChosenWeight]
    weights: Weights | None
    """None where there was no update, or it could not be watched."""
    mountain: Mountain | None = None
    noise: list[NoiseScale] = Field(default_factory=list)
    influence: list[Influence] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    """`opening`: what recording all this took, besides the step."""


class Opened(BaseModel):
    """A slide with its arrays."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    slide: Slide
    arrays: dict[str, np.ndarray]

    def save(self, folder: Path) -> Path:
        """Write the slide as `folder`, whole or not at all; one that is there is replaced. Raises OSError."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            text = self.slide.model_dump_json(indent=1)
            (partial / "slide.json").write_text(text + "\n", encoding="utf-8")
            arrays = {k: np.ascontiguousarray(v) for k, v in self.arrays.items()}
            save_file(arrays, partial / "arrays.safetensors")
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from None
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a slide's folder. Raises UserError that names the file and what is wrong with it."""
        folder = Path(folder)
        arrays = folder / "arrays.safetensors"
        try:
            slide = Slide.model_validate_json(text_of(folder / "slide.json", MOST_BYTES, follow=False))
            with open_regular(arrays, follow=False) as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    raise UserError(
                        f"{arrays} is larger than {MOST_BYTES:,} bytes, more than a slide's can be"
                    )
            headers([arrays])
            return cls(slide=slide, arrays=load_file(arrays))
        except ValidationError as error:
            raise UserError(f"{folder / 'slide.json'}: not a slide: {explain(error)}") from None
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: not a slide that can be read: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, arrays as lists in `arrays`."""
        found = json.loads(self.slide.model_dump_json())
        found["arrays"] = {name: array.tolist() for name, array in self.arrays.items()}
        return found
