"""Hostile model folders, adapters and GGUF files, each made of a good one by one change."""

# ruff: noqa: E501

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], object]


def edit(path: Path, **changed: Any) -> None:
    """Change what a JSON file says; it may not be there yet."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changed}))


def as_link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may have 100 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def as_shards(folder: Path, name: str | None = None, **changed: Any) -> None:
    """The weights in one shard, which the index may call otherwise."""
    from safetensors import safe_open

    shard = "model-00001-of-00001.safetensors"
    with safe_open(folder / "model.safetensors", "numpy") as file:
        keys = list(file.keys())
    (folder / "model.safetensors").rename(folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, name or shard), **changed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def header(path: Path, length: int, content: bytes = b"{}") -> None:
    path.write_bytes(struct.pack("<Q", length) + content)


def tensor(path: Path, **changed: Any) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}
    content = json.dumps({"model.embed_tokens.weight": entry}).encode()
    header(path, len(content), content + bytes(8))


def own_code(folder: Path, marker: Path) -> None:
    """Python files that leave a mark when they run, and configs that name them."""
    code = f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    for name in ("theirs.py", "sitecustomize.py", "conftest.py", "modeling_theirs.py"):
        (folder / name).write_text(code)
    auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    edit(folder / "config.json", model_type="never_heard_of", auto_map=auto)
    token = {"AutoTokenizer": ["theirs.Model", "theirs.Model"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Theirs", auto_map=token)


def own_model(folder: Path, marker: Path) -> None:
    """A llama as code of the folder's own, which leaves a mark when it runs, and works."""
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class Config(LlamaConfig):\n"
        "    model_type = 'never_heard_of'\n"
        "class Model(LlamaForCausalLM):\n"
        "    config_class = Config\n"
    )
    (folder / "theirs.py").write_text(code)
    auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    edit(folder / "config.json", model_type="never_heard_of", auto_map=auto)


class _Pickled:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def pickled(folder: Path, name: str, marker: Path) -> None:
    import pickle

    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / name).write_bytes(pickle.dumps(_Pickled(marker)))


NESTED = "[" * 100_000 + "]" * 100_000
DEEP = '{"a":' * 100 + "1" + "}" * 100

