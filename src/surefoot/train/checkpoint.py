"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, committed by rename.

    step-00000040/
      weights.safetensors     what trains, in its own type, and the buffers that a model keeps
      optimizer.safetensors   tensors by `parameter name/key`
      state.json              progress, what of the optimizer is no tensor, callbacks, what run it is of
      manifest.json           written last: step, loss, why it was saved; size and sha256 of each file

Of sharded weights each rank writes its own pieces, at the same time, into one folder; see `pieces`.

1. `Snapshot` holds the state, or a copy of it: of several ranks, what this one writes.
2. `write` puts it on the disk under another name, syncs it, and renames it: it is there whole, or not at all.
3. `load` puts it back, once `manifest.verify` has found it to be what was written, onto any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from surefoot.errors import UserError
from surefoot.ranks import rank, ranks
from surefoot.runfolder import numbered
from surefoot.train.agreement import Agreement, Files
from surefoot.train.distributed import local
from surefoot.train.manifest import (
    INDEX,
    MANIFEST,
    OPTIMIZER,
    QUARANTINE,
    STATE,
    VERSION,
    WEIGHTS,
    Progress,
    digest,
    name_of,
    piece_name,
    progress_of,
    state_of,
)
from surefoot.train.optim import Optimizers
from surefoot.train.pieces import Pieces, StateAs, cut, index, own, settled
from surefoot.train.storage import Storage
from surefoot.train.tensorfile import TensorFile

SMALL_FILES_BYTES = 1 << 16
"""What is reserved for manifest and folders when room is asked for."""


