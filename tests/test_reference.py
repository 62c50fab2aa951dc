"""One step of surefoot is the textbook step: against a plain float64 loop, on many architectures."""

from __future__ import annotations

import copy

import pytest
import torch

from surefoot import SFTConfig, SFTTrainer
from surefoot.model.network import Network, head_of, look_at
from surefoot.train.step import losses
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 1), (30, 2), (4, 4)]
LEARNING_RATE = 0.5


def textbook_step(net: torch.nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and what plain SGD adds to each weight."""
    loss = tiny.naive_loss(net, tiny.examples(LENGTHS))
    return loss.item(), {name: -LEARNING_RATE * grad for name, grad in tiny.gradient(net).items()}


def surefoot_step(
    net: torch.nn.Module, folder: object, **options: object
) -> tuple[SFTTrainer, dict[str, torch.Tensor]]:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    args = SFTConfig(
        str(folder),
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=1,
        save_strategy="no",
        use_cpu=True,
        **{"per_device_train_batch_size": 8, **options},
    )
    trainer = SFTTrainer(net, args, tiny.rows(tiny.examples(LENGTHS)), processing_class=tiny.tokenizer())
    trainer.train()
    return trainer, {name: p.detach() - before[name] for name, p in net.named_parameters()}


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
def test_one_sgd_step_in_float64_is_the_textbook_step(architecture: str, tmp_path: object) -> None:
    net = tiny.model(architecture)
    want_loss, want = textbook_step(copy.deepcopy(net))
    trainer, got = surefoot_step(net, tmp_path)
    step = next(event for event in trainer.run.events() if event["type"] == "step")
    assert step["loss"] == pytest.approx(want_loss, rel=1e-6)
    tiny.assert_same(got, want, 1e-6)
    assert next(net.parameters()).dtype == torch.float64


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_without_float32_inside_the_model_the_step_is_exact_to_1e_12(
    architecture: str, tmp_path: object
) -> None:
    net = tiny.model(architecture)
    _, want = textbook_step(copy.deepcopy(net))
    _, got = surefoot_step(net, tmp_path)
    tiny.assert_same(got, want, 1e-12)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 8), (8, 1), (2, 4)])
def test_how_a_step_is_split_does_not_change_it(batch: int, accumulate: int, tmp_path: object) -> None:
    net = tiny.model("gemma2")
    _, want = textbook_step(copy.deepcopy(net))
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
    _, got = surefoot_step(net, tmp_path, **split)
    tiny.assert_same(got, want, 1e-6)


def test_a_gradient_that_the_model_came_with_is_not_of_the_step(tmp_path: object) -> None:
    net = tiny.model("llama")
    _, want = textbook_step(copy.deepcopy(net))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    _, got = surefoot_step(net, tmp_path)
    tiny.assert_same(got, want, 1e-6)


@pytest.mark.parametrize("budget", [1, 40, 70, 10_000])
def test_micro_batches_of_any_size_give_the_same_step(budget: int, tmp_path: object) -> None:
    net = tiny.model("llama_tied")
    _, want = textbook_step(copy.deepcopy(net))
    trainer, got = surefoot_step(net, tmp_path, micro_batch_tokens=budget)
    tiny.assert_same(got, want, 1e-6)
    step = next(event for event in trainer.run.events() if event["type"] == "step")
    assert step["micro_batches"] == {1: 8, 40: 4, 70: 2, 10_000: 1}[budget]


MERGED = """
llama llama_tied qwen2 qwen3 gemma2 gemma3 mistral phi3 gpt2 opt olmo2 cohere2 granite mixtral qwen3_moe gpt_oss
gpt_neox phi smollm3 exaone4 olmo3
""".split()  # noqa: SIM905
ALONE = {
    "bloom": "packed together, their logits are off by",  # ALiBi counts from the micro-batch's first slot
    "falcon": "the model does not take forests",
    "lfm2": "packed together, their logits are off by",  # a convolution
    "mamba": "packed together, their logits are off by",  # a recurrence
    "gptj": "packed together, their logits are off by",  # attention of its own
    "qwen2_moe_window": "packed together, their logits are off by",  # the window is in its mask only
    "stablelm": "the model does not pass extra arguments on to its attention",
}


def test_every_tiny_model_is_expected_one_way_or_the_other() -> None:
    assert sorted([*MERGED, *ALONE]) == sorted([*tiny.CONFIGS, *tiny.FURTHER])


@pytest.mark.parametrize("architecture", [*MERGED, *ALONE])
def test_the_way_that_is_taken_is_exact(architecture: str) -> None:
    """Without float32 inside Hugging Face's model, no weight's gradient is off by more than float64's rounding."""
    of = tiny.family(3, 14)
    with tiny.InDouble():
        net = tiny.model(architecture)
        network = look_at(net, of, None)
        loss = tiny.naive_loss(net, of).item()
        want = tiny.gradient(net)
        found = losses(network, of, 25, backprop=True)
    assert found.micro_batches > 1
    assert found.loss == pytest.approx(loss, rel=1e-12)
    tiny.assert_same(tiny.gradient(net), want, 1e-11)
    assert network.head is not None
    if architecture in ALONE:
        assert (network.merged, network.packed) == (False, False)
        assert f"rows run one at a time: {ALONE[architecture]}" in network.reasons[0]
        assert found.slots == sum(e.tokens - 1 for e in of)
    else:
        assert (network.merged, network.packed, network.reasons) == (True, True, ())
        assert found.slots < sum(e.tokens - 1 for e in of)


def test_a_head_of_unknown_form_is_left_to_the_model(tmp_path: object) -> None:
    net = tiny.model("llama")
    head = net.lm_head

    class Odd(torch.nn.Module):
        weight = property(lambda self: head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return head(x).square()

    net.lm_head = Odd()
    network = look_at(net, tiny.examples(LENGTHS), None)
    assert network.head is None
    assert "computes its own logits" in network.reasons[-1]
    found = losses(network, tiny.examples(LENGTHS), 100, backprop=True)
    got = tiny.gradient(net)
    assert found.loss == pytest.approx(tiny.naive_loss(net, tiny.examples(LENGTHS)).item(), rel=1e-6)
    tiny.assert_same(got, tiny.gradient(net), 1e-6)


def test_a_scaled_head_is_noticed_when_the_config_lies() -> None:
    net = tiny.model("granite")
    net.config.logits_scaling = 2.0
    net.logits_scaling = 3.0
    forward = net.forward
    net.forward = lambda *a, **k: _scaled(forward(*a, **k))
    network = look_at(net, tiny.examples(LENGTHS), None)
    assert network.head is None
    assert "formula is not known" in network.reasons[-1]


def _scaled(output: object) -> object:
    output.logits = output.logits * 1.01  # type: ignore[attr-defined]
    return output


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3", "gpt2", "phi3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_bf16_error_is_within_the_naive_paths_own(architecture: str, seed: int) -> None:
    """DESIGN's budget: our distance from float64 exceeds the naive path's, at bf16 too, by at most a tenth."""
    of = tiny.examples(LENGTHS, seed)

    def gradient(net: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])

    exact, naive, fast = (
        tiny.model(architecture, dtype, seed) for dtype in (torch.float64, torch.float32, torch.float32)
    )
    loss = tiny.naive_loss(exact, of).item()
    with torch.autocast("cpu", torch.bfloat16):
        naive_loss = tiny.naive_loss(naive, of).item()
    network = Network(fast, torch.bfloat16, head=head_of(fast))
    fast_loss = losses(network, of, 60, backprop=True).loss
    own, ours = ((gradient(net) - gradient(exact)).norm().item() for net in (naive, fast))
    assert ours <= 1.1 * own
    assert abs(fast_loss - loss) <= 1.1 * abs(naive_loss - loss) + 2e-3 * loss
