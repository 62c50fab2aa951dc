"""Rows out of files, folders, the hub, streams and lists.

1. `open_source` looks at what it is given: an object with rows, a path, or a hub name.
2. It returns a `Source`: its name, length and fingerprint at once, its rows as often as asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from surefoot.data.badrows import RowError
from surefoot.data.files import SUFFIXES, Source, kind_of, open_file
from surefoot.data.rows import Row
from surefoot.data.strictjson import beginning
from surefoot.data.tables import without_filled_nulls
from surefoot.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

    Data: TypeAlias = (
        str
        | Path
        | Sequence[Mapping[str, Any]]
        | datasets.Dataset
        | datasets.IterableDataset
        | datasets.DatasetDict
        | datasets.IterableDatasetDict
    )

__all__ = ["Source", "open_source"]

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}


def open_source(
    data: Data, *, split: str | None = None, config: str | None = None, streaming: bool = False
) -> Source:
    """The rows of `data`: a file, a folder, a hub dataset's name, a `datasets` object or a list of mappings.

    `split` chooses within a hub dataset, a dict of datasets or a folder of train and test files; `config`
    and `streaming` are for the hub (files are read lazily anyway). Raises UserError when there is
    nothing to read.
    """
    if isinstance(data, Path) or (isinstance(data, str) and _looks_local(data)):
        path = Path(data).expanduser()
        if path.is_dir():
            return _open_folder(path, str(data), split)
        _check_file(path, str(data))
        _refuse_split(str(data), split)
        return open_file(path, str(data))
    if isinstance(data, str):
        return _open_hub(data, split or "train", config, streaming)
    if _is_instance(data, "DatasetDict", "IterableDatasetDict"):
        return open_source(_chosen_split(data, split))
    if _is_instance(data, "IterableDataset"):
        _refuse_split("dataset", split)
        return _open_stream(data, "dataset")
    if _is_instance(data, "Dataset"):
        _refuse_split("dataset", split)
        return _open_dataset(data, "dataset")
    if isinstance(data, Sequence) and not isinstance(data, bytes | bytearray):
        _refuse_split("dataset", split)
        return _open_list(data)
    hint = " Write list(rows)." if isinstance(data, Iterator) else ""
    hint = " Write table.to_dict('records')." if hasattr(data, "to_dict") else hint
    raise UserError(
        f"A {type(data).__name__} is no source of rows. Give a path, a hub dataset's name, a Dataset or a "
        f"list of dicts.{hint}"
    )


def _looks_local(text: str) -> bool:
    path = Path(text)
    try:
        found = path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or with a NUL, to be a path
        return False
    if found or kind_of(path) or text.startswith((".", "/", "~")):
        return True
    return "/" in text and path.parent.is_dir()


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise UserError(f"{name}: no such file; the folder {folder} does not exist either.")
        here = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or kind_of(entry))
        close = nearest(path.name, here)
        listed = f" The folder has: {', '.join(here[:10])}." if here and not close else ""
        raise UserError(f"{name}: no such file in {folder.resolve()}.{close}{listed}")
    if not kind_of(path):
        raise UserError(
            f"{name}: unknown kind of file '{''.join(path.suffixes[-2:])}'. Known are {', '.join(SUFFIXES)}, "
            f"all but the last also with .gz after it."
        )


def _refuse_split(name: str, split: str | None) -> None:
    if split not in (None, "train"):
        raise UserError(
            f"{name} has no splits, so split={split!r} cannot be chosen. Give the rows of that split "
            f"themselves."
        )


def _open_folder(path: Path, name: str, split: str | None) -> Source:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = _import_datasets(name).load_from_disk(str(path))
        if _is_instance(saved, "DatasetDict"):
            saved = _chosen_split(saved, split)
        return _open_dataset(saved, name)
    visible = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in visible if kind_of(file)]
    if not files:
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{name}: the folder has no file of rows ({', '.join(SUFFIXES)}); it has {inside}. Give the "
            f"folder or file that has them."
        )
    files = _files_of_split(files, name, split)
    kinds = sorted({"".join(file.suffixes[-1:]).lower() for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"{name}: the folder mixes {' and '.join(kinds)} files ({_names(files)}). "
            f"Give one of the files, or keep one kind in a folder."
        )
    parts = [open_file(file, str(Path(name) / file.name)) for file in files]
    digest = hashlib.sha256("\n".join(part.fingerprint for part in parts).encode()).hexdigest()
    length = sum(part.length or 0 for part in parts)
    return Source(name, length, digest, lambda: (row for part in parts for row in part.rows()))


def _files_of_split(files: list[Path], name: str, split: str | None) -> list[Path]:
    """The files of one split, where names such as train.jsonl and test.jsonl show that there are several."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.name.lower())
        splits.setdefault(next((_SPLIT_WORDS[w] for w in words if w in _SPLIT_WORDS), ""), []).append(file)
    wanted = _SPLIT_WORDS.get(split, split) if split else None
    if wanted in splits:
        return splits[wanted]
    known = [found for found in splits if found]
    if split and (known or split != "train"):
        raise UserError(
            f"{name}: no file of the split {split!r} among {_names(files)}."
            f"{nearest(split, known)} Give the file itself."
        )
    if len(known) > 1:
        raise UserError(
            f"{name}: the folder holds several splits ({_names(files)}), and training "
            f"on all of them would spoil the test. Give one file, or the split ({', '.join(known)})."
        )
    return files


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:10]) + (", …" if len(files) > 10 else "")


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name} is not a file here, and reading it as a dataset needs the library datasets: "
            f"pip install 'surefoot[datasets]'."
        ) from None
    return datasets


