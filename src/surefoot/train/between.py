"""What happens between two updates: log, watch, evaluate, keep the best, save, tell the callbacks.

1. `after` tells of the step, and looks at the watched prompts.
2. `follow` evaluates and saves. A run that is asked to stop in an evaluation leaves it, to do it again on resuming.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.dataset import Dataset
from surefoot.errors import UserError
from surefoot.events import (
    AlertEvent,
    EndEvent,
    Event,
    StartEvent,
    StepEvent,
    WatchEvent,
)
from surefoot.microscope.run import Microscope
from surefoot.model.flops import peak_flops, utilisation
from surefoot.model.network import Network
from surefoot.ranks import local_rank, most, rank, ranks
from surefoot.runfolder import RunFolder
from surefoot.train import hardware
from surefoot.train.callbacks import Callbacks
from surefoot.train.compiling import compile_seconds
from surefoot.train.evaluate import probabilities, tokenise_watch
from surefoot.train.interrupt import Stopped, StopRequest
from surefoot.train.judging import Judge
from surefoot.train.keeping import STOPPED, Keeping
from surefoot.train.manifest import Progress
from surefoot.train.optim import Optimizers
from surefoot.train.progress import ProgressBar
from surefoot.train.setup import make_renderer
from surefoot.train.step import Change, Losses


class Between:
    """The run between its steps."""

    def __init__(
        self,
        *,
        run: RunFolder,
        args: SFTConfig,
        network: Network,
        tokenizer: PreTrainedTokenizerBase,
        eval_data: dict[str, Dataset],
        optimizers: Optimizers,
        model_name: str,
        progress: Progress,
        callbacks: Callbacks,
        total_steps: int,
        steps_per_epoch: int,
        step_rows: int,
    ) -> None:
        self.run, self.args, self.network, self.tokenizer = run, args, network, tokenizer
        self.callbacks, self.total_steps, self.steps_per_epoch = callbacks, total_steps, steps_per_epoch
        self.step_rows = step_rows
        self._peak, self._worked = peak_flops(network.device), (0.0, 0.0)
        self._compiled = network.compiled
        self.stop = StopRequest()
        renderer = make_renderer(network.model, tokenizer, args)
        self.watched = [tokenise_watch(watch, renderer) for watch in args.watch]
        self.bar = None if args.disable_tqdm or rank() > 0 else ProgressBar()
        looking = {"told": self.bar.look} if self.bar is not None else {}
        self.microscope = Microscope(
            run=run,
            args=args,
            network=network,
            tokenizer=tokenizer,
            optimizers=optimizers,
            model_name=model_name,
            watched=self.watched,
            going=self.stop.check,
            **looking,
        )
        self.keeping = Keeping(
            run=run,
            args=args,
            network=network,
            optimizers=optimizers,
            progress=progress,
            callbacks=callbacks,
            emit=self.emit,
        )
        self.judge = Judge(
            args=args,
            network=network,
            tokenizer=tokenizer,
            eval_data=eval_data,
            callbacks=callbacks,
            emit=self.emit,
            log=self._log,
            events_size=run.events_size,
            stop=self.stop,
        )
        callbacks.handler.optimizer = optimizers.parts[0]

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.keeping.progress

    def emit(self, event: Event) -> None:
        """Write an event and show it."""
        self.run.append(event)
        if self.bar is not None:
            self.bar(event)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the bar may draw. Afterwards the terminal is as it was, and a save on its way is finished,
        whatever happened; but for a second Ctrl-C, which waits for nothing."""
        try:
            yield
        except KeyboardInterrupt as stopped:
            if self.stop.twice:
                self.keeping.saver.give_up()
            raise stopped
        finally:
            self.keeping.finish()
            if self.bar is not None:
                self.bar.close()

    def start(self, event: StartEvent) -> None:
        state = self.callbacks.state
        state.max_steps, state.num_train_epochs = self.total_steps, math.ceil(self.args.num_train_epochs)
        state.global_step = self.progress.step
        if self.progress.step:
            state.epoch = self._epoch
        self.callbacks.exported()  # what cannot be kept is an error now, not at the first save
        state.log_history = self.progress.log_history
        state.is_local_process_zero, state.is_world_process_zero = local_rank() == 0, rank() == 0
        if not event.resumed:
            self.emit(event)
        elif self.bar is not None:
            self.bar(event)  # the log goes on where the checkpoint was saved, as if nothing had happened
        self.callbacks.tell("on_train_begin")
        if not event.resumed:
            if self.args.eval_on_start and self.judge.eval_data:
                self.judge.evaluate(self.progress)
            self.watch()

    def after(self, step: int, found: Losses, change: Change, started: float) -> None:
        """All that follows an update; `started`: when its step began, by `time.perf_counter`."""
        seconds = time.perf_counter() - started - self.microscope.seconds
        args, state = self.args, self.callbacks.state
        self.progress.step = step + 1
        self.progress.num_tokens += found.tokens
        done = StepEvent(
            step=step + 1,
            epoch=self._epoch,
            loss=found.loss,
            learning_rate=change.learning_rate,
            grad_norm=change.grad_norm,
            clip_factor=change.clip_factor,
            token_accuracy=found.token_accuracy,
            entropy=found.entropy,
            tokens=found.tokens,
            supervised=found.supervised,
            num_tokens=self.progress.num_tokens,
            slots=found.slots,
            micro_batches=found.micro_batches,
            step_seconds=seconds,
            tokens_per_second=found.tokens / seconds,
            memory_bytes=int(most([hardware.peak_bytes(self.network.device)])[0]),
            examples=[(e.where, e.loss, e.tokens) for e in found.examples],
            mfu=utilisation(found.flops, seconds, self._peak, ranks()),
        )
        self._worked = self._worked[0] + found.flops, self._worked[1] + seconds
        self.progress.last_loss = found.loss
        state.global_step, state.epoch = done.step, done.epoch
        self.emit(done)
        if self._compiled and self.bar is not None:  # not in the log, which does not tell of a second start
            told = f"compiling took {compile_seconds():.0f} s of the time so far"
            self.bar(AlertEvent(step=done.step, kind="compiled", message=told))
        self._compiled = False
        if done.step == 1 and args.save_strategy != "no":
            self.keeping.optimizers.state()  # what of an optimizer of the user's own cannot be kept is said early
        self.microscope.tell(self.emit)
        self.keeping.tell(self.keeping.saver.news())
        self._add_up(done)
        self.callbacks.tell("on_step_end")
        epoch_ends = done.step % self.steps_per_epoch == 0
        if epoch_ends:
            self.callbacks.tell("on_epoch_end")
        self._agree()
        control, last = self.callbacks.control, done.step == self.total_steps
        if (
            self._due(args.logging_steps)
            or control.should_log
            or (args.logging_first_step and done.step == 1)
        ):
            self.log(done)
        if self._due(args.watch_steps or args.logging_steps) or last:
            self.watch()
        self.follow()

    def catch_up(self) -> None:
        """What was left when the run was stopped in an evaluation."""
        if self.progress.pending is not None:
            self.follow()

    def follow(self) -> None:
        """Evaluate and save, where that is due after the steps so far."""
        args, control, progress = self.args, self.callbacks.control, self.progress
        epoch_ends, last = progress.step % self.steps_per_epoch == 0, progress.step == self.total_steps
        if progress.pending is not None:
            vars(control).update(progress.pending)
            progress.pending = None
        asked = vars(control).copy()
        every = self._due(args.eval_steps or args.logging_steps)
        due = {"steps": every, "epoch": epoch_ends, "no": False}[args.eval_strategy]
        better = False
        if self.judge.eval_data and (due or control.should_evaluate):
            try:
                better = self.judge.evaluate_unless_stopped(progress)
            except Stopped:
                progress.pending = asked
                return
        self._agree()
        if control.should_epoch_stop:
            raise UserError(
                "a callback set should_epoch_stop, but which rows a step has follows from its number alone; "
                "it can set should_training_stop"
            )
        patience = args.early_stopping_patience
        out_of_patience = patience is not None and progress.evaluations_without_better >= patience
        progress.enough = (out_of_patience or control.should_training_stop) and not last
        why = {
            "a callback asked for it": control.should_save,
            "the best so far": better and (args.load_best_model_at_end or args.save_strategy == "best"),
            "the end of an epoch": epoch_ends and args.save_strategy == "epoch",
            f"every {args.save_steps:g} steps": args.save_strategy == "steps" and self._due(args.save_steps),
        }
        because = next((said for said, holds in why.items() if holds), None)
        if because is not None and not last:
            self.keeping.save(because)
        control.should_log = control.should_evaluate = control.should_save = False

    def _agree(self) -> None:
        """What a callback asks for on one rank, all do."""
        control = vars(self.callbacks.control)
        asked = most([bool(control[name]) for name in sorted(control)])
        control.update({name: bool(value) for name, value in zip(sorted(control), asked, strict=True)})

    @property
    def _epoch(self) -> float:
        """Passes over the data so far, as Hugging Face counts them."""
        return round(self.progress.step / self.steps_per_epoch, 6)

    def _due(self, every: float) -> bool:
        every = math.ceil(every * self.total_steps) if every < 1 else int(every)
        return self.progress.step % every == 0

    def _add_up(self, done: StepEvent) -> None:
        self.progress.loss_sum += done.loss
        sums = self.progress.unlogged
        for key, value in (
            ("steps", 1),
            ("loss", done.loss),
            ("supervised", done.supervised),
            ("correct", done.token_accuracy * done.supervised),
            ("entropy", done.entropy * done.supervised),
        ):
            sums[key] = sums.get(key, 0.0) + value

    def log(self, done: StepEvent) -> None:
        """A log entry with Hugging Face's keys, over the steps since the last one."""
        sums, self.progress.unlogged = self.progress.unlogged, {}
        (flops, seconds), self._worked = self._worked, (0.0, 0.0)
        mfu = utilisation(flops, seconds, self._peak, ranks())
        self._log(
            {
                "loss": sums["loss"] / sums["steps"],
                "grad_norm": done.grad_norm,
                "clip_factor": done.clip_factor,
                "learning_rate": done.learning_rate,
                "entropy": sums["entropy"] / sums["supervised"],
                "mean_token_accuracy": sums["correct"] / sums["supervised"],
                "num_tokens": done.num_tokens,
            },
            {} if mfu is None else {"mfu": mfu},
        )

    def _log(self, entry: dict[str, Any], timed: dict[str, float] | None = None) -> None:
        """Tell the callbacks; what is `timed` stays out of the history: checkpoints have the same bits of it."""
        state = self.callbacks.state
        entry = {**entry, "epoch": state.epoch or 0.0}
        state.log_history.append({**entry, "step": state.global_step})
        self.callbacks.tell("on_log", logs={**entry, **(timed or {})})

    def watch(self) -> None:
        """Look at the watched prompts."""
        found = probabilities(self.network, self.watched, self.progress.micro_batch_tokens)
        for watched, p in zip(self.watched, found, strict=True):
            self.emit(WatchEvent(step=self.progress.step, prompt=watched.watch.prompt, p=p))

    def end_for_now(self, seconds: float) -> None:
        """Save, and close a run that was asked to stop; it can go on."""
        if self.progress.step > 0:
            self.keeping.save_surely(STOPPED)
        self.end("interrupted", seconds)

    def end(self, reason: str, seconds: float) -> dict[str, float]:
        """Close the run; returns Hugging Face's closing metrics."""
        steps = max(1, self.progress.step)
        rows = self.progress.step * self.step_rows
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": rows / seconds,
            "train_steps_per_second": self.progress.step / seconds,
            "train_loss": self.progress.loss_sum / steps,
        }
        if reason != "interrupted":
            self._log(metrics)
        self.callbacks.tell("on_train_end")
        self.emit(
            EndEvent(
                step=self.progress.step,
                reason=reason,
                train_runtime_seconds=seconds,
                train_loss=metrics["train_loss"],
                peak_memory_bytes=int(most([hardware.peak_bytes(self.network.device)])[0]),
                predicted_peak_memory_bytes=self.keeping.predicted_peak_bytes,
            )
        )
        return metrics
