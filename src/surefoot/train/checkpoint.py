"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, committed by rename."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from surefoot.errors import UserError
from surefoot.train.optim import Optimizers


@dataclass
class Progress:
    """Where a run is. Order of data, learning rate and dropout follow from `step`, so they are not in it."""

    step: int = 0
    num_tokens: int = 0
    loss_sum: float = 0.0
    """Of all steps, for the final train_loss."""
    unlogged: dict[str, float] = field(default_factory=dict)
    """Sums since the last log entry."""
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_better: int = 0
    micro_batch_tokens: int = 0
    """The planner's budget: it decides the order of summation, so a resumed run uses the same."""
    events_size: int = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)


def save(folder: Path, model: torch.nn.Module, optimizers: Optimizers, progress: Progress) -> Path:
    """Write checkpoint `step-N` under `folder` and return its path; it is there whole, or not at all."""
    final = folder / f"step-{progress.step:08d}"
    if final.is_dir():
        return final
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors, plain = optimizers.state()
    save_file(_trained(model), partial / "weights.safetensors")
    save_file(tensors, partial / "optimizer.safetensors")
    content = {"progress": asdict(progress), "optimizer": plain}
    (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
    partial.replace(final)
    return final


def load(path: Path, model: torch.nn.Module, optimizers: Optimizers) -> Progress:
    """Put weights and optimizer state back. Raises UserError when the checkpoint does not fit the model."""
    progress, plain = _state(path)
    try:
        weights = load_file(path / "weights.safetensors")
        tensors = load_file(path / "optimizer.safetensors")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read: {error}") from None
    load_weights(path, model, weights)
    optimizers.load_state(tensors, plain)
    return progress


def progress_of(path: Path) -> Progress:
    """Where the run was. Raises UserError when the checkpoint cannot be read."""
    return _state(path)[0]


def _state(path: Path) -> tuple[Progress, dict[str, Any]]:
    """What of a checkpoint is no tensor: the progress, and the plain values of the optimizer's state."""
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Progress(**content["progress"]), content["optimizer"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint that can be read: {error}") from None


def load_weights(path: Path, model: torch.nn.Module, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Put the trained weights back."""
    weights = load_file(path / "weights.safetensors") if weights is None else weights
    own = _trained(model)
    if set(own) != set(weights) or any(own[name].shape != weights[name].shape for name in own):
        odd = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        raise UserError(f"{path}: the checkpoint is of another model or another choice of weights ({odd[0]})")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder`, by step."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def retain(folder: Path, limit: int | None, best_step: int | None) -> None:
    """Delete all but the newest `limit` checkpoints and the best one."""
    if limit is None:
        return
    best = f"step-{best_step:08d}" if best_step is not None else None
    for path in sorted(folder.glob("step-*"))[:-limit]:
        if path.name != best:
            shutil.rmtree(path)


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
