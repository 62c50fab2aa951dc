"""What tests of wrong rows share: `surefoot train` on a file, which must end before anything is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import Surefoot

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
LINE = json.dumps(GOOD).encode() + b"\n"


def write(path: Path, content: bytes | Sequence[Any]) -> Path:
    """Bytes as they stand, or rows as JSON lines."""
    if not isinstance(content, bytes):
        content = "".join(json.dumps(row) + "\n" for row in content).encode()
    path.write_bytes(content)
    return path


def refusal(surefoot: Surefoot, model: Path, data: Path, *flags: object) -> str:
    """The one message with which training on `data` refuses to begin."""
    said = surefoot(
        *("train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", "run"),
        *("--use_cpu", "--disable_tqdm", "--max_steps", 1, "--precision", "fp32", *flags),
    )
    assert said.status == 2, said
    assert "Traceback" not in said.err
    assert said.err.count("surefoot: ") == 1, said.err
    assert said.out == ""
    assert not Path("run").exists()  # the folder of tests is the current one
    return said.err.partition("surefoot: ")[2].strip()


def says(message: str, *parts: str) -> None:
    """Where, cause and fix, in this order."""
    at = 0
    for part in parts:
        found = message.find(part, at)
        assert found >= 0, (part, message)
        at = found + len(part)
