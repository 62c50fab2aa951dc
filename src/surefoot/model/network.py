"""A Hugging Face causal language model as body (tokens → hidden states) and head (hidden states → loss).

Two questions are answered for the model at hand by trying, never from a list of names (`look_at`):
can its attention take a forest, and is its head the formula of `Head`? Where not, the slower path that is
exact all the same is taken, and the reason is kept to be printed.

Shapes: T slots, N targets, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from surefoot.data.forest import Forest, plan, plant, slots
from surefoot.data.rows import Example
from surefoot.model.attention import CannotAttend, attending_forests
from surefoot.model.lora import fast_adapters
from surefoot.model.loss import Head, TargetStats, naive_loss, naive_stats, target_loss
from surefoot.model.offload import offloaded
from surefoot.model.telling import telling

TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
"""Relative difference of logits that rounding explains, by the weights' type; 1e-5 in fp32 and float64."""
EMPTY = Forest(
    examples=(),
    ids_T=torch.zeros(1, dtype=torch.int64),
    position_T=torch.zeros(1, dtype=torch.int64),
    subtree_end_T=torch.ones(1, dtype=torch.int64),
    target_slot_N=torch.zeros(0, dtype=torch.int64),
    label_N=torch.zeros(0, dtype=torch.int64),
    weight_N=torch.zeros(0, dtype=torch.float64),
    target_example_N=torch.zeros(0, dtype=torch.int64),
)
"""Goes through the whole model, and its gradient is zero."""
Result = TypeVar("Result")


