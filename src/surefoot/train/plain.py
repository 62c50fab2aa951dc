"""Values that a run keeps, as JSON and tensors: what JSON cannot say is said by an object with one key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surefoot.errors import UserError


def pack(value: Any, place: str, weight: torch.Tensor | None, tensors: dict[str, torch.Tensor] | None) -> Any:
    """A value as JSON takes it; its tensors go to `tensors`, under names that begin with `place`.

    `weight`: what the value belongs to; `tensors` None: there may be none. Raises UserError, naming the place, for
    what is neither a tensor, a number, a text nor a list, tuple or dict of these.
    """
    match value:
        case torch.Tensor() if tensors is not None:
            tensors[place] = value.detach().contiguous()
            there = weight is not None and value.device == weight.device
            return {"tensor": place, "device": "the weight's" if there else str(value.device)}
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple() if type(value) in (list, tuple):
            kind = type(value).__name__
            return {kind: [pack(one, f"{place}/{n}", weight, tensors) for n, one in enumerate(value)]}
        case dict():
            return {
                "dict": [
                    [pack(key, place, None, None), pack(one, f"{place}/{key}", weight, tensors)]
                    for key, one in value.items()
                ]
            }
    raise UserError(
        f"'{place}' is a {type(value).__name__}, which a checkpoint cannot hold: it takes numbers, texts, (from "
        "optimizers) tensors, and lists, tuples and dicts of these. Keep no more in an optimizer or a callback"
    )


def unpack(value: Any, weight: torch.Tensor | None, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `pack` was given. Raises KeyError or ValueError when `value` is nothing that it gives."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = ((key, one) for key, one in value.items() if key != "device")
    match kind:
        case "tensor":
            device = (
                weight.device if value["device"] == "the weight's" and weight is not None else value["device"]
            )
            return tensors[content].to(device, copy=True)
        case "list" | "tuple":
            found = [unpack(one, weight, tensors) for one in content]
            return tuple(found) if kind == "tuple" else found
        case "dict":
            return {unpack(key, None, tensors): unpack(one, weight, tensors) for key, one in content}
    raise ValueError(f"'{kind}' is no kind of value")
