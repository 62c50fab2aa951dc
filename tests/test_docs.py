"""What the pages show: the lesson's numbers are those of its step; on the way to many machines, commands run and
tables are as they are made."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from surefoot.cli import main
from tests.conftest import QUESTIONS, Surefoot, write_rows
from tests.faults.children import ROOT, events

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"−?\d[\d,]*(?:\.\d+)?(?: · 10\^−?\d+)?")


def value(number: str) -> float:
    mantissa, _, exponent = number.replace("−", "-").replace(",", "").partition(" · 10^")
    return float(mantissa) * 10 ** int(exponent or 0)


def test_the_lessons_numbers_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import one_step  # pyright: ignore[reportMissingImports]

    written = (DOCS / "one-step.md").read_text(encoding="utf-8")
    made = one_step.reflowed(one_step.page(one_step.worked_case().slide))
    sys.modules.pop("one_step")
    (rows,) = re.findall(r"\| token \| p before .*?\n\n", written, flags=re.DOTALL)
    cells = [line.split("|")[1:-1] for line in rows.strip().splitlines()[2:]]
    for column, whole in ((1, 1.0), (3, 0.0), (4, 0.0), (5, 1.0)):  # p before, p − y, weighted, p after
        assert sum(value(row[column].strip()) for row in cells) == pytest.approx(whole, abs=2e-3)
    told = [" ".join(NUMBER.sub("N", text).split()) for text in (written, made)]
    assert told[0] == told[1], "the page is not as its template makes it: run python docs/one_step.py"
    numbers = [[value(number) for number in NUMBER.findall(text)] for text in (written, made)]
    assert len(numbers[0]) > 200
    # Another processor rounds differently; the errors' sum and the difference from autograd are nothing but that.
    assert numbers[1] == pytest.approx(numbers[0], rel=0.03, abs=1e-6)


# From a laptop to many machines ------------------------------------------------------------------------

SCALE = (DOCS / "scale.md").read_text(encoding="utf-8")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
"""Llama-3.1-8B, as far as a plan looks."""


def test_the_table_of_what_ranks_send_is_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import scale  # pyright: ignore[reportMissingImports]

    sys.modules.pop("scale")
    assert scale.table() in SCALE, "run python docs/scale.py, and put its table into the page"


def test_the_plan_is_what_is_printed(surefoot: Surefoot, tmp_path: Path) -> None:
    ((command, shown),) = re.findall(r"```console\n\$ ([^\n]*)\n(.*?)```", SCALE, flags=re.DOTALL)
    (tmp_path / "llama-3.1-8b").mkdir()
    (tmp_path / "llama-3.1-8b" / "config.json").write_text(json.dumps(LLAMA))
    said = surefoot(*shlex.split(command)[1:])
    assert said.status == 0, said.err
    assert [line.split() for line in said.out.splitlines()] == [line.split() for line in shown.splitlines()]


SMALLER = {"8": "2", "first:29500": "localhost:0"}
"""What of the commands is made smaller: this machine has two cores, and is one."""


@pytest.mark.slow
def test_the_commands_start_the_same_recipe_in_two_processes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but Ray's, which tests/distributed/test_ray.py starts."""
    (block,) = re.findall(r"```sh\n(.*?)```", SCALE, flags=re.DOTALL)
    alone, several, torchrun, slurm, ray = map(shlex.split, block.splitlines())
    assert ray[:2] == ["python", "examples/ray_train.py"] and (ROOT / ray[1]).is_file()
    rows = [{"prompt": asked, "completion": said} for asked, said in QUESTIONS]
    recipe = {
        "model_name_or_path": str(tiny_folder),
        "dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows)),
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main([*alone[1:], "--output_dir", "alone"]) == 0

    tools = tmp_path / "tools"
    tools.mkdir()
    for name, does in {
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
        "srun": 'shift; exec "$@"',
        "scontrol": "echo localhost",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    assert slurm[:2] == ["sbatch", "examples/slurm.sbatch"]
    assert torchrun[1:3] == ["--nnodes", "2"]
    commands = {
        "several": [sys.executable, "-m", *several],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", *torchrun[3:]],
        "slurm": ["bash", str(ROOT / slurm[1]), *slurm[2:]],
    }
    for name, words in commands.items():
        command = [*(SMALLER.get(word, word) for word in words), "--output_dir", name]
        made = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert made.returncode == 0, made.stderr
    counts = {
        name: [len(event["examples"]) for event in events(tmp_path / name) if event["type"] == "step"]
        for name in ("alone", *commands)
    }
    assert counts == {"alone": [2], "several": [4], "torchrun": [4], "slurm": [4]}
