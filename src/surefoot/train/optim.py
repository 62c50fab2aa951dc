"""Optimizers by Hugging Face's names, and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import yaml
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.train.plain import pack, unpack

Named = list[tuple[str, torch.nn.Parameter]]
NO_STATE = ("params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable")
"""What of a group follows from the step, or is the machine's business."""


@dataclass(frozen=True)
class Turn:
    """One weight's part in an update, and what updates it."""

    name: str
    weight: torch.nn.Parameter
    part: Optimizer
    group: dict[str, Any]

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient, as it will still be after `step`: torch's SGD with nesterov may overwrite `.grad`."""
        assert self.weight.grad is not None
        overwritten = isinstance(self.part, torch.optim.SGD) and self.group["nesterov"]
        return self.weight.grad.clone() if overwritten else self.weight.grad

    def step(self) -> None:
        """Update this weight alone: the same bits as `part.step()` for an optimizer whose tensors are
        independent of one another."""
        groups = self.part.param_groups
        kept = [group["params"] for group in groups]
        try:
            for group in groups:
                group["params"] = [self.weight] if group is self.group else []
            self.part.step()
        finally:
            for group, weights in zip(groups, kept, strict=True):
                group["params"] = weights


class Optimizers:
    """One or two torch optimizers that together update every trained weight once a step.

    `learning_rate_at` sets the rate; it needs no state of its own, so a resumed run follows the same curve.
    """

    def __init__(self, parts: list[Optimizer], named: Named) -> None:
        self.parts = parts
        self.names = {id(parameter): name for name, parameter in named}
        self._weights = [parameter for _, parameter in named]
        for group in self.groups():
            group.setdefault("initial_lr", group["lr"])

    def groups(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            yield from part.param_groups

    @property
    def learning_rate(self) -> float:
        """The highest of all groups; an optimizer of the user's own may have several."""
        return max(float(group["lr"]) for group in self.groups())

    def turns(self) -> list[Turn]:
        """The weights that have a gradient, in the order of the groups."""
        return [
            Turn(self.names[id(weight)], weight, part, group)
            for part in self.parts
            for group in part.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]

    def set_factor(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for group in self.groups():
            group["lr"] = group["initial_lr"] * factor

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Of every weight that gets a gradient, also of those that an optimizer of the user's own leaves out."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        for weight in self._weights:
            weight.grad = None

    def state_bytes(self) -> int:
        """Bytes of the state that there will be once every weight has had an update."""
        return sum(
            _copies(part, group) * (weight.to_local() if isinstance(weight, DTensor) else weight).nbytes
            for part in self.parts
            for group in part.param_groups
            for weight in group["params"]
        )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors by `parameter name/key`, and all else that the state has, as plain values that name the tensors.

        Raises UserError when an optimizer of the user's own keeps what no checkpoint can hold.
        """
        tensors: dict[str, torch.Tensor] = {}
        plain: dict[str, Any] = {}
        for part in self.parts:
            for weight, state in part.state.items():
                if not state:
                    continue
                name = self.names.get(id(weight)) if isinstance(weight, torch.Tensor) else None
                if name is None:
                    raise UserError(
                        f"optimizers: {type(part).__name__} keeps state for what is no trained weight, so a "
                        "checkpoint cannot name it. Numbers of its own belong in its param_groups"
                    )
                plain[name] = {
                    key: pack(value, f"{name}/{key}", weight, tensors) for key, value in state.items()
                }
        return tensors, plain

    def groups_state(self, tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        """What each group has besides its weights and its learning rate, which follows from the step: some
        optimizers count and estimate there. Tensors among it go to `tensors`. Raises UserError as `state` does."""
        return [
            {
                key: pack(value, f"group {number}/{key}", None, tensors)
                for key, value in group.items()
                if key not in NO_STATE and not callable(value)
            }
            for number, group in enumerate(self.groups())
        ]

    def around(self, place: str) -> list[torch.Tensor]:
        """Tensors that tell how the one at a place of the state (a name that `state` gives) is to lie in memory:
        what is there now, and the weight that it belongs to."""
        name, _, key = place.partition("/")
        if (weight := self._by_name.get(name)) is None:
            return []
        now = [part.state[weight].get(key) for part in self.parts if weight in part.state]
        return [*(tensor for tensor in now if isinstance(tensor, torch.Tensor)), weight]

    @cached_property
    def _by_name(self) -> dict[str, torch.nn.Parameter]:
        return {self.names[id(weight)]: weight for weight in self._weights}

    def load_state(
        self, tensors: Mapping[str, torch.Tensor], plain: dict[str, Any], groups: list[dict[str, Any]]
    ) -> None:
        """Restore what `state` and `groups_state` gave. Raises ValueError when that is of other weights."""
        owners = {
            self.names[id(weight)]: (part, weight)
            for part in self.parts
            for group in part.param_groups
            for weight in group["params"]
            if id(weight) in self.names  # an optimizer of the user's own may hold frozen ones too
        }
        for name, state in plain.items():
            if name not in owners:
                raise ValueError(f"the checkpoint has optimizer state for {name}, which is not trained here")
            part, weight = owners[name]
            part.state[weight] = {key: unpack(value, weight, tensors) for key, value in state.items()}
        for group, kept in zip(self.groups(), groups, strict=True):
            group.update({key: unpack(value, None, tensors) for key, value in kept.items()})


def _copies(part: Optimizer, group: dict[str, Any]) -> int:
    """Numbers that an optimizer keeps for each weight; two for one that is not known."""
    if isinstance(part, torch.optim.Muon):
        return 1
    if isinstance(part, torch.optim.SGD):
        return int(bool(group["momentum"]))
    factored = type(part).__name__ == "Adafactor"  # a row and a column of each matrix
    return int(group.get("beta1") is not None) if factored else 2


def build(model: torch.nn.Module, args: SFTConfig, mine: Optimizer | None = None) -> Optimizers:
    """The optimizer that `args` asks for, over the weights of `model` that train; or `mine`, which the user made.

    Weight decay goes to matrices only: biases and norms are vectors. Raises UserError for options that the
    optimizer does not take, and when it cannot train this model.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("nothing to train: no weight of the model requires a gradient")
    if mine is not None:
        return _own(mine, named)
    extra = _extra(args.optim_args)
    lr, decay = args.learning_rate, args.weight_decay
    if args.optim == "muon":
        outer = {id(m.weight) for m in _embeddings(model)}
        hidden = [p for _, p in named if p.ndim == 2 and id(p) not in outer]
        rest = [(name, p) for name, p in named if p.ndim != 2 or id(p) in outer]
        muon = {"adjust_lr_fn": "match_rms_adamw", **extra}
        parts = [_made(torch.optim.Muon, hidden, lr=lr, weight_decay=decay, **muon)] if hidden else []
        parts += [torch.optim.AdamW(_grouped(rest, decay), lr=lr, **_adam(args))] if rest else []
        return Optimizers(parts, named)
    groups = _grouped(named, decay)
    fused = args.optim == "adamw_torch_fused" and all(p.device.type in ("cpu", "cuda") for _, p in named)
    if args.optim in ("adamw_torch", "adamw_torch_fused"):
        part = _made(torch.optim.AdamW, groups, lr=lr, **{**_adam(args), "fused": fused or None, **extra})
    elif args.optim == "adam":
        part = _made(torch.optim.Adam, groups, lr=lr, **{**_adam(args), **extra})
    elif args.optim == "sgd":
        narrow = any(p.dtype.itemsize < 4 and p.device.type == "cpu" for _, p in named)
        if narrow and extra.get("fused") and extra.get("momentum"):
            # Measured with torch 2.13: off by more than 1 after four steps at a rate of 0.1, not the same twice.
            raise UserError(
                "optim_args: torch's fused SGD with momentum is wrong for 16-bit weights on a CPU; drop fused"
            )
        part = _made(torch.optim.SGD, groups, lr=lr, **extra)
    else:
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False}
        part = _made(Adafactor, groups, lr=lr, **{**fixed, **extra})
    return Optimizers([part], named)


def _own(part: Optimizer, named: Named) -> Optimizers:
    closure = inspect.signature(part.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"optimizers: {type(part).__name__} calls the model by itself, many times an update; a step here has "
            "one gradient. Use one whose step() needs no closure"
        )
    held = {id(weight) for group in part.param_groups for weight in group["params"]}
    if not held & {id(weight) for _, weight in named}:
        raise UserError(
            f"optimizers: {type(part).__name__} holds no weight that is trained here; make it of the trainer's own "
            "model's parameters (with an adapter, of the adapted model's)"
        )
    return Optimizers([part], named)


def refuse_told(scheduler: Any) -> None:
    """Raises UserError for a scheduler that has to be told something at each step."""
    told = [
        name
        for name, parameter in inspect.signature(scheduler.step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ] if scheduler is not None else []  # fmt: skip
    if told:
        raise UserError(
            f"optimizers: {type(scheduler).__name__}.step() wants {', '.join(told)}; the learning rate of a step "
            "follows from its number alone, so that a run can go on at any. Use one whose step() needs nothing"
        )


def _made(cls: type[Optimizer], parameters: Any, **options: Any) -> Optimizer:
    try:
        return cls(parameters, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optim_args: {cls.__name__} says: {error}") from None


def _adam(args: SFTConfig) -> dict[str, Any]:
    return {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}


def _grouped(named: Named, decay: float) -> list[dict[str, Any]]:
    matrices = [p for _, p in named if p.ndim >= 2]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _embeddings(model: torch.nn.Module) -> list[Any]:
    found = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    return [module for module in found if module is not None]


def _extra(optim_args: str | None) -> dict[str, Any]:
    extra = {}
    for pair in (optim_args or "").split(","):
        if not pair.strip():
            continue
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"optim_args: '{pair.strip()}' is not of the form name=value")
        extra[name.strip()] = yaml.safe_load(value)
    return extra


def schedule(args: SFTConfig, total_steps: int, step: int) -> float:
    """Factor on the peak learning rate at `step` (from 0), as Hugging Face's schedules give it.

    Linear warm-up from 0, then constant, a line to 0, or half a cosine to 0.
    """
    warmup = args.warmup_steps or args.warmup_ratio
    warmup = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
    if step < warmup:
        return step / max(1, warmup)
    if args.lr_scheduler_type.startswith("constant"):
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if args.lr_scheduler_type == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
