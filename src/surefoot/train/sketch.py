"""A model without its weights: built from its config on fake tensors, which have shapes and no memory.

1. `read_config` finds the config of whatever names a model; of a hub model nothing else is fetched.
2. `sketch` builds the model, adapts it, and gives its weights the types that training would.
3. `measured` runs training's own forward and backward passes on it, and counts the bytes that would live: the same
   `train.memory.measure` that training asks, so that the two agree.

Alike layers are not all run: bytes grow with their number in a line, and two short models tell it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from surefoot.config import SFTConfig
from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.attention import NAME
from surefoot.model.flops import Costs, costs
from surefoot.model.folder import ADAPTER, CONFIG, check_config, check_files
from surefoot.model.gguf_header import alone, check_gguf
from surefoot.model.hub import snapshot
from surefoot.model.load import locate
from surefoot.model.network import Network, head_of, noise, unwrapped
from surefoot.train.distributed import only_multiplies
from surefoot.train.memory import Footprint, measure
from surefoot.train.optim import build
from surefoot.train.recompute import decoder_layers

ALIKE = 2
"""Layers of the shorter of the two models that stand for many alike ones, at least."""


@dataclass(frozen=True)
class Sizes:
    """What a way of training (all weights, or an adapter) takes of memory and work. Bytes, without sharding."""

    parameters: int
    trained_parameters: int
    weights: int
    gradients: int
    """Of all trained weights: as large as they are."""
    state: int
    """Optimizer state."""
    layers: int
    layer: int
    """Weights of the largest decoder layer."""
    layer_gradients: int
    root: int
    """Weights outside the decoder layers: embeddings, last norm, head."""
    root_gradients: int
    vocabulary: int
    footprint: Footprint
    costs: Costs
    rounded: bool
    """Whether sharded layers are gathered in bf16, and no copies of them are kept (`only_multiplies`)."""
    recomputing: bool
    """Whether its layers can recompute their activations."""


def read_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The config of a folder, a GGUF file, an embedded model or a hub id. Raises UserError."""
    place = locate(name)
    if place.suffix == ".gguf":
        check_gguf(place)
        with alone(place) as file:
            return _config(name, str(file.parent), gguf_file=file.name)
    if not place.is_dir():
        place = snapshot(str(place), revision, weights=False, code=trust_remote_code)
    if (place / ADAPTER).is_file():
        raise UserError(f"{name} is an adapter: plan with the model that it is for, and use_peft=true")
    check_files(place)
    check_config(place / CONFIG, trust_remote_code=trust_remote_code)
    return _config(name, str(place), trust_remote_code=trust_remote_code)


def _config(name: str, folder: str, **options: Any) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, **options)
    except Exception as error:
        raise UserError(f"{name}: its config cannot be read: {_first_line(error)}") from error


@dataclass(frozen=True)
class Sketch:
    """A model on fake tensors."""

    model: torch.nn.Module
    mode: FakeTensorMode
    product_dtype: torch.dtype | None


def sketch(config: Any, args: SFTConfig, bf16: bool, name: str) -> Sketch:
    """The model that training with `args` would have, without memory for its weights.

    `bf16`: the device is fast in it. Raises UserError for what is no causal language model.
    """
    config = copy.deepcopy(config)  # building a model writes to it, types of weights among that
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    precision = args.precision or ("bf16" if bf16 else "fp32")
    wide = torch.bfloat16 if precision == "pure-bf16" else torch.float32
    kept = getattr(config, "dtype", None) or torch.float32
    vars(config).pop("quantization_config", None)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=kept if args.use_peft else wide)
            if args.use_peft:
                model = adapt(model, lora_config(args))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: a model cannot be built of its config: {_first_line(error)}") from error
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=dtype)
            weight = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if weight else empty
        return made[id(tensor)]

    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                trained = weight.requires_grad or precision == "fp32"
                module._parameters[key] = fake(weight, wide if trained else weight.dtype)  # type: ignore[assignment]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = fake(buffer, buffer.dtype)
    model.train()
    return Sketch(model, mode, None if precision == "fp32" else torch.bfloat16)


def sizes(drawn: Sketch, args: SFTConfig, sample: Sequence[Example], longest: int, cuda: bool) -> Sizes:
    """Measure a sketch.

    Args:
        sample: examples such as those of the data; what they say does not matter.
        longest: slots of the longest example.
        cuda: the attention is that of GPUs; else the CPU's.

    Raises UserError for a model whose forward pass depends on what the tokens say.
    """
    model = drawn.model
    core, layers = unwrapped(model), decoder_layers(model)
    parameters = list(model.parameters())
    inside = {id(p) for layer in layers for p in layer.parameters()}
    rest = [p for p in parameters if id(p) not in inside]
    by_layer = [list(layer.parameters()) for layer in layers] or [[]]
    head = core.get_input_embeddings().weight
    assert isinstance(head, torch.Tensor)
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        weights=sum(p.nbytes for p in parameters),
        gradients=_trained(parameters),
        state=build(model, args).state_bytes(),
        layers=len(layers),
        layer=max(sum(p.nbytes for p in own) for own in by_layer),
        layer_gradients=max(map(_trained, by_layer)),
        root=sum(p.nbytes for p in rest),
        root_gradients=_trained(rest),
        vocabulary=len(head),
        footprint=measured(drawn, sample, longest, cuda),
        costs=costs(model),
        rounded=_rounded(Network(model, drawn.product_dtype), layers),
        recomputing=bool(layers),
    )


