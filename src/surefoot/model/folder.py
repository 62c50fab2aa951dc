"""A model's folder, looked at before the model library opens it.

Whoever published a model wrote every byte of its folder. So, before anything reads it as a model: each file is an
ordinary one inside the folder, the JSON is of a sane size and depth, the weights are safetensors whose headers fit
their files, and nothing in it has code run or other places read. What the config asks for is weighed in claims.py.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from surefoot.data.strictjson import JsonError, parse
from surefoot.errors import UserError
from surefoot.regular import open_regular, text_of

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MOST_FILES = 10_000
MOST_JSON = 64 << 20
"""Bytes of a config or an index: that of a model with 100,000 tensors has 10 MB."""
MOST_TOKENIZER = 512 << 20
"""Bytes of a file that the tokenizer reads whole."""
MOST_HEADER = 32 << 20
"""Bytes of a safetensors header: a tensor takes about 120."""
DEEPEST = 64
"""Brackets within brackets, of a config."""
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an element, by its type's name."""
TRUST = "Read that code, and if you trust it, say trust_remote_code=true"


@dataclass(frozen=True)
class Weights:
    """What the weight files say of themselves."""

    tensors: int
    elements: int
    largest: int
    """The largest of all dimensions."""


def check_files(folder: Path) -> None:
    """Every file there is an ordinary one that lies in the folder, or in the hub's cache which the folder is of.

    Raises UserError for links that lead elsewhere, pipes, sockets and devices: reading those might never end.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # the hub's cache: .../snapshots/COMMIT/file -> ../../blobs/HASH
        allowed.append(home.parent.parent / "blobs")
    for number, entry in enumerate(_entries(folder)):
        if number >= MOST_FILES:
            raise UserError(f"{folder} has more than {MOST_FILES:,} files, so it is not a model's folder")
        path = Path(entry.path)
        if entry.is_symlink():
            target = Path(os.path.realpath(path))  # Path.resolve raises for a circle of links
            if not any(target.is_relative_to(place) for place in allowed):
                raise UserError(f"{path} is a link that leads out of the folder; put the file itself there")
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            raise UserError(
                f"{path}: this link leads nowhere ({error.strerror}); put the file there"
            ) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            _say_what_it_is(path)
        size = entry.stat().st_size
        most = MOST_TOKENIZER if path.suffix in (".json", ".txt", ".model", ".jinja", ".tiktoken") else None
        if stat.S_ISREG(mode) and most is not None and size > most:
            raise UserError(f"{path} has {size:,} bytes, more than such a file can have")


def _say_what_it_is(path: Path) -> NoReturn:
    try:
        open_regular(path).close()
    except OSError as error:  # a socket cannot even be opened
        raise UserError(f"{path} is not an ordinary file ({error.strerror}); put a file there") from None
    raise UserError(f"{path} is not an ordinary file; put a file there")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files of the folder, and of the one folder in it that tokenizers read."""
    for place in (folder, folder / "additional_chat_templates"):
        if place.is_dir():
            with os.scandir(place) as entries:
                yield from entries


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder. Raises UserError with line and column."""
    try:
        content = parse(text_of(path, MOST_JSON))
    except JsonError as error:
        raise UserError(f"{path}:{error.line}:{error.column}: not JSON: {error.reason}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; such a file begins with {{")
    if _depth(content) > DEEPEST:
        raise UserError(f"{path}: brackets are nested more than {DEEPEST} deep")
    return content


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            part
            for item in level
            if isinstance(item, dict | list)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def check_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> None:
    """The tokenizer's files are sane, and need no code of their own. Raises UserError."""
    check_files(folder)
    path = folder / TOKENIZER
    if not path.is_file():
        return
    content = read_json(path)
    for name in content.get("fast_tokenizer_files") or ():
        base_name(name, path)
    if not trust_remote_code and (own := _own_code(content, "AutoTokenizer")):
        import transformers

        known = content.get("tokenizer_class")
        if not (isinstance(known, str) and hasattr(transformers, known)):
            raise UserError(
                f"{path}: this tokenizer is code that ships with it ({own}), so it is not run. {TRUST}"
            )