class Root(torch.nn.Module):
    """The outermost unit of a sharded model: what runs as its forward pass finds the weights whole.

    `fully_shard` gathers a unit's weights when the unit is called, and our loss is no module of the model's.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        return compute()


@dataclass(frozen=True)
class Network:
    """A model and the way its forests are computed."""

    model: torch.nn.Module
    """What was given: a `PreTrainedModel`, or a `PeftModel` around one."""
    product_dtype: torch.dtype | None = None
    """Type of the matrix products, if it is not the weights' own: autocast."""
    merged: bool = True
    """Examples share the slots of their common prefixes. Only if packed."""
    packed: bool = True
    """All trees in one forward; else one forward a tree, with the model's own attention."""
    head: Head | None = None
    """None: the model computes its own logits, at the target slots only."""
    border: int | None = None
    """Rows of more positions get rotary embeddings of their own (longrope), so they share no micro-batch with
    others."""
    reasons: tuple[str, ...] = ()
    """Why a slower path was taken."""
    root: Root | None = None
    """What the model is called through if its weights are sharded over processes."""
    offload: bool = False
    """Large activations wait for the backward pass in the host's memory."""
    compiled: bool = False
    """The decoder layers are compiled, all but their attention; adapters with them, in PEFT's own way."""

    @property
    def core(self) -> PreTrainedModel:
        """The causal language model itself, adapters inside."""
        return unwrapped(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def open(self) -> Iterator[None]:
        """Set attention up; open it around the forward and backward passes of a step."""
        with ExitStack() as stack:
            if self.packed:
                stack.enter_context(attending_forests(self.core, self.compiled))
            if self.product_dtype is not None:
                # An outer autocast keeps the bf16 copies of the weights for all micro-batches of the step; of
                # sharded weights, that would be the whole model on each rank.
                stack.enter_context(
                    torch.autocast(self.device.type, self.product_dtype, cache_enabled=self.root is None)
                )
            if not self.compiled:
                stack.enter_context(fast_adapters(self.model, self.product_dtype))
            yield

    def plan(self, examples: Sequence[Example], budget: int) -> list[list[Example]]:
        """A step's micro-batches of at most `budget` slots."""
        if self.border is None:
            return plan(examples, budget, self.merged)
        sides = ([e for e in examples if (slots(e) > self.border) == beyond] for beyond in (False, True))
        return [batch for side in sides for batch in plan(side, budget, self.merged)]

    def plant(self, examples: Sequence[Example]) -> Forest:
        """The forest of a micro-batch, on the model's device; of no examples, one slot without a target."""
        forest = plant(examples, self.merged) if examples else EMPTY
        return forest.to(self.device)

    def gathered(self, compute: Callable[[], Result]) -> Result:
        """`compute()`, with the weights of a sharded model whole while it runs: those outside the decoder layers
        at once, a layer's when the layer is called. All ranks must call it. Not to be nested.

        Gradients flow through the tensors it returns; with gradients on, a backward pass must follow.
        """
        if self.root is None:
            return compute()
        found = self.root(compute)
        if not torch.is_grad_enabled():  # else the backward pass does it
            self.root.reshard()  # pyright: ignore[reportCallIssue]  # fully_shard has made it an FSDPModule
        return found

    @property
    def present_head(self) -> Head | None:
        """The head with its weights as they are at this moment: of a sharded model, whole inside `gathered`,
        DTensors outside."""
        module = self.core.get_output_embeddings()
        if self.head is None or self.root is None or not isinstance(module, torch.nn.Linear):
            return self.head
        return replace(self.head, weight_VD=module.weight, bias_V=module.bias)

    def hidden(self, forest: Forest) -> torch.Tensor:
        """Last hidden states [T, D] of every slot. Of a sharded model: inside `gathered`."""
        body = self.core.base_model
        assert isinstance(body, torch.nn.Module)
        if self.packed:
            return body(
                input_ids=forest.ids_T[None],
                position_ids=forest.position_T[None],
                use_cache=False,
                forest=forest,
            ).last_hidden_state[0]
        trees = (forest.ids_T[start:end][None] for start, end in forest.trees)
        return torch.cat([body(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in trees])

    def logits(self, forest: Forest) -> torch.Tensor:
        """Logits [N, V] of the targets by the model's own forward; logits of other slots are not computed
        where the model can help it. Of a sharded model: inside `gathered`."""
        parts = []
        counts = [example.targets for example in forest.examples] or [0]
        slots_of_trees = forest.target_slot_N.split(counts)
        for (start, end), slot_of_tree in zip(forest.trees, slots_of_trees, strict=True):
            slot = slot_of_tree - start
            ids = forest.ids_T[start:end][None]
            logits_LV = self.core(input_ids=ids, use_cache=False, logits_to_keep=slot).logits[0]
            parts.append(logits_LV if len(logits_LV) == len(slot) else logits_LV[slot])
        return torch.cat(parts)

    def loss(self, forest: Forest, divisor: float) -> tuple[torch.Tensor, TargetStats]:
        """Σ weight · −log p over the forest's targets, divided by `divisor`, and what is known of each target."""
        return self.gathered(lambda: self._loss(forest, forest.weight_N / divisor))

    def _loss(self, forest: Forest, weight_N: torch.Tensor) -> tuple[torch.Tensor, TargetStats]:
        head, away = self.present_head, self.offload and torch.is_grad_enabled()
        with offloaded(self.core, self.device) if away else nullcontext():
            found = self.logits(forest) if head is None else self.hidden(forest)
        if head is None:
            return naive_loss(found, forest.label_N, weight_N), naive_stats(found, forest.label_N)
        hidden_ND = found[forest.target_slot_N]
        return target_loss(hidden_ND, head, forest.label_N, weight_N, self.product_dtype)


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The causal language model inside a PEFT wrapper, or the model itself."""
    of_peft = getattr(model, "get_base_model", None)
    inner = of_peft() if callable(of_peft) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def embedding_rows(model: torch.nn.Module) -> int:
    """How many token ids the model knows."""
    weight = unwrapped(model).get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def head_of(model: PreTrainedModel) -> Head | None:
    """The head as a formula, as far as the model's modules and config tell; `look_at` checks it."""
    module = model.get_output_embeddings()
    if type(module) is not torch.nn.Linear:
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))


