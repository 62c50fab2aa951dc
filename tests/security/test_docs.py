"""What docs/security.md shows is what is printed, by folders made as it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Surefoot, write_rows
from tests.faults.test_39_template import FOR_EVER
from tests.security import hostile
from tests.security.test_run_folder import LAUGHS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
SHOWN = [
    (command, " ".join(output.split()))
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.fixture
def demo(tiny_folder: Path, tmp_path: Path) -> Path:
    def copy(name: str) -> Path:
        return hostile.copy(tiny_folder, tmp_path / name)

    copy("good")
    hostile.own_code(copy("theirs"), tmp_path / "ran")
    hostile.pickled(copy("pickled"), "pytorch_model.bin", tmp_path / "ran")
    hostile.as_shards(copy("above"), "../../secret.safetensors")
    hostile.as_link(copy("linked") / "tokenizer.json", Path("/etc/passwd"))
    hostile.as_pipe(copy("waits") / "config.json")
    hostile.edit(copy("giant") / "config.json", vocab_size=10**12)
    (tmp_path / "bomb.gguf").write_bytes(hostile.start(tensors=1 << 60))
    (tmp_path / "forever.jinja").write_text(FOR_EVER["nested loops"])
    (tmp_path / "escape.jinja").write_text("{{ cycler.__init__.__globals__.os.system('touch ran') }}")
    (tmp_path / "laughs.yaml").write_text(LAUGHS)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    write_rows(tmp_path / "one-row.jsonl", [row])
    write_rows(tmp_path / "rows.jsonl", [row] * 3)
    return tmp_path


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_what_the_page_shows_is_what_is_printed(
    command: str, output: str, demo: Path, surefoot: Surefoot
) -> None:
    said = surefoot(*shlex.split(command)[1:])
    assert (said.status, said.out) == (2, "")
    assert " ".join(said.err.split()) == output
    assert not (demo / "ran").exists()


def test_the_page_shows_as_much_as_it_did() -> None:
    assert len(SHOWN) == 10
