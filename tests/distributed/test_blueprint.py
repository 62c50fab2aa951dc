"""Two processes that read half of a model each have the model that one process loads whole, and train it alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from tests import tiny
from tests.distributed.blueprints import ARCHITECTURES, CASES, LARGE, Case, by_loading, train
from tests.distributed.started import spawn
from tests.faults.children import Zygote


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """Where the models are, and what two processes have left of them."""
    folder = tmp_path_factory.mktemp("blueprints")
    for architecture in ARCHITECTURES:
        tiny.model(architecture, torch.float32).save_pretrained(folder / architecture)
        tiny.tokenizer().save_pretrained(folder / architecture)
    large = tf.LlamaForCausalLM(tf.LlamaConfig(**LARGE))
    large.to(torch.bfloat16).save_pretrained(folder / "large", max_shard_size="6MB")
    tiny.tokenizer().save_pretrained(folder / "large")
    spawn(zygote, "tests.distributed.blueprints:main", 2, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_have_and_train_the_model_of_one(case: Case, folder: Path) -> None:
    said, tensors = train(case, folder, by_loading)
    found: dict[str, Any] = json.loads((folder / f"{case.name}.json").read_text())
    held = load_file(folder / f"{case.name}.st")
    assert held.keys() == tensors.keys()
    moved = 0
    for name, tensor in tensors.items():
        assert held[name].dtype == tensor.dtype == torch.float64
        if name.startswith("before "):
            assert torch.equal(held[name], tensor), name
            moved += not torch.equal(tensor, tensors[name.replace("before", "after")])
        else:
            error = (held[name] - tensor).norm() / tensor.norm()
            assert error <= 1e-12, f"{name}: {error:.1e}"
    assert moved
    assert found["path"] == said["path"]
    for what in ("loss", "after"):
        assert all(math.isclose(*pair, rel_tol=1e-12) for pair in zip(found[what], said[what], strict=True))
    assert math.isclose(found["grad_norm"], said["grad_norm"], rel_tol=1e-12)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_reads_and_holds_its_half_only(rank: int, folder: Path) -> None:
    said = json.loads((folder / f"memory.{rank}.json").read_text())
    drawn, loaded = said["drawn"], said["loaded"]
    assert drawn["whole"] > 100e6
    assert drawn["own"] == drawn["whole"] / 2
    assert drawn["read"] == drawn["own"] / 2  # 16 bits on file
    assert (
        drawn["most"] <= 0.7 * drawn["whole"]
    )  # its half, and of one matrix what is on file and what is cast
    assert drawn["resident"] <= 0.9 * drawn["whole"]  # that, and code which runs for the first time
    assert loaded["resident"] >= 1.2 * loaded["whole"]  # so the measure sees what is whole for a moment
