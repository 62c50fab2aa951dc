"""The planner: what it predicts comes true, what it decides fits, and what it tries leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from surefoot import SFTConfig, UserError
from surefoot.model.network import Network, look_at
from surefoot.train import hardware, memory, planner, speed
from surefoot.train.planner import choose
from surefoot.train.recompute import checkpoint_layers, decoder_layers
from surefoot.train.step import losses
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (8, 30), (3, 3)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lora(net: Any, dropout: float = 0.0) -> torch.nn.Module:
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        lora_dropout=dropout,
        fan_in_fan_out=net.config.model_type == "gpt2",
    )
    return peft.get_peft_model(net, config).to(torch.float64)


def network(architecture: str, dtype: torch.dtype = torch.float64, adapter: bool = False) -> Network:
    net = tiny.model(architecture, dtype)
    return look_at((lora(net) if adapter else net).train(), tiny.examples(LENGTHS), None)


def gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    for p in net.parameters():
        p.grad = None
    return found


# Recomputing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_recomputing_layers_changes_no_bit_of_the_gradient(architecture: str, adapter: bool) -> None:
    of, net = tiny.examples(LENGTHS), network(architecture, adapter=adapter)
    assert net.packed
    wanted: dict[str, torch.Tensor] = {}
    runs = []
    for layer in decoder_layers(net.model):
        layer.register_forward_hook(lambda *_: runs.append(1))
        norm = layer.ln_1 if architecture == "gpt2" else layer.input_layernorm
        norm.register_forward_hook(lambda *_: runs.append(2))
    for count in (0, 1, 3):
        checkpoint_layers(net.model, count)
        runs.clear()
        loss = losses(net, of, 50, backprop=True).loss
        batches = len(net.plan(of, 50))
        assert runs.count(2) == batches * (3 + count)  # norms run again in layers that recompute
        assert runs.count(1) == batches * 3
        found = gradients(net.model)
        wanted = wanted or {**found, "loss": torch.tensor(loss)}
        assert loss == wanted["loss"]
        assert found.keys() == wanted.keys() - {"loss"}
        assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_recomputing_layers_draw_the_same_dropout_again() -> None:
    net = look_at(lora(tiny.model("llama"), dropout=0.3).train(), tiny.examples(LENGTHS), None)
    found = []
    for count in (0, 3):
        checkpoint_layers(net.model, count)
        losses(net, tiny.examples(LENGTHS), 50, backprop=True, seed=5)
        found.append(gradients(net.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 of 3 layers"):
        checkpoint_layers(tiny.model("llama"), 4)


# Measuring -------------------------------------------------------------------------------------------------


def test_live_bytes_are_those_of_the_tensors_that_are_there() -> None:
    weight = torch.ones(1000)
    with memory.Live([weight]) as live:
        a = weight * 2  # 4,000 bytes
        view = a.view(10, 100).t()
        weight.add_(1)
        assert live.now == 4_000
        b = a.double()
        assert live.now == 12_000
        del a
        assert live.now == 12_000  # the view holds it
        del b, view
        assert (live.now, live.most) == (0, 12_000)
        live.mark()
        assert live.most == 0


def test_what_a_layer_keeps_is_what_autograd_keeps_of_it() -> None:
    """Slow oracle: the storages that autograd saves in a layer, and the layer's output."""
    net = network("llama", torch.float32)
    of = tiny.examples([(1, 40)] * 12)
    found = memory.measure(net, of, 40)
    forest = net.plant(memory.fill(of, memory.LARGE))
    own = {p.untyped_storage().data_ptr() for p in net.model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    counts = []
    with net.open():
        layers = decoder_layers(net.model)
        for layer in layers:
            layer.register_forward_hook(lambda *_: counts.append(sum(saved.values())))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss, _ = net.loss(forest, 1.0)
    a_slot = (counts[1] - counts[0]) / len(forest.ids_T)
    assert found.layers[1] == pytest.approx(a_slot, rel=0.1)
    assert found.outputs[1] == 32 * 4
    assert found.gradients == sum(p.nbytes for p in net.model.parameters())
    del loss


@pytest.mark.parametrize("args", [{}, {"micro_batch_tokens": 64}])
def test_trying_leaves_no_trace(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LONG_RUN", 0.0)
    monkeypatch.setattr(speed, "SECONDS", 1e6)
    net, of = network("llama", torch.float32), tiny.examples([(20, 60)] * 40)
    net.model.eval()
    layers = decoder_layers(net.model)
    checkpoint_layers(net.model, 1)
    kept = torch.ones_like(net.model.lm_head.weight)
    net.model.lm_head.weight.grad = kept
    before = [p.detach().clone() for p in net.model.parameters()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    plan = choose(net, of, SFTConfig(per_device_train_batch_size=40, **args), 0, 10**9)
    assert ("the fastest measured" in plan.reasons[0]) == (not args)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.model.lm_head.weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert [p.grad for p in net.model.parameters() if p is not net.model.lm_head.weight] == [None] * (
        len(before) - 1
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.model.parameters(), strict=True))
    assert not net.model.training
    assert [layer.gradient_checkpointing for layer in layers] == [True, False, False]


PREDICT = """
import json, sys, torch, transformers as tf
from surefoot import SFTConfig
from surefoot.model.network import look_at
from surefoot.train import hardware, planner
from surefoot.train.optim import build
from surefoot.train.recompute import checkpoint_layers
from surefoot.train.step import losses, update
from tests import tiny
hardware.keep_heap()
torch.manual_seed(0)
net = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=8192, hidden_size=512, intermediate_size=1408,
    num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)).train()
of = tiny.examples([(40 + 7 * i % 50, 30 + 11 * i % 60) for i in range(12)])
network = look_at(net, of, getattr(torch, sys.argv[1]) if sys.argv[1] != "None" else None)
before = hardware.held_bytes(network.device)
args = SFTConfig(micro_batch_tokens=512, gradient_checkpointing=sys.argv[2] == "all")
trained = sum(p.nbytes for p in net.parameters())
plan = planner.choose(network, of, args.model_copy(update={"per_device_train_batch_size": 12}), 2 * trained, 10)
checkpoint_layers(net, plan.checkpointed_layers)
optimizers = build(net, args)
for step in range(2):
    losses(network, of, plan.micro_batch_tokens, backprop=True)
    update(optimizers, 1.0)
print(json.dumps([before, plan.predicted_peak_bytes, hardware.peak_bytes(network.device)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("checkpointed", ["none", "all"])
def test_the_predicted_peak_comes_true(checkpointed: str) -> None:
    """A fresh process, 28 million weights, two steps of several micro-batches."""
    command = [sys.executable, "-c", PREDICT, "None", checkpointed]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    before, predicted, measured = json.loads(said.stdout.splitlines()[-1])
    assert predicted - before == pytest.approx(measured - before, rel=0.15)


@pytest.mark.parametrize("product", [None, torch.bfloat16])
def test_of_a_short_step_the_end_is_counted(
    product: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all gradients are there, those of an embedding that is the head too are there twice and as their sum."""
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 2048}
    config = tf.LlamaConfig(**wide, num_hidden_layers=2, tie_word_embeddings=True)
    of = tiny.examples([(4, 4)] * 2)
    net = look_at(tf.LlamaForCausalLM(config).train(), of, product)
    monkeypatch.setattr(planner, "HEAP", 1.0)
    with_room(monkeypatch, 10**12)
    said = predicted(net, of, per_device_train_batch_size=len(of))
    with memory.Live(list(net.model.parameters())) as live:
        losses(net, of, 2048, backprop=True)
    assert said == pytest.approx(live.most, rel=0.05)


# Deciding --------------------------------------------------------------------------------------------------


def with_room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(hardware, "held_bytes", lambda place: 0)
    monkeypatch.setattr(hardware, "peak_bytes", lambda place: 0)
    monkeypatch.setattr(hardware, "free_bytes", lambda place: free)


def predicted(net: Network, of: list[Any], **args: Any) -> int:
    return choose(net, of, SFTConfig(**args), 0, 1).predicted_peak_bytes


def test_layers_recompute_only_when_memory_asks_for_it_and_no_more_than_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, of = network("llama", torch.float32), tiny.examples([*LENGTHS, (100, 3000)])
    with_room(monkeypatch, 10**12)
    rich = choose(net, of, SFTConfig(), 0, 1)
    assert (rich.checkpointed_layers, rich.layers) == (0, 3)
    assert "no layer recomputes" in rich.reasons[1]
    every = predicted(net, of, gradient_checkpointing=True)
    assert every < 0.9 * rich.predicted_peak_bytes
    counts, last = [], 0
    for peak in range(rich.predicted_peak_bytes, every, -(rich.predicted_peak_bytes - every) // 8):
        with_room(monkeypatch, int(peak / 0.9) + 10)
        plan = choose(net, of, SFTConfig(), 0, 1)
        assert plan.predicted_peak_bytes <= 0.9 * plan.available_bytes
        assert plan.checkpointed_layers >= last
        last = plan.checkpointed_layers
        counts.append(last)
    assert {1, 2} <= set(counts)
    assert counts[0] == 0
    with_room(monkeypatch, int(every / 0.9) + 10)
    plan = choose(net, of, SFTConfig(), 0, 1)
    assert (
        "of 3 layers recompute their activations: to keep all, with a longest example of 3,100 tokens"
        in (plan.reasons[1])
    )


def test_smaller_micro_batches_come_before_recomputing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, of = network("llama", torch.float32), tiny.examples([(20, 60)] * 60)
    with_room(monkeypatch, 10**12)
    small = predicted(net, of, micro_batch_tokens=512, per_device_train_batch_size=60)
    with_room(monkeypatch, int(small * 1.15 / 0.9))
    plan = choose(net, of, SFTConfig(per_device_train_batch_size=60), 0, 1)
    assert (plan.micro_batch_tokens, plan.checkpointed_layers) == (512, 0)
    assert "larger ones do not fit" in plan.reasons[0]


def test_an_example_that_cannot_fit_is_named_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    net, of = network("llama", torch.float32), tiny.examples([*LENGTHS, (100, 3000), (2, 2)])
    with_room(monkeypatch, 10**12)
    every = predicted(net, of, gradient_checkpointing=True)
    with_room(monkeypatch, int(every / 0.9 * 0.8))
    with pytest.raises(
        UserError, match=r"toy\[6\]: an example of 3,100 tokens needs .* max_length=(\d+)"
    ) as e:
        choose(net, of, SFTConfig(), 0, 1, longest=3100)
    fitting = int(str(e.value).split("max_length=")[1].split(",")[0])
    assert 100 < fitting < 3100
    short = [*tiny.examples(LENGTHS), *tiny.examples([(100, fitting - 100)])]
    assert choose(net, short, SFTConfig(), 0, 1).checkpointed_layers >= 2
    longer = [*tiny.examples(LENGTHS), *tiny.examples([(100, fitting - 50)])]
    with pytest.raises(UserError, match="max_length"):
        choose(net, longer, SFTConfig(), 0, 1)


def test_weights_that_cannot_fit_are_said_before_anything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("llama", torch.float32)
    with_room(monkeypatch, 100_000)
    monkeypatch.setattr(planner, "measure", None)
    with pytest.raises(UserError, match=r"optimizer state need .*use_peft=true"):
        choose(net, tiny.examples(LENGTHS), SFTConfig(), 10**6, 1)


def test_a_pinned_budget_is_kept() -> None:
    plan = choose(
        network("llama", torch.float32), tiny.examples(LENGTHS), SFTConfig(micro_batch_tokens=77), 0, 9
    )
    assert plan.micro_batch_tokens == 77
    assert plan.reasons[0] == "micro-batches of at most 77 tokens: as micro_batch_tokens says"


def test_a_model_whose_layers_cannot_recompute_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "decoder_layers", lambda model: [])
    plan = choose(
        network("llama", torch.float32), tiny.examples(LENGTHS), SFTConfig(gradient_checkpointing=True), 0, 1
    )
    assert plan.checkpointed_layers == plan.layers == 0
    assert plan.reasons[1].startswith("gradient_checkpointing is without effect")


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LONG_RUN", 0.0)
    monkeypatch.setattr(speed, "SECONDS", 1e6)
    net, of = network("llama", torch.float32), tiny.examples([(20, 60)] * 40)
    args = SFTConfig(per_device_train_batch_size=40)
    first = choose(net, of, args, 0, 10**9)
    monkeypatch.setattr(planner, "measure", None)
    monkeypatch.setattr(speed, "race", None)
    again = choose(net, of, args, 0, 10**9)
    assert (first.micro_batch_tokens, first.reasons[0]) == (again.micro_batch_tokens, again.reasons[0])
    assert "remembered" in again.reasons[-1]
    with pytest.raises(TypeError):  # another model is measured anew
        choose(network("gpt2", torch.float32), of, args, 0, 10**9)


def test_a_damaged_memory_is_measured_again() -> None:
    net, of = network("llama", torch.float32), tiny.examples(LENGTHS)
    choose(net, of, SFTConfig(), 0, 1)
    (file,) = planner.Book(net).path.parent.glob("*.json")
    for damage in ("", "[1]", '{"footprint": {"slots": 3}}'):
        file.write_text(damage)
        assert "measured in" in choose(net, of, SFTConfig(), 0, 1).reasons[-1]
        assert "remembered" in choose(net, of, SFTConfig(), 0, 1).reasons[-1]


def test_a_short_run_is_not_measured_for_speed() -> None:
    plan = choose(
        network("llama", torch.float32),
        tiny.examples([(20, 60)] * 60),
        SFTConfig(per_device_train_batch_size=60),
        0,
        1,
    )
    assert plan.micro_batch_tokens == hardware.micro_batch_tokens(torch.device("cpu"))
    assert "too short to measure" in plan.reasons[0]


def test_the_smaller_of_equally_fast_sizes_is_taken() -> None:
    assert speed.pick({1024: 1.0, 2048: 0.98, 4096: 0.975}) == 1024
    assert speed.pick({1024: 1.0, 2048: 0.9, 4096: 0.95}) == 2048


def test_a_race_alternates_and_ends_where_memory_ends() -> None:
    asked = []

    def seconds(size: int) -> float:
        asked.append(size)
        if size > 2:
            raise torch.OutOfMemoryError
        return size + len(asked) / 100

    assert speed.race([1, 2, 4], seconds, 2) == pytest.approx({1: 1.02, 2: 2.03})
    assert asked == [4, 1, 2, 1, 2]