def _rounded(network: Network, layers: Sequence[torch.nn.Module]) -> bool:
    wide = all(p.dtype == torch.float32 for layer in layers for p in layer.parameters())
    return wide and all(only_multiplies(network, layer) for layer in layers)


def _trained(parameters: Sequence[torch.Tensor]) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad)


# Measuring without memory ----------------------------------------------------------------------------------


def measured(drawn: Sketch, sample: Sequence[Example], longest: int, cuda: bool) -> Footprint:
    """`measure` of the sketch as if it had weights."""
    core = unwrapped(drawn.model)
    kind = _OnCuda if cuda else Network
    network = kind(
        drawn.model,
        drawn.product_dtype,
        merged=not noise(drawn.model),
        head=head_of(core),
    )
    layers = decoder_layers(drawn.model)
    period = _period(core.config.get_text_config(), layers)

    def found() -> Footprint:
        try:
            with warnings.catch_warnings(), drawn.mode, _Knowing():
                warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                return measure(network, sample, longest)
        except Exception as error:
            raise UserError(
                f"{type(core).__name__}: what this model takes of memory depends on what the tokens say, or its "
                f"operations have no shapes without a device ({_first_line(error)}): it cannot be planned on paper"
            ) from error

    if period is None:
        return found()
    with _first(core, layers, 2 * period):
        more = found()
    with _first(core, layers, period):
        less = found()
    return _extended(less, more, period, len(layers))


class _Knowing(TorchDispatchMode):
    """What a forest looks like is known: operations on real tensors alone are carried out. Fake ones have no
    values, so no answer depends on them but "nothing is different"."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        fake = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if tensors and not fake:
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default and fake[0].dtype == torch.bool:
            return False
        return func(*args, **(kwargs or {}))


class _Flash(torch.autograd.Function):
    """What the kernels of GPUs keep for backward: queries, keys, values, the output, and a number a head."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """In the place of `forest_attention`, which looks for a GPU: query [1, H, T, Dh] → [1, T, H, Dh]."""
    of_THD = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    return _Flash.apply(*of_THD)[None], None


class _OnCuda(Network):
    """A network whose attention keeps what that of GPUs keeps."""

    @contextmanager
    def open(self) -> Iterator[None]:
        with super().open():
            AttentionInterface.register(NAME, _flash_attention)
            yield


# Few layers for many ---------------------------------------------------------------------------------------


def _period(config: Any, layers: Sequence[torch.nn.Module]) -> int | None:
    """After how many layers their shapes and kinds come again; None where two such runs are no shorter."""
    kinds = getattr(config, "layer_types", None) or [""] * len(layers)
    if len(kinds) != len(layers):
        return None
    looks = [
        (kind, [(name, p.shape, p.requires_grad) for name, p in layer.named_parameters()])
        for kind, layer in zip(kinds, layers, strict=True)
    ]
    count = len(looks)
    again = next(
        (p for p in range(1, count) if all(looks[i] == looks[i - p] for i in range(p, count))), count
    )
    period = again * -(-ALIKE // again)
    return period if 2 * period < count else None


@contextmanager
def _first(model: torch.nn.Module, layers: Sequence[torch.nn.Module], count: int) -> Iterator[None]:
    """While open, the model has only the first `count` of its layers."""
    holder = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and layers[0] in list(m))
    others = list(holder[count:])
    try:
        del holder[count:]
        yield
    finally:
        holder.extend(others)


def _extended(less: Footprint, more: Footprint, period: int, layers: int) -> Footprint:
    """The footprint of `layers` layers on the line through those of `period` and of twice as many."""
    times = (layers - period) / period

    def line(a: float, b: float) -> float:
        return max(0.0, a + (b - a) * times)

    def lines(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        return line(a[0], b[0]), line(a[1], b[1])

    def repeated(found: tuple[float, ...]) -> tuple[float, ...]:
        again = found[period:]
        return found[:period] + tuple(again[i % period] for i in range(layers - period))

    body = lines(less.body, more.body)
    squares = None if less.square is None or more.square is None else line(less.square, more.square)
    return replace(
        more,
        gradients=round(line(less.gradients, more.gradients)),
        copies=round(line(less.copies, more.copies)),
        body=body,
        start=(more.start[0] + body[0] - more.body[0], more.start[1] + body[1] - more.body[1]),
        end=round(line(less.end, more.end)),
        first_end=round(line(less.first_end, more.first_end)),
        layers=repeated(more.layers),
        outputs=repeated(more.outputs),
        square=squares,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
