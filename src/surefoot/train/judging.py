"""Evaluations in the course of a run, and what is the best so far."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.dataset import Dataset
from surefoot.events import EvalEvent, Event, SampleEvent
from surefoot.model.network import Network
from surefoot.train.callbacks import Callbacks
from surefoot.train.evaluate import answer, evaluate, exact_match
from surefoot.train.interrupt import Stopped, StopRequest
from surefoot.train.manifest import Progress


class Judge:
    """Evaluates on the held-out rows, and keeps in `Progress` which step was best."""

    def __init__(
        self,
        *,
        args: SFTConfig,
        network: Network,
        tokenizer: PreTrainedTokenizerBase,
        eval_data: Mapping[str, Dataset],
        callbacks: Callbacks,
        emit: Callable[[Event], None],
        log: Callable[[dict[str, Any]], None],
        events_size: Callable[[], int],
        stop: StopRequest,
    ) -> None:
        self.args, self.network, self.tokenizer, self.eval_data = args, network, tokenizer, eval_data
        self.callbacks, self.emit, self.stop = callbacks, emit, stop
        self._log, self._events_size = log, events_size

    def evaluate_unless_stopped(self, progress: Progress) -> bool:
        """`evaluate`; raises Stopped, with everything as it was before, when the run is asked to stop in it."""
        state = self.callbacks.state
        before, logged = copy.copy(progress), len(state.log_history)
        before.events_size = self._events_size()
        best = state.best_metric, state.best_global_step
        try:
            return self.evaluate(progress)
        except Stopped:
            vars(progress).update(vars(before))
            del state.log_history[logged:]
            state.best_metric, state.best_global_step = best
            raise

    def evaluate(self, progress: Progress) -> bool:
        """Evaluate on every held-out set; true if the (first) one is the best so far."""
        better = False
        for number, (name, data) in enumerate(self.eval_data.items()):
            started = time.perf_counter()
            found = evaluate(
                self.network, data.examples, progress.micro_batch_tokens, self.stop.check_together
            )
            if self.args.eval_exact_match or self.args.eval_samples:
                found.update(self._answers(progress, data))
            prefix = "eval" if name == "eval" else f"eval_{name}"
            metrics = {f"{prefix}_{key}": value for key, value in found.items()}
            better_here = number == 0 and self._is_best(
                progress, found[self.args.metric_for_best_model.removeprefix("eval_")]
            )
            better = better or better_here
            self.emit(
                EvalEvent(
                    step=progress.step,
                    name=name,
                    metrics=metrics,
                    best=better_here,
                    eval_seconds=time.perf_counter() - started,
                )
            )
            self._log(metrics)
            self.callbacks.tell("on_evaluate", metrics=metrics)
        return better

    def _answers(self, progress: Progress, data: Dataset) -> dict[str, float]:
        args = self.args
        examples = data.examples if args.eval_exact_match else data.examples[: args.eval_samples]
        answers = answer(
            self.network,
            self.tokenizer,
            examples,
            max_new_tokens=args.max_new_tokens,
            going=self.stop.check,
        )
        for one in answers[: args.eval_samples]:
            self.emit(
                SampleEvent(
                    step=progress.step,
                    where=one.where,
                    prompt=one.prompt,
                    answer=one.answer,
                    want=one.want,
                )
            )
        return {"exact_match": exact_match(answers)} if args.eval_exact_match else {}

    def _is_best(self, progress: Progress, metric: float) -> bool:
        best = progress.best_metric
        better = best is None or (metric > best if self.args.best_is_greater else metric < best)
        if better:
            progress.best_metric, progress.best_step = metric, progress.step
            self.callbacks.state.best_metric, self.callbacks.state.best_global_step = metric, progress.step
            progress.evaluations_without_better = 0
        else:
            progress.evaluations_without_better += 1
        return better
