"""Before the first step: the ranks make sure that they are about to do the same, and decide who holds what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from surefoot.errors import UserError
from surefoot.ranks import local_ranks, me, most, ranks, texts, together
from surefoot.train import hardware

WHOLE_SHARE = 0.5
"""With shard=auto every rank holds all weights if gradients and optimizer state take at most this share of what is
free: the rest is for activations."""
OWN = ("disable_tqdm", "ddp_timeout", "report_to")
"""Options that ranks may differ in."""


def same_everywhere(described: Mapping[str, Any]) -> None:
    """Raises UserError on all ranks, naming the odd one and both values, when one is about to train another run:
    other options, versions, weights, tokenizer, template or rows. `described`: what run.json will say."""
    if ranks() == 1:
        return
    mine = dict(_flat({key: described[key] for key in ("hashes", "versions", "step_rows", "total_steps")}))
    mine |= {
        f"config.{key}": json.dumps(value) for key, value in described["config"].items() if key not in OWN
    }
    mine |= {
        f"rows of '{name}'.{key}": str(part[key])
        for name, part in described["data"].items()
        for key in ("fingerprint", "examples")
    }
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(texts(digest))) == 1:
        return
    everyone = [json.loads(said) for said in texts(json.dumps([me(), mine]))]
    together(lambda: _refuse(everyone))


def _flat(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{key}.{inner}", str(one))
        for key, value in content.items()
        for inner, one in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]


def _refuse(everyone: Sequence[tuple[str, dict[str, str]]]) -> None:
    first, want = everyone[0]
    found = [
        f"{name.rstrip('.')}: {want.get(name, 'nothing')} on {first}, {said.get(name, 'nothing')} on {who}"
        for who, said in everyone[1:]
        for name in sorted(want.keys() | said.keys())
        if want.get(name) != said.get(name)
    ]
    listed = "\n  ".join(found[:20])
    raise UserError(
        f"the ranks do not agree on what to train:\n  {listed}\nStart all of them with the same command, the same "
        "versions, and the same files"
    )


def to_be_cut(
    parameters: Iterable[torch.Tensor], place: torch.device, asked: str, *, loaded: bool = True
) -> tuple[bool, str]:
    """Whether the weights are to be cut into a piece for each rank, and why, in words. Nothing to cut with one.

    `asked`: the option `shard`; `loaded`: each rank holds the weights already. All ranks must call it.
    """
    if ranks() == 1:
        return False, ""
    weights = list(parameters)
    needed = 3 * sum(
        p.nbytes for p in weights if p.requires_grad
    )  # gradients, and AdamW's two numbers a weight
    needed += 0 if loaded else sum(p.nbytes for p in weights)
    free = -most([-_free(place)])[0]
    cut = asked == "full" or (asked == "auto" and needed > WHOLE_SHARE * free)
    how = f"{'weights are cut over' if cut else 'all weights are on each of'} {ranks()} ranks"
    if asked != "auto":
        return cut, f"{how}, as shard says"
    what = "gradients and optimizer state" if loaded else "weights, gradients and optimizer state"
    return cut, (
        f"{how}: {what} take {needed / 1e9:.1f} GB, {'more' if cut else 'no more'} than {WHOLE_SHARE:.0%} of the "
        f"{free / 1e9:.1f} GB that are free for each"
    )


def _free(place: torch.device) -> float:
    """What is free for this rank: on a CPU, its part of the machine's."""
    return hardware.free_bytes(place) / (local_ranks() if place.type == "cpu" else 1)
