"""What a checkpoint on the disk says, and whether it is what was written. Without torch, so that looking is quick.

manifest.json is written last, and gives step, loss, why it was saved, and size and sha256 of each file. One rank
writes a file of weights and one of optimizer state; of sharded ones each rank writes its own, and index.json tells
what is in them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from surefoot.errors import UserError
from surefoot.regular import open_regular, text_of

VERSION = 2
"""The newest that is read: a checkpoint in pieces. One that is not is of version 1."""
WEIGHTS, OPTIMIZER, STATE, INDEX, MANIFEST = (
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
    "index.json",
    "manifest.json",
)
QUARANTINE = "quarantine"
LARGEST_MANIFEST_BYTES = 1 << 20
LARGEST_STATE_BYTES = 1 << 30
MOST_AT_ONCE = 16
"""Files that are read side by side."""
LOST = (errno.EIO, errno.EBADMSG, errno.ENXIO, getattr(errno, "EUCLEAN", errno.EIO))
"""What reading says when a disk no longer has what was written."""


class Damaged(UserError):  # noqa: N818
    """A checkpoint is not what was written."""


@dataclass
class Progress:
    """Where a run is. Order of data, learning rate and dropout follow from `step`, so they are not in it."""

    step: int = 0
    num_tokens: int = 0
    loss_sum: float = 0.0
    """Of all steps, for the final train_loss."""
    last_loss: float | None = None
    unlogged: dict[str, float] = field(default_factory=dict)
    """Sums since the last log entry."""
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_better: int = 0
    micro_batch_tokens: int = 0
    """The planner's budget: it decides the order of summation, so a resumed run uses the same."""
    events_size: int = 0
    enough: bool = False
    """There is to be no further step: patience ran out, or a callback asked for the end."""
    pending: dict[str, bool] | None = None
    """Set when the run was stopped in the evaluation after `step`: what callbacks had asked to follow it."""
    log_history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    loss: float | None
    """Of its step; None before the first."""
    because: str
    files: dict[str, dict[str, Any]]
    """Name → size in bytes and sha256."""

    @property
    def bytes(self) -> int:
        return sum(int(file["size"]) for file in self.files.values())

    @property
    def tensor_bytes(self) -> int:
        """Of weights and optimizer state."""
        return sum(int(file["size"]) for name, file in self.files.items() if name.endswith(".safetensors"))


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def piece_name(file: str, rank: int, ranks: int) -> str:
    """Of one rank's part of a file."""
    stem, dot, kind = file.partition(".")
    return f"{stem}-{rank:05d}-of-{ranks:05d}{dot}{kind}"


def _file_names(files: Mapping[str, Any]) -> list[str]:
    """What a checkpoint of so many files has."""
    if INDEX not in files:
        return [WEIGHTS, OPTIMIZER, STATE]
    ranks = (len(files) - 2) // 2
    return [INDEX, STATE, *(piece_name(f, n, ranks) for f in (WEIGHTS, OPTIMIZER) for n in range(ranks))]


def digest(content: dict[str, Any]) -> str:
    """Of a manifest without its digest."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def manifest_of(path: Path) -> Manifest:
    """What a checkpoint says of itself.

    Raises Damaged when that is not what was written, UserError when it says nothing, or too much for this version.
    """
    try:
        text = text_of(path / MANIFEST, LARGEST_MANIFEST_BYTES, follow=False)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no {MANIFEST}, so this is no whole checkpoint: something was not copied, or taken "
            "away. Put it back, or delete this folder to use the checkpoint before it"
        ) from None
    except OSError as error:
        raise _unread(path / MANIFEST, error) from None
    except UserError as error:  # no ordinary file, too large, not UTF-8
        raise Damaged(str(error)) from None
    try:
        content = json.loads(text)
        version = content["version"]
        # The digest is made so in all versions: a version that was changed by itself is damage, not news.
        if "digest" in content and content["digest"] != digest(content):
            raise Damaged(f"{path / MANIFEST}: its content does not agree with its digest")
        if isinstance(version, int) and version > VERSION:
            raise UserError(
                f"{path}: of version {version}, which a newer surefoot has written; this one reads up to "
                f"{VERSION}. Upgrade: pip install --upgrade surefoot"
            )
        content["digest"]
        found = Manifest(content["step"], content["loss"], content["because"], content["files"])
        if path.name.startswith("step-") and path.name != name_of(found.step):
            raise Damaged(f"{path}: is the checkpoint of step {found.step} under another name")
        if version not in (1, VERSION) or not _plain(found):
            raise Damaged(f"{path / MANIFEST}: holds values of the wrong type")
        if sorted(found.files) != sorted(_file_names(found.files)):
            raise Damaged(f"{path / MANIFEST}: names other files than a checkpoint has")
        for file in found.files.values():
            known = set(file) == {"size", "sha256"} and isinstance(file["size"], int)
            if not (known and re.fullmatch("[0-9a-f]{64}", file["sha256"])):
                raise Damaged(f"{path / MANIFEST}: sizes or hashes are none")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path / MANIFEST}: cannot be read ({type(error).__name__}: {error})") from None
    return found


def _plain(found: Manifest) -> bool:
    """Whether step, loss and reason are of the types that are written."""
    loss = found.loss is None or type(found.loss) in (float, int)
    return type(found.step) is int and found.step >= 0 and loss and isinstance(found.because, str)


def _unread(path: Path, error: OSError) -> UserError:
    """What to raise for a file that could not be read: damage, if the disk has lost it. Missing rights, or a file
    system that is away for a moment, are no reason to put a checkpoint aside."""
    if error.errno in LOST:
        return Damaged(f"{path}: cannot be read: {error.strerror}")
    return UserError(
        f"{path}: cannot be read: {error.strerror or error}. Mend that, or move this checkpoint away to use the "
        "one before it"
    )


def verify(path: Path) -> Manifest:
    """Read a checkpoint whole and compare sizes and hashes. Raises as `manifest_of` does."""
    manifest = manifest_of(path)
    threads = min(MOST_AT_ONCE, len(manifest.files))
    with ThreadPoolExecutor(threads) as pool:  # hashing lets go of Python's lock
        for _ in pool.map(lambda item: _verify_file(path / item[0], **item[1]), manifest.files.items()):
            pass
    return manifest


def _verify_file(path: Path, size: int, sha256: str) -> None:
    try:
        with open_regular(path, follow=False) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:  # not read: it may be of any size
                raise Damaged(f"{path}: has {found:,} bytes, not the {size:,} that were written")
            found_digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except FileNotFoundError:
        raise Damaged(f"{path}: is not there") from None
    except OSError as error:
        raise _unread(path, error) from None
    except UserError as error:  # no ordinary file
        raise Damaged(str(error)) from None
    if found_digest != sha256:
        raise Damaged(
            f"{path}: is damaged: its sha256 is {found_digest[:12]}…, of what was written {sha256[:12]}…"
        )


def state_of(path: Path) -> dict[str, Any]:
    """What of a checkpoint is no tensor. Raises UserError when it cannot be read."""
    try:
        content = json.loads(text_of(path / STATE, LARGEST_STATE_BYTES, follow=False))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a checkpoint that can be read: {STATE} holds no object")
    return content


def progress_of(path: Path, content: dict[str, Any] | None = None) -> Progress:
    """Where the run was. Raises UserError when the checkpoint cannot be read."""
    content = state_of(path) if content is None else content
    try:
        return Progress(**content["progress"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read: {error}") from None
