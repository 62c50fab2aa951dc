"""A step's numbers the slow way, and nothing of the microscope in it: each example alone through the model's own
forward, full logits, torch's cross-entropy, autograd with the gradient of every tensor on the way kept.

The head has a weight of its own here even where the model ties it to the embeddings, so that what each side adds to
the gradient is apart. What head and body have done of a change is told by models with the head of one and the body
of the other.

Shapes: N targets of an example, L its tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from surefoot.data.rows import Example

BLOCK = re.compile(r"\.(layers|h)\.\d+$")
BLOCK_OF = re.compile(r".*?\.(layers|h)\.\d+(?=\.)")


@dataclass(frozen=True)
class Seen:
    """An example, alone. The loss is its part of the step's: weighted, over the step's divisor."""

    example: Example
    ids: tuple[int, ...]
    label_N: torch.Tensor
    loss: float
    logits_NV: torch.Tensor
    error_NV: torch.Tensor
    """d loss / d logits."""
    product_error_NV: torch.Tensor
    """d loss / d (W h + b): of what the head's linear layer gave."""
    hidden_ND: torch.Tensor
    """What it was given."""
    back_ND: torch.Tensor
    """d loss / d hidden."""
    blocks: dict[str, torch.Tensor]
    """[L − 1, D] gradients of the outputs of embeddings and decoder layers, the last token's left out."""

    @property
    def log_p_NV(self) -> torch.Tensor:
        return self.logits_NV.log_softmax(-1)

    @property
    def nll_N(self) -> torch.Tensor:
        return -self.log_p_NV[torch.arange(len(self.label_N)), self.label_N]

    @property
    def entropy_N(self) -> torch.Tensor:
        return -(self.log_p_NV.exp() * self.log_p_NV).sum(-1)

    def rank(self, n: int, token: int) -> int:
        order = sorted(range(self.logits_NV.shape[1]), key=lambda v: -float(self.logits_NV[n, v]))
        return 1 + order.index(token)


def core(net: Any) -> Any:
    """The causal language model inside an adapter's wrapper."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def untied(net: Any) -> Any:
    """A copy whose head has a weight of its own, without gradients, that recomputes nothing."""
    made = copy.deepcopy(net)
    head = core(made).get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    for module in made.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    made.zero_grad()
    return made


def with_head_of(net: Any, other: Any) -> Any:
    """The body of one model under the head of another."""
    made = untied(net)
    core(made).get_output_embeddings().load_state_dict(core(other).get_output_embeddings().state_dict())
    return made


def see(net: Any, example: Example, divisor: float) -> Seen:
    """One example. Its gradient is added to the weights'."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: Any) -> None:
        tensor = tensor[0] if isinstance(tensor, tuple) else tensor
        if tensor.requires_grad:
            tensor.retain_grad()
        kept[name] = tensor

    inner, handles = core(net), []
    watched = {name: m for name, m in inner.named_modules() if BLOCK.search(name)}
    watched["embeddings"] = inner.get_input_embeddings()
    for name, module in watched.items():
        handles.append(module.register_forward_hook(lambda _, __, out, name=name: keep(name, out)))
    head = inner.get_output_embeddings()
    handles.append(head.register_forward_pre_hook(lambda _, given: keep("hidden", given[0])))
    handles.append(head.register_forward_hook(lambda _, __, out: keep("product", out)))

    ids = torch.tensor([[*example.prompt_ids.tolist(), *example.completion_ids.tolist()]])
    at = slice(ids.shape[1] - 1 - example.targets, ids.shape[1] - 1)
    logits = net(input_ids=ids, use_cache=False).logits
    logits.retain_grad()
    label_N = ids[0, -example.targets :]
    loss = F.cross_entropy(logits[0, at], label_N, reduction="sum") * (example.weight / divisor)
    loss.backward()
    for handle in handles:
        handle.remove()

    def gradient(tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.grad is not None
        return tensor.grad[0]

    return Seen(
        example,
        tuple(ids[0].tolist()),
        label_N,
        loss.item(),
        logits[0, at].detach(),
        gradient(logits)[at],
        gradient(kept["product"])[at],
        kept["hidden"][0, at].detach(),
        gradient(kept["hidden"])[at],
        {name: gradient(kept[name])[:-1] for name in watched if kept[name].grad is not None},
    )


@dataclass(frozen=True)
class Gradients:
    """Of the whole step, not clipped."""

    whole: dict[str, torch.Tensor]
    """By the name of each trained weight of the model, both sides of a tied one added up."""
    head_VD: torch.Tensor | None
    """By the head alone; None where it does not train."""
    input_VD: torch.Tensor | None
    """By the embeddings alone."""


def step(net: Any, of: Sequence[Example], divisor: float) -> tuple[list[Seen], Gradients]:
    """All examples of a step, one after the other, and what they add up to."""
    apart = untied(net)
    seen = [see(apart, example, divisor) for example in of]
    made = {name: p.grad for name, p in apart.named_parameters()}
    inner = core(apart)
    of_head = inner.get_output_embeddings().weight.grad
    of_input = inner.get_input_embeddings().weight.grad
    tied = core(net).get_input_embeddings().weight is core(net).get_output_embeddings().weight
    whole: dict[str, torch.Tensor] = {}
    for name, p in net.named_parameters():
        if p.requires_grad:
            gradient = made[name]
            if tied and p is core(net).get_input_embeddings().weight:
                gradient = of_head + of_input
            assert gradient is not None, name
            whole[name] = gradient
    return seen, Gradients(whole, of_head, of_input)


def hidden_rms(seen: Sequence[Seen], batches: Sequence[Sequence[Example]], shared: bool) -> dict[str, float]:
    """Root mean square of d loss / d (output) by block, over the slots of the step.

    Where prefixes are shared, tokens of one micro-batch with the same tokens before them are one slot, and what
    flows back into each adds up.
    """
    by_example = {id(one.example): one for one in seen}
    found = {}
    for name in seen[0].blocks:
        total, count = 0.0, 0
        for batch in batches:
            slots: dict[Any, torch.Tensor] = {}
            for number, example in enumerate(batch):
                one = by_example[id(example)]
                for place, gradient_D in enumerate(one.blocks[name]):
                    key = one.ids[: place + 1] if shared else (number, place)
                    slots[key] = slots[key] + gradient_D if key in slots else gradient_D
            total += sum(float(gradient_D.square().sum()) for gradient_D in slots.values())
            count += sum(len(gradient_D) for gradient_D in slots.values())
        found[name] = (total / count) ** 0.5
    return found


def updated(
    net: Any, parts: Sequence[Any], gradients: dict[str, torch.Tensor], factor: float
) -> tuple[Any, list[Any]]:
    """The model after one plain step, all weights at once. Model and optimizers are copies."""
    net, parts = copy.deepcopy((net, list(parts)))
    for name, p in net.named_parameters():
        gradient = gradients.get(name)
        p.grad = gradient * factor if gradient is not None else None
    for part in parts:
        part.step()
    net.zero_grad()
    return net, parts


def influence(seen: Sequence[Seen], example: int, target: int, divisor: float) -> list[float]:
    """Of each example on a target t: −Σ_s ⟨e_s, e_t⟩⟨h_s, h_t⟩ / w_t, one pair of targets after the other."""
    of, found = seen[example], []
    for one in seen:
        pushed = 0.0
        for s in range(len(one.label_N)):
            errors = float(one.product_error_NV[s] @ of.product_error_NV[target])
            pushed -= errors * float(one.hidden_ND[s] @ of.hidden_ND[target])
        found.append(pushed / (of.example.weight / divisor))
    return found
