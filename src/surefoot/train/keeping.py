"""What a run keeps to go on from: its state is put into checkpoints, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.events import AlertEvent, CheckpointEvent, Event
from surefoot.model.network import Network
from surefoot.ranks import add_up_numbers, by_first, local_ranks, rank, texts, together
from surefoot.runfolder import RunFolder, numbered
from surefoot.train import hardware
from surefoot.train.callbacks import Callbacks
from surefoot.train.checkpoint import Snapshot, kept_tensors, load, load_weights
from surefoot.train.manifest import Manifest, Progress, manifest_of, name_of, state_of, verify
from surefoot.train.optim import Optimizers
from surefoot.train.pieces import cut
from surefoot.train.resume import Start
from surefoot.train.saver import Saver

STOPPED = "the run was asked to stop"


class Keeping:
    """The state of a run that outlives it, and its way to the disk."""

    def __init__(
        self,
        *,
        run: RunFolder,
        args: SFTConfig,
        network: Network,
        optimizers: Optimizers,
        progress: Progress,
        callbacks: Callbacks,
        emit: Callable[[Event], None],
    ) -> None:
        self.run, self.args, self.network, self.optimizers = run, args, network, optimizers
        self.progress, self.callbacks, self.emit = progress, callbacks, emit
        self.identity: Mapping[str, Any] = {}
        """What run this is, as checkpoints tell it."""
        self.predicted_peak_bytes = 0
        self._untold: Path | None = None
        """A checkpoint that is there because the run was stopped: nobody was told that it was saved."""
        self.saver = Saver(
            run,
            limit=args.save_total_limit,
            memory_left=self._memory_left,
            timeout_seconds=args.ddp_timeout,
        )

    def begin(self, start: Start) -> None:
        """Make ready to save; put weights, optimizer and progress back from where the run goes on, and cut the
        folder to match. Raises UserError when there is no room for a checkpoint."""
        needed = 0
        if self.args.save_strategy != "no":
            weights, state = kept_tensors(self.network.model).values(), self.optimizers.state_bytes()
            needed = sum(t.nbytes for t in weights)  # whole ones; of the state this rank knows what it holds
            needed += int(add_up_numbers([state])[0]) if any(cut(t) for t in weights) else state
        self.saver.begin(needed)
        if start.checkpoint is None:
            if start.own:
                together(lambda: self.run.go_back(0, 0))
            return
        path, model = start.checkpoint, self.network.model
        self.progress = together(lambda: load(path, model, self.optimizers))
        self.callbacks.restore(state_of(start.checkpoint)["callbacks"])
        state = self.callbacks.state
        state.best_metric, state.best_global_step = self.progress.best_metric, self.progress.best_step
        if start.own:
            together(lambda: self.run.go_back(self.progress.step, self.progress.events_size))
            self._tell_again()
            if manifest_of(start.checkpoint).because == STOPPED:
                self._untold = start.checkpoint
        for path in start.damaged:
            said = f"{path.name} was damaged: put aside, and the checkpoint of step {self.progress.step} used"
            self.run.append(AlertEvent(step=self.progress.step, kind="checkpoint", message=said))

    def _tell_again(self) -> None:
        """That a checkpoint was saved is told after the events that it holds, and those of a save in the background
        even after the next one's: what was cut off of that is told again."""
        told = {event["step"] for event in self.run.events() if event["type"] == "checkpoint"}
        for step, path in numbered(self.run.checkpoints):
            try:
                manifest = manifest_of(path)
            except UserError:  # an older one, which nobody asked for
                continue
            if step not in told and manifest.because != STOPPED:
                self._tell(path, manifest, manifest.because)

    def _tell_untold(self, because: str) -> None:
        """A save that is due where the run was stopped is there already, and was not told of."""
        path, self._untold = self._untold, None
        if path is not None and path.name == name_of(self.progress.step) and because != STOPPED:
            self._tell(path, manifest_of(path), because)

    def _tell(self, path: Path, manifest: Manifest, because: str) -> None:
        self.run.append(
            CheckpointEvent(
                step=manifest.step,
                path=path.name,
                because=because,
                tensor_bytes=manifest.tensor_bytes,
                stall_seconds=0.0,
                commit_seconds=0.0,
            )
        )

    def save(self, because: str, *, wait: bool = False) -> None:
        """Save a checkpoint of this step; in the background, unless somebody wants to look at it."""
        self._tell_untold(because)
        wait = wait or self.callbacks.listen("on_save")
        self.tell(self.saver.save(self._snapshot(because), self.progress.best_step, wait=wait))

    def save_surely(self, because: str) -> None:
        """Save when there is no later chance. Raises StoppedError when it cannot be done."""
        self._tell_untold(because)
        self.saver.save_surely(
            lambda: self._snapshot(because), self.progress.best_step, lambda event: self.tell([event])
        )

    def _snapshot(self, because: str) -> Snapshot:
        self.progress.log_history = self.callbacks.state.log_history
        if self.progress.pending is None:
            self.progress.events_size = self.run.events_size()
        return Snapshot(
            self.network.model,
            self.optimizers,
            self.progress,
            because,
            identity=self.identity,
            callbacks=self.callbacks.exported(),
        )

    def _memory_left(self) -> int:
        """Bytes that a copy of the state may take: what is free, but for what a step will still need. The ranks
        of a machine share it."""
        place = torch.device("cpu")
        on_cpu = self.network.device == place
        needed = max(0, self.predicted_peak_bytes - hardware.held_bytes(place)) if on_cpu else 0
        return hardware.free_bytes(place) // local_ranks() - needed

    def tell(self, news: Iterable[Event]) -> None:
        """Events of saves."""
        for event in news:
            self.emit(event)
            if isinstance(event, CheckpointEvent):
                self.callbacks.tell("on_save")

    def finish(self) -> None:
        """Wait for the save on its way."""
        self.tell(self.saver.finish())

    def last(self) -> None:
        """Keep the last step."""
        if self.args.save_strategy != "no" and self.progress.step > 0:
            self.save_surely("the last step")
        self.finish()

    def put_best_back(self) -> None:
        """With `load_best_model_at_end`: the best weights instead of the last."""
        best = self.progress.best_step
        if self.args.load_best_model_at_end and best is not None and best != self.progress.step:
            path, model = self.run.checkpoints / name_of(best), self.network.model
            there = texts("there" if rank() == 0 and path.is_dir() else "")[0]
            if there:  # not when the best was before the first step
                by_first(lambda: verify(path))
                together(lambda: load_weights(path, model))
