"""Ray Train as the launcher: a worker that is killed, and a run that ends with the bits of two processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import write_recipe
from tests.faults.children import ROOT, clock_free, events

pytest.importorskip("ray.train.torch", reason="Ray is not installed (the extra `ray`)", exc_type=ImportError)

SECONDS = 300.0
pytestmark = pytest.mark.slow
WORKER = re.compile(r"pid=(\d+)\) world_rank=1,")


def _environment(home: Path) -> dict[str, str]:
    """Ray leaves a token in the home folder, and by itself reports that it was used."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return {**os.environ, **own, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}


def test_a_run_by_ray_outlives_a_worker_and_is_the_run_of_two_processes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    write_recipe(
        tmp_path,
        tiny_folder,
        output_dir="by-ray",
        max_steps=40,
        save_steps=2,
        lr_scheduler_type="constant",
        shard="none",
    )
    env = _environment(tmp_path)
    usual = subprocess.run(
        [sys.executable, "-m", "surefoot", "train", "recipe.yaml", "--nproc", "2", "--output_dir", "usual"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert usual.returncode == 0, usual.stderr

    said = tmp_path / "said.txt"
    command = [sys.executable, str(ROOT / "examples" / "ray_train.py"), "recipe.yaml"]
    with (
        said.open("w") as out,
        subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out) as ray,
    ):
        try:
            _kill_a_worker(tmp_path / "by-ray", said, ray)
            status = ray.wait(timeout=SECONDS)
        finally:
            ray.terminate()  # takes its cluster with it
    assert status == 0, said.read_text()

    history = json.loads((tmp_path / "by-ray" / "run.json").read_text())["resumed"]
    assert [entry["step"] > 0 for entry in history] == [True]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("by-ray", "usual")]
    assert weights[0] == weights[1]
    assert clock_free(events(tmp_path / "by-ray")) == clock_free(events(tmp_path / "usual"))


def _kill_a_worker(run: Path, said: Path, ray: subprocess.Popen[bytes]) -> None:
    """Once a checkpoint is committed."""
    deadline = time.monotonic() + SECONDS
    while not any(run.glob("checkpoints/step-*")) or not (found := WORKER.search(said.read_text())):
        assert ray.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)
    os.kill(int(found[1]), signal.SIGKILL)