def _open_hub(name: str, split: str, config: str | None, streaming: bool) -> Source:
    library = _import_datasets(name)
    try:
        loaded = library.load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # the library's failures share no base class
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(
            f"{name}: neither a file or folder here ({Path.cwd()}) nor loadable from the hub "
            f"({type(error).__name__}: {reason}). Offline, give the path of a file, such as "
            f"./{Path(name).name}.jsonl or a downloaded .parquet; online, check the name, the config "
            f"({config}) and "
            f"the split ({split})."
        ) from error
    return _open_stream(loaded, name) if streaming else _open_dataset(loaded, name)


def _is_instance(data: object, *class_names: str) -> bool:
    """Whether `data` is of the library datasets, which is not imported to find out."""
    library = sys.modules.get("datasets")
    classes = (getattr(library, class_name, None) for class_name in class_names)
    return any(isinstance(found, type) and isinstance(data, found) for found in classes)


def _chosen_split(splits: Any, split: str | None) -> Any:
    if split is None:
        split = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    known = [str(name) for name in splits]
    if split not in known:
        raise UserError(f"dataset: no split {split!r}; it has {', '.join(known)}.{nearest(split, known)}")
    return splits[split]


def _open_dataset(dataset: Any, name: str) -> Source:
    if len(dataset) == 0:
        raise UserError(f"{name}: the dataset has no rows. Give one that has at least one.")
    if dataset.format["type"] not in (
        None,
        "custom",
    ):  # a custom transform is the user's own, others make tensors
        dataset = dataset.with_format(None)
    return Source(name, len(dataset), dataset._fingerprint, lambda: _dataset_rows(dataset, name))


def _open_stream(stream: Any, name: str) -> Source:
    return Source(name, None, "", lambda: _dataset_rows(stream, name))


def _dataset_rows(dataset: Any, name: str) -> Iterator[Row | RowError]:
    index = -1
    try:
        for index, data in enumerate(dataset):
            yield _mapped(data, f"{name}[{index}]")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}[{index + 1}], or a row soon after: a string is not UTF-8 ({error.reason}). Write it as UTF-8."
        ) from None
    if index < 0:
        raise UserError(f"{name}: the stream has no rows. Give one that has at least one.")


def _mapped(data: Any, where: str) -> Row | RowError:
    """One item of a `datasets` object, which may be anything that a generator has given."""
    if not _has_columns(data):
        return _no_columns(data, where)
    try:
        return Row({column: without_filled_nulls(value) for column, value in data.items()}, where)
    except RecursionError:
        return _no_json(data, where, "nested too deeply")


def _has_columns(data: Any) -> bool:
    return isinstance(data, Mapping) and all(isinstance(column, str) for column in data)


def _no_columns(data: Any, where: str) -> RowError:
    found = "one with other keys than strings" if isinstance(data, Mapping) else f"a {type(data).__name__}"
    return RowError(
        where,
        "not an object",
        f"{where}: a row is a mapping of columns to values, this is {found}: {beginning(repr(data)[:1000])} "
        f'Write {{"text": ...}}, or another known shape.',
    )


def _no_json(data: Any, where: str, why: object) -> RowError:
    return RowError(
        where,
        "not usable JSON",
        f"{where}: the row cannot be written as JSON ({why}). Use strings as keys, and plain values that are "
        f"not nested too deeply. The row begins: {beginning(dict(data))}",
    )


def _open_list(rows: Sequence[Any]) -> Source:
    if not rows:
        raise UserError("dataset: the list has no rows. Give at least one.")
    digest = hashlib.sha256()
    kept = tuple(_hashed(row, f"dataset[{index}]", digest.update) for index, row in enumerate(rows))
    return Source("dataset", len(kept), digest.hexdigest(), lambda: iter(kept))


def _hashed(data: Any, where: str, update: Callable[[bytes], None]) -> Row | RowError:
    if not _has_columns(data):
        return _no_columns(data, where)
    try:
        text = json.dumps(dict(data), ensure_ascii=False, default=_plain)
        update(text.encode("utf-8") + b"\n")
    except UnicodeEncodeError as error:
        return RowError(
            where,
            "lone surrogate",
            f"{where}: a string holds {error.object[error.start]!r}, half of a character (a lone surrogate), "
            f"which UTF-8 cannot hold. Remove it: text.encode('utf-8', 'ignore').decode(). "
            f"The row begins: {beginning(dict(data))}",
        )
    except (TypeError, ValueError, RecursionError) as error:
        return _no_json(data, where, error)
    return Row(data, where)


def _plain(value: Any) -> Any:
    """NumPy arrays and tensors as lists; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
