"""What a micro-batch costs in memory: measured on small forests, predicted for large ones.

1. `measure` runs two or three small forests forward and backward and reads how many bytes live when.
2. `Footprint` is what follows from it: bytes a slot, a target, a layer; `Footprint.peak` adds them up.

Shapes: T slots, N targets.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from surefoot.data.forest import Forest, plant
from surefoot.data.rows import Example
from surefoot.model.loss import CHUNK_ELEMENTS
from surefoot.model.network import Network, embedding_rows
from surefoot.train.distributed import local
from surefoot.train.recompute import decoder_layers
from surefoot.train.restored import restored

SMALL, LARGE, LONG = 128, 384, 768
"""Slots of the measured forests: two of many examples, one of a single example."""


# Measuring -------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """While open, counts the bytes of storages made by torch operations: `now`, and the most since `mark`.

    What an operation allocates and frees inside itself is not seen.
    """

    def __init__(self, but: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in but}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):  # seen by its own shard
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def mark(self) -> None:
        """Forget the most so far."""
        self.most = self.now


class LiveCuda:
    """The same from CUDA's own allocator, which sees everything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    @property
    def most(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def mark(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


@dataclass(frozen=True)
class Reading:
    """Bytes that one small forest added to what was held before it; gradients and bf16 weights were there."""

    slots: int
    targets: int
    body: int
    """Held when the last hidden states are there."""
    head: int
    """The most on top of that while the loss is computed."""
    start: int
    """The most while the backward pass is in the last decoder layer: nearly all is held still."""
    backward: int
    """The most in the whole backward pass; of a small forest, at its end, by the embedding's gradient."""
    layers: tuple[int, ...]
    """Kept by each decoder layer for its backward pass, its output included."""
    outputs: tuple[int, ...]
    """Size of each decoder layer's output."""
    seconds: float


@dataclass(frozen=True)
class Footprint:
    """What `measure` found of a model on this machine."""

    gradients: int
    """Bytes of all gradients."""
    copies: int
    """Bytes of the bf16 weights that live as long as a step."""
    body: tuple[float, float]
    """Bytes whatever the forest, and bytes a slot, held after the body's forward pass."""
    head: tuple[float, float]
    """The same by targets, on top of it, while the loss is computed."""
    head_most: int
    """Targets beyond which the head needs no more (a chunk)."""
    start: tuple[float, float]
    """Bytes whatever the forest, and bytes a slot, as the backward pass begins."""
    end: int
    """Bytes as it ends, whatever the forest."""
    first_end: int
    """The same of a step's first backward pass, which makes the gradients: they are among them."""
    layers: tuple[float, ...]
    """Bytes a slot that each layer keeps."""
    outputs: tuple[float, ...]
    """Bytes a slot that a layer keeps when it recomputes the rest."""
    square: float | None
    """None if it was not measured. Bytes of attention by the square of an example's slots, all layers together."""
    seconds: float
    """A slot's forward and backward pass, roughly."""

    def peak(self, slots: int, targets: int, checkpointed: int = 0, longest: int = 0) -> int:
        """The most that activations of a micro-batch take. `longest`: slots of an example that has it alone."""
        count = max(1, len(self.layers))
        squares = (self.square or 0.0) * longest**2
        kept = [keeps * slots + squares / count for keeps in self.layers]
        outputs = [size * slots for size in self.outputs]
        saved = sum(kept[:checkpointed]) - sum(outputs[:checkpointed])
        body = self.body[0] + self.body[1] * slots + squares - saved
        forward = body + self.head[0] + self.head[1] * min(targets, self.head_most)
        backward = self.start[0] + self.start[1] * slots + squares - saved
        if checkpointed:
            # When the last recomputing layer has its turn, the layers above it have let go.
            above = sum(kept[checkpointed:])
            backward = max(backward, backward - above + max(kept[:checkpointed]))
        return int(max(forward, backward, self.end))


def measure(network: Network, examples: Sequence[Example], longest: int) -> Footprint:
    """Run small forests of `examples` forward and backward, and read what they take.

    `longest`: slots of the longest example of the data; when it is beyond the small forests, a made-up example
    tells what grows with the square of its length. Weights, gradients and random state are put back.
    """
    model, device = network.model, network.device
    layers = decoder_layers(model)
    with restored(network), ExitStack() as stack:
        network.model.train()
        for layer in layers:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        stack.enter_context(network.open())
        known = [*model.parameters(), *model.buffers()]
        live = LiveCuda(device) if device.type == "cuda" else stack.enter_context(Live(known))
        before = live.now
        small, large = (plant(fill(examples, slots)).to(device) for slots in (SMALL, LARGE))
        first = _read(network, small, live, layers)  # makes gradients and bf16 weights
        gradients = sum(local(p).nbytes for p in model.parameters() if p.requires_grad)
        copies = max(0, live.now - before - gradients)
        one, two = _read(network, small, live, layers), _read(network, large, live, layers)
        footprint = _fit(network, one, two, gradients, copies)
        if first.backward > first.start:
            footprint = replace(footprint, first_end=first.backward - copies)
        if longest > LARGE:
            forest = plant([stretched(examples, min(longest, LONG))]).to(device)
            alone = _read(network, forest, live, layers)
            over = alone.body - footprint.body[0] - footprint.body[1] * alone.slots
            # Below a tenth it is what two points do not tell of a line, not a square.
            square = over / alone.slots**2 if over > alone.body / 10 else 0.0
            footprint = replace(footprint, square=square)
    return footprint


def fill(examples: Sequence[Example], slots: int) -> list[Example]:
    """Real examples, the last one cut, that fill `slots` together, give or take one.

    All their tokens are targets: what the head takes by the target is read best where it has many.
    """
    filled, out = 0, []
    while filled < slots:
        whole = examples[len(out) % len(examples)]
        ids = np.concatenate([whole.prompt_ids, whole.completion_ids])[: max(2, slots - filled + 1)]
        out.append(replace(whole, prompt_ids=ids[:1], completion_ids=ids[1:]))
        filled += len(ids) - 1
    return out


def stretched(examples: Sequence[Example], slots: int) -> Example:
    """One example of `slots` slots with the ids of many: what it says does not matter to memory."""
    first = examples[0]
    ids = np.concatenate([first.prompt_ids, first.completion_ids])
    ids = np.resize(ids, slots + 1)
    return replace(first, prompt_ids=ids[: slots // 2], completion_ids=ids[slots // 2 :])


class _Watch:
    """Reads off `live` what one forward and backward pass holds, at the borders of the layers."""

    def __init__(self, live: Live | LiveCuda, layers: Sequence[torch.nn.Module]) -> None:
        self.live, self.layers, self.base = live, list(layers), live.now
        self.kept, self.outputs = [0] * len(layers), [0] * len(layers)
        self.body = self.start = 0
        live.mark()

    def hooks(self, body: torch.nn.Module) -> Iterator[Any]:
        for number, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(partial(self._enter, number))
            yield layer.register_forward_hook(partial(self._leave, number))
        yield body.register_forward_hook(self._end_of_body)

    def _enter(self, number: int, module: torch.nn.Module, args: Any) -> None:
        self.kept[number] -= self.live.now

    def _leave(self, number: int, module: torch.nn.Module, args: Any, out: Any) -> None:
        self.kept[number] += self.live.now
        hidden = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.outputs[number] += hidden.nbytes
        if number == len(self.layers) - 2 and hidden.requires_grad:
            hidden.register_hook(self._last_layer_done)

    def _end_of_body(self, module: torch.nn.Module, args: Any, out: Any) -> None:
        self.body = self.live.now - self.base
        self.live.mark()

    def _last_layer_done(self, gradient: torch.Tensor) -> None:
        self.start = max(self.start, self.live.most - self.base)


def _read(
    network: Network, forest: Forest, live: Live | LiveCuda, layers: Sequence[torch.nn.Module]
) -> Reading:
    watch, started = _Watch(live, layers), time.perf_counter()
    body = network.core.base_model
    assert isinstance(body, torch.nn.Module)
    hooks = list(watch.hooks(body))
    try:
        loss, _ = network.loss(forest, float(len(forest.label_N)))
    finally:
        for hook in hooks:
            hook.remove()
    head = live.most - watch.base - watch.body
    live.mark()
    with torch.autocast(network.device.type, enabled=False):
        loss.backward()
    most = live.most - watch.base
    return Reading(
        slots=len(forest.ids_T),
        targets=len(forest.label_N),
        body=watch.body,
        head=head,
        start=watch.start or most,
        backward=most,
        layers=tuple(watch.kept),
        outputs=tuple(watch.outputs),
        seconds=time.perf_counter() - started,
    )


def _fit(network: Network, one: Reading, two: Reading, gradients: int, copies: int) -> Footprint:
    def line(a: float, b: float) -> tuple[float, float]:
        slope = max(0.0, (b - a) / (two.slots - one.slots))
        return max(0.0, b - slope * two.slots), slope

    chunk, fixed = 1 << 40, 0
    if network.head is not None:  # else the model computes the logits of all targets at once
        chunk = max(64, CHUNK_ELEMENTS // embedding_rows(network.core))
        weight = network.head.weight_VD
        product = network.product_dtype or weight.dtype
        fixed += weight.numel() * product.itemsize * (product != weight.dtype)
        fixed += weight.nbytes * weight.requires_grad
    head = max(0, two.head - fixed) / min(two.targets, chunk)
    return Footprint(
        gradients=gradients,
        copies=copies,
        body=line(one.body, two.body),
        head=(fixed, head),
        head_most=chunk,
        start=line(one.start, two.start),
        end=two.backward if two.backward > two.start else 0,
        first_end=0,
        layers=tuple(line(a, b)[1] for a, b in zip(one.layers, two.layers, strict=True)),
        outputs=tuple(size / two.slots for size in two.outputs),
        square=None,
        seconds=two.seconds / two.slots,
    )
