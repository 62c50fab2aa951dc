"""Two machines, as far as one can play them: two launchers that meet over a network, and what comes of a run.

Each has its own network stack and host name (Linux namespaces), and one cable between them; where that is not
allowed, both are on localhost. All that they have in common is the disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import QUESTIONS, write_rows
from tests.faults.children import ROOT, clock_free, events

SECONDS = 240.0
CABLE = """
set -e
hostname first
ip link set lo up
ip link add to_second type veth peer name to_first
unshare --net --uts sh -c '
  hostname second
  ip link set lo up
  until ip link show to_first >/dev/null 2>&1; do sleep 0.05; done
  ip addr add 10.0.0.2/24 dev to_first
  ip link set to_first up
  export GLOO_SOCKET_IFNAME=to_first
  exec "$0" "$@" --local-addr 10.0.0.2 --rdzv-conf is_host=0 $LAST' "$@" &
second=$!
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set to_first netns $second
ip addr add 10.0.0.1/24 dev to_second
ip link set to_second up
export GLOO_SOCKET_IFNAME=to_second
status=0
"$@" --local-addr 10.0.0.1 --rdzv-conf is_host=1 $LAST || status=$?
wait $second
exit $status
"""
"""What makes two machines out of one; "$@" is the launcher's command, $LAST what it is to launch."""
APART = ["unshare", "--user", "--map-root-user", "--net", "--uts", "sh", "-c"]


def _apart() -> bool:
    """Whether this machine lets a user make namespaces and a cable between them."""
    if not all(map(shutil.which, ("unshare", "ip", "hostname"))):
        return False
    tried = subprocess.run(
        [*APART, "hostname x && ip link add one type veth peer name two && unshare --net true"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    return tried.returncode == 0


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return {**os.environ, **own, **more}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _end(command: list[str], cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    """Status and output of a command that is not let run for ever, nor what it has started."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            said, _ = child.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGTERM)  # launchers pass it on
            said, _ = child.communicate(timeout=60)
            raise AssertionError(f"took longer than {SECONDS:g} s:\n{said}") from None
    return child.returncode, said


def _torchrun(endpoint: str) -> list[str]:
    """One process on each of two machines."""
    flags = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two-nodes"]
    return [sys.executable, "-m", "torch.distributed.run", *flags, f"--rdzv-endpoint={endpoint}"]


def _on_two_machines(argv: list[str], cwd: Path) -> tuple[int, str]:
    launched = " ".join(["-m", "surefoot", *argv])
    return _end([*APART, CABLE, "sh", *_torchrun("10.0.0.1:29500")], cwd, _environment(LAST=launched))


def _on_localhost(argv: list[str], cwd: Path) -> tuple[int, str]:
    both = 'status=0; "$@" & second=$!; "$@" || status=$?; wait $second; exit $status'
    launcher = [*_torchrun(f"127.0.0.1:{_free_port()}"), "--local-addr", "127.0.0.1"]
    env = _environment(GLOO_SOCKET_IFNAME="lo")
    return _end(["sh", "-c", both, "sh", *launcher, "-m", "surefoot", *argv], cwd, env)


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and its run as one machine with two processes makes it."""
    folder = tmp_path_factory.mktemp("nodes")
    rows = [{"prompt": asked, "completion": said} for asked, said in QUESTIONS] * 4
    recipe = {
        "model_name_or_path": str(tiny_folder),
        "dataset_name": str(write_rows(folder / "rows.jsonl", rows)),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "precision": "fp32",
        "save_strategy": "no",
        "shard": "none",
        "use_cpu": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "surefoot",
        "train",
        "recipe.yaml",
        "--nproc",
        "2",
        "--output_dir",
        "one",
    ]
    status, said = _end(command, folder, _environment())
    assert status == 0, said
    return folder


@pytest.mark.parametrize("network", ["two network stacks", "localhost"])
def test_two_machines_train_what_two_processes_of_one_train(network: str, place: Path) -> None:
    """The same events and the same bits: all that differs is who launches."""
    apart = network != "localhost"
    if apart and not _apart():
        pytest.skip("this machine lets nobody make network namespaces")
    run = place / ("apart" if apart else "beside")
    argv = ["train", "recipe.yaml", "--output_dir", run.name]
    status, said = (_on_two_machines if apart else _on_localhost)(argv, place)
    assert status == 0, said
    whole = place / "one"
    assert (run / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()
    own, theirs = (clock_free(events(path)) for path in (run, whole))
    assert own == theirs
    assert [event["type"] for event in own].count("step") == 4
