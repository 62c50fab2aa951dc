"""SFTTrainer: the training loop, as a textbook would write it.

For each step: predict, loss, backprop, update, log. What a step is stands in `step.py`; what is done between
steps (evaluate, watch, log, save) in `between.py`.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.dataset import Dataset, Formatting
from surefoot.data.rows import Example
from surefoot.data.sampler import Sampler
from surefoot.data.sources import Source
from surefoot.errors import UserError
from surefoot.events import StartEvent
from surefoot.model.load import stop_at
from surefoot.model.save import save
from surefoot.ranks import by_first, by_itself, join, rank, together
from surefoot.runfolder import RunFolder
from surefoot.train import hardware
from surefoot.train.accord import same_everywhere
from surefoot.train.between import Between
from surefoot.train.callbacks import Callbacks
from surefoot.train.distributed import agreed, shard_state
from surefoot.train.evaluate import answer, evaluate, exact_match
from surefoot.train.identity import identity
from surefoot.train.interrupt import Interrupted, Stopped, asked_to_stop
from surefoot.train.loading import as_shared, on_path, prepare_model, prepare_network
from surefoot.train.manifest import Progress, progress_of
from surefoot.train.optim import Optimizers, build, refuse_told
from surefoot.train.planner import Plan, choose
from surefoot.train.progress import working
from surefoot.train.rates import Rates
from surefoot.train.recompute import checkpoint_layers
from surefoot.train.restarts import restarted, said_of_the_lost
from surefoot.train.result import save_result
from surefoot.train.resume import find_together, rows_of_step
from surefoot.train.selfcheck import Verdict, quick
from surefoot.train.setup import LOOKED_AT, describe, open_all, open_held_out, read_data
from surefoot.train.step import Change, Losses, NotFinite, seed_of
from surefoot.train.watchdog import Watchdog

if TYPE_CHECKING:
    from transformers import TrainerCallback


class SFTTrainer:
    """Fine-tune a causal language model on what it should answer.

    Args:
        model: hub id, folder, .gguf file, embedded short name, or a model object (trained in place).
        args: options; `SFTConfig()` if left out.
        train_dataset: path, hub name, list of rows, or `datasets.Dataset` (also its iterable form).
        eval_dataset: held-out rows, or a dict of them by name.
        processing_class: the tokenizer; the model's own if left out.
        peft_config: a PEFT configuration: only that adapter is trained.
        callbacks: Hugging Face `TrainerCallback`s.
        optimizers: an optimizer of your own (and a scheduler of its own) instead of `args.optim`.
        formatting_func: from a row's columns to a row of a known shape, or to plain text.

    Raises UserError, before any training, for whatever is wrong with model, options or rows.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module | None = None,
        args: SFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        formatting_func: Formatting | None = None,
    ) -> None:
        self.args = args = restarted(args or SFTConfig())
        join(args.ddp_timeout, args.use_cpu)
        self.run = RunFolder(args.output_dir, writes=rank() == 0)
        self._formatting = formatting_func
        self._step_rows = rows_of_step(self.run, args, args.resume_from_checkpoint)
        self._at_most = args.max_steps * self._step_rows if args.max_steps > 0 else None
        source, held_out = together(lambda: open_all(train_dataset, eval_dataset, args, self._at_most))
        self.prepared = together(lambda: prepare_model(model, args, processing_class, peft_config))
        self.model = self.prepared.model
        self.processing_class = self.prepared.tokenizer
        self.train_data = self._read(source, self._at_most) if source is not None else None
        self.eval_data = {name: self._read(part) for name, part in held_out.items()}
        data = [part for _, part in self._named()]
        ends = dict.fromkeys(end for part in data for end in part.ledger.turn_ends)
        self.prepared.notes.extend(stop_at(self.model, self.processing_class, ends))
        some = data[0].some(LOOKED_AT)
        self._looked_at = agreed(together(lambda: prepare_network(self.prepared, some, args)))
        if self.prepared.cut and optimizers[0] is not None:
            raise UserError(
                "optimizers: an optimizer of your own holds whole weights, and these are cut over the ranks: pass "
                "shard=none, or choose one with optim"
            )
        self.network = as_shared(self.prepared, self._looked_at, args)
        self.progress = Progress(
            micro_batch_tokens=args.micro_batch_tokens or hardware.micro_batch_tokens(self.network.device)
        )
        self.callbacks = Callbacks(self.model, self.processing_class, args, callbacks or ())
        self.state = self.callbacks.state
        self._own_optimizer, self._own_scheduler = optimizers
        refuse_told(self._own_scheduler)

    # The loop ------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None) -> dict[str, float]:
        """Train to the end, and save the result in the run folder's `model/`.

        Returns Hugging Face's closing metrics. Raises Interrupted, after saving, on SIGINT or SIGTERM, and
        NotFinite before an update that would destroy the weights.
        """
        said = resume_from_checkpoint
        resume = said if said is not None else self.args.resume_from_checkpoint
        optimizers = together(lambda: build(self.model, self.args, self._own_optimizer))
        watchdog = Watchdog(self.args.ddp_timeout)
        with self._claimed(), watchdog.watching(), said_of_the_lost():
            data, sampler, total_steps = self._prepare(resume, optimizers)
            between = self._begin(resume, data, optimizers, sampler, total_steps)
            first, run_started = self.progress.step, time.perf_counter()
            with asked_to_stop(between.stop) as stop, between.listening():
                between.catch_up()
                for epoch in sampler.epochs(first, total_steps):
                    for step in sampler.steps(epoch, first, total_steps):
                        stop.ask()
                        if self.progress.enough or stop.signal is not None:
                            break
                        watchdog.at(f"step {step + 1}")
                        started = time.perf_counter()
                        self._rates.set(step)
                        examples = data.of_rows(sampler.step(step).tolist())
                        found = self._backprop(between, examples, step)  # predict, loss, backprop
                        if found is None:  # asked to stop in the middle of it
                            break
                        change = self._update(between, examples, step)
                        between.after(step, found, change, started)  # log, evaluate, save
                seconds = time.perf_counter() - run_started
                stop.ask()
                if stop.signal is None:
                    between.keeping.last()
                    stop.ask()
                if stop.signal is not None:
                    between.end_for_now(seconds)
                    raise Interrupted(stop.signal, self.progress.step, self.run.path)
                between.keeping.put_best_back()
                self.save_model()
                return between.end("stopped early" if self.progress.enough else "finished", seconds)

    def _backprop(self, between: Between, examples: list[Example], step: int) -> Losses | None:
        """Predict, compare, and add up the gradient of the step's loss; dropout follows from (seed, step).

        None when the run was asked to stop between two micro-batches: nothing has changed.
        """
        budget, seed = self.progress.micro_batch_tokens, seed_of(self.args.seed, step)
        try:
            return between.microscope.losses(examples, step + 1, budget, seed)
        except Stopped:
            between.keeping.optimizers.zero_grad()
            return None

    def _update(self, between: Between, examples: list[Example], step: int) -> Change:
        """Clip and step. Raises NotFinite, naming the rows, before an update that would destroy the weights."""
        try:
            return between.microscope.update(step + 1)
        except NotFinite as error:
            between.microscope.tell(between.emit)
            rows = ", ".join(dict.fromkeys(example.where for example in examples))
            raise NotFinite(f"step {step + 1}: {error}; nothing was updated. Rows: {rows}") from None

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """While open, nobody else trains in the run folder."""
        with ExitStack() as stack:
            together(lambda: stack.enter_context(self.run.locked()))
            yield

    def _prepare(self, resume: bool | str, optimizers: Optimizers) -> tuple[Dataset, Sampler, int]:
        """Prove the fast path; how many rows a step has, and how many steps there are."""
        args, data = self.args, self.train_data
        if data is None:
            raise UserError("no rows to train on: pass train_dataset=..., or dataset_name")
        with working("checking the fast path on some rows"):
            self.verdict = together(lambda: self._checked(data))
        self.network = on_path(self.network, agreed(self.verdict.network))
        self._step_rows = rows_of_step(self.run, args, resume)
        shuffle = args.train_sampling_strategy == "random"
        sampler = Sampler(len(data.rows), self._step_rows, args.seed, shuffle)
        epochs = math.ceil(args.num_train_epochs * sampler.steps_per_epoch)
        total = max(1, args.max_steps if args.max_steps > 0 else epochs)
        shard_state(optimizers)
        optimizers.zero_grad()  # whatever gradient the user's model came with is not of our first step
        self._rates = Rates(args, optimizers, self._own_scheduler, total)
        return data, sampler, total

    def _plan(self, data: Dataset, optimizers: Optimizers, total_steps: int, resumed: bool) -> Plan:
        """Choose how steps go through memory; a resumed run keeps the budget that it began with."""
        args, state_bytes = self.args, optimizers.state_bytes()
        if resumed:
            budget = args.micro_batch_tokens or self.progress.micro_batch_tokens
            args = args.model_copy(update={"micro_batch_tokens": budget})
            state_bytes = 0  # it is there already
        longest = int(data.lengths.max())
        with working("planning micro-batches"):
            plan = choose(self.network, data.examples, args, state_bytes, total_steps, longest)
        checkpoint_layers(self.model, plan.checkpointed_layers)
        self.progress.micro_batch_tokens = plan.micro_batch_tokens
        return plan

    def _begin(
        self,
        resume: bool | str,
        data: Dataset,
        optimizers: Optimizers,
        sampler: Sampler,
        total_steps: int,
    ) -> Between:
        """Begin in the run folder, or go on where its newest checkpoint stands, and plan."""
        between = Between(
            run=self.run,
            args=self.args,
            network=self.network,
            tokenizer=self.processing_class,
            eval_data=self.eval_data,
            optimizers=optimizers,
            model_name=self.prepared.name,
            progress=self.progress,
            callbacks=self.callbacks,
            total_steps=total_steps,
            steps_per_epoch=sampler.steps_per_epoch,
            step_rows=self._step_rows,
        )
        content = describe(self.prepared, self.network, self.args)
        content["data"] = {name: part.to_dict() for name, part in self._named()}
        content |= {"total_steps": total_steps, "step_rows": self._step_rows}
        same_everywhere(content)
        start = find_together(self.run, self.args, resume, content, (keeping := between.keeping).saver)
        if start.checkpoint is not None:
            self._rates.replay(progress_of(start.checkpoint).step)
        for said in start.warnings if between.bar is None and rank() == 0 else ():
            warnings.warn(said, stacklevel=3)
        keeping.identity = identity(content)
        keeping.begin(start)
        together(lambda: None)  # the folder is as it was at that step, for all to read
        self.progress, resumed = between.progress, start.checkpoint is not None
        between.microscope.resume()
        between.microscope.first_look(data.some(LOOKED_AT))
        plan = self._plan(data, optimizers, total_steps, resumed=resumed)
        keeping.predicted_peak_bytes = plan.predicted_peak_bytes
        content["machine"]["micro_batch_tokens"] = plan.micro_batch_tokens
        content["tensors"] = between.microscope.names
        content |= {"check": self.verdict.to_dict(), "plan": asdict(plan), "resumed": start.history}
        by_first(lambda: self.run.write_config(content))
        between.start(
            StartEvent(
                step=self.progress.step,
                total_steps=total_steps,
                steps_per_epoch=sampler.steps_per_epoch,
                resumed=resumed,
                notes=[
                    *start.notes,
                    *(self.verdict.line, *self.verdict.refused, *plan.reasons),
                    *between.microscope.not_to_be_had(total_steps),
                ],
            )
        )
        return between

    # Everything else -----------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, perplexity and token accuracy over the supervised tokens of the held-out rows.

        With `eval_exact_match`, also the share of greedy answers that are exactly right.
        """
        held_out = self.eval_data
        if eval_dataset is not None:
            opened = open_held_out(eval_dataset, self.args)
            held_out = {name: self._read(part) for name, part in opened.items()}
        if not held_out:
            raise UserError("no rows to evaluate on: pass eval_dataset")
        out = {}
        for name, data in held_out.items():
            prefix = metric_key_prefix if name == "eval" else f"{metric_key_prefix}_{name}"
            found = evaluate(self.network, data.examples, self.progress.micro_batch_tokens)
            if self.args.eval_exact_match:
                limit = self.args.max_new_tokens
                answers = answer(self.network, self.processing_class, data.examples, max_new_tokens=limit)
                found["exact_match"] = exact_match(answers)
            out.update({f"{prefix}_{key}": value for key, value in found.items()})
        return out

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save as an ordinary Hugging Face folder (an adapter folder with PEFT); default: RUN/model.

        Raises StoppedError when RUN/model cannot be written, after waiting for room.
        """
        write = partial(save, self.model, self.processing_class)
        if output_dir is None:
            save_result(self.run, write, warnings.warn)
        else:
            together(lambda: write(Path(output_dir)))

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a Hugging Face callback."""
        self.callbacks.handler.add_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a Hugging Face callback."""
        self.callbacks.handler.remove_callback(callback)

    def ledgers(self) -> Iterator[str]:
        """What became of the rows, in words."""
        for _, data in self._named():
            yield from data.ledger.lines()
            if data.from_cache:
                yield f"{data.ledger.source}: unchanged, so its tokens come from an earlier run"

    def notes(self) -> list[str]:
        """What had to be decided for this model, in words."""
        return [*self.prepared.notes, *self.network.reasons]

    def _checked(self, data: Dataset) -> Verdict:
        with by_itself():
            return quick(self._looked_at, data.some(LOOKED_AT))

    def _named(self) -> Iterator[tuple[str, Dataset]]:
        if self.train_data is not None:
            yield "train", self.train_data
        yield from self.eval_data.items()

    def _read(self, source: Source, at_most: int | None = None) -> Dataset:
        """Of a stream, no more than the run can use; of anything else all, as any row may come first."""
        at_most = at_most if source.length is None else None
        return read_data(source, self.prepared, self.args, self._formatting, at_most)
