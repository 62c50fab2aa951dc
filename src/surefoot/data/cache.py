"""Examples kept from run to run: a folder for each content, `~/.cache/surefoot/examples/KEY`.

1. The key is a hash of all that decides the examples: the rows, the chat template, the tokenizer, the options,
   the code of the data path and the libraries it calls.
2. Examples are written into a temporary folder beside, which becomes KEY by one rename; so a folder KEY is whole,
   and of two processes that build the same one, the second finds the first's.
3. Sizes are compared on opening; what does not agree is built again.
4. Sets that were not used for longest are removed once all take more than BOUND_BYTES.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.data.ledger import Ledger
from surefoot.data.rows import Example
from surefoot.data.store import FILES, Stored, Writer, open_stored
from surefoot.durable import sync_folder
from surefoot.errors import UserError

if TYPE_CHECKING:
    from surefoot.data.render import Renderer
    from surefoot.data.sources import Source

BOUND_BYTES = 20 * 10**9
"""Most that all sets may take together; the newest is kept whatever it takes."""
ABANDONED_SECONDS = 24 * 3600
"""Age from which on a temporary folder is one that a crash has left."""
INDEX = "index.json"
LIBRARIES = ("tokenizers", "transformers", "jinja2", "numpy")


def cache_folder() -> Path:
    """Where surefoot keeps what can be made again: $XDG_CACHE_HOME/surefoot, or ~/.cache/surefoot."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"


def key(source: Source, renderer: Renderer, reading: Mapping[str, Any]) -> str | None:
    """Hash of all that decides the examples of `source`; `reading` are the options outside the renderer.

    None where it cannot be known: a stream, or a tokenizer that is not the libraries' own code.
    """
    tokenizer: Any = renderer.tokenizer
    own_code = not type(tokenizer).__module__.startswith("transformers.")
    if source.length is None or not source.fingerprint or not tokenizer.is_fast or own_code:
        return None
    template = json.dumps(tokenizer.chat_template)
    parts = {
        "source": [source.name, source.length, source.fingerprint],
        "reading": dict(reading),
        "rendering": {name: value for name, value in vars(renderer).items() if _is_plain(name, value)},
        "template": template,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "all_special": tokenizer.all_special_tokens,
        "class": type(tokenizer).__qualname__,
        "code": _code(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "day": date.today().isoformat() if "strftime_now" in template else None,  # the prompt has it
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _is_plain(name: str, value: object) -> bool:
    return not name.startswith("_") and (value is None or isinstance(value, str | int | float))


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find(folder: Path) -> tuple[Stored, Ledger] | None:
    """The finished set at `folder`; None if there is none, or what is there is not whole."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["bytes"] != {name: (folder / name).stat().st_size for name in FILES}:
            return None
        found = open_stored(folder), Ledger.from_dict(index["ledger"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with suppress(OSError):
        os.utime(folder / INDEX)  # used last now
    return found


class Spool:
    """A set in the making, in a temporary folder; in memory where there is no room for one.

    The folder is gone at the end of the `with` statement, unless it is kept: what is mapped needs no name. If it is
    `shared`, other processes can `find` the finished set at `place` until then, and there must be room for it.
    """

    def __init__(self, cache: Path | None, *, shared: bool = False) -> None:
        """`cache`: where kept sets are; None: nothing is to be kept. Raises UserError where what is `shared` has
        no room."""
        self.notes: list[str] = []
        self.place: Path | None = None
        """Where the finished set can be found."""
        self._cache = cache
        self._shared = shared
        self._folder: Path | None = None
        for place in (cache, Path(tempfile.gettempdir())):
            if place is None:
                continue
            try:
                place.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix=".surefoot-", dir=place))
                self._writer = Writer(self._folder)
            except OSError as error:
                self._refused(place, error, "a temporary folder")
                self._remove()
            else:
                return
        self._check_room()
        self._writer = Writer(None)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._remove()

    def __len__(self) -> int:
        return len(self._writer)

    def add(self, example: Example) -> None:
        """Append an example."""
        self._writer.add(example)
        if self._shared and self._writer.fault is not None:
            self._fell_back()

    def finish(self, ledger: Ledger, keep_as: str | None) -> Stored:
        """The set, to be read; `keep_as`: its key, if later runs are to find it."""
        folder, cache = self._folder, self._cache
        beside = folder is not None and folder.parent == cache
        stored = self._writer.finish(sync=keep_as is not None and beside)
        if self._writer.fault is not None:
            self._fell_back()
        elif folder is not None and ((keep_as is not None and beside) or self._shared):
            try:
                _write(folder / INDEX, {"ledger": ledger.to_dict(), "bytes": self._writer.sizes()})
                self.place = folder
                if keep_as is not None and cache is not None and beside:
                    _commit(folder, cache / keep_as)
                    self.place = cache / keep_as
                    _tidy(cache, keep_as)
            except OSError as error:
                self._refused(folder.parent, error, "a temporary folder")
        if self.place is None:
            self._check_room()
        return stored

    def _fell_back(self) -> None:
        """The files cannot be written any more."""
        assert self._writer.fault is not None and self._folder is not None
        self._refused(self._folder.parent, self._writer.fault, "memory")
        self._check_room()

    def _check_room(self) -> None:
        if self._shared:
            why = self.notes[0].split(": ")[0]
            raise UserError(
                f"{why}, and the processes of this machine are to share the tokenised rows, from a folder. Make "
                f"room in {self._cache or cache_folder()} (or set XDG_CACHE_HOME), or in {tempfile.gettempdir()} "
                "(or set TMPDIR)."
            )

    def _refused(self, place: Path, error: OSError, instead: str) -> None:
        if not self.notes:
            self.notes.append(
                f"{place} cannot be written ({error.strerror or error}): the tokenised rows are held in "
                f"{instead} and not kept for the next run"
            )

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _commit(partial: Path, folder: Path) -> None:
    """Give a finished set its name, unless another process was first."""
    try:
        partial.rename(folder)
    except OSError:
        if find(folder) is not None:
            return
        aside = Path(tempfile.mkdtemp(prefix=".surefoot-", dir=folder.parent))
        with suppress(FileNotFoundError):
            folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
        partial.rename(folder)
    sync_folder(folder.parent)


def _tidy(cache: Path, newest: str) -> None:
    """Remove the sets that were not used for longest, down to BOUND_BYTES, and what crashes left."""
    sets: list[tuple[float, int, Path]] = []
    for folder in cache.iterdir():
        try:
            stats = [file.stat() for file in (folder, *folder.iterdir())]
        except OSError:  # another process removes it
            continue
        used, size = max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)
        if not folder.name.startswith("."):
            sets.append((used, size, folder))
        elif used < time.time() - ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    total = sum(size for _, size, _ in sets)
    for _, size, folder in sorted(sets):
        if total > BOUND_BYTES and folder.name != newest:
            aside = Path(tempfile.mkdtemp(prefix=".surefoot-", dir=cache))
            with suppress(OSError):
                folder.rename(aside / "old")  # at once: a reader finds the whole set or none
            shutil.rmtree(aside, ignore_errors=True)
            total -= size