class Snapshot:
    """A run's state at one step. It is a view of the live state until `copy`."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Optimizers,
        progress: Progress,
        because: str,
        **more: Any,
    ) -> None:
        """`more`: what else goes to state.json, as plain values. Raises UserError for a state that no checkpoint
        can hold."""
        self.step, self.loss, self.because = progress.step, progress.last_loss, because
        tensors, plain = optimizers.state()
        groups = optimizers.groups_state(tensors)
        whole = {WEIGHTS: kept_tensors(model), OPTIMIZER: settled(tensors)}
        self.in_pieces = ranks() > 1 and any(cut(t) for file in whole.values() for t in file.values())
        self.writers = range(ranks() if self.in_pieces else 1)
        """Ranks that have something to write."""
        self.tensors = {
            piece_name(name, rank(), ranks()) if self.in_pieces else name: TensorFile(own(file))
            for name, file in (whole.items() if rank() in self.writers else ())
        }
        self.plain = hashlib.sha256(json.dumps([plain, groups]).encode()).hexdigest()
        """Of what of the optimizer is no tensor: it must be the same on all ranks."""
        self.texts: dict[str, bytes] = {}
        if rank() == 0:
            content = {
                "progress": asdict(progress),
                "optimizer": plain,
                "groups": groups,
                **more,
            }
            self.texts[STATE] = json.dumps(content).encode()
        if rank() == 0 and self.in_pieces:
            self.texts[INDEX] = json.dumps(index(whole)).encode()
        self.copied = False

    @property
    def tensor_bytes(self) -> int:
        """Of weights and optimizer state."""
        return sum(file.size for file in self.tensors.values())

    @property
    def bytes(self) -> int:
        """What it takes on the disk."""
        return self.tensor_bytes + sum(map(len, self.texts.values()))

    def copy(self, spare: dict[str, mmap | None]) -> None:
        """Make it independent of what training does next. Raises MemoryError or OSError.

        `spare`: memory that an earlier copy lay in, to lie in again; it holds that of this one afterwards.
        """
        for name, file in self.tensors.items():
            spare[name] = file.copy(spare.pop(name, None))
        self.copied = True

    def forget(self) -> None:
        for file in self.tensors.values():
            file.forget()

    def files(self) -> Iterator[tuple[str, Iterator[memoryview]]]:
        """Name and content of each file but the manifest."""
        for name, file in self.tensors.items():
            yield name, file.pieces()
        for name, text in self.texts.items():
            yield name, iter([memoryview(text)])


# Writing ---------------------------------------------------------------------------------------------------


def write(
    storage: Storage,
    folder: Path,
    snapshot: Snapshot,
    going: Callable[[], None] = lambda: None,
    others: Agreement | None = None,
) -> Path:
    """Commit a checkpoint under `folder`, which must be there; returns its path.

    `going` is called between pieces, and may raise to give up. Of several ranks all call it, with what they say to
    each `others`. Raises OSError or NotWrittenError, the same on all, and nothing is committed then.
    """
    final = folder / name_of(snapshot.step)

    def make() -> str:
        partial = _unused(folder, f".{final.name}.partial")
        storage.make_folder(partial)
        return partial.name

    def part(name: str) -> Files:
        on = going if others is None else others.going
        files = {
            file: _write_file(storage, folder / name / file, pieces, on) for file, pieces in snapshot.files()
        }
        storage.sync_folder(folder / name)
        return files

    def commit(name: str, files: Files) -> None:
        _commit(storage, folder / name, final, snapshot, files, going)

    if others is None:
        name = make()
        commit(name, part(name))
    elif rank() == 0:
        others.lead(make, part, commit)
    else:
        others.follow(part)
    return final


def _commit(
    storage: Storage, partial: Path, final: Path, snapshot: Snapshot, files: Files, going: Callable[[], None]
) -> None:
    """Write the manifest, and give the folder its name."""
    content: dict[str, Any] = {"version": VERSION if snapshot.in_pieces else 1, "step": snapshot.step}
    content |= {"loss": snapshot.loss, "because": snapshot.because, "files": files}
    content["digest"] = digest(content)
    text = json.dumps(content, indent=1).encode()
    _write_file(storage, partial / MANIFEST, iter([memoryview(text)]), going)
    storage.sync_folder(partial)
    storage.rename(partial, final)
    try:
        storage.sync_folder(final.parent)
    except OSError:  # a power failure might undo the name, so nothing is to count on it
        storage.rename(final, partial)
        raise


def _write_file(
    storage: Storage, path: Path, pieces: Iterator[memoryview], going: Callable[[], None]
) -> dict[str, Any]:
    running, size = hashlib.sha256(), 0
    handle = storage.create(path)
    try:
        for piece in pieces:
            going()
            storage.write(handle, piece)
            running.update(piece)
            size += len(piece)
        storage.sync(handle)
    finally:
        storage.close(handle)
    return {"size": size, "sha256": running.hexdigest()}


def _unused(folder: Path, name: str) -> Path:
    """A name under `folder` that nothing has; what a crash has left there is not written into."""
    number = 0
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def tidy(storage: Storage, folder: Path) -> None:
    """Take away what saves that did not come to their end, and removals, have left."""
    for path in folder.glob(".step-*"):
        if path.is_dir() and not path.is_symlink():
            storage.remove(path)


def retain(storage: Storage, folder: Path, limit: int | None, best: int | None, sound: set[int]) -> None:
    """Delete all but the newest `limit` checkpoints (two at least), the best one, and the two newest that are known
    to be `sound`."""
    if limit is None:
        return
    steps = [step for step, _ in numbered(folder)]
    keep = {*steps[-max(limit, 2) :], *[step for step in steps if step in sound][-2:], best}
    for step, path in numbered(folder):
        if step not in keep:
            _remove(storage, path)


def _remove(storage: Storage, path: Path) -> None:
    """Out of sight at once, so that half a checkpoint is never seen."""
    aside = _unused(path.parent, f".{path.name}.removed")
    storage.rename(path, aside)
    storage.sync_folder(path.parent)
    storage.remove(aside)


def quarantine(storage: Storage, path: Path) -> Path:
    """Put a damaged checkpoint aside, for somebody to look at; returns where it is now."""
    place = path.parent / QUARANTINE
    if not place.is_dir():
        storage.make_folder(place)
    aside = place / path.name
    aside = _unused(place, path.name) if aside.exists() else aside
    storage.rename(path, aside)
    storage.sync_folder(place)
    storage.sync_folder(path.parent)
    return aside


# Reading ---------------------------------------------------------------------------------------------------


def load(path: Path, model: torch.nn.Module, optimizers: Optimizers) -> Progress:
    """Put weights and optimizer state back, of a checkpoint that was verified.

    Raises UserError when it does not fit the model.
    """
    content = state_of(path)
    progress = progress_of(path, content)
    load_weights(path, model)
    try:
        with Pieces(path, OPTIMIZER) as pieces:
            optimizers.load_state(StateAs(pieces, optimizers), content["optimizer"], content["groups"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its optimizer state is of another run: {error}") from None
    return progress


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the trained weights back; of sharded ones, this rank's rows. Raises UserError when they are of another
    model."""
    known = kept_tensors(model)
    with Pieces(path, WEIGHTS) as pieces, torch.no_grad():
        odd = sorted(set(known) ^ pieces.names())
        odd = odd or [name for name, tensor in known.items() if not pieces.holds(name, tensor)]
        if odd:
            raise UserError(
                f"{path}: the checkpoint is of another model or another choice of weights ({odd[0]})"
            )
        for name, tensor in known.items():
            local(tensor).copy_(local(pieces.like(name, tensor)))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder`, by step."""
    found = list(numbered(folder))
    return found[-1][1] if found else None


def kept_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training may change: the weights that train, and the buffers that belong to the model's state."""
    kept = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                kept[f"{prefix}.{name}".lstrip(".")] = buffer.detach()
    return kept
