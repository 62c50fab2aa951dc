"""What run a checkpoint is of, and whether a run of now may go on from it.

Exact resumption needs the same rows, tokenizer, template, base model and options. What changes only how a run is
looked at is free to change; what changes only the rounding (another machine, another version) is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.model.network import unwrapped
from surefoot.ranks import rank, ranks, texts
from surefoot.train.tensorfile import bytes_of

LOOKING = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "logging_first_step"),
    *("report_to", "run_name", "tags", "project", "trackio_space_id", "disable_tqdm"),
    *("save_strategy", "save_steps", "save_total_limit", "eval_samples", "watch", "watch_steps"),
    *("slides", "slide_every", "slide_mountain", "slide_extras", "slides_from_ui", "tensors_every"),
    "ddp_timeout",
)
"""Options that change what is seen and kept of a run, not the run."""
HASHED = (
    *("model_name_or_path", "model_revision", "chat_template_path"),
    *("dataset_name", "eval_dataset_name", "dataset_test_split"),
)
"""Options that name what is hashed: a file may move."""
JUDGING = (
    *("eval_strategy", "eval_steps", "eval_on_start", "eval_exact_match", "max_new_tokens"),
    *("metric_for_best_model", "greater_is_better"),
)
"""Options that change the run only where evaluations decide something."""
DECIDING = ("load_best_model_at_end", "early_stopping_patience")
ROUNDING = (
    *("micro_batch_tokens", "share_prefixes", "gradient_checkpointing", "activation_offloading"),
    *("torch_compile", "shard", "use_cpu"),
)
"""Options that change the order of summation."""
ALONE = {"ranks": 1, "sharded": False}
"""The machine of a version that knew one process only."""
WORDS = {
    "base_model": "the base model's weights",
    "chat_template": "the chat template",
    "tokenizer": "the tokenizer",
    "model_config": "the model's config",
}


@dataclass(frozen=True)
class Difference:
    """How a run of now differs from the one that was begun."""

    refused: tuple[str, ...]
    """It would be another run."""
    rounding: tuple[str, ...]
    """It is the same run, but its numbers may differ in the last bits."""


def identity(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of run.json says which run this is."""
    found = {key: described[key] for key in ("hashes", "versions", "total_steps")}
    found["step_rows"] = rows_then(described)
    machine = {**described["machine"], "products": described["model"]["products"]}
    config = {key: value for key, value in described["config"].items() if key not in LOOKING}
    if config["eval_strategy"] == "steps" and config["eval_steps"] is None:  # log entries bring evaluations
        config["eval_steps"] = described["config"]["logging_steps"]
    data = {
        name: {key: part[key] for key in ("examples", "fingerprint")}
        for name, part in described["data"].items()
    }
    return {**found, "machine": machine, "config": config, "data": data}


def rows_then(described: Mapping[str, Any]) -> int:
    """Rows of a step of the run that run.json, or an `identity`, is of. Versions that did not write that down knew
    one process only. Raises KeyError or TypeError when it does not tell."""
    if "step_rows" in described:
        return described["step_rows"]
    config = {**SFTConfig().to_dict(), **described["config"]}
    return config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Difference:
    """Both as `identity` gives them, `then` maybe of an older version. Raises UserError when `then` is none."""
    try:
        refused = [*_hashes(then, now), *_data(then, now), *_config(then["config"], now["config"])]
        if not refused and rows_then(then) != rows_then(now):
            refused = [f"the rows of a step: {rows_then(then)} then, {rows_then(now)} now"]
        rounding = [*_rounding(then, now)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"what run it is of cannot be read ({type(error).__name__}: {error}). Name another output_dir, or "
            "start over in this one with overwrite_output_dir=true"
        ) from None
    if not refused and then["total_steps"] != now["total_steps"]:
        refused = [f"the number of steps: {then['total_steps']:,} then, {now['total_steps']:,} now"]
    return Difference(tuple(refused), tuple(rounding))