def look_at(
    model: torch.nn.Module,
    examples: Sequence[Example],
    product_dtype: torch.dtype | None,
    share_prefixes: bool = True,
) -> Network:
    """The fastest way through `model` that gives its own logits on some of `examples`.

    Compares, without autocast and dropout, the logits of the fast path with those of the model's own forward,
    each example alone. Four short examples tell whether rows that are packed or share a prefix leak; if rows
    outgrow the model's sliding window, one such row is tried too.
    """
    core = unwrapped(model)
    window = getattr(core.config.get_text_config(), "sliding_window", None)
    told = telling(examples, embedding_rows(core), window)
    tolerance = max(TOLERANCE.get(p.dtype, 1e-5) for p in model.parameters())
    noisy = noise(model) if share_prefixes else None
    rope = _rope(core)
    start = Network(
        model,
        merged=share_prefixes and not noisy,
        packed="dynamic" not in rope,
        head=head_of(core),
        border=rope.get("longrope"),
    )
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            network = _choose(start, told, tolerance)
    finally:
        model.train(training)
    reasons = network.reasons
    if not start.packed:
        reasons += (
            "rows run one at a time: how positions are embedded depends on the longest row (dynamic rope)",
        )
    elif noisy and network.packed:
        reasons += (f"prefixes are not shared: {noisy} must fall on each example alone",)
    if getattr(core.config.get_text_config(), "output_router_logits", False):
        reasons += (
            "the config's router balance loss (output_router_logits) is not added: cross-entropy alone",
        )
    return replace(network, product_dtype=product_dtype, reasons=reasons)


def noise(model: torch.nn.Module) -> str | None:
    """What is random in `model` when it trains ("dropout", "jitter"), as far as its settings tell."""
    return next((found for module in model.modules() if (found := own_noise(module))), None)


def own_noise(module: torch.nn.Module) -> str | None:
    """What `module` itself draws when it trains, its children apart."""
    of_dropout = isinstance(module, torch.nn.modules.dropout._DropoutNd)
    for name, rate in {"dropout": module.p}.items() if of_dropout else vars(module).items():
        if isinstance(rate, float) and rate > 0 and ("drop" in name or "jitter" in name):
            return "jitter" if "jitter" in name else "dropout"
    return None


def _rope(core: PreTrainedModel) -> dict[str, int]:
    """Kinds of rotary embeddings that look at the longest row of a micro-batch: from how many positions on."""
    config = core.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    found = {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type") in ("longrope", "dynamic"):
            original = part.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            found[part["rope_type"]] = original or config.max_position_embeddings
    return found


def _choose(network: Network, told: Sequence[Example], tolerance: float) -> Network:
    """Tries merged, packed and one by one, in this order, against the model's own logits."""
    alone = plant(told).to(network.device)
    own_NV = network.logits(alone)
    reasons: list[str] = []
    if network.head is None:
        reasons.append("the head is not a plain linear layer: the model computes its own logits")
        return replace(network, merged=False, packed=False, reasons=tuple(reasons))
    ways = (
        (True, True, "prefixes are not shared"),
        (False, True, "rows run one at a time"),
        (False, False, ""),
    )
    for merged, packed, otherwise in ways:
        if merged > network.merged or packed > network.packed:
            continue
        tried = replace(network, merged=merged, packed=packed)
        forest = tried.plant(told)
        try:
            with tried.open():
                fast_NV = network.head.logits(tried.hidden(forest)[forest.target_slot_N])
        except CannotAttend as error:
            reasons = [f"{otherwise}: {error}"]
            continue
        except Exception as error:  # whatever it is, the model's own forward has just worked without
            if not packed:
                reasons += [
                    f"its hidden states are not to be had ({error}): the model computes its own logits"
                ]
                break
            reasons = [f"{otherwise}: the model does not take forests ({error})"]
            continue
        off = ((fast_NV - own_NV).norm() / own_NV.norm()).item()
        if off <= tolerance:
            return replace(tried, reasons=tuple(reasons))
        if packed:
            how = "with shared prefixes" if merged else "packed together"
            reasons = [f"{otherwise}: {how}, their logits are off by {off:.1e}"]
        else:
            reasons += [f"the head's formula is not known (off by {off:.1e}): the model computes its logits"]
    return replace(network, merged=False, packed=False, head=None, reasons=tuple(reasons))
