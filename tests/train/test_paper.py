"""The plan on paper: bytes counted without weights are those counted with them; sums, speeds and advice by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.model import tiled
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.flops import Costs
from surefoot.model.network import Network, head_of
from surefoot.train import advice, paper, planner
from surefoot.train.advice import Problem, suggestions
from surefoot.train.memory import Footprint, measure
from surefoot.train.paper import Place, Rows, Way, largest, memory, rows_as_said, rows_of, speed
from surefoot.train.sketch import Sizes, measured, sizes, sketch
from tests import tiny

ROWS = tiny.examples([(20, 30), (10, 50), (40, 20)])


def of(architecture: str, layers: int = 3) -> Any:
    """A tiny config, its weights in fp32."""
    config = {**tiny.CONFIGS, **tiny.FURTHER}[architecture]()
    config.dtype = torch.float32
    if layers != 3:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = (config.layer_types * layers)[:layers]
    return config


def really(config: Any, args: SFTConfig, bf16: bool, longest: int) -> Footprint:
    """What `measure` says of the model with weights."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    core = model
    if args.use_peft:
        model = adapt(model, lora_config(args))
    network = Network(model, torch.bfloat16 if bf16 else None, head=head_of(core))
    return measure(network, ROWS, longest)


def assert_alike(got: Footprint, want: Footprint, slots: int = 1000) -> None:
    """The same bytes for a micro-batch of so many slots, with and without recomputing, within two percent."""
    assert got.gradients == want.gradients
    assert got.copies == pytest.approx(want.copies, rel=0.01, abs=2000)
    assert len(got.layers) == len(want.layers)
    for recomputing in (0, len(got.layers)):
        for targets in (10, slots):
            mine, theirs = (found.peak(slots, targets, recomputing) for found in (got, want))
            assert mine == pytest.approx(theirs, rel=0.02), recomputing
    assert got.body[1] == pytest.approx(want.body[1], rel=0.01)


# A model without weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "layers", "bf16", "lora"),
    [
        ("llama", 3, False, False),
        ("llama_tied", 9, True, False),
        ("llama", 9, True, True),
        ("gemma2", 8, False, False),
        ("gpt2", 3, True, False),
        ("qwen3", 6, True, True),
    ],
)
def test_what_is_counted_without_weights_is_what_is_counted_with_them(
    architecture: str, layers: int, bf16: bool, lora: bool
) -> None:
    args = SFTConfig(use_peft=lora)
    name = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    config = of(architecture, 3 if architecture == "gpt2" else layers)
    assert getattr(config, name) == layers
    drawn = sketch(config, args, bf16, architecture)
    if not bf16:
        assert drawn.product_dtype is None
    got = measured(drawn, ROWS, 60, cuda=False)
    assert_alike(got, really(config, args, bf16, 60))
    assert all(p.untyped_storage().device.type == "meta" for p in drawn.model.parameters())


@pytest.mark.slow
def test_many_alike_layers_are_told_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SFTConfig()
    drawn = sketch(of("llama", layers=20), args, True, "x")
    ran: list[int] = []

    def counting(network: Network, *others: Any) -> Footprint:
        found = measure(network, *others)
        ran.append(len(found.layers))
        return found

    monkeypatch.setattr("surefoot.train.sketch.measure", counting)
    short = measured(drawn, ROWS, 60, cuda=False)
    assert ran == [4, 2]
    monkeypatch.setattr("surefoot.train.sketch._period", lambda *_: None)
    assert_alike(short, measured(drawn, ROWS, 60, cuda=False))
    assert ran == [4, 2, 20]
    assert len(drawn.model.model.layers) == 20


def test_sizes_are_those_of_the_weights() -> None:
    args = SFTConfig()
    found = sizes(sketch(of("llama"), args, True, "x"), args, ROWS, 60, cuda=True)
    model = tiny.model("llama", torch.float32)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert (found.parameters, found.weights, found.gradients) == (whole, 4 * whole, 4 * whole)
    assert found.state == 8 * whole
    assert (found.layers, found.layer, found.layer_gradients) == (3, 4 * layer, 4 * layer)
    assert found.root == found.root_gradients == 4 * (whole - 3 * layer) == 4 * (2 * 97 * 32 + 32)
    adapter = SFTConfig(use_peft=True, lora_r=4)
    small = sizes(sketch(of("llama"), adapter, True, "x"), adapter, ROWS, 60, cuda=True)
    added = 3 * 4 * (64 + 2 * 48 + 64 + 3 * 80)  # layers, rank, in + out of each matrix
    assert small.trained_parameters == added
    assert (small.gradients, small.state) == (4 * added, 8 * added)
    assert small.weights == 4 * (whole + added)
    assert small.root_gradients == 0