def check_config(path: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The config, if it has nothing run or fetched. Raises UserError."""
    content = read_json(path)
    if not trust_remote_code and (own := _own_code(content, "AutoModelForCausalLM", "AutoConfig")):
        from transformers import CONFIG_MAPPING

        if content.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"{path}: this model is code that ships with it ({own}), so it is not run. {TRUST}"
            )
    for name, value in _walk(content):
        if "implementation" in name and isinstance(value, str) and ("/" in value or ":" in value):
            raise UserError(
                f"{path}: {name} names code on the hub, which is not run: {value[:80]}. Take it out"
            )
        if not isinstance(value, int):
            continue
        most = next((most for word, most in COUNTS.items() if word in name), 1 << 53)
        if abs(value) > most:
            raise UserError(f"{path}: {name} is {_shown(value)}, and no model has more than {most:,}")
    return content


COUNTS = {"layer": 1_000, "block_count": 1_000, "depth": 1_000, "experts": 10_000}
"""Words in the names of what a model has so many of at most: each is built by itself, before its size is known."""


def _own_code(content: dict[str, Any], *classes: str) -> str:
    """What of the folder's own code is asked for."""
    wanted = content.get("auto_map")
    if isinstance(wanted, dict):
        wanted = next((wanted[name] for name in classes if wanted.get(name)), None)
    return json.dumps(wanted)[:80] if wanted else ""


def _walk(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything that is neither object nor list, at any depth."""
    rest: list[tuple[str, Any]] = list(content.items())
    while rest:
        name, value = rest.pop()
        if isinstance(value, dict):
            rest += ((str(key), item) for key, item in value.items())
        elif isinstance(value, list):
            rest += ((name if isinstance(item, dict | list) else "", item) for item in value)
        else:
            yield name, value


def _shown(value: int) -> str:
    return f"{value:,}" if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"


def base_name(name: Any, path: Path) -> str:
    """`name`, which a file `path` of the folder names. Raises UserError if it is not that of a file beside it."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise UserError(f"{path}: {str(name)[:80]!r} is not the name of a file in this folder")
    return name


def check_model(folder: Path, *, trust_remote_code: bool = False) -> Weights:
    """The folder can be given to the model library. Returns what its weight files hold; raises UserError."""
    check_files(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG} there, so it is not a model's folder")
    config = check_config(folder / CONFIG, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json")
    named = config.get("transformers_weights")
    if named is not None:
        base_name(named, folder / CONFIG)
    return headers(_weight_files(folder, named))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder that `check_model` has looked at."""
    return _weight_files(folder, read_json(folder / CONFIG).get("transformers_weights"))


def _weight_files(folder: Path, named: Any) -> list[Path]:
    if (folder / (named or SINGLE)).is_file() and not str(named or SINGLE).endswith(".json"):
        return [folder / (named or SINGLE)]
    index = folder / (named or INDEX)
    if index.is_file():
        return _shards(index)
    pickled = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES and path.is_file()]
    if pickled and not list(folder.glob("*.safetensors")):
        raise UserError(_pickled(pickled[0]))
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if others:
        raise UserError(
            f"{folder}: there is {others[0]}, but neither {SINGLE} nor {INDEX}, so it is not read"
        )
    raise UserError(f"{folder}: no *.safetensors there, so the model has no weights")


def _pickled(path: Path) -> str:
    return (
        f"{path}: weights as a pickle can run code when read, so surefoot never does. Convert them once, where you "
        "trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other)"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    content = read_json(index)
    where = content.get("weight_map")
    if not isinstance(where, dict) or not where or not isinstance(content.get("metadata", {}), dict):
        raise UserError(f"{index}: it has no weight_map, so nothing is to be found by it")
    files = []
    for name in sorted({base_name(name, index) for name in where.values()}):
        path = index.parent / name
        if path.suffix in PICKLES:
            raise UserError(_pickled(path))
        if path.suffix != ".safetensors":
            raise UserError(f"{index}: {name} is not a safetensors file, and no other is read")
        if not path.is_file():
            raise UserError(
                f"{index} names {name}, which is not there: the model is not whole. Download it again, or copy the "
                "missing file"
            )
        files.append(path)
    return files


def headers(files: list[Path]) -> Weights:
    """What all the files hold. Raises UserError for a header that is too large, or does not fit its file."""
    tensors = elements = largest = 0
    for path in files:
        for shape in _shapes(path):
            tensors += 1
            elements += math.prod(shape)
            largest = max(largest, *shape, 1)
    return Weights(tensors, elements, largest)


def _shapes(path: Path) -> Iterator[list[int]]:
    """Shapes of the tensors of a safetensors file, none of whose data is read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(
                f"{path} is cut off, or no safetensors file: its header ends at byte {length + 8:,} of {size:,}"
            )
        if length > MOST_HEADER:
            raise UserError(f"{path}: its header has {length:,} bytes, more than any model's")
        raw = file.read(length)
    try:
        content = parse(raw.decode("utf-8"))
    except (JsonError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: its header is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: its header is not a JSON object")
    for name, entry in content.items():
        if name == "__metadata__":
            continue
        shape, bits, (start, end) = _entry(path, name, entry)
        if not 0 <= start <= end <= size - 8 - length:
            raise UserError(
                f"{path} is cut off: {name[:80]} ends at byte {8 + length + end:,} of {size:,}. Download it again"
            )
        if math.prod(shape) * bits > 8 * (end - start):
            raise UserError(f"{path}: {name[:80]} has a shape that its {end - start:,} bytes cannot hold")
        yield shape


def _entry(path: Path, name: str, entry: Any) -> tuple[list[int], int, tuple[int, int]]:
    """Shape, bits of an element, and the bytes from and to."""
    if isinstance(entry, dict):
        shape, bits, bytes_ = entry.get("shape"), BITS.get(str(entry.get("dtype"))), entry.get("data_offsets")
        if (
            bits is not None
            and isinstance(shape, list)
            and len(shape) <= 32
            and isinstance(bytes_, list)
            and len(bytes_) == 2
            and all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, *bytes_))
        ):
            return shape, bits, (bytes_[0], bytes_[1])
    raise UserError(
        f"{path}: its header is no safetensors header: {name[:80]} has no proper type, shape and place"
    )
