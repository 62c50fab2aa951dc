"""The same three steps on any number of processes, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from surefoot import SFTConfig
from surefoot.data.forest import slots
from surefoot.data.rows import Example
from surefoot.microscope.parts import over_parts
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.network import Network, look_at
from surefoot.ranks import add_up, rank, ranks
from surefoot.train.distributed import first_row, local, micro_batches, offset, rows, shard, shard_state
from surefoot.train.optim import Optimizers, build
from surefoot.train.recompute import checkpoint_layers, decoder_layers
from surefoot.train.step import losses, update
from tests import tiny

BUDGET = 40


@dataclass(frozen=True)
class Case:
    """A model and the way it is trained."""

    architecture: str = "llama"
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    lora: bool = False
    recomputed: int = 0
    bias: bool = False
    """Of the head."""
    shard: str = "full"
    """How several processes hold the weights; nothing to one."""

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in vars(self).values() if part)

    @property
    def arithmetic(self) -> AbstractContextManager[Any]:
        """All of it in float64; but a backward pass that recomputes does not know of such a mode, and differs by
        what Hugging Face's models compute in float32."""
        return nullcontext() if self.recomputed else tiny.InDouble()

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.recomputed else 1e-12


def held_both_ways(cases: list[Case]) -> list[Case]:
    """Each with its weights sharded, and with all of them on each process."""
    return [replace(case, shard=shard) for case in cases for shard in ("full", "none")]


CASES = held_both_ways(
    [
        Case(optim="sgd", optim_args="momentum=0.9"),
        Case("llama_tied"),
        Case("llama_tied", "adamw_torch", recomputed=2),
        Case("gemma2", "adafactor"),
        Case("mixtral"),
        Case("gptj"),
        Case(lora=True),
    ]
)
"""Untied and tied heads, one with soft-capping, experts, one that computes its own logits, an adapter with
weights of a single row."""
OF_FOUR = [Case("llama_tied"), Case(lora=True, shard="none")]
"""What four processes try too: most of them have nothing in the last step, and some in the one before it."""


def steps() -> list[list[Example]]:
    """Much shared; one long example and little else; a single one, so that all ranks but one have none."""
    return [
        tiny.family(3),
        tiny.examples([(40, 20), (2, 1), (3, 2), (1, 4)]),
        tiny.examples([(7, 3)], seed=1),
    ]


def model_of(case: Case, spread: float) -> tuple[torch.nn.Module, SFTConfig]:
    """The case's model, the same on all processes, and how it is trained. `spread`: of an adapter's weights."""
    net: torch.nn.Module = tiny.model(case.architecture)
    args = SFTConfig(
        optim=case.optim, optim_args=case.optim_args, learning_rate=1e-2, weight_decay=0.1, lora_r=1
    )
    if case.lora:
        net = adapt(net, lora_config(args)).double()
        with torch.no_grad():  # PEFT begins with zeros, behind which there is no gradient
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.copy_(spread * torch.randn(parameter.shape, dtype=parameter.dtype))
    return net, args


def prepared(case: Case) -> tuple[Network, Optimizers]:
    """The case's model, sharded if there are several processes and it says so; its optimizer."""
    net, args = model_of(case, 0.03)
    if case.bias:
        net.lm_head.bias = torch.nn.Parameter(torch.randn(tiny.VOCABULARY, dtype=torch.float64))  # type: ignore[union-attr]
    network = look_at(net, steps()[0], None)
    if sharded(case):
        network = shard(network)
    checkpoint_layers(net, case.recomputed)
    optimizers = build(net, args)
    shard_state(optimizers)
    return network, optimizers


def sharded(case: Case) -> bool:
    return ranks() > 1 and case.shard == "full"


