"""One step on several processes (ranks): examples divided, gradients added up, one result.

1. `shard` cuts every weight into rows, one piece a rank (FSDP2): each decoder layer is a unit, all else the root.
   What autocast would round after gathering is rounded before, and the small rest of such a layer is the root's.
   Or it is left out, and every rank holds all weights.
2. `micro_batches` divides a step's examples among the ranks. A rank that has nothing left goes on with empty
   micro-batches: gathering weights and reducing gradients takes all ranks, layer by layer.
3. Every rank divides by the divisor of the whole step and gradients are added up, so the sum over ranks is the
   step's gradient. Of sharded weights, `.grad` holds this rank's rows of it after each backward pass; of whole
   ones, all of it after `sum_gradients`, once a step.
4. What is said of a whole tensor (`total_norm`, `rows`) is made of the shards (`local`, `offset`) by `add_up`.

All of it works without a process group too: one rank, whole tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros
from transformers.pytorch_utils import Conv1D

from surefoot.data.forest import plant
from surefoot.data.rows import Example
from surefoot.model.flops import Costs, costs
from surefoot.model.network import Network, Root
from surefoot.ranks import add_up, add_up_numbers, most, rank, ranks
from surefoot.train.optim import Optimizers
from surefoot.train.recompute import decoder_layers

PIECES = 4
"""A rank's share of a step is put together of about so many pieces: more balance better, fewer keep more examples
beside those that they share a prefix with."""
BUCKET_BYTES = 1 << 26
"""Whole gradients are added up in buckets of about so many bytes: one on its way while the next is put together."""


# The model ---------------------------------------------------------------------------------------------


def shard(network: Network, place: torch.device | None = None, mesh: DeviceMesh | None = None) -> Network:
    """The same network with its model's weights sharded, in place, over the ranks of `mesh` (default: all), on the
    kind of device that `place` is (default: the model's).

    Every rank must hold the same weights. The parameters are other objects afterwards (DTensors, cut along their
    first dimension), so an optimizer is built after this. Raises ValueError for a model with 0-dimensional
    weights.
    """
    assert network.root is None, "the model is sharded already"
    mesh = mesh or init_device_mesh((place or network.device).type, (ranks(),))
    root, layers = Root(network.model), decoder_layers(network.model)
    rounded = [layer for layer in layers if only_multiplies(network, layer)]
    theirs = {p for layer in layers for p in layer.parameters()}
    exact = {p for layer in rounded for p in layer.parameters() if p.ndim < 2}
    _unit(root, mesh, theirs - exact)
    for layer in reversed(layers):  # what is inside of another comes first
        taken: set[torch.nn.Parameter] = {p for p in layer.parameters() if isinstance(p, DTensor)}
        _unit(layer, mesh, taken, network.product_dtype if layer in rounded else None)
    sharded = replace(network, root=root)
    return replace(sharded, head=sharded.present_head)


def only_multiplies(network: Network, layer: torch.nn.Module) -> bool:
    """Whether autocast rounds all matrices of this layer before it uses them, and each is used once: then they may
    be rounded before they are gathered, to the same bits.

    Half the bytes go between the ranks, and no rank keeps copies for the backward pass: what autocast makes is
    kept, what FSDP2 gathers is let go of and gathered again. So it is for linear layers without adapters. Stacked
    experts and the like are gathered as they are.
    """
    rounds = network.product_dtype
    if rounds is None or network.model is not network.core:
        return False
    matrices = [
        (type(module), weight)
        for module in layer.modules()
        for weight in module.parameters(recurse=False)
        if weight.ndim > 1
    ]
    return len({id(weight) for _, weight in matrices}) == len(matrices) and all(
        kind in (torch.nn.Linear, Conv1D) and weight.dtype in (torch.float32, rounds)
        for kind, weight in matrices
    )


def _unit(
    module: torch.nn.Module,
    mesh: DeviceMesh,
    others: set[torch.nn.Parameter],
    gathered: torch.dtype | None = None,
) -> None:
    """Shard what of `module` is not of `others` and in no unit yet; `gathered`: rounded to this type before."""
    types = {p.dtype for p in module.parameters() if p.requires_grad}
    narrow = gathered is not None or any(torch.finfo(dtype).bits < 32 for dtype in types)
    policy = MixedPrecisionPolicy(
        param_dtype=gathered,
        reduce_dtype=torch.float32 if narrow else None,  # None: the gradient's own
        cast_forward_inputs=False,
    )
    unit = fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=others)
    assert isinstance(unit, FSDPModule)
    unit.set_gradient_divide_factor(1.0)  # the sum over ranks, not their mean
    unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    unit.set_reduce_scatter_unused_params(True)  # such as the head of an empty micro-batch


def shard_state(optimizers: Optimizers) -> None:
    """Let Adafactor begin with sharded averages of rows and columns: its own would be plain tensors, which do not
    mix with sharded gradients. Other optimizers make their state in the likeness of the weights."""
    for part in optimizers.parts:
        group_of = {id(p): group for group in part.param_groups for p in group["params"]}
        weights = [p for group in part.param_groups for p in group["params"]]
        for weight in weights if type(part).__name__ == "Adafactor" else ():
            if isinstance(weight, DTensor) and weight.ndim >= 2:
                kind = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
                of_rows, of_columns = weight.shape[:-1], weight.shape[:-2] + weight.shape[-1:]
                columns_placed = Shard(0) if weight.ndim > 2 else Replicate()
                mesh = weight.device_mesh
                part.state[weight] = {
                    "step": 0,
                    "RMS": 0,
                    **(
                        {"exp_avg": torch.zeros_like(weight)}
                        if group_of[id(weight)]["beta1"] is not None
                        else {}
                    ),
                    "exp_avg_sq_row": zeros(of_rows, dtype=kind, device_mesh=mesh, placements=[Shard(0)]),
                    "exp_avg_sq_col": zeros(
                        of_columns, dtype=kind, device_mesh=mesh, placements=[columns_placed]
                    ),
                }


# The work ----------------------------------------------------------------------------------------------


def micro_batches(network: Network, examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """This rank's micro-batches of a step, of at most `budget` slots; as many on every rank, the last ones empty
    where a rank has less to do. Every rank knows them all without asking."""
    if ranks() == 1:
        return network.plan(examples, budget)
    if not network.packed:  # each tree is a forward pass of its own, and all ranks must run as many
        budget = 1
    plans = [network.plan(share, budget) for share in divide(network, examples, ranks())]
    own, rounds = plans[rank()], max(map(len, plans))
    return own + [[] for _ in range(rounds - len(own))]


def divide(network: Network, examples: Sequence[Example], count: int) -> list[list[Example]]:
    """A step's examples in `count` shares of about equal work (slots, pairs that attend, targets), each in the
    step's order.

    Pieces that share prefixes stay together; the largest left goes to the share that has the least.
    """
    merged = network.merged and network.packed
    whole = plant(examples, merged).slots
    pieces = network.plan(examples, max(1, math.ceil(whole / (PIECES * count))))
    of = costs_of(network)
    sizes = [of.of_forest(plant(piece, merged)) for piece in pieces]
    order = {id(example): index for index, example in enumerate(examples)}
    shares: list[list[Example]] = [[] for _ in range(count)]
    load = [0.0] * count
    for size, piece in sorted(zip(sizes, pieces, strict=True), key=lambda sized: -sized[0]):
        least = load.index(min(load))
        shares[least] += piece
        load[least] += size
    return [sorted(share, key=lambda example: order[id(example)]) for share in shares]


def sum_gradients(network: Network) -> None:
    """Add the gradients of the ranks up, where each holds all weights: once a step, after its last backward pass.

    16-bit gradients are added up in fp32. A weight that has no gradient on any rank has none afterwards.
    """
    if ranks() == 1 or network.root is not None:
        return
    weights = [p for p in network.model.parameters() if p.requires_grad]
    there = add_up_numbers([p.grad is not None for p in weights])
    taken = [weight for weight, count in zip(weights, there, strict=True) if count]
    on_their_way: list[tuple[list[torch.nn.Parameter], torch.Tensor, dist.Work]] = []
    for bucket in _buckets(taken):
        flat = torch.cat([_flat_gradient(weight) for weight in bucket])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        on_their_way.append((bucket, flat, work))
        if len(on_their_way) > 2:
            _put_back(*on_their_way.pop(0))
    for arrived in on_their_way:
        _put_back(*arrived)


def _buckets(weights: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Weights of one kind, in order, until a bucket is full."""
    bucket: list[torch.nn.Parameter] = []
    for weight in weights:
        full = sum(p.nbytes for p in bucket) + weight.nbytes > BUCKET_BYTES
        if bucket and (full or (weight.dtype, weight.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket


def _flat_gradient(weight: torch.nn.Parameter) -> torch.Tensor:
    wide = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
    if weight.grad is None:
        return torch.zeros(weight.numel(), dtype=wide, device=weight.device)
    return weight.grad.detach().flatten().to(wide)


def _put_back(bucket: Sequence[torch.nn.Parameter], flat: torch.Tensor, work: dist.Work) -> None:
    work.wait()
    for weight, total in zip(bucket, flat.split([weight.numel() for weight in bucket]), strict=True):
        if weight.grad is None:
            weight.grad = total.view_as(weight).to(weight.dtype, copy=True)
        else:
            weight.grad.copy_(total.view_as(weight))


# Agreeing ----------------------------------------------------------------------------------------------


def agreed(network: Network) -> Network:
    """The same network on all ranks: the fastest path that each of them takes."""
    paths = most([not network.packed, not network.merged, network.head is None])
    apart, alone, own = map(bool, paths)
    head = None if own else network.head
    return replace(network, packed=not apart, merged=not alone, head=head)


_known_costs: WeakKeyDictionary[torch.nn.Module, tuple[int, Costs]] = WeakKeyDictionary()


def costs_of(network: Network) -> Costs:
    """What a slot, a pair and a target of this model take; counted once, and again where other weights train, as
    while the fast path is checked."""
    trained = sum(weight.numel() for weight in network.model.parameters() if weight.requires_grad)
    known = _known_costs.get(network.model)
    if known is None or known[0] != trained:
        known = _known_costs[network.model] = trained, costs(network.model)
    return known[1]


# Numbers and tensors -----------------------------------------------------------------------------------


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a sharded tensor, or the tensor; detached, in the same memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shard(own: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Other values of `local(of)` as a tensor that is sharded as `of` is."""
    if not isinstance(of, DTensor):
        return own
    return DTensor.from_local(
        own, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
    )


def first_row(tensor: torch.Tensor) -> int:
    """Which row of the whole tensor is the first of `local(tensor)`; one past the last if this rank has none."""
    if not isinstance(tensor, DTensor):
        return 0
    assert tensor.placements == (Shard(0),), tensor.placements
    size = math.ceil(len(tensor) / tensor.device_mesh.size())
    return min(len(tensor), size * tensor.device_mesh.get_local_rank())


def offset(tensor: torch.Tensor) -> int:
    """Where `local(tensor)` begins in the whole tensor, flattened. A shard is a run of it."""
    return first_row(tensor) * math.prod(tensor.shape[1:])


def rows(tensor: torch.Tensor, index: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Some rows of a tensor, the same on every rank; no more than these is gathered. All ranks must ask for the
    same."""
    mine, start = local(tensor), first_row(tensor)
    index = torch.as_tensor(index, device=mine.device)
    if not isinstance(tensor, DTensor):
        return mine[index]
    found = mine.new_zeros(len(index), *mine.shape[1:])
    here = (index >= start) & (index < start + len(mine))
    found[here] = mine[index[here] - start]
    return add_up(found)


def joined(own: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """One number for each row of `of`, along the last dimension: [..., rows of `local(of)`] of every rank, put
    together on all."""
    if not isinstance(of, DTensor):
        return own
    start = first_row(of)
    whole = own.new_zeros(*own.shape[:-1], len(of))
    whole[..., start : start + own.shape[-1]] = own
    return add_up(whole)


def total_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Norm of all tensors as one vector, made of the shards: one number goes between the ranks. That of 16-bit
    tensors is a float32, not rounded to their own type."""
    parts = [local(tensor) for tensor in tensors]
    norms = [
        torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts if part.dtype.itemsize == 2
    ]
    if len(norms) < len(parts) or not parts:
        norms.append(torch.nn.utils.get_total_norm([part for part in parts if part.dtype.itemsize != 2]))
    own = (
        norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
    ).item()
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return own
    assert all(isinstance(tensor, DTensor) for tensor in tensors), "some weights are sharded, some are not"
    return math.sqrt(add_up_numbers([own * own])[0])
