"""Floating point operations (FLOPs) of a model, counted from its weights' shapes; one multiply-add is two.

| of | forward | and backward |
|---|---|---|
| a slot | 2 for each weight it is multiplied with | 4 if the weight trains, else 2 |
| a pair of a slot and one it sees | 4 · heads · head width, in each attention layer | 8 · heads · head width |
| a target | 2 for each weight of the head | 4 if the head trains, else 2 |

Norms, activations, rotary embeddings and the scans of state-space layers are not counted: they move memory, and
compute little. Nor is what is computed a second time: recomputed activations (`Costs.again` tells what those take),
and attention's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from surefoot.cards import card
from surefoot.data.forest import Forest, slots
from surefoot.data.rows import Example
from surefoot.model.network import unwrapped


@dataclass(frozen=True)
class Costs:
    """What one slot, pair and target take, forward and backward, in FLOPs."""

    slot: float
    pair: float
    """In all attention layers together."""
    target: float
    slot_forward: float
    """Of `slot`, the forward pass: once more where activations are recomputed."""
    pair_forward: float
    windows: tuple[tuple[int | None, float], ...]
    """Sliding windows, and the share of `pair` that is in layers with each; None sees everything before it."""

    def flops(self, slots: float, targets: float, pairs: float) -> float:
        """Of a step, or of anything: `pairs` as `pairs` counts them."""
        return self.slot * slots + self.target * targets + self.pair * pairs

    def again(self, slots: float, pairs: float) -> float:
        """What comes on top when all decoder layers recompute their activations."""
        return self.slot_forward * slots + self.pair_forward * pairs

    def pairs(self, depths: np.ndarray | torch.Tensor) -> float:
        """Pairs of slots at these depths (from 0) and what each sees, itself included, as the average layer's
        window lets them."""
        seen = np.asarray(depths, dtype=np.int64) + 1
        return sum(
            share * float((seen if window is None else np.minimum(seen, window)).sum())
            for window, share in self.windows
        )

    def cost(self, slots: float, pairs: float, targets: float = 0.0) -> float:
        """Relative work, in slots without attention and head: what shares of a step are balanced by."""
        return self.flops(slots, targets, pairs) / self.slot if self.slot else slots

    def of_example(self, example: Example) -> float:
        """`cost` of an example that shares nothing."""
        count = slots(example)
        return self.cost(count, self.pairs(np.arange(count)), example.targets)

    def of_forest(self, forest: Forest) -> float:
        """FLOPs of a micro-batch. No wait: `Forest.to` leaves the depths on the host."""
        return self.flops(forest.slots, len(forest.label_N), self.pairs(forest.host[0]))


def costs(model: torch.nn.Module) -> Costs:
    """Count what `model` takes as it is: a `PreTrainedModel` or a `PeftModel` around one, on any device (meta too),
    sharded or not, its frozen weights frozen. Costs a walk over its parameters: once a run."""
    core = unwrapped(model)
    config = core.config.get_text_config()
    head = core.get_output_embeddings()
    apart = {
        id(p)
        for module in (core.get_input_embeddings(), head)
        if module is not None
        for p in module.parameters()
    }
    convolutions = {
        id(p) for m in core.modules() if isinstance(m, torch.nn.modules.conv._ConvNd) for p in m.parameters()
    }
    tables = {id(m.weight) for m in core.modules() if isinstance(m, torch.nn.Embedding)}
    forward = both = 0.0
    for name, weight in core.named_parameters():
        if weight.ndim < 2 or id(weight) in apart | tables or name.endswith("bias"):
            continue
        active = 1.0 if id(weight) in convolutions else _share_of_experts(weight, config)
        used = 2.0 * weight.numel() * active
        forward += used
        both += used * (3 if weight.requires_grad else 2)
    target = 0.0
    if head is not None:
        target = sum(
            2.0 * w.numel() * (3 if w.requires_grad else 2) for w in head.parameters() if w.ndim == 2
        )
    pair, windows = _attention(config)
    return Costs(both, 3 * pair, target, forward, pair, windows)


def flops_of(model: torch.nn.Module, slots: float, targets: float, pairs: float) -> float:
    """Forward and backward of so many slots, targets and pairs. For many calls, keep `costs(model)`."""
    return costs(model).flops(slots, targets, pairs)


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of this GPU by its maker's sheet; None on a CPU, and for a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    found = card(torch.cuda.get_device_name(device))
    return None if found is None else found.flops


def utilisation(flops: float, seconds: float, peak: float | None, ranks: int) -> float | None:
    """Model FLOPs utilisation (MFU): the share of what `ranks` cards of `peak` FLOP/s could have computed in
    `seconds`. None if the peak is not known.

    `flops` are to be those of forward and backward pass of what was computed: slots, of which shared prefixes have
    few; the pairs that attend, half of a square or less; the head at the targets alone. What is recomputed is time
    that counts for nothing. So is all that is not products: it is lower than what counts padding, whole squares of
    attention, or the tokens of the rows.
    """
    return None if peak is None else flops / (seconds * peak * ranks)


def _share_of_experts(weight: torch.nn.Parameter, config: Any) -> float:
    """How much of a weight one token is multiplied with: all, but of stacked experts those that it is sent to."""
    if weight.ndim < 3:
        return 1.0
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
    chosen = next((found for name in names if (found := getattr(config, name, None))), None)
    return min(1.0, chosen / weight.shape[0]) if chosen else 1.0


def _attention(config: Any) -> tuple[float, tuple[tuple[int | None, float], ...]]:
    """Forward FLOPs of a pair in all attention layers; windows with the share of the layers that have each."""
    heads = getattr(config, "num_attention_heads", None) or 0
    if not heads:
        return 0.0, ((None, 1.0),)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    scored = getattr(config, "qk_head_dim", None) or width
    valued = getattr(config, "v_head_dim", None) or width
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        layers = [window] * config.num_hidden_layers
    else:
        layers = [
            window if "sliding" in kind else None
            for kind in kinds
            if "attention" in kind and "linear" not in kind
        ]
    if not layers:
        return 0.0, ((None, 1.0),)
    shares = tuple((found, layers.count(found) / len(layers)) for found in dict.fromkeys(layers))
    return 2.0 * len(layers) * heads * (scored + valued), shares