FOLDERS: dict[str, tuple[Spoil, str]] = {
    "config is a pipe": (lambda f: as_pipe(f / "config.json"), "config.json is a pipe (FIFO)"),
    "weights are a pipe": (lambda f: as_pipe(f / "model.safetensors"), "model.safetensors is a pipe (FIFO)"),
    "index is a pipe": (
        lambda f: (as_shards(f), as_pipe(f / "model.safetensors.index.json")),
        "index.json is a pipe",
    ),
    "tokenizer is a pipe": (lambda f: as_pipe(f / "tokenizer.json"), "tokenizer.json is a pipe (FIFO)"),
    "template is a pipe": (lambda f: as_pipe(f / "chat_template.jinja"), "chat_template.jinja is a pipe"),
    "merges are a pipe": (lambda f: as_pipe(f / "merges.txt"), "merges.txt is a pipe"),
    "another template is a pipe": (
        lambda f: ((f / "additional_chat_templates").mkdir(), as_pipe(f / "additional_chat_templates/a.jinja")),
        "a.jinja is a pipe",
    ),
    "config is a socket": (lambda f: as_socket(f / "config.json"), "config.json is not an ordinary file"),
    "config is a device": (lambda f: as_link(f / "config.json", Path("/dev/zero")), "a link that leads out"),
    "config is a folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "no config.json there",
    ),
    "config is a link out": (
        lambda f: as_link(f / "config.json", Path("/etc/passwd")),
        "config.json is a link that leads out of the folder",
    ),
    "weights are a link out": (
        lambda f: as_link(f / "model.safetensors", Path("/etc/passwd")),
        "model.safetensors is a link that leads out of the folder",
    ),
    "tokenizer is a link out": (lambda f: as_link(f / "tokenizer.json", Path("/etc/passwd")), "a link that leads out"),
    "a relative link out": (lambda f: as_link(f / "notes.txt", Path("../../x")), "a link that leads out"),
    "a link to nothing": (lambda f: as_link(f / "notes.txt", Path("nothing")), "this link leads nowhere"),
    "a link in a circle": (lambda f: as_link(f / "notes.txt", Path("notes.txt")), "this link leads nowhere"),
    "shards above": (lambda f: as_shards(f, "../m.safetensors"), "'../m.safetensors' is not the name of a file"),
    "shards anywhere": (lambda f: as_shards(f, "/etc/passwd"), "'/etc/passwd' is not the name of a file"),
    "shards below": (lambda f: as_shards(f, "a/m.safetensors"), "'a/m.safetensors' is not the name of a file"),
    "shards of Windows": (lambda f: as_shards(f, "..\\m.safetensors"), "is not the name of a file in this folder"),
    "shards are numbers": (lambda f: as_shards(f, weight_map={"a": 1}), "'1' is not the name of a file"),
    "shards are dots": (lambda f: as_shards(f, weight_map={"a": ".."}), "'..' is not the name of a file"),
    "shards are a list": (lambda f: as_shards(f, weight_map=["a"]), "it has no weight_map"),
    "shards are pickles": (
        lambda f: (as_shards(f, "pytorch_model.bin"), (f / "pytorch_model.bin").touch()),
        "pytorch_model.bin: weights as a pickle can run code",
    ),
    "a shard is missing": (lambda f: as_shards(f, "gone.safetensors"), "gone.safetensors, which is not there"),
    "a shard is a link out": (
        lambda f: (as_shards(f), as_link(f / "model-00001-of-00001.safetensors", Path("/dev/zero"))),
        "a link that leads out",
    ),
    "weights named above": (lambda f: edit(f / "config.json", transformers_weights="../../w.safetensors"), "is not the name"),
    "header beyond the file": (
        lambda f: header(f / "model.safetensors", 1 << 60),
        f"its header ends at byte {(1 << 60) + 8:,} of 10",
    ),
    "header of a gigabyte": (
        lambda f: (header(f / "model.safetensors", 1 << 30), os.truncate(f / "model.safetensors", 2 << 30)),
        "its header has 1,073,741,824 bytes, more than any model's",
    ),
    "header nested": (
        lambda f: header(f / "model.safetensors", len(NESTED), NESTED.encode()),
        "its header is not JSON: brackets are nested too deeply",
    ),
    "header no JSON": (lambda f: header(f / "model.safetensors", 2, b"\xff\xfe"), "its header is not JSON"),
    "header a list": (lambda f: header(f / "model.safetensors", 2, b"[]"), "its header is not a JSON object"),
    "shape of a giant": (lambda f: tensor(f / "model.safetensors", shape=[1 << 40, 1 << 40]), "cannot hold"),
    "shape negative": (lambda f: tensor(f / "model.safetensors", shape=[-2]), "no proper type, shape and place"),
    "shape of words": (lambda f: tensor(f / "model.safetensors", shape=["2"]), "no proper type, shape and place"),
    "type unknown": (lambda f: tensor(f / "model.safetensors", dtype="X9"), "no proper type, shape and place"),
    "data beyond the file": (lambda f: tensor(f / "model.safetensors", data_offsets=[0, 1 << 40]), "is cut off"),
    "config nested": (lambda f: (f / "config.json").write_text(NESTED), "brackets are nested too deeply"),
    "config deep": (lambda f: (f / "config.json").write_text(DEEP), "nested more than 64 deep"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not UTF-8 at byte offset 0"),
    "config huge": (
        lambda f: os.truncate(f / "config.json", 1 << 30),
        "config.json has 1,073,741,824 bytes, more than such a file can have",
    ),
    "tokenizer huge": (lambda f: os.truncate(f / "tokenizer.json", 1 << 30), "more than such a file can have"),
    "index nested": (
        lambda f: (as_shards(f), (f / "model.safetensors.index.json").write_text(NESTED)),
        "brackets are nested too deeply",
    ),
    "tokenizer config nested": (lambda f: (f / "tokenizer_config.json").write_text(NESTED), "nested too deeply"),
    "tokenizer nested": (lambda f: (f / "tokenizer.json").write_text(NESTED), "no tokenizer to be had there"),
    "generation config nested": (lambda f: (f / "generation_config.json").write_text(NESTED), "nested too deeply"),
    "tokenizer elsewhere": (
        lambda f: edit(f / "tokenizer_config.json", fast_tokenizer_files=["../../tokenizer.9.0.json"]),
        "is not the name of a file in this folder",
    ),
    "a vocabulary of a million million": (
        lambda f: edit(f / "config.json", vocab_size=10**12),
        "they do not belong together",
    ),
    "a wide model": (lambda f: edit(f / "config.json", hidden_size=1 << 24), "do not belong together"),
    "a million layers": (lambda f: edit(f / "config.json", num_hidden_layers=10**6), "no model has more than 1,000"),
    "a number of a thousand bits": (lambda f: edit(f / "config.json", vocab_size=1 << 1000), "a number of 1001 bits"),
    "a number of 5000 digits": (
        lambda f: (f / "config.json").write_text('{"vocab_size": ' + "9" * 5000 + "}"),
        "config.json:1:1: not JSON",
    ),
    "a negative size": (lambda f: edit(f / "config.json", hidden_size=-5), "not a causal language model"),
    "a size in words": (lambda f: edit(f / "config.json", hidden_size="many"), "not a causal language model"),
    "no heads": (lambda f: edit(f / "config.json", num_attention_heads=0), "not a causal language model"),
    "code from the hub": (
        lambda f: edit(f / "config.json", attn_implementation="someone/kernel"),
        "attn_implementation names code on the hub, which is not run: someone/kernel",
    ),
}  # fmt: skip
"""What is done to the folder → part of what is said."""


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base_model_name_or_path": None}, "does not name a base model"),
    "base of a number": ({"base_model_name_or_path": 7}, "does not name a base model"),
    "base that is not there": (
        {"base_model_name_or_path": "/gone"},
        "its base model is not to be had: /gone",
    ),
    "base that is a device": ({"base_model_name_or_path": "/dev/zero"}, "this is another kind of file"),
    "base above": ({"base_model_name_or_path": "../../../../usr"}, "no config.json there"),
    "a module to import": ({"megatron_core": "antigravity"}, "megatron_core names a module to import"),
    "a module's config": ({"megatron_config": {"a": 1}}, "megatron_core names a module to import"),
    "a pickled cache": ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    "another file": (
        {"prompt_tuning_init_state_dict_path": "/tmp/x.bin"},
        "names another file, which is not read",
    ),
    "a pattern for ever": ({"target_modules": "(a+)+$"}, "is a pattern that could take for ever"),
    "a pattern of many": ({"target_modules": ".*a.*b.*c.*d.*e.*f"}, "is a pattern that could take for ever"),
    "a pattern in a dict": ({"rank_pattern": {"(.*)*": 3}}, "is a pattern that could take for ever"),
    "a rank of a billion": ({"r": 10**9}, "rank 1,000,000,000 is larger than anything in"),
    "ranks of a billion": ({"rank_pattern": {"q_proj": 10**9}}, "is larger than anything in"),
    "targets of numbers": ({"target_modules": [1, 2]}, "is not a list of names"),
}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