def test_frozen_weights_keep_the_checkpoints_type_and_pure_bf16_is_half() -> None:
    args = SFTConfig(use_peft=True)
    config = of("llama")
    config.dtype = torch.bfloat16
    types = {p.requires_grad: p.dtype for p in sketch(config, args, True, "x").model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    args = SFTConfig(precision="pure-bf16")
    assert {p.dtype for p in sketch(of("llama"), args, True, "x").model.parameters()} == {torch.bfloat16}


def test_a_sketch_leaves_the_config_as_it_was() -> None:
    """All weights first, then an adapter of the same config: what is frozen is still bf16."""
    config = of("llama")
    config.dtype = torch.bfloat16
    config.quantization_config = {"quant_method": "none"}
    before = repr(config.to_dict())
    whole = sketch(config, SFTConfig(), True, "x")
    assert {p.dtype for p in whole.model.parameters()} == {torch.float32}
    assert repr(config.to_dict()) == before and hasattr(config, "quantization_config")
    adapter = sketch(config, SFTConfig(use_peft=True), True, "x")
    types = {p.requires_grad: p.dtype for p in adapter.model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_on_a_gpu_attention_keeps_what_flash_attention_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SFTConfig()
    drawn = sketch(of("llama"), args, True, "x")
    gpu = measured(drawn, ROWS, 60, cuda=True)
    monkeypatch.setattr(
        tiled, "KEEP", 0
    )  # the CPU's attention keeps no probabilities either, but no row sums
    cpu = measured(drawn, ROWS, 60, cuda=False)
    heads = 4
    assert gpu.layers[1] == pytest.approx(cpu.layers[1] + 4 * heads, abs=1)


def test_a_model_that_looks_at_its_tokens_is_refused() -> None:
    args = SFTConfig()
    config = of("mixtral")
    config._experts_implementation = "eager"
    with pytest.raises(UserError, match="cannot be planned on paper"):
        measured(sketch(config, args, False, "x"), ROWS, 60, cuda=False)


# Adding up ---------------------------------------------------------------------------------------------

PRINT = Footprint(
    gradients=4_000_000,
    copies=1_500_000,
    body=(1000.0, 3000.0),
    head=(2000.0, 400.0),
    head_most=300,
    start=(5000.0, 3100.0),
    end=6000,
    first_end=5_000_000,
    layers=(1000.0, 1000.0),
    outputs=(100.0, 100.0),
    square=None,
    seconds=0.0,
)
FOUND = Sizes(
    parameters=1_000_000,
    trained_parameters=1_000_000,
    weights=4_000_000,
    gradients=4_000_000,
    state=8_000_000,
    layers=2,
    layer=1_200_000,
    layer_gradients=1_200_000,
    root=1_600_000,
    root_gradients=1_600_000,
    vocabulary=50,
    footprint=PRINT,
    costs=Costs(6e6, 100.0, 1e5, 2e6, 30.0, ((None, 1.0),)),
    rounded=False,
    recomputing=True,
)
DATA = Rows(mean=100, deviation=50, longest=400, share=0.5, step_rows=16)
CPU = Place("cpu", 1e9, 1e8, False, 2048, 1, 1)
GPUS = Place("card", 1e9, 1e8, True, 16384, 4, 1, flops=1e12, bandwidth=1e11, link=1e10)


@pytest.mark.parametrize("budget", [128, 512, 1024, 4096])
@pytest.mark.parametrize("recompute", [False, True])
def test_one_rank_on_a_cpu_is_what_the_planner_says(budget: int, recompute: bool) -> None:
    held = int(CPU.process + FOUND.weights)
    theirs = planner._Memory(held=held, free=10**9, lasting=FOUND.state, update=0, overhead=planner.HEAP)
    work = planner._Work([], DATA.step, DATA.step_most, DATA.longest, DATA.share)
    mine = memory(FOUND, DATA, CPU, Way(False, False, recompute), budget)
    assert mine.total == pytest.approx(theirs.peak(PRINT, work, budget, 2 * recompute), abs=5)


def test_sharding_divides_what_lasts_and_gathers_two_layers() -> None:
    whole, cut = (memory(FOUND, DATA, GPUS, Way(False, shard, False), 1024) for shard in (False, True))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(cut, part) == getattr(whole, part) / 4
    assert whole.gathered == 0
    assert cut.gathered == 1_600_000 + 2 * 1_200_000 + 2 * 1_600_000
    assert cut.copies == whole.copies == 1_500_000  # autograd keeps them from forward to backward
    assert memory(FOUND, DATA, GPUS, Way(False, True, True), 1024).copies == 750_000
    parts = (
        cut.process,
        cut.weights,
        cut.gradients,
        cut.optimizer,
        cut.copies,
        cut.gathered,
        cut.activations,
    )
    assert cut.total == sum(parts)


def test_what_is_rounded_before_it_is_gathered_is_half_and_leaves_no_copies() -> None:
    way, rounded = Way(False, True, False), replace(FOUND, rounded=True)
    cut = memory(rounded, DATA, GPUS, way, 1024)
    assert cut.gathered == 1_600_000 + 2 * 600_000 + 2 * 1_600_000
    assert cut.copies == 0
    assert memory(rounded, DATA, GPUS, Way(False, False, False), 1024).copies == 1_500_000
    found = speed(rounded, DATA, GPUS, way, 1600)
    assert found is not None
    assert found.communication[1] == pytest.approx(0.75 * (2_400_000 + 1_600_000 + 4_000_000) / 0.5e10)


@pytest.mark.parametrize(
    ("how", "rounded"),
    [
        ({}, False),
        ({"precision": "bf16"}, True),
        ({"precision": "pure-bf16"}, False),
        ({"precision": "bf16", "use_peft": True, "lora_target_modules": "all-linear"}, False),
    ],
)
def test_linear_layers_held_in_fp32_are_rounded_for_bf16_products(how: dict[str, Any], rounded: bool) -> None:
    args = SFTConfig(**how)
    found = sizes(sketch(of("llama"), args, False, "x"), args, ROWS, 60, cuda=False)
    assert found.rounded == rounded


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    way = Way(False, False, False)
    tight = replace(GPUS, memory=2.4e7 + 1e6, process=1e6)
    found = largest(FOUND, DATA, tight, way)
    assert found is not None and found.total <= tight.room
    assert 512 <= found.micro_batch_tokens < DATA.step_most
    assert memory(FOUND, DATA, tight, way, found.micro_batch_tokens + 512).total > tight.room
    assert largest(FOUND, DATA, replace(tight, memory=1e7), way) is None


def test_rows_are_as_long_as_they_are() -> None:
    rows = rows_of(ROWS, SFTConfig(per_device_train_batch_size=3, share_prefixes=False))
    lengths = [49, 59, 59]
    assert (rows.mean, rows.longest, rows.merging) == (np.mean(lengths), 59, 1.0)
    assert rows.share == 100 / 167
    assert rows.step == pytest.approx(167)
    twice = rows_of([*ROWS, *ROWS], SFTConfig(per_device_train_batch_size=6))
    assert twice.merging == 0.5
    made, said = rows_as_said(50, 100, 12.25, SFTConfig())
    assert (said.mean, said.longest, said.share, made[0].tokens) == (49, 99, 0.25, 50)


# Speed -------------------------------------------------------------------------------------------------


def test_speed_by_hand() -> None:
    even = replace(DATA, deviation=0)
    work = 6e6 * 1600 + 1e5 * 800 + 100 * 16 * (100 * 101 / 2)
    found = speed(FOUND, even, GPUS, Way(False, False, False), 1024)
    assert found is not None
    assert found.compute == pytest.approx((work / 1e12 / 0.45, work / 1e12 / 0.25))
    assert found.optimizer == pytest.approx(36e6 / 0.8e11)
    assert found.communication == pytest.approx((6e6 / 0.8e10, 6e6 / 0.5e10))
    assert found.high == pytest.approx(6400 / (found.compute[0] + found.optimizer + found.communication[0]))
    assert found.low == pytest.approx(6400 / (found.compute[1] + found.optimizer + found.communication[1]))
    assert found.binds == "compute"
    again = speed(FOUND, even, GPUS, Way(False, False, True), 1024)
    assert again is not None
    more = 2e6 * 1600 + 30 * 16 * 5050
    assert again.compute[0] == pytest.approx((work + more) / 1e12 / 0.45)


def test_sharded_weights_are_gathered_for_every_micro_batch() -> None:
    way = Way(False, True, False)
    one, four = (speed(FOUND, DATA, GPUS, way, budget) for budget in (1600, 400))
    assert one is not None and four is not None
    moved = 0.75 * (2 * 2_400_000 + 1_600_000 + 4_000_000)
    assert one.communication[1] == pytest.approx(moved / 0.5e10)
    assert four.communication[1] == pytest.approx(4 * moved / 0.5e10)
    slow = speed(FOUND, DATA, replace(GPUS, link=1e7), way, 1600)
    assert slow is not None and slow.binds == "communication"
    assert slow.high == pytest.approx(
        6400 / (slow.communication[0] + slow.optimizer)
    )  # compute hides behind it
    assert speed(FOUND, DATA, replace(GPUS, flops=None), way, 1600) is None


def test_pure_bf16_gathers_two_bytes_a_weight_and_adds_gradients_up_in_four() -> None:
    half = replace(
        FOUND, weights=2_000_000, gradients=2_000_000, layer=600_000, layer_gradients=600_000,
        root=800_000, root_gradients=800_000,
    )  # fmt: skip
    none, full = (speed(half, DATA, GPUS, Way(False, shard, False), 1600) for shard in (False, True))
    assert none is not None and full is not None
    assert none.communication[1] == pytest.approx(0.75 * 2 * 4_000_000 / 0.5e10)
    assert full.communication[1] == pytest.approx(0.75 * (2 * 1_200_000 + 800_000 + 4_000_000) / 0.5e10)
    cut = memory(half, DATA, GPUS, Way(False, True, False), 1024)
    assert cut.gathered == 800_000 + 2 * 600_000 + 800_000 + 1_600_000


def test_gradients_of_an_adapter_are_a_little() -> None:
    adapter = replace(FOUND, trained_parameters=10_000, gradients=40_000)
    none = speed(adapter, DATA, GPUS, Way(True, False, False), 1600)
    assert none is not None and none.communication[1] == pytest.approx(0.75 * 2 * 40_000 / 0.5e10)


# Advice ------------------------------------------------------------------------------------------------


def problem(memory: float, lora: bool = True, place: Place = GPUS) -> Problem:
    small = replace(FOUND, gradients=100_000, state=200_000, root_gradients=0, layer_gradients=50_000)
    tight = replace(place, memory=memory, process=0.0)
    spread = partial(replace, tight)
    rows = replace(DATA, longest=2000)
    return Problem(
        FOUND, rows, tight, Way(False, False, False), small if lora else None, lambda n: spread(ranks=n)
    )


@pytest.mark.parametrize(("size", "most"), [(2.5e7, "max_length="), (2.1e7, "8 GPUs"), (1.7e7, "64 GPUs")])
def test_what_is_advised_fits_and_a_little_less_does_not(size: float, most: str) -> None:
    asked = problem(size)
    assert any(words.startswith(most) for words in suggestions(asked))
    assert not asked.fits()
    said = suggestions(asked)
    assert said
    for words in said:
        changed = {
            "gradient_checkpointing=true": replace(asked, way=Way(False, False, True)),
            "shard=full": replace(asked, way=Way(False, True, False)),
            "gradient_checkpointing=true, shard=full": replace(asked, way=Way(False, True, True)),
            "use_peft=true": replace(asked, found=asked.lora or FOUND, way=Way(True, False, False)),
            "optim=adafactor": replace(asked, found=replace(FOUND, state=0)),
        }.get(words)
        if changed is not None:
            assert changed.fits(), words
        elif words.startswith("max_length="):
            slots = int(words.removeprefix("max_length=")) - 1
            for longest, fits in ((slots, True), (slots + 1, False)):
                assert replace(asked, rows=replace(asked.rows, longest=longest)).fits() is fits
        else:
            ranks = int(words.split()[0])
            assert words == f"{ranks} GPUs with shard=full"
            whole = Way(False, True, False)
            for count, fits in ((ranks, True), (ranks // 2, False)):
                assert replace(asked, place=asked.spread(count), way=whole).fits() is fits
    kinds = {words.partition("=")[0] for words in said}
    missing = {"shard", "use_peft", "optim"} - kinds
    for name, changed in (
        ("shard", replace(asked, way=Way(False, True, False))),
        ("use_peft", replace(asked, found=asked.lora or FOUND, way=Way(True, False, False))),
        ("optim", replace(asked, found=replace(FOUND, state=0))),
    ):
        assert (name in missing) is not changed.fits()


def test_where_nothing_helps_alone_it_is_said_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "MOST_RANKS", 4)
    said = suggestions(problem(1.7e7, lora=False))
    both = "gradient_checkpointing=true, shard=full, "
    assert said[0] == f"{both}optim=adafactor" and said[1].startswith(f"{both}max_length=")
    assert suggestions(problem(1.9e7, lora=False))[0] == "gradient_checkpointing=true, shard=full"
    assert suggestions(problem(1e5)) == []
    alone = suggestions(problem(1.9e7, place=replace(GPUS, ranks=1)))
    assert alone == ["use_peft=true", "optim=adafactor"]


def test_what_is_assumed_is_a_share() -> None:
    for low, high in (paper.MFU, paper.LINK_REACHED):
        assert 0 < low < high < 1
    assert math.isclose(GPUS.room, 1e8 + 9e8 * 0.9)
