"""What happens between two updates: log, watch, evaluate, keep the best, save, tell the callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.dataset import Dataset
from surefoot.errors import UserError
from surefoot.events import (
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    RunFolder,
    SampleEvent,
    StartEvent,
    StepEvent,
    WatchEvent,
)
from surefoot.microscope.run import Microscope
from surefoot.model.network import Network
from surefoot.train import checkpoint, hardware
from surefoot.train.callbacks import Callbacks
from surefoot.train.checkpoint import Progress
from surefoot.train.evaluate import answer, evaluate, exact_match, probabilities, tokenise_watch
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
    ) -> None:
        self.run, self.args, self.network, self.tokenizer = run, args, network, tokenizer
        self.eval_data, self.optimizers, self.progress = eval_data, optimizers, progress
        self.callbacks, self.total_steps, self.steps_per_epoch = callbacks, total_steps, steps_per_epoch
        renderer = make_renderer(network.model, tokenizer, args)
        self.watched = [tokenise_watch(watch, renderer) for watch in args.watch]
        self.bar = None if args.disable_tqdm else ProgressBar()
        looking = {"told": self.bar.look} if self.bar is not None else {}
        self.microscope = Microscope(
            run=run,
            args=args,
            network=network,
            tokenizer=tokenizer,
            optimizers=optimizers,
            model_name=model_name,
            watched=self.watched,
            **looking,
        )
        self.enough = False
        self.predicted_peak_bytes = 0
        callbacks.handler.optimizer = optimizers.parts[0]

    def emit(self, event: Event) -> None:
        """Write an event and show it."""
        self.run.append(event)
        if self.bar is not None:
            self.bar(event)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the bar may draw; afterwards the terminal is as it was, whatever happened."""
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()

    def start(self, event: StartEvent) -> None:
        state = self.callbacks.state
        state.max_steps, state.num_train_epochs = self.total_steps, math.ceil(self.args.num_train_epochs)
        state.global_step = self.progress.step
        state.log_history = self.progress.log_history
        state.is_local_process_zero = state.is_world_process_zero = True
        self.emit(event)
        self.callbacks.tell("on_train_begin")
        if not event.resumed:
            if self.args.eval_on_start and self.eval_data:
                self.evaluate()
            self.watch()

    def resume(self, resume: bool | str) -> Progress:
        """Put weights, optimizer and progress back from a checkpoint, and cut the events to match."""
        path = checkpoint.newest(self.run.checkpoints) if resume is True else Path(str(resume))
        if path is None:
            raise UserError(
                f"{self.run.path} has no checkpoint to continue from; run without resume_from_checkpoint"
            )
        self.progress = checkpoint.load(path, self.network.model, self.optimizers)
        if path.resolve().parent == self.run.checkpoints.resolve():
            self.run.go_back(self.progress.step, self.progress.events_size)
            self.microscope.resume()
        else:
            self.run.claim(self.args.overwrite_output_dir)
        return self.progress

    def after(self, step: int, found: Losses, change: Change, seconds: float) -> None:
        """All that follows an update; `seconds` is what it took."""
        seconds -= self.microscope.seconds
        args, state = self.args, self.callbacks.state
        self.progress.step = step + 1
        self.progress.num_tokens += found.tokens
        done = StepEvent(
            step=step + 1,
            epoch=round((step + 1) / self.steps_per_epoch, 6),
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
            memory_bytes=hardware.peak_bytes(self.network.device),
            examples=[(e.where, e.loss, e.tokens) for e in found.examples],
        )
        state.global_step, state.epoch = done.step, done.epoch
        self.emit(done)
        self.microscope.tell(self.emit)
        self._add_up(done)
        self.callbacks.tell("on_step_end")
        epoch_ends = done.step % self.steps_per_epoch == 0
        if epoch_ends:
            self.callbacks.tell("on_epoch_end")
        control, last = self.callbacks.control, done.step == self.total_steps
        if (
            self._due(args.logging_steps)
            or control.should_log
            or (args.logging_first_step and done.step == 1)
        ):
            self.log(done)
        if self._due(args.watch_steps or args.logging_steps) or last:
            self.watch()
        every = self._due(args.eval_steps or args.logging_steps)
        asked = {"steps": every, "epoch": epoch_ends, "no": False}[args.eval_strategy]
        better = self.evaluate() if self.eval_data and (asked or control.should_evaluate) else False
        asked = {"steps": self._due(args.save_steps), "epoch": epoch_ends, "no": False, "best": better}
        keep_best = better and args.load_best_model_at_end
        if (asked[args.save_strategy] and not last) or control.should_save or keep_best:
            self.save()
        patience = args.early_stopping_patience
        out_of_patience = patience is not None and self.progress.evaluations_without_better >= patience
        if control.should_epoch_stop:
            raise UserError(
                "a callback set should_epoch_stop, but which rows a step has follows from its number alone; "
                "it can set should_training_stop"
            )
        self.enough = (out_of_patience or control.should_training_stop) and not last
        control.should_log = control.should_evaluate = control.should_save = False

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
        self._log(
            {
                "loss": sums["loss"] / sums["steps"],
                "grad_norm": done.grad_norm,
                "clip_factor": done.clip_factor,
                "learning_rate": done.learning_rate,
                "entropy": sums["entropy"] / sums["supervised"],
                "mean_token_accuracy": sums["correct"] / sums["supervised"],
                "num_tokens": done.num_tokens,
            }
        )

    def _log(self, entry: dict[str, Any]) -> None:
        state = self.callbacks.state
        entry = {**entry, "epoch": state.epoch or 0.0}
        state.log_history.append({**entry, "step": state.global_step})
        self.callbacks.tell("on_log", logs=entry)

    def watch(self) -> None:
        """Look at the watched prompts."""
        found = probabilities(self.network, self.watched, self.progress.micro_batch_tokens)
        for watched, p in zip(self.watched, found, strict=True):
            self.emit(WatchEvent(step=self.progress.step, prompt=watched.watch.prompt, p=p))

    def evaluate(self) -> bool:
        """Evaluate on every held-out set; true if the (first) one is the best so far."""
        better = False
        for number, (name, data) in enumerate(self.eval_data.items()):
            started = time.perf_counter()
            found = evaluate(self.network, data.examples, self.progress.micro_batch_tokens)
            if self.args.eval_exact_match or self.args.eval_samples:
                found.update(self._answers(data))
            prefix = "eval" if name == "eval" else f"eval_{name}"
            metrics = {f"{prefix}_{key}": value for key, value in found.items()}
            better_here = number == 0 and self._is_best(
                found[self.args.metric_for_best_model.removeprefix("eval_")]
            )
            better = better or better_here
            self.emit(
                EvalEvent(
                    step=self.progress.step,
                    name=name,
                    metrics=metrics,
                    best=better_here,
                    eval_seconds=time.perf_counter() - started,
                )
            )
            self._log(metrics)
            self.callbacks.tell("on_evaluate", metrics=metrics)
        return better

    def _answers(self, data: Dataset) -> dict[str, float]:
        args = self.args
        examples = data.examples if args.eval_exact_match else data.examples[: args.eval_samples]
        answers = answer(self.network, self.tokenizer, examples, max_new_tokens=args.max_new_tokens)
        for one in answers[: args.eval_samples]:
            self.emit(
                SampleEvent(
                    step=self.progress.step,
                    where=one.where,
                    prompt=one.prompt,
                    answer=one.answer,
                    want=one.want,
                )
            )
        return {"exact_match": exact_match(answers)} if args.eval_exact_match else {}

    def _is_best(self, metric: float) -> bool:
        progress, best = self.progress, self.progress.best_metric
        better = best is None or (metric > best if self.args.best_is_greater else metric < best)
        if better:
            progress.best_metric, progress.best_step = metric, progress.step
            self.callbacks.state.best_metric, self.callbacks.state.best_global_step = metric, progress.step
            progress.evaluations_without_better = 0
        else:
            progress.evaluations_without_better += 1
        return better

    def save(self) -> None:
        """Save a checkpoint of this step."""
        started = time.perf_counter()
        self.progress.log_history = self.callbacks.state.log_history
        self.progress.events_size = self.run.events_size()
        path = checkpoint.save(self.run.checkpoints, self.network.model, self.optimizers, self.progress)
        seconds = time.perf_counter() - started
        self.emit(CheckpointEvent(step=self.progress.step, path=path.name, save_seconds=seconds))
        checkpoint.retain(self.run.checkpoints, self.args.save_total_limit, self.progress.best_step)
        self.callbacks.tell("on_save")

    def restore_best(self) -> None:
        """With `load_best_model_at_end`: put the best evaluation's weights back."""
        best = self.progress.best_step
        if self.args.load_best_model_at_end and best is not None and best != self.progress.step:
            path = self.run.checkpoints / f"step-{best:08d}"
            if path.is_dir():  # not when the best was before the first step
                checkpoint.load_weights(path, self.network.model)

    def end(self, reason: str, seconds: float) -> dict[str, float]:
        """Close the run; returns Hugging Face's closing metrics."""
        steps = max(1, self.progress.step)
        rows = self.progress.step * self.args.step_rows
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
                peak_memory_bytes=hardware.peak_bytes(self.network.device),
                predicted_peak_memory_bytes=self.predicted_peak_bytes,
            )
        )
        return metrics