# GGUF ------------------------------------------------------------------------------------------------------


def text(value: bytes | str, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def info(shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text("t") + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


GGUFS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it begins with b''"),
    "other magic": (b"PK\x03\x04" + bytes(64), "so it is no GGUF file"),
    "cut off at once": (b"GGUF\x03", "and only 1 bytes follow"),
    "version": (start(version=9), "its version is 9"),
    "tensors 2^60": (start(tensors=1 << 60), "1,152,921,504,606,846,976 tensors, more than any model's"),
    "keys 2^60": (start(keys=1 << 60), "1,152,921,504,606,846,976 entries, more than any model's"),
    "more keys than bytes": (start(keys=9_000), "9,000 entries, and only 0 bytes follow"),
    "a key beyond the file": (start(keys=1) + text("a", 1 << 60) + bytes(64), "bytes of a text, more than"),
    "a text beyond the file": (
        start(keys=1) + text("a") + struct.pack("<I", 8) + text("x", 1 << 62),
        "4,611,686,018,427,387,904 bytes of a text, and only",
    ),
    "a list beyond the file": (
        start(keys=1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 61),
        "2,305,843,009,213,693,952 values of a list",
    ),
    "texts beyond the file": (
        start(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 61),
        "2,305,843,009,213,693,952 texts of a list",
    ),
    "lists in lists": (
        start(keys=1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 1000,
        "a value of the unknown kind 9",
    ),
    "unknown kind": (start(keys=1) + text("a") + struct.pack("<I", 77) + bytes(8), "of the unknown kind 77"),
    "alignment": (
        start(keys=1) + text("general.alignment") + struct.pack("<II", 4, 3),
        "its alignment is 3, not a power of two",
    ),
    "dimensions 2^31": (start(tensors=1) + info((2,), dimensions=1 << 31), "2,147,483,648 dimensions of 't'"),
    "dimensions beyond the file": (start(tensors=1) + info((1 << 60, 1 << 60)), "'t' ends at byte"),
    "data beyond the file": (
        start(tensors=1) + info((2,), offset=1 << 62),
        "it is cut off: 't' ends at byte",
    ),
    "a type unknown": (start(tensors=1) + info((2,), kind=999), "'t' is of the unknown kind 999"),
    "nothing in it": (start(), "this GGUF file cannot be read"),
}
"""The whole file → part of what is said."""
