"""The microscope over a run: what every N-th step records, what raises an alert, which steps are opened.

1. `losses`: the step's forward and backward passes. If this step is to be opened, or what comes out is alarming,
   they are watched; in the second case they are computed once more, to the same bits.
2. `update`: clip and step; one tensor at a time where something is recorded.
3. `tell`: the events of it, in their order after the step's own.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.rows import Example
from surefoot.events import AlertEvent, Event, RunFolder, SlideEvent
from surefoot.microscope.independent import refusal
from surefoot.microscope.opening import Opening, Told, Wish
from surefoot.microscope.records import Recorder
from surefoot.model.network import Network
from surefoot.train.distributed import add_up_numbers, rank
from surefoot.train.evaluate import Watched
from surefoot.train.optim import Optimizers
from surefoot.train.step import Change, Losses, NotFinite, divisor_of, losses, update

REMEMBERED = 20
"""Losses of earlier steps that a step's loss is compared with. For so many steps an alert that has opened one opens
no other."""


@dataclass
class Alert:
    """Something is wrong, or looks so."""

    kind: str
    message: str
    opens: bool = True
    """A step is opened for it."""


class Microscope:
    """Stands between the trainer's loop and the step; without anything to look at it costs nothing."""

    def __init__(
        self,
        *,
        run: RunFolder,
        args: SFTConfig,
        network: Network,
        tokenizer: PreTrainedTokenizerBase,
        optimizers: Optimizers,
        model_name: str,
        watched: Sequence[Watched] = (),
        told: Told = lambda done, total: None,
    ) -> None:
        self.run, self.args, self.network, self.tokenizer = run, args, network, tokenizer
        self.optimizers, self.model_name, self.watched = optimizers, model_name, tuple(watched)
        self.names = [name for name, p in network.model.named_parameters() if p.requires_grad]
        self._told = told
        self.seconds = 0.0
        """What looking at the last step took besides the step."""
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._opened_for: dict[str, int] = {}
        self._because: str | None = None
        self._opening: Opening | None = None
        self._events: list[Event] = []
        self._independent = all(refusal(part) is None for part in optimizers.parts)
        self._idle: set[str] = set()
        self._moved = False
        """An update with a learning rate above 0 has been recorded."""

    def resume(self) -> None:
        """Remember the losses of the steps before."""
        for event in self.run.events():
            if event["type"] == "step":
                self._recent.append(float(event["loss"]))
                self._moved |= event["learning_rate"] > 0

    def first_look(self, examples: Sequence[Example]) -> None:
        """Alerts about the data as a whole: examples that never teach to end a turn."""
        config = self.network.core.generation_config
        ends: Any = config.eos_token_id if config is not None else None
        tokens: list[Any] = [
            *(ends if isinstance(ends, list | tuple) else [ends]),
            self.tokenizer.eos_token_id,
        ]
        known = set(tokens) - {None}
        if known and not any(known & set(e.completion_ids.tolist()) for e in examples):
            names = ", ".join(repr(str(self.tokenizer.decode([token]))) for token in sorted(known))
            said = f"no completion of the first {len(examples):,} examples has a token that ends a turn ({names}): "
            self._alert(0, Alert("turn end", said + "the model will not learn to stop"))

    # The step ----------------------------------------------------------------------------------------------

    def losses(self, examples: Sequence[Example], step: int, budget: int, seed: int) -> Losses:
        """Forward and backward passes of update number `step`, which is 1 at first."""
        self.seconds, self._opening = 0.0, None
        because, self._because = self._asked(step) or self._because, None
        if because is not None and divisor_of(examples) > 0:  # without a target there is nothing to see
            found = self._watched_losses(examples, step, budget, seed, because)
            if (alert := self._alarming(found)) is not None:
                self._alert(step, alert)
                self._because = None
            self._recent.append(found.loss)
            return found
        found = losses(self.network, examples, budget, backprop=True, seed=seed)
        alert = self._alarming(found)
        self._recent.append(found.loss)
        if alert is not None and self._alert(step, alert):
            started = time.perf_counter()
            self._because = None
            self.optimizers.zero_grad()
            again = self._watched_losses(examples, step, budget, seed, alert.message)
            assert again.loss == found.loss or math.isnan(found.loss), "the same step gave another loss"
            self.seconds += time.perf_counter() - started
        return found

    def _watched_losses(
        self, examples: Sequence[Example], step: int, budget: int, seed: int, because: str
    ) -> Losses:
        wish = Wish(
            because,
            watched=tuple(
                dict.fromkeys(int(e.completion_ids[0]) for one in self.watched for e in one.examples)
            ),
            texts=self.watched,
            mountain=self.args.slide_mountain,
            extras=self.args.slide_extras,
        )
        self._opening = Opening(
            self.network,
            self.tokenizer,
            examples,
            budget,
            step=step,
            seed=seed,
            wish=wish,
            model_name=self.model_name,
            scratch=self.run.slides,
            told=self._told,
        )
        return self._opening.losses()

    def update(self, step: int) -> Change:
        """Clip and step. Raises NotFinite before anything is changed; the slide is there all the same."""
        limit = self.args.max_grad_norm
        recorder = Recorder() if self._independent and self._due(step) else None
        if self._opening is None:
            change = update(self.optimizers, limit, recorder)
            self.seconds += recorder.seconds if recorder is not None else 0.0
        else:
            try:
                change = self._opening.update(self.optimizers, limit, recorder)
            except NotFinite:
                self._write(self._opening, step)
                raise
        if recorder is not None:
            self._records(recorder, change, step)
        if self._opening is not None:
            self._write(self._opening, step)
        return change

    # What is told --------------------------------------------------------------------------------------------

    def tell(self, emit: Callable[[Event], None]) -> None:
        """Emit what came of the step. Also what was found before the first one."""
        for event in self._events:
            emit(event)
        self._events = []

    def _asked(self, step: int) -> str | None:
        """Why the user wants this step opened, if so."""
        args = self.args
        first = rank() == 0
        if add_up_numbers([first and self.run.asked_file.exists()])[0]:  # all ranks open the same steps
            if first:
                self.run.asked_file.unlink(missing_ok=True)
            return f"asked for with {self.run.asked_file.name}"
        if step in args.slides or (args.slide_every is not None and step % args.slide_every == 0):
            return "asked for"
        return None

    def _alarming(self, found: Losses) -> Alert | None:
        """What of a step's loss is alarming before the update."""
        if not math.isfinite(found.loss):
            costly = [one.where for one in found.examples if not math.isfinite(one.loss)]
            return Alert("not finite", f"the loss is {found.loss}; rows: {', '.join(costly[:5])}")
        if found.supervised == 0:
            return Alert(
                "no target", "no token of this step is supervised; there is nothing to learn", opens=False
            )
        if len(self._recent) == REMEMBERED and found.loss > 2 * median(self._recent) > 0:
            usual = median(self._recent)
            return Alert(
                "high loss",
                f"the loss, {found.loss:.4g}, is over twice the median of the last 20, {usual:.4g}",
            )
        return None

    def _alert(self, step: int, alert: Alert) -> bool:
        """Put an alert among the events; true if a step should be opened for it."""
        self._events.append(AlertEvent(step=step, kind=alert.kind, message=alert.message))
        last = self._opened_for.get(alert.kind)
        if not alert.opens or (last is not None and step - last < REMEMBERED):
            return False
        self._opened_for[alert.kind] = step
        self._because = alert.message
        return True

    def _due(self, step: int) -> bool:
        """Whether the tensors of this step are recorded: every N, the first, and the first that moves."""
        every, rate = self.args.tensors_every, float(next(self.optimizers.groups())["lr"])
        moves, self._moved = rate > 0 and not self._moved, self._moved or rate > 0
        return every > 0 and (moves or step == 1 or step % every == 0)

    def _records(self, recorder: Recorder, change: Change, step: int) -> None:
        self._events.append(recorder.event(step, self.names))
        asked, lost = recorder.narrow
        if change.learning_rate > 0 and lost > asked / 2:
            self._alert(
                step,
                Alert(
                    "lost updates",
                    f"{lost / asked:.0%} of the updates were lost to rounding: the weights are bf16. "
                    "precision=bf16 keeps them in fp32",
                ),
            )
        # In a first step LoRA's A has no gradient, as its B is 0.
        idle = {name for name, row in recorder.found.items() if row.zero_share == 1} if step > 1 else set()
        if idle - self._idle:
            more = f" and {len(idle) - 1:,} other tensors" if len(idle) > 1 else ""
            self._alert(step, Alert("no gradient", f"the gradient of {min(idle)}{more} is exactly 0"))
        self._idle = idle

    def _write(self, opening: Opening, step: int) -> None:
        """Make the slide and keep it in the run folder."""
        opened = opening.slide(self.args.max_grad_norm)
        slide = opened.slide
        for message in slide.alerts:
            self._events.append(AlertEvent(step=step, kind="slide", message=message))
        path = self.run.slides / f"step-{step:08d}"
        if rank() == 0:  # all have made it, for each knows but its own weights
            opened.save(path)
        self.seconds += slide.seconds["opening"]
        self._events.append(
            SlideEvent(
                step=step,
                path=path.name,
                because=slide.opened_because,
                headline=slide.headline,
                open_seconds=slide.seconds["opening"],
            )
        )