def train(case: Case) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Losses of the steps, before and after each, and the weights in the end, whole."""
    network, optimizers = prepared(case)
    net = network.model
    said: dict[str, Any] = {"packed": network.packed, "head": network.head is not None, "steps": []}
    for examples in steps():
        said["steps"].append(one_step(network, optimizers, examples))
    if network.head is not None:  # it is what the optimizer updates
        assert any(network.head.weight_VD is parameter for parameter in net.parameters())
        said["logits"] = logits(network, steps()[1])
    for tensor in net.parameters():
        assert isinstance(tensor, DTensor) == sharded(
            case
        )  # also after a forward pass without a backward one
        shards_are_what_they_say(tensor)
    return said, {name: whole(p) for name, p in net.named_parameters() if p.requires_grad}


def one_step(network: Network, optimizers: Optimizers, examples: list[Example]) -> dict[str, Any]:
    alone = sum(map(slots, examples))
    own = micro_batches(network, examples, BUDGET)
    weight = network.core.lm_head.weight
    by_head: list[torch.Tensor] = [torch.zeros(weight.shape, dtype=weight.dtype)]
    watched = network
    if network.head is not None:
        watched = replace(network, head=replace(network.head, on_gradient=by_head.append))
    with gradients_of_layers(network) as squares:
        found = losses(watched, examples, BUDGET, backprop=True)
    change = update(optimizers, 0.05)
    after = losses(network, examples, BUDGET, backprop=False)
    return {
        "loss": found.loss,
        "accuracy": found.token_accuracy,
        "entropy": found.entropy,
        "examples": [part.loss for part in found.examples],
        "after": [part.loss for part in after.examples],
        "grad_norm": change.grad_norm,
        "clip_factor": change.clip_factor,
        "head": add_up(torch.stack(by_head).sum(0)).norm(dim=1).tolist(),
        # Where slots are shared, how many there are and what flows into each depends on who shares them.
        "flops": found.flops if found.slots == alone else 0.0,
        "layers": add_up(torch.stack(squares).sum(0)).tolist() if found.slots == alone else [],
        "micro_batches": found.micro_batches,
        "own": [len(batch) for batch in own],
    }


@torch.no_grad()
def logits(network: Network, examples: list[Example]) -> list[list[float]]:
    """The head used by hand, on all examples and on every rank."""
    forest = network.plant(examples)

    def predict() -> torch.Tensor:
        assert network.present_head is not None
        return network.present_head.logits(network.hidden(forest)[forest.target_slot_N])

    with network.open():
        return network.gathered(predict).tolist()


@contextmanager
def gradients_of_layers(network: Network) -> Iterator[list[torch.Tensor]]:
    """For each micro-batch, the squares of d loss / d (output of each decoder layer), added up."""
    layers, found = decoder_layers(network.model), []

    def after(module: torch.nn.Module, args: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        index = layers.index(module)

        def seen(gradient: torch.Tensor) -> None:
            squares = torch.zeros(len(layers), dtype=torch.float64)
            squares[index] = gradient.square().sum()
            found.append(squares)

        if hidden.requires_grad:
            hidden.register_hook(seen)

    hooks = [layer.register_forward_hook(after) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().contiguous()


def shards_are_what_they_say(tensor: torch.Tensor) -> None:
    full, mine, start = whole(tensor), local(tensor), first_row(tensor)
    assert torch.equal(full[start : start + len(mine)], mine)
    assert torch.equal(full.flatten()[offset(tensor) :][: mine.numel()], mine.flatten())
    share = mine.double().square().sum()
    torch.testing.assert_close(over_parts(share, tensor), full.double().square().sum(), rtol=1e-12, atol=0)
    some = [len(full) - 1, 0, len(full) // 2]
    assert torch.equal(rows(tensor, some), full[some])


def main(folder: Path) -> None:
    """One of two processes, or of four; leaves its results in `folder`."""
    from tests.distributed import rounded, slides

    of_steps, of_slides = (CASES, slides.CASES) if ranks() == 2 else (OF_FOUR, slides.OF_FOUR)
    for case in of_steps:
        with case.arithmetic:
            said, tensors = train(case)
        place = folder / f"{case.name}.{rank()}"
        place.with_name(place.name + ".json").write_text(json.dumps(said))
        save_file(tensors, place.with_name(place.name + ".safetensors"))
    for case in of_slides:
        slides.leave(case, folder / f"slides-{case.name}.{rank()}")
    rounded.leave(folder)
