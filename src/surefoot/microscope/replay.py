"""An optimizer's step of one weight tensor, gone through again: the ledger of panel 6, and what panel 7 needs.

1. `Replay(step).chunks()` goes through the tensor in pieces of bounded size; each has every line of the arithmetic
   for its entries, and which of them the update was to move.
2. `Sums` adds up the squares of each line: RMS per stage, over shards by adding vectors.
3. `Replay.at(indices)` gives the lines of chosen entries, how far the replay is from what the optimizer stored, and
   what SGD, Adam and AdamW would have done (`would`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.microscope.arithmetic import (
    Line,
    Pick,
    TensorStep,
    adafactor_rate,
    decouples,
    flat,
    gradient_lines,
    lines_of,
    pieces,
    state_of,
)
from surefoot.microscope.panels import Stage

BETAS, EPS = (0.9, 0.999), 1e-8
"""Adam's own, for runs of an optimizer that has none."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a flat tensor (its local part)."""

    where: slice
    lines: list[Line]
    old: torch.Tensor
    new: torch.Tensor
    asked: torch.Tensor
    """bool: entries that the update was to move, Δ ≠ 0 before rounding."""


@dataclass(frozen=True)
class Entry:
    """One weight of a tensor: what `panels.ChosenWeight` needs besides its place and the reason."""

    index: int
    """In the flat local part."""
    before: float
    stages: list[Stage]
    after: float
    replay_error: float | None
    would: dict[str, float]
    would_state: str


@dataclass(frozen=True)
class Moments:
    """Adam's state of one weight after the step."""

    m: float
    v: float
    """The largest so far, with amsgrad."""
    steps: int
    decay_within: bool = False
    """Gradients had λθ added to them before m and v were made."""


class Replay:
    """A tensor's step, gone through again. Nothing is changed."""

    def __init__(self, step: TensorStep) -> None:
        self.step = step
        with torch.no_grad():
            self._lines = lines_of(step)
        assert step.weight.grad is not None
        self._old, self._new, self._grad = flat(step.old), flat(step.weight), flat(step.weight.grad)

    @property
    def known(self) -> bool:
        """Whether the arithmetic is replayed; if not, Δ is the stored change, and all that have a gradient count
        as asked to move."""
        return self._lines is not None

    @property
    def learning_rate(self) -> float:
        """For this tensor: Adafactor may choose its own."""
        group = self.step.group
        if "relative_step" in group:
            return adafactor_rate(group, state_of(self.step))[0]
        return float(group["lr"])

    def lines(self, pick: Pick) -> list[Line]:
        """The arithmetic of some entries, in order; the last line is Δ."""
        with torch.no_grad():
            if self._lines is not None:
                return self._lines(pick)
            change = self._new[pick].double() - self._old[pick].double()
            stored = Line("Δ", change, "new θ − old θ, as stored")
            return [*gradient_lines(self.step, self._grad[pick].double()), stored]

    def chunks(self) -> Iterator[Chunk]:
        """All entries, piece by piece; one empty piece of an empty shard, so that every rank has the same lines."""
        for where in pieces(self._old):
            lines, old, new = self.lines(where), self._old[where], self._new[where]
            asked = lines[-1].value != 0 if self.known else (old != new) | (self._grad[where] != 0)
            yield Chunk(where, lines, old, new, asked)

    def at(self, indices: Sequence[int]) -> list[Entry]:
        """Chosen entries of the flat local part. All ranks call this, for Adafactor's rate; one may choose none."""
        pick = torch.tensor(indices, dtype=torch.int64, device=self._old.device)
        lines = self.lines(pick)
        table = [line.value.tolist() for line in lines]
        before, after = self._old[pick].double().tolist(), self._new[pick].double().tolist()
        sign = -1.0 if self.step.group.get("maximize") else 1.0
        moments, rate = self._moments(pick), self.learning_rate
        found = []
        for row, index in enumerate(indices):
            stages = [
                Stage(name=line.name, value=values[row], formula=line.formula)
                for line, values in zip(lines, table, strict=True)
            ]
            clipped, delta = table[1][row], table[-1][row]
            error = before[row] + delta - after[row] if self.known else None
            state = None if moments is None else moments[row]
            deltas, sentence = would(sign * clipped, before[row], rate, self.step.group, state)
            found.append(Entry(index, before[row], stages, after[row], error, deltas, sentence))
        return found

    def _moments(self, pick: torch.Tensor) -> list[Moments] | None:
        """m and v of Adam and AdamW, as the step left them."""
        state = state_of(self.step)
        if type(self.step.part) not in (torch.optim.Adam, torch.optim.AdamW):
            return None
        second = state["max_exp_avg_sq" if self.step.group["amsgrad"] else "exp_avg_sq"]
        m, v = (flat(x)[pick].double().tolist() for x in (state["exp_avg"], second))
        count = round(float(state["step"]))
        within = bool(self.step.group["weight_decay"]) and not decouples(self.step)
        return [Moments(a, b, count, within) for a, b in zip(m, v, strict=True)]


def would(
    g: float, theta: float, lr: float, settings: Mapping[str, Any], state: Moments | None
) -> tuple[dict[str, float], str]:
    """Δ that plain SGD, Adam without and AdamW with weight decay make of the clipped gradient `g`, and in words
    which state Adam and AdamW are given.

    `settings`: the run's, such as a param_group; of them weight_decay is used where there, and betas and eps if it
    has betas (the eps of Muon or Adafactor is for something else).
    """
    of_adam = "betas" in settings
    beta1, beta2 = map(float, settings["betas"] if of_adam else BETAS)
    eps = float(settings["eps"]) if of_adam else EPS
    decay = float(settings.get("weight_decay") or 0.0)
    if state is None:
        m, v, sentence = g, g * g, "none, as in a first step"
    else:
        m, v = state.m / (1 - beta1**state.steps), state.v / (1 - beta2**state.steps)
        sentence = "the run's own" if state.steps > 1 else "none, as in a first step"
        sentence += ", with weight decay in m and v" if state.decay_within else ""
    size = math.sqrt(v) + eps
    adam = -lr * m / size if size else 0.0
    return {"sgd": -lr * g, "adam": adam, "adamw": adam - lr * decay * theta}, sentence


class Sums:
    """Σx² of every line over a tensor's entries, how many there are, and in how many the gradient is exactly 0.

    `vector`, float64 [2 + lines], of shards is added up over ranks and put back; its counts are exact to 2⁵³.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.vector = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, chunk: Chunk) -> None:
        """A further piece. Pieces of tensors of one kind of step have the same lines."""
        values = [line.value for line in chunk.lines]
        counts = [values[0].new_tensor(values[0].numel()), (values[0] == 0).sum().double()]
        found = torch.stack([*counts, *(torch.dot(value, value) for value in values)])
        names = [line.name for line in chunk.lines]
        assert self.names in ([], names), "other lines"
        self.vector = self.vector + found if self.names else found
        self.names = names

    @property
    def count(self) -> int:
        return int(self.vector[0].item())

    @property
    def zero_share(self) -> float:
        """Share of the gradient's entries that are exactly 0."""
        return self.vector[1].item() / max(1, self.count)

    def rms(self) -> dict[str, float]:
        """Root mean square by line, in the order of the arithmetic."""
        roots = (self.vector[2:] / max(1, self.count)).sqrt().tolist()
        return dict(zip(self.names, roots, strict=True))

    def norm(self, name: str) -> float:
        """√Σx² of a line."""
        return math.sqrt(self.vector[2 + self.names.index(name)].item())
