"""What two ranks save is what one would have saved; any number of ranks goes on from it; and where one fails,
nobody commits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from surefoot.commands.checkpoints import listed
from surefoot.errors import UserError
from surefoot.model.load import load as load_model
from surefoot.runfolder import RunFolder
from surefoot.train.manifest import INDEX, Damaged, manifest_of, piece_name, verify
from tests import tiny
from tests.distributed.checkpoints import AT, CASES, loaded, path_of, said_of, save, trained
from tests.distributed.failing import FAULTS
from tests.distributed.ranks import Case
from tests.distributed.started import spawn
from tests.faults.children import Zygote

COMMITTED = ("lost once on 1", "manifest lost once", "no memory on 1", "deaf 1")
REASONS = {
    "full on 1": "rank 1: No space left on device (a checkpoint takes ",
    "full on 0": "checkpoints: No space left on device (a checkpoint takes ",
    "lost for good on 1": "rank 1: Input/output error",
    "a bug on 1": "rank 1: ValueError: a bug",
    "silent 1": "rank 1 had not written its part",
    "no events": "Input/output error",
    "no room for all": " bytes are free (a checkpoint takes ",
}


def tolerance(case: Case) -> float:
    return 1e-4 if case.optim == "muon" else 1e-12
    # Muon computes in bfloat16, whatever the weights' type, and sums in another order where they are sharded.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """What two processes have left, and four that went on from it."""
    folder = tmp_path_factory.mktemp("saved")
    for count in (2, 4):
        spawn(zygote, "tests.distributed.checkpoints:main", count, folder)
    return folder


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def said(saved: Path, ranks: int, of: str) -> dict[str, Any]:
    """What the ranks have found, the same on all."""
    first, *rest = (
        json.loads((saved / f"said-{ranks}.{rank}.json").read_text())[of] for rank in range(ranks)
    )
    assert all(one == first for one in rest)
    return first


def test_any_number_of_ranks_goes_on_with_the_same_tensors(case: Case, saved: Path, tmp_path: Path) -> None:
    """World 2 → 2 that hold all, 1, and 4; and those that hold all → 4; and 4 → 1."""
    two, four = said(saved, 2, case.name), said(saved, 4, case.name)
    want = two["full"]
    others = {"none": two["none"], "of one": four["of one"], "of two": four["of two"]}
    for name in ("full", "full-4"):
        with case.arithmetic:
            network, optimizers = loaded(case, False, path_of(saved / case.name / name))
            save(network, optimizers, tmp_path / name)
            others[name] = said_of(network, optimizers)
    for name, found in others.items():
        assert found["state"] == want["state"], name
        assert (found["digest"], found["frozen"]) == (want["digest"], want["frozen"]), name
        assert found["outlook"] == pytest.approx(want["outlook"], rel=tolerance(case)), name
    assert len(want["state"]["tensors"]) > 10


def test_what_ranks_that_hold_all_save_is_what_one_saves(case: Case, saved: Path, tmp_path: Path) -> None:
    with case.arithmetic:
        save(*loaded(case, False, path_of(saved / case.name / "full")), tmp_path)
    one, none = path_of(tmp_path), path_of(saved / case.name / "none")
    assert manifest_of(none).files == manifest_of(one).files
    assert (none / "manifest.json").read_bytes() == (one / "manifest.json").read_bytes()


def test_a_step_on_two_is_saved_as_it_would_be_on_one(case: Case, saved: Path) -> None:
    with case.arithmetic:
        network, optimizers = trained(case, sharded=False)
        alone = said_of(network, optimizers)
    two = said(saved, 2, case.name)["full"]
    assert two["state"]["tensors"].keys() == alone["state"]["tensors"].keys()
    assert two["outlook"] == pytest.approx(alone["outlook"], rel=100 * tolerance(case))


def test_each_rank_keeps_its_rows(saved: Path) -> None:
    case = CASES[0]
    path = path_of(saved / case.name / "full-4")
    manifest = verify(path)
    weights = {n: load_file(path / piece_name("weights.safetensors", n, 4)) for n in range(4)}
    index = json.loads((path / INDEX).read_text())
    name = "model.embed_tokens.weight"
    assert index["weights"][name] == {"shape": [97, 32], "first_rows": [0, 25, 50, 75]}
    assert [len(weights[n][name]) for n in range(4)] == [25, 25, 25, 22]
    assert index["optimizer"][f"{name}/step"] == {"shape": []}
    sizes = [manifest.files[piece_name("weights.safetensors", n, 4)]["size"] for n in range(4)]
    assert max(sizes) < 1.2 * min(sizes)
    rows = json.loads((path_of(saved / CASES[-1].name / "full-4") / INDEX).read_text())["weights"]
    assert any(one["first_rows"] == [0, 1, 1, 1] for one in rows.values())  # a weight of one row
    (one,) = listed(RunFolder(path.parents[1]))
    assert one.bytes == manifest.bytes == sum(f.stat().st_size for f in path.iterdir()) - size_of(path)
    assert manifest.tensor_bytes == sum(f.stat().st_size for f in path.glob("*.safetensors"))


def size_of(path: Path) -> int:
    return (path / "manifest.json").stat().st_size


@pytest.mark.parametrize(
    "file", [piece_name("weights.safetensors", 1, 2), piece_name("optimizer.safetensors", 1, 2), INDEX]
)
def test_damage_in_any_piece_is_seen(file: str, saved: Path, tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copytree(path_of(saved / CASES[0].name / "full"), tmp_path / "step-00000002"))
    content = bytearray((path / file).read_bytes())
    content[-3] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(Damaged, match=file):
        verify(path)
    (path / file).unlink()
    with pytest.raises(Damaged, match="is not there"):
        verify(path)
    with pytest.raises(UserError):
        loaded(CASES[0], False, path)


# Saves that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_all_have_written_or_nobody_commits(name: str, wait: bool, saved: Path) -> None:
    found = [
        json.loads((saved / f"said-2.{rank}.json").read_text())["faults"][f"{name}-{wait}"]
        for rank in range(2)
    ]
    committed = name in COMMITTED
    for rank, one in enumerate(found):
        kinds = [event["type"] for event in one["said"]]
        alone = rank == 1 and not wait  # what only this rank thinks is not written down
        if name == "deaf 1" and alone:
            assert kinds == ["alert"]
        else:
            before = ["alert"] if name == "no memory on 1" and alone else []
            assert kinds == [*before, "checkpoint" if committed else "alert"]
        if not committed:
            assert REASONS[name] in one["said"][0]["message"]
        elif kinds[-1] == "checkpoint":
            assert one["said"][-1]["tensor_bytes"] == found[0]["said"][-1]["tensor_bytes"]
        assert one["left"] == ["step-00000001"] + ["step-00000002"] * committed  # and no half one
        assert one["sound"] == [1, *[2] * committed, 3]
        assert one["then"] == ["checkpoint"]
    checkpoints = saved / f"{name}-{wait}" / "checkpoints"
    assert [verify(path).step for path in sorted(checkpoints.iterdir())] == found[0]["sound"]
    if committed:
        tensor_bytes = manifest_of(checkpoints / "step-00000002").tensor_bytes
        assert found[0]["said"][-1]["tensor_bytes"] == tensor_bytes


def test_what_cannot_be_saved_is_refused_on_all(saved: Path) -> None:
    first, second = (json.loads((saved / f"said-2.{rank}.json").read_text())["refusals"] for rank in range(2))
    for name in ("apart", "parted"):
        assert (first[name][0], second[name][0]) == ("UserError", "Elsewhere")
    assert "must be on a file system that all machines share" in first["apart"][1]
    assert "not seen by rank 1" in first["apart"][1]
    assert "not the same on all ranks" in first["parted"][1]
    assert (first["surely"][0], second["surely"][0]) == ("StoppedError", "StoppedElsewhere")
    assert "rank 1: No space left on device" in first["surely"][1]
    assert first["at last"] == second["at last"] == [AT]


def test_room_is_asked_for_all_ranks(saved: Path) -> None:
    first, second = (json.loads((saved / f"said-2.{rank}.json").read_text())["refusals"] for rank in range(2))
    path = path_of(saved / CASES[0].name / "full")
    kept = [tensor for file in path.glob("*.safetensors") for tensor in load_file(file).values()]
    counters = sum(tensor.nbytes for tensor in kept if tensor.ndim == 0)
    assert first["needed"] == second["needed"] == sum(tensor.nbytes for tensor in kept) - counters


# The model ------------------------------------------------------------------------------------------------


def test_the_models_files_together_are_the_model(case: Case, saved: Path) -> None:
    place = saved / case.name / "full" / "model"
    with case.arithmetic:
        network, _ = loaded(case, False, path_of(saved / case.name / "full"))
    want = network.model.state_dict()
    if case.lora:
        found = load_file(place / "adapter_model.safetensors")
        assert {name.replace(".weight", ".default.weight") for name in found} == {
            n for n in want if "lora_" in n
        }
        for name, tensor in found.items():
            assert torch.equal(tensor, want[name.replace(".weight", ".default.weight")]), name
        return
    again = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
    got = again.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    parts = sorted(place.glob("*.safetensors"))
    if case.architecture == "mixtral":  # its experts are kept otherwise than they are computed with
        assert [path.name for path in parts] == ["model.safetensors"]
        return
    assert [path.name for path in parts] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    inside = [set(load_file(path)) for path in parts]
    assert not inside[0] & inside[1]
    tied = case.architecture == "llama_tied" or case.architecture == "gemma2"
    assert ("lm_head.weight" in inside[0] | inside[1]) == (not tied)
    largest = max(tensor.nbytes for tensor in want.values())
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in parts]
    assert max(sizes) <= sum(sizes) / 2 + largest
    assert load_model(str(place)).tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_model_that_one_rank_cannot_write_is_everybodys_matter(saved: Path) -> None:
    first, second = (json.loads((saved / f"said-2.{rank}.json").read_text())["results"] for rank in range(2))
    assert first["once"] == second["once"] == "saved"
    assert "rank 1: [Errno 28] No space left" in first["for good"]
    assert first["for good"].startswith("StoppedError") and second["for good"].startswith("StoppedElsewhere")
    assert first["bug"] == "StoppedElsewhere: rank 1: a bug" and second["bug"] == "ValueError: a bug"
    assert first["memory"] == "StoppedElsewhere: rank 1: out of memory"
    assert second["memory"] == "RuntimeError: out of memory"
    assert first["for good, left"] == ["model"]  # the one before
    assert "model" in first["bug, left"]
    assert first["said"] and not second["said"]
