"""The CUDA path against the textbook step; needs a GPU from sm80. Without one these tests are left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from surefoot import SFTConfig, SFTTrainer
from surefoot.data.forest import plant
from surefoot.model import offload
from surefoot.model.attention import attending_forests
from surefoot.model.network import Network, head_of
from surefoot.train.compiling import compile_layers
from surefoot.train.optim import build
from surefoot.train.recompute import offload_activations
from surefoot.train.step import losses, update
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 1), (30, 2), (4, 4)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_float64_step_on_the_gpu_is_the_textbook_step(architecture: str, tmp_path: object) -> None:
    net = tiny.model(architecture)
    reference = copy.deepcopy(net)
    tiny.naive_loss(reference, tiny.examples(LENGTHS))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    args = SFTConfig(
        str(tmp_path), optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0,
        max_steps=1, save_strategy="no", per_device_train_batch_size=8,
    )  # fmt: skip
    SFTTrainer(net, args, tiny.rows(tiny.examples(LENGTHS)), processing_class=tiny.tokenizer()).train()
    whole = torch.stack([p.grad.norm() for p in reference.parameters() if p.grad is not None]).norm()
    for (name, p), other in zip(net.named_parameters(), reference.parameters(), strict=True):
        if other.grad is not None:
            assert ((p.detach().cpu() - before[name]) + 0.5 * other.grad).norm() <= 1e-6 * 0.5 * whole, name


@pytest.mark.parametrize("shared", [False, True], ids=["varlen", "flex"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3"])
def test_attention_in_bf16_is_within_the_naive_paths_error(architecture: str, shared: bool) -> None:
    of = tiny.family(7) if shared else tiny.examples(LENGTHS)
    types = (torch.float64, torch.float32, torch.float32)
    exact, naive, fast = (tiny.model(architecture, dtype, head_dim=16) for dtype in types)
    tiny.naive_loss(exact, of)
    with torch.autocast("cpu", torch.bfloat16):
        tiny.naive_loss(naive, of)
    fast.cuda()
    losses(Network(fast, torch.bfloat16, merged=shared, head=head_of(fast)), of, 1000, backprop=True)

    def off(net: torch.nn.Module) -> float:
        pairs = zip(net.parameters(), exact.parameters(), strict=True)
        errors = [(a.grad.cpu().double() - b.grad).norm() for a, b in pairs if b.grad is not None]
        return torch.stack(errors).norm().item()

    assert off(fast) <= 1.1 * off(naive)


def test_varlen_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    varlen = torch.nn.attention.varlen.varlen_attn
    monkeypatch.setattr(
        torch.nn.attention.varlen, "varlen_attn", lambda *a, **k: called.append(1) or varlen(*a, **k)
    )
    net = tiny.model("llama", torch.bfloat16).cuda()
    forest = plant(tiny.examples(LENGTHS)).to(torch.device("cuda"))
    with attending_forests(net):
        Network(net).hidden(forest)
    assert len(called) == 3


@contextmanager
def no_wait_but(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """While open, what waits for the GPU raises; but the reading of numbers is allowed, and noted by name."""
    read: list[str] = []

    def allowed(name: str) -> Callable[..., Any]:
        plain = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor) -> Any:
            if not tensor.is_cuda:
                return plain(tensor)
            read.append(name)
            torch.cuda.set_sync_debug_mode("default")
            try:
                return plain(tensor)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        return noted

    with monkeypatch.context() as patched:
        for name in ("item", "tolist"):
            patched.setattr(torch.Tensor, name, allowed(name))
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield read
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shared", [False, True], ids=["varlen", "flex"])
@pytest.mark.parametrize("product", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_a_step_waits_twice(
    product: torch.dtype | None, shared: bool, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the losses and for the gradient's norm; the first step, which compiles and allocates, is left out."""
    of = tiny.family(7, 24)
    net = tiny.model("llama", torch.float32, head_dim=16).cuda()
    network = Network(net, product, merged=shared, head=head_of(net))
    optimizers = build(net, SFTConfig(optim="adamw_torch_fused"))
    budget = next(b for b in range(sum(e.tokens for e in of), 1, -1) if len(network.plan(of, b)) >= pieces)
    for first in (True, False):
        with nullcontext([]) if first else no_wait_but(monkeypatch) as read:
            losses(network, of, budget, backprop=True, seed=1)
            update(optimizers, 0.1)
    assert sorted(read) == ["item", "tolist"]


def test_activations_in_the_hosts_memory_leave_the_gradient_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits; also where copies must be waited for and where they are fetched one by one."""
    of, found = tiny.family(7, 24), []
    for least, on_the_way, ahead in ((None, 0, 0), (1, 1 << 29, 1 << 28), (1, 1, 1)):
        net = tiny.model("llama", torch.float32, head_dim=16).cuda()
        network = Network(net, torch.bfloat16, merged=False, head=head_of(net))
        if least is not None:
            for name, value in (("LEAST", least), ("ON_THE_WAY", on_the_way), ("AHEAD", ahead)):
                monkeypatch.setattr(offload, name, value)
            network = offload_activations(network)
            assert network.offload
        losses(network, of, 60, backprop=True)
        found.append(tiny.gradient(net))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(
                other[name], gradient, rtol=1e-5, atol=1e-7
            )  # index_add adds in any order


def test_activations_in_the_hosts_memory_make_room_on_the_card() -> None:
    of, peaks = tiny.examples([(900, 100)] * 16), []
    for away in (False, True):
        net = tiny.model(
            "llama",
            torch.float32,
            hidden_size=512,
            head_dim=128,
            num_hidden_layers=12,
            max_position_embeddings=1024,
        ).cuda()
        network = Network(net, torch.bfloat16, merged=False, head=head_of(net))
        torch.cuda.reset_peak_memory_stats()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(offload, "ON_THE_WAY", 1 << 26)
            patched.setattr(offload, "AHEAD", 1 << 26)
            losses(offload_activations(network) if away else network, of, 1 << 20, backprop=True)
        peaks.append(torch.cuda.max_memory_allocated())
        del net, network
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("shared", [False, True], ids=["varlen", "flex"])
def test_compiled_layers_are_within_the_naive_paths_error(shared: bool) -> None:
    of = tiny.family(7, 24)
    exact, naive, fast = (
        tiny.model("llama", dtype, head_dim=16) for dtype in (torch.float64, torch.float32, torch.float32)
    )
    tiny.naive_loss(exact, of)
    with torch.autocast("cpu", torch.bfloat16):
        tiny.naive_loss(naive, of)
    fast.cuda()
    network = compile_layers(Network(fast, torch.bfloat16, merged=shared, head=head_of(fast)))
    losses(network, of, 1000, backprop=True)

    def off(net: torch.nn.Module) -> float:
        pairs = zip(net.parameters(), exact.parameters(), strict=True)
        errors = [(a.grad.cpu().double() - b.grad).norm() for a, b in pairs if b.grad is not None]
        return torch.stack(errors).norm().item()

    assert off(fast) <= 1.1 * off(naive)
