"""Panels 5, 6 and 7: every weight tensor from its gradient to its stored value, watched as the optimizer goes.

The optimizer steps one tensor at a time, the largest last; around each turn the tensor's old values are kept, and
its arithmetic is gone through again. So one tensor is all that is ever held twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from surefoot.microscope.arithmetic import TensorStep
from surefoot.microscope.ground import Ground, NoMountain
from surefoot.microscope.histogram import Counts
from surefoot.microscope.independent import refused
from surefoot.microscope.panels import ChosenWeight, OptimizerRecord, TensorRecord, Weights
from surefoot.microscope.parts import in_parts, numbers_over_parts, over_parts, said_of_parts
from surefoot.microscope.predict import Look
from surefoot.microscope.records import Recorder, square
from surefoot.microscope.replay import Replay, Sums
from surefoot.microscope.spell import Speller
from surefoot.model.loss import Head
from surefoot.model.network import Network
from surefoot.ranks import add_up_numbers, rank, ranks
from surefoot.train.distributed import as_shard, local, offset
from surefoot.train.optim import Optimizers, Turn
from surefoot.train.step import Change


class WeightsWatch:
    """Steps each weight in its turn (a `Stepping`), and keeps what became of it."""

    def __init__(
        self,
        network: Network,
        optimizers: Optimizers,
        layer_of: Mapping[str, str],
        look: Look,
        ground: Ground | None,
        recorder: Recorder | None,
        speller: Speller,
    ) -> None:
        self.refused = refused(optimizers.parts)
        self.ground = ground if self.refused is None else None
        self.slope = 0.0
        """g·Δ over all weights so far, g not clipped."""
        self.chosen: list[ChosenWeight] = []
        self.notes: list[str] = []
        self.seconds = 0.0
        """What watching the updates took, besides the updates."""
        self.failed: Exception | None = None
        """Why the updates are no longer watched: they are made all the same."""
        if self.refused is not None:
            self.notes.append(f"what the optimizer did to the weights is not recorded: {self.refused}")
        self._optimizers, self._layer_of, self._recorder = optimizers, layer_of, recorder
        self._head = network.head.weight_VD if network.head is not None else None
        self._bias = network.head.bias_V if network.head is not None else None
        self._old_head: torch.Tensor | None = None
        self._old_bias: torch.Tensor | None = None
        if self.refused is not None and network.head is not None:  # no turn will come at which to keep them
            self._old_head = local(network.head.weight_VD).clone()
            self._old_bias = local(self._bias).clone() if self._bias is not None else None
        self._counts = Counts(network.device)
        self._like = next(network.model.parameters())  # in parts, or whole, as all are
        turns = optimizers.turns()
        self._updates_before = _updates(optimizers)
        self._records = {turn.name: _before(turn, layer_of[turn.name]) for turn in turns}
        self._square = sum(record.grad_norm**2 for record in self._records.values())
        self._picks = self._pick(turns, look, speller)

    def __call__(self, turn: Turn, change: Change) -> None:
        if self.failed is not None:
            turn.step()
            return
        started = time.perf_counter()
        try:
            old, gradient = local(turn.weight).clone(), turn.gradient
            if self.ground is not None:
                self._keep("keep_before", turn)
        except Exception as error:
            self._fail(error)
            turn.step()
            return
        looked = time.perf_counter()
        turn.step()
        stepped = time.perf_counter()
        try:
            self._look_back(turn, change, old, gradient)
        except Exception as error:
            self._fail(error)
        self.seconds += time.perf_counter() - stepped + looked - started

    def _look_back(self, turn: Turn, change: Change, old: torch.Tensor, gradient: torch.Tensor) -> None:
        if self.ground is not None:
            self._keep("keep_after", turn)
        if turn.weight is self._head:
            self._old_head = old
        if turn.weight is self._bias:
            self._old_bias = old
        self._record(turn, change, old)
        if self._recorder is not None:
            self._recorder.add(turn, change, old, gradient)

    def _fail(self, error: Exception) -> None:
        if ranks() > 1:  # the others would wait for this one
            raise error
        self.failed = error

    def _keep(self, which: str, turn: Turn) -> None:
        assert self.ground is not None
        with suppress(NoMountain):  # the ground remembers it, and there will be no mountain, on any rank
            getattr(self.ground, which)(turn.name, turn.weight)

    def _record(self, turn: Turn, change: Change, old: torch.Tensor) -> None:
        step = TensorStep(turn.part, turn.group, turn.weight, old, change.clip_factor)
        replay, sums, slope = Replay(step), Sums(), 0.0
        moved = None
        for chunk in replay.chunks():
            sums.add(chunk)
            gradient = chunk.lines[0].value
            slope += float(torch.dot(gradient, chunk.new.double() - chunk.old.double()))
            found = self._counts.add(chunk.old, chunk.new, chunk.asked)
            moved = found if moved is None else moved + found
        assert moved is not None
        sums.vector = over_parts(sums.vector, turn.weight)
        found = [slope, moved.asked, moved.lost, moved.update_square]
        slope, asked, lost, update = numbers_over_parts(found, turn.weight)
        self.slope += slope
        record = self._records[turn.name]
        self._records[turn.name] = record.model_copy(
            update={
                "update_norm": update**0.5,
                "update_ratio": update**0.5 / record.weight_norm if record.weight_norm else None,
                "lost_share": lost / max(1, asked),
                "rms": sums.rms(),
            }
        )
        self._choose(turn, replay)

    # Chosen weights ----------------------------------------------------------------------------------------

    def _pick(self, turns: list[Turn], look: Look, speller: Speller) -> dict[str, tuple[int, str]]:
        """By tensor: the entry whose arithmetic is shown, and why that one."""
        picks: dict[str, tuple[int, str]] = {}
        head = next((turn for turn in turns if turn.weight is self._head), None)
        if head is not None and look.hidden_KD is not None:
            label, width = int(look.label_K[0]), head.weight.shape[1]
            column = int(look.hidden_KD[0].abs().argmax())
            why = f"the head's row of {speller.one(label)!r}, where |h| is largest"
            picks[head.name] = (label * width + column, why)
        names = list(dict.fromkeys(self._layer_of[name] for name in self._layer_of if name in self._records))
        blocks = [name for name in names if name.rpartition(".")[2].isdigit()] or names
        for which, block in (
            ("last", blocks[0]),
            ("middle", blocks[len(blocks) // 2]),
            ("first", blocks[-1]),
        ):
            of_block = [
                turn for turn in turns if self._layer_of[turn.name] == block and turn.name not in picks
            ]
            if not of_block:
                continue
            best = max(of_block, key=lambda turn: self._records[turn.name].grad_norm)
            picks[best.name] = (
                _largest(best),
                f"the {which} layer: the largest entry of its largest gradient",
            )
        return picks

    def _choose(self, turn: Turn, replay: Replay) -> None:
        if turn.name not in self._picks:
            return
        entry, why = self._picks[turn.name]
        inside = entry - offset(turn.weight)
        here = 0 <= inside < local(turn.weight).numel()
        said = ""
        for one in replay.at([inside] if here else []):
            chosen = ChosenWeight(
                tensor=turn.name,
                index=[int(i) for i in np.unravel_index(entry, turn.weight.shape)],
                why=why,
                before=one.before,
                stages=one.stages,
                after=one.after,
                replay_error=one.replay_error,
                would=one.would,
                would_state=one.would_state,
            )
            said = chosen.model_dump_json()
        self.chosen.append(ChosenWeight.model_validate_json(said_of_parts(said, turn.weight)))

    # What is there at the end ------------------------------------------------------------------------------

    def tensors(self) -> list[TensorRecord]:
        """From the head to the embeddings."""
        share = 1 / self._square if self._square else 0.0
        return [
            record.model_copy(update={"share": record.grad_norm**2 * share})
            for name in self._layer_of
            if (record := self._records.get(name)) is not None
        ]

    def weights(self) -> tuple[Weights | None, dict[str, np.ndarray]]:
        """Panel 7, and its arrays; None if the optimizer could not be watched."""
        if self.refused is not None:
            return None, {}
        sums = self._counts.integers(), self._counts.reals()
        return Counts.of(*(over_parts(part, self._like) for part in sums)).weights()

    def old_head(self, head: Head | None) -> Head | None:
        """The head as it was before the update; the one that there is, if it was not updated."""
        if head is None or self._old_head is None:
            return head
        if self._old_bias is not None and head.bias_V is not None:
            head = replace(head, bias_V=as_shard(self._old_bias, head.bias_V))
        return replace(head, weight_VD=as_shard(self._old_head, head.weight_VD))

    def optimizer(self) -> OptimizerRecord:
        """Which arithmetic it was."""
        parts = self._optimizers.parts
        settings: dict[str, Any] = {}
        for part in parts:
            for group in part.param_groups:
                for key, value in group.items():
                    if key not in ("params", "lr", "initial_lr") and _plain(value):
                        settings.setdefault(key, value)
        return OptimizerRecord(
            name=" and ".join(type(part).__name__ for part in parts),
            learning_rate=self._optimizers.learning_rate,
            settings=settings,
            updates_before=self._updates_before,
            refused=self.refused,
        )


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _updates(optimizers: Optimizers) -> int:
    """Updates that the state has seen; 0 where the optimizer does not count."""
    counts = [
        float(state["step"]) for part in optimizers.parts for state in part.state.values() if "step" in state
    ]
    return int(max(counts, default=0))


def _largest(turn: Turn) -> int:
    """Index in the whole flat tensor of the entry with the largest gradient; the same on all ranks."""
    assert turn.weight.grad is not None
    own = local(turn.weight.grad).flatten().abs()
    if not in_parts(turn.weight):
        return int(own.argmax())
    # Of each rank the largest and where it is; a rank without a row has none.
    found = [-1.0, 0.0]
    if own.numel():
        found = [float(own.max()), float(offset(turn.weight) + int(own.argmax()))]
    table = [0.0] * (2 * ranks())
    table[2 * rank() : 2 * rank() + 2] = found
    table = add_up_numbers(table)
    return int(max(zip(table[::2], table[1::2], strict=True), key=lambda pair: pair[0])[1])


def _before(turn: Turn, layer: str) -> TensorRecord:
    """What there is to say of a tensor before its update."""
    assert turn.weight.grad is not None
    gradient, weight = local(turn.weight.grad), local(turn.weight)
    # Not torch's own norm: in one go over 28 million float32 entries, it was off by 0.2 % on a CPU.
    zeros = gradient.numel() - int(torch.count_nonzero(gradient))
    sums = numbers_over_parts([square(gradient), square(weight), zeros], turn.weight)
    return TensorRecord(
        name=turn.name,
        shape=list(turn.weight.shape),
        dtype=str(turn.weight.dtype).removeprefix("torch."),
        layer=layer,
        grad_norm=sums[0] ** 0.5,
        share=0.0,
        zero_share=sums[2] / max(1, turn.weight.numel()),
        weight_norm=sums[1] ** 0.5,
        update_norm=None,
        update_ratio=None,
        lost_share=None,
        rms={},
    )
