"""Two ranks that hold half of each weight, or all, see the mountain of one process, and lose nothing by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from surefoot.microscope.ground import Ground, NoMountain
from surefoot.microscope.mountain import cut, surface
from surefoot.model.network import Network, look_at
from surefoot.train.distributed import first_row, local, shard
from surefoot.train.evaluate import evaluate
from tests import tiny

RANKS = 2
OF = tiny.examples([(5, 4), (9, 12), (1, 3), (17, 6)])
BUDGET = 40
WORDS = ("another rank", "Input/output error")


class Stopped(RuntimeError):  # noqa: N818
    """Made by a test."""


def stepped(network: Network, folder: Path, fails: str | None = None) -> Ground:
    """Every weight moved by a little noise that its name decides; keeping `fails` fails on rank 1."""
    ground = Ground(folder)
    for name, p in network.model.named_parameters():
        torch.manual_seed(sum(name.encode()))
        noise = 0.02 * torch.randn(p.shape, dtype=p.dtype)
        mine, start = local(p), first_row(p)
        if name == fails and dist.get_rank() == 1:
            with pytest.raises(NoMountain), pytest.MonkeyPatch.context() as patch:
                patch.setattr(Ground, "write", refuse)
                ground.keep_before(name, p)
        else:
            ground.keep_before(name, p)
        mine += noise[start : start + len(mine)]
        ground.keep_after(name, p)
    return ground


def refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def weights(network: Network) -> list[bytes]:
    return [
        local(p).contiguous().view(-1).view(torch.uint8).numpy().tobytes() for p in network.model.parameters()
    ]


def seen(folder: Path, sharded: bool = False) -> dict[str, Any]:
    """What one process, or each rank, finds."""
    net = tiny.model("llama_tied")
    network = look_at(net, OF, None)
    if sharded:
        network = shard(network)
    ground = stepped(network, folder)
    was = weights(network)
    at_one = evaluate(network, OF, BUDGET)["loss"]
    probe: Any = {"slope": -0.5, "probe": "some rows"}
    mountain = cut(ground, network, OF, BUDGET, **probe)
    around, heights = surface(ground, network, OF, BUDGET, **probe, steps=5, seed=2)
    assert weights(network) == was
    assert evaluate(network, OF, BUDGET)["loss"] == at_one, (
        "what was gathered for the mountain is still there"
    )

    def stop(*_: Any) -> None:
        raise Stopped

    handle = net.model.layers[1].mlp.register_forward_hook(stop)
    with pytest.raises(Stopped):
        cut(ground, network, OF, BUDGET, **probe)
    handle.remove()
    assert weights(network) == was
    assert evaluate(network, OF, BUDGET)["loss"] == at_one
    ground.close()
    if dist.is_initialized():
        for name in ("model.embed_tokens.weight", "model.norm.weight"):
            unlucky = stepped(network, folder, fails=name)
            was = weights(network)
            with pytest.raises(NoMountain, match=("another rank", "No space left")[dist.get_rank()]):
                cut(unlucky, network, OF, BUDGET, **probe)
            assert weights(network) == was
            unlucky.close()
        unreadable(network, folder, probe)
    return {
        "losses": mountain.losses,
        "caption": mountain.caption,
        "heights": heights.tolist(),
        "at_one": at_one,
        "across": around.across_is,
    }


def unreadable(network: Network, folder: Path, probe: dict[str, Any]) -> None:
    """On rank 1 the disk gives the weights back until they are to stand at 0.75, and then once not."""
    ground, read = stepped(network, folder), Ground.read_both
    was, reads = weights(network), 0

    def once_not(self: Ground, *of: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2 * len(list(self.pieces())) + 3:  # 0.25 and 0.5 are done, 0.75 has begun
            raise OSError(5, "Input/output error")
        return read(self, *of)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoMountain, match=WORDS[dist.get_rank()]):
        if dist.get_rank() == 1:
            patch.setattr(Ground, "read_both", once_not)
        cut(ground, network, OF, BUDGET, **probe, along=(0.0, 0.25, 0.5, 0.75, 1.0))
    assert weights(network) == was
    ground.close()


def test_two_ranks_see_what_one_process_sees(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.microscope.test_mountain_ranks", str(rank), str(tmp_path)],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        alone = seen(tmp_path / "alone")
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert [process.returncode for process in started] == [0] * RANKS, said
    for name in (f"{rank}-{held}" for rank in range(RANKS) for held in ("sharded", "whole")):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-7)
        for row, want in zip(found["heights"], alone["heights"], strict=True):
            assert row == pytest.approx(want, rel=1e-7)
        assert found["losses"][6] == pytest.approx(found["at_one"], rel=1e-12)
        assert {name: found[name] for name in ("caption", "across")} == {
            name: alone[name] for name in ("caption", "across")
        }
    assert len({loss for row in alone["heights"] for loss in row}) == 25


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    for held in ("sharded", "whole"):
        found = seen(folder / "shared", sharded=held == "sharded")
        (folder / f"{rank}-{held}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
