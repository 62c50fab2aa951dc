"""Examples that share a prefix are learned as if each stood alone: the forest against the definition.

Inside the models float32 is float64 here (`tiny.InDouble`), so any difference above rounding is a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from surefoot.data.forest import plant
from surefoot.data.rows import Example
from surefoot.model.network import Network, look_at
from surefoot.train.step import losses
from tests import tiny
from tests.conftest import Surefoot, write_rows


@cache
def network(architecture: str) -> Network:
    """A tiny model that takes merged forests; its gradients are taken off after each use."""
    with tiny.InDouble():
        found = look_at(tiny.model(architecture), tiny.family(3, 14), None)
    assert (found.merged, found.packed, found.reasons) == (True, True, ())
    return found


# Shapes of families ----------------------------------------------------------------------------------------


def rows(*pairs: tuple[Sequence[int], Sequence[int]]) -> list[Example]:
    """Examples of (prompt, completion), with weights 1, 0.5, 2, 1, 0.5, ..."""
    return [
        Example(np.array(p, np.int32), np.array(c, np.int32), i, f"toy[{i}]", (1.0, 0.5, 2.0)[i % 3])
        for i, (p, c) in enumerate(pairs)
    ]


TOKENS = [
    [i + 3, *rest] for i, rest in enumerate(np.random.default_rng(0).integers(3, 97, (24, 89)).tolist())
]
"""Two dozen strangers: each begins with a token of its own."""
ONE, TWO, THREE = TOKENS[:3]

SHAPES: dict[str, list[Example]] = {
    "a deep chain, each a prefix of the next": rows(*((ONE[:k], ONE[k : k + 3]) for k in range(1, 80, 4))),
    "a chain that is left at every depth": rows(*((ONE[:k], TWO[k : k + 3]) for k in range(1, 80, 4))),
    "a wide fan below a long prompt": rows(*((ONE[:70], other[:5]) for other in TOKENS)),
    "a wide fan at the root": rows(*((other[:1], other[1:6]) for other in TOKENS)),
    "branches of branches": rows(
        *(
            ([*ONE[:20], *TOKENS[i][:9], *TOKENS[i + j][:3]], TOKENS[j][:4])
            for i in range(4)
            for j in range(4)
        )
    ),
    "duplicates of other weights": rows(*[(ONE[:12], ONE[12:20])] * 4, (TWO[:3], TWO[3:5])),
    "one answer split elsewhere": rows(*((ONE[:k], ONE[k:30]) for k in (0, 1, 7, 29))),
    "one prompt, other completions": rows(
        *((ONE[:9], c) for c in (TWO[:5], TWO[:3], [*TWO[:3], *THREE[:3]], THREE[:1], [TWO[0]]))
    ),
    "completions of one token": rows(*((ONE[:1], [label]) for label in TWO[:9]), (ONE[:1], ONE[1:9])),
    "empty prompts": rows(*(([], [*ONE[:k], *TWO[k : k + 3]]) for k in (0, 1, 2, 5)), ([], ONE[:2])),
    "strangers": rows(*((other[:k], other[k : k + 5]) for k, other in enumerate(TOKENS[:9]))),
}


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_families_of_every_shape_are_learned_as_if_alone(shape: str, architecture: str) -> None:
    of = SHAPES[shape]
    tiny.assert_exact(network(architecture), of, (10_000, 50))
    merged, alone = plant(of, merge=True).slots, plant(of).slots
    assert (merged == alone) == (shape in ("strangers", "a wide fan at the root"))


def test_a_wide_fan_computes_its_prompt_once() -> None:
    with tiny.InDouble():
        found = losses(network("llama"), SHAPES["a wide fan below a long prompt"], 10_000, backprop=False)
    # Completions of five tokens, of which the last has no slot.
    assert (found.slots, found.supervised, found.tokens) == (70 + 24 * 4, 24 * 5, 24 * 75)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 100_000), st.integers(1, 16), st.integers(1, 150))
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "mistral", "gpt2", "gpt_oss"])
def test_any_family_is_learned_as_if_alone(architecture: str, seed: int, count: int, budget: int) -> None:
    tiny.assert_exact(network(architecture), tiny.family(seed, count), (budget, 10_000))


def test_windows_count_depth_not_slots() -> None:
    """Below a fan wider than the window, the parent is many slots back and still seen."""
    fan = rows(*((ONE[:20], [*other[:9], *ONE[:6]]) for other in TOKENS[:12]))
    for architecture in ("mistral", "gemma3", "gpt_oss"):
        assert network(architecture).core.config.sliding_window == 8
        tiny.assert_exact(network(architecture), fan, (10_000,))


def test_activations_that_are_computed_again_see_the_same_forest() -> None:
    found = network("gpt2")  # backward computes again outside of `InDouble`
    found.core.activation_checkpointing_enable({"use_reentrant": False})
    found.core.train()
    try:
        tiny.assert_exact(found, SHAPES["branches of branches"], (10_000, 40))
    finally:
        found.core.activation_checkpointing_disable()


# Through the command line ----------------------------------------------------------------------------------

FAMILY = tiny.family(11, 26)[:24]
MASKED = {"input_ids": [5, 6, 7], "completion_mask": [0, 0, 0]}
STEP = ("--per_device_train_batch_size", 8)


@pytest.fixture
def train(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any, Any]]:
    """Trains three steps of eight rows; returns what the weights have moved by, the steps and run.json."""
    write_rows(tmp_path / "rows.jsonl", [MASKED, *tiny.rows(FAMILY), MASKED])
    count = iter(range(100))

    def run(*flags: object) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
        out = tmp_path / f"run{next(count)}"
        where = ("--model_name_or_path", tiny_folder, "--dataset_name", "rows.jsonl", "--output_dir", out)
        how = ("--optim", "sgd", "--learning_rate", 0.2, "--lr_scheduler_type", "constant")
        quiet = ("--use_cpu", "--precision", "fp32", "--save_strategy", "no", "--disable_tqdm")
        once = ("--num_train_epochs", 1, "--max_grad_norm", 0)
        said = surefoot("train", *where, *how, *quiet, *once, *flags)
        assert said.status == 0, said.err
        assert "dropped: 2 ×" in said.err and "rows.jsonl:1, rows.jsonl:26" in said.err
        events = map(json.loads, (out / "events.jsonl").read_text().splitlines())
        [weights] = (out / "model").glob("*.safetensors")
        before = load_file(tiny_folder / "model.safetensors") if weights.name == "model.safetensors" else {}
        moved = {name: (x - before.get(name, 0)).double() for name, x in load_file(weights).items()}
        said_of_run = json.loads((out / "run.json").read_text())
        return moved, [event for event in events if event["type"] == "step"], said_of_run

    return run


def assert_same_run(got: tuple[Any, Any, Any], want: tuple[Any, Any, Any]) -> None:
    tiny.assert_same(got[0], want[0], 2e-5)
    assert [step["step"] for step in got[1]] == [1, 2, 3]
    for ours, theirs in zip(got[1], want[1], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert (ours["tokens"], ours["supervised"]) == (theirs["tokens"], theirs["supervised"])
        of, alone = ({where: (loss, n) for where, loss, n in step["examples"]} for step in (ours, theirs))
        assert of.keys() == alone.keys()
        for where, (loss, count) in of.items():
            assert count == alone[where][1]
            assert loss == pytest.approx(alone[where][0], rel=2e-5, abs=1e-5)


def test_the_command_line_gives_the_same_run_however_a_step_is_computed(
    train: Callable[..., tuple[Any, Any, Any]],
) -> None:
    alone = train("--share_prefixes", "false", *STEP)
    assert not alone[2]["model"]["prefixes_shared"] and alone[2]["model"]["packed"]
    assert [step["slots"] for step in alone[1]] == [
        step["tokens"] - len(step["examples"]) for step in alone[1]
    ]
    ways = [
        STEP,
        ("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8),
        ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4),
        ("--micro_batch_tokens", 1, *STEP),
        ("--micro_batch_tokens", 60, *STEP),
        ("--micro_batch_tokens", 60, "--share_prefixes", "false", *STEP),
        ("--gradient_checkpointing", "true", *STEP),
    ]
    counts = set()
    for flags in ways:
        found = train(*flags)
        assert_same_run(found, alone)
        counts.add(tuple(step["micro_batches"] for step in found[1]))
        if flags[-2:] == STEP and "--share_prefixes" not in flags and "--micro_batch_tokens" not in flags:
            assert found[2]["model"]["prefixes_shared"]
            assert sum(s["slots"] for s in found[1]) < sum(s["slots"] for s in alone[1])
    assert len(counts) > 2


def test_lora_through_the_command_line_shares_prefixes_exactly(
    train: Callable[..., tuple[Any, Any, Any]],
) -> None:
    shared, alone = (train("--use_peft", "--share_prefixes", share, *STEP) for share in ("true", "false"))
    assert [found[2]["model"]["prefixes_shared"] for found in (shared, alone)] == [True, False]
    assert_same_run(shared, alone)
