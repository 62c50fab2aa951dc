"""Two machines, as far as one can play them: two launchers that meet over a network, what comes of a run, and what
does when one of them is lost.

Each has its own network stack and host name (Linux namespaces), and one cable between them; where that is not
allowed, both are on localhost. All that they have in common is the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import write_recipe
from tests.faults.children import ROOT, clock_free, events

SECONDS = 240.0
pytestmark = pytest.mark.slow
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
    """A recipe, and its runs as one machine with two processes makes them."""
    folder = tmp_path_factory.mktemp("nodes")
    write_recipe(folder, tiny_folder, max_steps=4, lr_scheduler_type="constant", save_strategy="no")
    for shard in ("none", "full"):
        argv = ["train", "recipe.yaml", "--nproc", "2", "--shard", shard, "--output_dir", f"one-{shard}"]
        status, said = _end([sys.executable, "-m", "surefoot", *argv], folder, _environment())
        assert status == 0, said
    return folder


@pytest.mark.parametrize(("network", "shard"), [("two network stacks", "full"), ("localhost", "none")])
def test_two_machines_train_what_two_processes_of_one_train(network: str, shard: str, place: Path) -> None:
    """The same events and the same bits: all that differs is who launches."""
    apart = network != "localhost"
    if apart and not _apart():
        pytest.skip("this machine lets nobody make network namespaces")
    run = place / ("apart" if apart else "beside")
    argv = ["train", "recipe.yaml", "--shard", shard, "--output_dir", run.name]
    status, said = (_on_two_machines if apart else _on_localhost)(argv, place)
    assert status == 0, said
    whole = place / f"one-{shard}"
    files = [
        {path.name: path.read_bytes() for path in (folder / "model").glob("*.safetensors")}
        for folder in (run, whole)
    ]
    assert files[0]
    assert files[0] == files[1]
    own, theirs = (clock_free(events(path)) for path in (run, whole))
    assert own == theirs
    assert [event["type"] for event in own].count("step") == 4


def test_a_machine_that_is_lost_leaves_the_run_to_the_other(place: Path) -> None:
    """Of one or two machines (--nnodes 1:2) one goes; the other goes on from the last checkpoint, alone, with as
    many rows in a step as before."""
    flags = ["--local-addr=127.0.0.1", "--nnodes=1:2", "--max-restarts=3", "--rdzv-conf"]
    meeting = (
        "last_call_timeout=10,keep_alive_interval=1,is_host="  # its host must not be the one that is lost
    )
    launcher = [*_torchrun(f"127.0.0.1:{_free_port()}"), *flags]
    argv = ["train", "recipe.yaml", "--output_dir", "lost", "--max_steps", "60", "--save_strategy", "steps"]
    last = ["-m", "surefoot", *argv, "--save_steps", "2", "--shard", "none"]
    env = _environment(GLOO_SOCKET_IFNAME="lo")
    said, run = place / "lost.txt", place / "lost"
    machines: list[subprocess.Popen[bytes]] = []
    with said.open("w") as out:
        try:
            for host in "10":
                command = [*launcher, meeting + host, *last]
                machines.append(subprocess.Popen(command, cwd=place, env=env, stdout=out, stderr=out))
            deadline = time.monotonic() + SECONDS
            while not any(run.glob("checkpoints/step-*")):
                assert machines[0].poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.02)
            for process in _family(machines[1].pid):
                os.kill(process, signal.SIGKILL)
            status = machines[0].wait(timeout=SECONDS)
        finally:
            for machine in machines:
                machine.terminate()
                machine.wait(30)
    assert status == 0, said.read_text()
    content = json.loads((run / "run.json").read_text())
    assert content["step_rows"] == 4
    (again,) = content["resumed"]
    assert 0 < again["step"] < 60
    assert "ranks: 2 then, 1 now" in " ".join(again["notes"])
    steps = [event for event in events(run) if event["type"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 61))
    assert {len(event["examples"]) for event in steps} == {4}
    assert (run / "model" / "model.safetensors").is_file()


def _family(process: int) -> list[int]:
    """A process, and those that it has started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = [int(word) for word in children.read_text().split()] if children.exists() else []
    return [process, *(one for child in found for one in _family(child))]
