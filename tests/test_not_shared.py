"""Where sharing or packing would not be exact, it is off, and the run says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot import SFTConfig, SFTTrainer
from surefoot.data.forest import Forest
from surefoot.data.rows import Example
from surefoot.model.network import look_at
from tests import tiny

FAMILY = tiny.family(11, 12)
ONE, TWO = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (2, 12))


def trained(folder: Path, net: torch.nn.Module, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first step's event and what run.json says of the model."""
    args = SFTConfig(
        folder,
        optim="sgd",
        max_steps=1,
        save_strategy="no",
        use_cpu=True,
        per_device_train_batch_size=12,
        **options,
    )
    trainer = SFTTrainer(net, args, tiny.rows(FAMILY), processing_class=tiny.tokenizer())
    trainer.train()
    steps = [event for event in trainer.run.events() if event["type"] == "step"]
    return steps[0], json.loads((folder / "run.json").read_text())["model"]


@pytest.mark.parametrize(
    ("architecture", "changed", "options"),
    [
        ("llama", {}, {"use_peft": True, "lora_dropout": 0.1}),
        ("llama", {"attention_dropout": 0.1}, {}),
        ("gpt2", {"resid_pdrop": 0.1}, {}),
        ("gpt2", {"attn_pdrop": 0.1}, {}),
        ("opt", {"dropout": 0.1}, {}),
        ("opt", {"layerdrop": 0.5}, {}),
        ("mixtral", {"router_jitter_noise": 0.1}, {}),
    ],
)
def test_what_is_random_falls_on_each_example_alone_and_is_said(
    architecture: str, changed: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    step, said = trained(tmp_path, tiny.model(architecture, **changed), **options)
    assert step["slots"] == step["tokens"] - len(FAMILY)
    assert said["packed"] and not said["prefixes_shared"]
    assert any(note.startswith("prefixes are not shared: ") for note in said["notes"]), said["notes"]


def test_nothing_is_said_where_nothing_is_random(tmp_path: Path) -> None:
    step, said = trained(tmp_path, tiny.model("opt", dropout=0.0))
    assert step["slots"] < step["tokens"] - len(FAMILY)
    assert said["packed"] and said["prefixes_shared"] and said["notes"] == []


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_recurrence_and_convolution_run_row_by_row(architecture: str, tmp_path: Path) -> None:
    step, said = trained(tmp_path, tiny.model(architecture))
    assert step["slots"] == step["tokens"] - len(FAMILY)
    assert not said["packed"] and not said["prefixes_shared"]
    assert "rows run one at a time: packed together, their logits are off by" in said["notes"][0]


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_leaks_are_found_among_rows_that_lie_on_one_path(architecture: str) -> None:
    pairs = (([20], [64, 73]), ([20, 64], [73]), (ONE[:9], ONE[9:]), (ONE[:9], TWO[9:]))
    of = [Example(np.array(p), np.array(c), i, f"toy[{i}]") for i, (p, c) in enumerate(pairs)]
    assert not look_at(tiny.model(architecture), of, None).packed


def test_rotary_embeddings_that_follow_the_longest_row_are_not_packed() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    net = tiny.model("phi3", original_max_position_embeddings=16, rope_parameters=rope)
    of = tiny.examples([(5, 4), (9, 3), (30, 8), (3, 5)])
    tiny.assert_exact(look_at(net, of, None), of, (10_000,))


def hears(net: torch.nn.Module, otherwise: Callable[[Forest], Forest | None]) -> None:
    """Make every attention of `net` take another forest than it is given."""
    for name, module in net.named_modules():
        if name.endswith("self_attn"):
            given = module.forward

            def forward(*args: Any, given: Any = given, forest: Forest | None = None, **others: Any) -> Any:
                return given(*args, forest=None if forest is None else otherwise(forest), **others)

            module.forward = forward  # type: ignore[method-assign]


def paths(forest: Forest) -> Iterator[tuple[int, int]]:
    return iter(forest.trees)


def whole(forest: Forest) -> Forest:
    """Each slot sees all before it: ordinary causal attention."""
    return replace(forest, subtree_end_T=torch.full_like(forest.subtree_end_T, forest.slots))


def trees(forest: Forest) -> Forest:
    """Each slot sees all before it in its tree: packing is right, branches are not."""
    ends = torch.cat([torch.full((end - start,), end) for start, end in paths(forest)])
    return replace(forest, subtree_end_T=ends)


@pytest.mark.parametrize(
    ("otherwise", "packed", "said"),
    [
        (whole, False, "rows run one at a time: packed together, their logits are off by"),
        (trees, True, "prefixes are not shared: with shared prefixes, their logits are off by"),
        (lambda forest: None, False, "rows run one at a time: the model does not pass extra arguments on"),
    ],
)
def test_attention_that_ignores_the_forest_is_caught(
    otherwise: Callable[[Forest], Forest | None], packed: bool, said: str
) -> None:
    of = tiny.family(3, 14)
    with tiny.InDouble():
        net = tiny.model("llama")
        hears(net, otherwise)
        found = look_at(net, of, None)
    assert (found.merged, found.packed) == (False, packed)
    assert len(found.reasons) == 1 and found.reasons[0].startswith(said)
    tiny.assert_exact(found, of, (40,))


def test_a_router_that_wants_balance_learns_the_cross_entropy_alone() -> None:
    net = tiny.model("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    assert net(input_ids=torch.tensor(ONE[None]), labels=torch.tensor(ONE[None])).aux_loss > 0.1
    with tiny.InDouble():
        found = look_at(net, FAMILY, None)
    assert found.merged
    tiny.assert_exact(found, FAMILY, (100,))