def _hashes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = then["hashes"], now["hashes"]
    return [
        f"{word}: sha256 {before[name][:12]}… then, {after[name][:12]}… now"
        for name, word in WORDS.items()
        if before[name] != after[name]
    ]


def _data(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = then["data"], now["data"]
    names = {*before, *after} if _decides(now["config"]) else {"train"}
    return [
        said for name in sorted(names) if (said := _rows(name, before.get(name), after.get(name))) is not None
    ]


def _rows(name: str, before: Mapping[str, str] | None, after: Mapping[str, str] | None) -> str | None:
    """How rows differ. What is learned of them decides; if that differs, the rows as they were read tell why."""
    if before is None or after is None:
        return (
            None if before == after else f"the rows of '{name}': {'none' if before is None else 'some'} then"
        )
    if before["examples"] == after["examples"]:
        return None
    what, key = f"the rows of '{name}' (edited, or in another order)", "fingerprint"
    if before[key] == after[key]:  # of a stream nothing is known but what is learned
        what, key = f"what is learned of the rows of '{name}' (they become other tokens)", "examples"
        what = what if before["fingerprint"] else f"the rows of '{name}', or what is learned of them"
    return f"{what}: sha256 {before[key][:12]}… then, {after[key][:12]}… now"


def _config(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    free = {*HASHED, *ROUNDING}
    if not _decides(after):
        free |= set(JUDGING)
    before = {**SFTConfig().to_dict(), **before}  # what an older version did not know was as it is by default
    return [
        f"{name}: {before[name]!r} then, {value!r} now"
        for name, value in after.items()
        if name not in free and before[name] != value
    ]


def _decides(config: Mapping[str, Any]) -> bool:
    """Whether evaluations decide when the run ends, or with which weights."""
    return any(config[name] for name in DECIDING)


def _rounding(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then = {
        **then,
        "config": {**SFTConfig().to_dict(), **then["config"]},
        "machine": {**ALONE, **then["machine"]},
    }
    places = [
        ("machine", "device"),
        ("machine", "threads"),
        ("machine", "ranks"),
        ("machine", "sharded"),
        ("machine", "products"),
        *[("versions", name) for name in now["versions"]],
    ]
    places += [("config", name) for name in ROUNDING]
    return [
        f"{name}: {then[part].get(name)!r} then, {now[part].get(name)!r} now"
        for part, name in places
        if then[part].get(name) != now[part].get(name)
    ]


def weights_digest(model: torch.nn.Module, *, frozen_only: bool = False, base_only: bool = False) -> str:
    """sha256 of a model's weights; `frozen_only`: of those that do not train; `base_only`: of the model inside an
    adapter, as it was without it.

    Of a sharded model all ranks must call it, and get the digest that one rank would: the weights are gathered one
    after the other, and hashed by the ranks in turn.
    """
    weights = [
        (name.replace(".base_layer.", "."), p.detach())
        for name, p in (unwrapped(model) if base_only else model).named_parameters(remove_duplicate=True)
        if not ((frozen_only or base_only) and p.requires_grad)
    ]
    if not any(isinstance(weight, DTensor) for _, weight in weights):
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashing lets go of Python's lock
            return hashlib.sha256(b"".join(pool.map(_digest, weights))).hexdigest()
    own = {}
    for number, (name, weight) in enumerate(weights):
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if number % ranks() == rank():
            own[number] = _digest((name, whole)).hex()
    found = {
        int(number): digest for said in texts(json.dumps(own)) for number, digest in json.loads(said).items()
    }
    return hashlib.sha256(bytes.fromhex("".join(found[number] for number in sorted(found)))).hexdigest()


def _digest(item: tuple[str, torch.Tensor]) -> bytes:
    name, weight = item
    digest = hashlib.sha256(f"{name} {weight.dtype} {list(weight.shape)}\0".encode())
    digest.update(bytes_of(weight))
    return digest.digest()
