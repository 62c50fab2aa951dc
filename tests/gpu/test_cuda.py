"""The CUDA path against the textbook step; needs a GPU from sm80. Without one these tests are left out."""

from __future__ import annotations

import copy

import pytest
import torch

from surefoot import SFTConfig, SFTTrainer
from surefoot.data.forest import plant
from surefoot.model.attention import attending_forests
from surefoot.model.network import Network, head_of
from surefoot.train.step import losses
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
