"""The microscope over a run: what every N-th step records, what raises an alert, which steps are opened.

1. `losses`: the step's forward and backward passes. If this step is to be opened, or what comes out is alarming,
   they are watched; in the second case they are computed once more, to the same bits.
2. `update`: clip and step; one tensor at a time where something is recorded.
3. `tell`: the events of it, in their order after the step's own.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.rows import Example
from surefoot.events import Event, SlideEvent
from surefoot.microscope.ground import WeightsLost
from surefoot.microscope.independent import refused
from surefoot.microscope.opening import Opening, Told, Wish
from surefoot.microscope.records import Recorder
from surefoot.microscope.watchman import Alert, Watchman, event_of, few
from surefoot.model.network import Network
from surefoot.ranks import add_up_numbers, rank, ranks, told
from surefoot.runfolder import RunFolder
from surefoot.train.distributed import local
from surefoot.train.evaluate import Watched
from surefoot.train.optim import Optimizers
from surefoot.train.step import Change, Losses, NotFinite, divisor_of, losses, update

GOES_ON = "The run goes on without it"


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
        going: Callable[[], None] = lambda: None,
    ) -> None:
        """`going` is called after each micro-batch of a step that is not opened, and may raise to leave it."""
        self.run, self.args, self.network, self.tokenizer = run, args, network, tokenizer
        self.optimizers, self.model_name, self.watched = optimizers, model_name, tuple(watched)
        held = {id(p) for group in optimizers.groups() for p in group["params"]}
        self.names = [name for name, p in network.model.named_parameters() if id(p) in held]
        self._told, self._going = told, going
        self.seconds = 0.0
        """What looking at the last step took besides the step."""
        self.watchman = Watchman(self.names)
        self._opening: Opening | None = None
        self._events: list[Event] = []
        self._ignored = False
        """The file that asks for the next step is there, and cannot be taken away."""

    def resume(self) -> None:
        """Remember the steps before. What rank 0 reads of them, all remember: they must open the same steps."""
        if rank() == 0:
            self.watchman.remember(self.run.events())
        memory = json.dumps(self.watchman.memory()) if rank() == 0 else ""
        self.watchman.recall(json.loads(told(memory)))

    def first_look(self, examples: Sequence[Example]) -> None:
        """Alerts about the data as a whole: examples that never teach to end a turn."""
        config = self.network.core.generation_config
        ends: Any = config.eos_token_id if config is not None else None
        tokens: list[Any] = [
            *(ends if isinstance(ends, list | tuple) else [ends]),
            self.tokenizer.eos_token_id,
        ]
        known = {token: str(self.tokenizer.decode([token])) for token in sorted(set(tokens) - {None})}
        taught = {int(token) for e in examples for token in e.completion_ids}
        if (alert := self.watchman.of_data(known, taught, len(examples))) is not None:
            self._alert(0, alert)

    def not_to_be_had(self, total_steps: int) -> list[str]:
        """What was asked for and will not come, and why."""
        found, later = [], [step for step in self.args.slides if step > total_steps]
        if later:
            which = ", ".join(map(str, later))
            found.append(f"slides: the run has {total_steps:,} steps, so {which} will not be opened")
        why = refused(self.optimizers.parts)
        if why is not None and self.args.tensors_every:
            found.append(f"tensors are not recorded, nor is what becomes of each weight: {why}")
        return found

    # The step ----------------------------------------------------------------------------------------------

    def losses(self, examples: Sequence[Example], step: int, budget: int, seed: int) -> Losses:
        """Forward and backward passes of update number `step`, which is 1 at first."""
        self.seconds, self._opening = 0.0, None
        self._step = step
        self._under = partial(Opening, self.network, self.tokenizer, examples, budget, seed=seed)
        because = None
        if divisor_of(examples) > 0:  # without a target there is nothing to see, and the wish waits
            because = self._asked(step) or self.watchman.waiting
            self.watchman.waiting = None
        self._plainly = partial(
            losses, self.network, examples, budget, backprop=True, seed=seed, seen=lambda *_: self._going()
        )
        self._found = self._watched(because) if because is not None else self._plainly()
        alert = self.watchman.of_losses(self._found)
        if alert is not None and self._alert(step, alert) and self._opening is None:
            self._once_more(alert)
        return self._found

    def _once_more(self, alert: Alert) -> None:
        """The step's passes again, to the same bits, and watched."""
        started = time.perf_counter()
        self.optimizers.zero_grad()
        again = self._watched(alert.message)
        assert again.loss == self._found.loss or math.isnan(again.loss), "the same step gave another loss"
        self.seconds += time.perf_counter() - started
        self.seconds -= self._opening.seconds if self._opening is not None else 0.0

    def _watched(self, because: str) -> Losses:
        """The step's passes, watched; if that fails, plain ones."""
        self._opening = self._open(because)
        with self._luxury():
            return self._opening.losses()
        self.optimizers.zero_grad()
        return self._plainly()

    @contextmanager
    def _luxury(self) -> Iterator[None]:
        """What fails in here costs the slide, not the run. The step is then taken as if it had not been opened."""
        try:
            yield
        except (NotFinite, WeightsLost):
            raise
        except Exception as error:
            if ranks() > 1:  # the others would wait for this one
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            self._alert(
                self._step, Alert("slide", f"this step could not be opened: {said}. {GOES_ON}", opens=False)
            )
            if self._opening is not None:
                self.seconds += self._opening.seconds
                self._opening.close()
            self._opening = None

    def _open(self, because: str) -> Opening:
        wish = Wish(
            because,
            watched=tuple(
                dict.fromkeys(int(e.completion_ids[0]) for one in self.watched for e in one.examples)
            ),
            texts=self.watched,
            mountain=self.args.slide_mountain,
            extras=self.args.slide_extras,
        )
        return self._under(
            wish=wish, model_name=self.model_name, scratch=self.run.slides, told=self._told, step=self._step
        )

    def update(self, step: int) -> Change:
        """Clip and step. Raises NotFinite before anything is changed; the slide is there all the same."""
        limit = self.args.max_grad_norm
        recorder = Recorder() if self._due(step) and refused(self.optimizers.parts) is None else None
        if self._opening is not None:
            with self._luxury():
                self._opening.look_at_gradient(self.optimizers, recorder)
        try:
            if not math.isfinite(self._found.loss):
                raise NotFinite(f"the loss is {self._found.loss}")
            if self._opening is None:
                change = update(self.optimizers, limit, recorder)
                self.seconds += recorder.seconds if recorder is not None else 0.0
            else:
                change = self._opening.update(self.optimizers, limit)
        except NotFinite as error:
            self._refused(error, step)
            raise
        if recorder is not None and (self._opening is None or self._opening.failed is None):
            if self.args.tensors_every:
                self._events.append(recorder.event(step, self.names))
            for alert in self.watchman.of_tensors(recorder, change):
                self._alert(step, alert)
        self.watchman.moved |= change.learning_rate > 0
        if self._opening is not None:
            self._write(self._opening, step)
        return change

    def _refused(self, error: NotFinite, step: int) -> None:
        """The slide of a step that has no update, because its loss or gradient is not finite."""
        if math.isfinite(self._found.loss):
            named = [(turn.name, local(turn.gradient)) for turn in self.optimizers.turns()]
            wrong = add_up_numbers([not bool(gradient.isfinite().all()) for _, gradient in named])
            odd = [name for (name, _), ranks_odd in zip(named, wrong, strict=True) if ranks_odd]
            rows = [one.where for one in self._found.examples]
            said = f"{error}, in {len(odd):,} of {len(named):,} tensors: {few(odd, 3)}; rows: {few(rows)}"
            alert = Alert("not finite", said)
            self._alert(step, alert)
            if self._opening is None:
                self._once_more(alert)
        if self._opening is not None:
            with self._luxury():
                self._opening.look_at_gradient(self.optimizers)
        if self._opening is not None:
            self._write(self._opening, step)

    # What is told --------------------------------------------------------------------------------------------

    def tell(self, emit: Callable[[Event], None]) -> None:
        """Emit what came of the step. Also what was found before the first one."""
        for event in self._events:
            emit(event)
        self._events = []

    def _asked(self, step: int) -> str | None:
        """Why the user wants this step opened, if so."""
        args = self.args
        if add_up_numbers([rank() == 0 and self._wished(step)])[0]:  # all ranks open the same steps
            return f"asked for with {self.run.asked_file.name}"
        if step in args.slides or (args.slide_every is not None and step % args.slide_every == 0):
            return "asked for"
        return None

    def _wished(self, step: int) -> bool:
        """Whether the file is there that asks for this step; it is taken away, so that it asks for no other."""
        file = self.run.asked_file
        if not file.exists():
            self._ignored = False
        elif not self._ignored:
            try:
                file.rmdir() if file.is_dir() else file.unlink()
            except OSError as error:
                self._ignored = True
                said = f"{file} opens this step, but no other: it cannot be taken away ({error.strerror}). To ask"
                self._alert(step, Alert("slide", f"{said} again, delete it yourself first", opens=False))
            return True
        return False

    def _alert(self, step: int, alert: Alert) -> bool:
        """Put an alert among the events; true if a step should be opened for it."""
        self._events.append(event_of(step, alert))
        return self.watchman.said(step, alert)

    def _due(self, step: int) -> bool:
        """Whether the tensors of this step are looked at: every N, the first, and, for its alerts always, the first
        that moves."""
        every, rate = self.args.tensors_every, self.optimizers.learning_rate
        moves = rate > 0 and not self.watchman.moved
        return moves or (every > 0 and (step == 1 or step % every == 0))

    def _write(self, opening: Opening, step: int) -> None:
        """Make the slide and keep it in the run folder. Neither a fault nor a full disk stops the run."""
        opened = None
        with self._luxury():
            opened = opening.slide(self.args.max_grad_norm)
        if opened is None:
            return
        started = time.perf_counter()
        slide, path = opened.slide, self.run.slides / f"step-{step:08d}"
        for message in slide.alerts:
            self._alert(step, Alert("slide", message, opens=False))
        try:
            if rank() == 0:  # all have made it, for each knows but its own weights
                opened.save(path)
        except OSError as error:
            self.seconds += opening.seconds
            said = f"the slide of this step could not be kept: {error}. {GOES_ON}"
            self._alert(step, Alert("slide", said, opens=False))
            return
        self.seconds += opening.seconds + time.perf_counter() - started
        self._events.append(
            SlideEvent(
                step=step,
                path=path.name,
                because=slide.opened_because,
                headline=slide.headline,
                open_seconds=self.seconds,
            )
        )
