"""What was measured of a model on this machine, kept for the next run: one JSON file in the cache folder."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import surefoot
from surefoot.data.cache import cache_folder
from surefoot.model.network import Network
from surefoot.ranks import rank, ranks, told
from surefoot.train import hardware
from surefoot.train.memory import Footprint


class Book:
    """What was measured of this model on this machine with this code, in the cache folder."""

    def __init__(self, network: Network) -> None:
        key = hashlib.sha256(json.dumps(_identity(network)).encode()).hexdigest()[:16]
        self.path = cache_folder() / "plans" / f"{key}.json"
        text = ""
        if rank() == 0:  # what it remembers, all do: they must choose alike
            with suppress(OSError, ValueError):
                text = self.path.read_text(encoding="utf-8")
        try:
            content = json.loads(told(text))
        except ValueError:
            content = {}
        self.content: dict[str, Any] = content if isinstance(content, dict) else {}

    @staticmethod
    def length_class(step: float) -> str:
        """Steps of like length have like speeds."""
        return str(int(step).bit_length())

    def footprint(self) -> Footprint | None:
        try:
            return Footprint(**self.content["footprint"])
        except (KeyError, TypeError):
            return None

    def all_speeds(self) -> dict[str, dict[str, float]]:
        return self.content.get("speeds", {})

    def speeds(self, step: float) -> dict[str, float]:
        return self.all_speeds().get(self.length_class(step), {})

    def write(self, footprint: Footprint | None = None, speeds: dict[str, Any] | None = None) -> list[str]:
        """Remember; returns what went wrong, in words."""
        if footprint is not None:
            self.content["footprint"] = asdict(footprint)
        if speeds is not None:
            self.content["speeds"] = speeds
        if rank() > 0:
            return []
        partial = self.path.with_suffix(".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.content), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            return [f"it could not be remembered: {error}"]
        return []


def _identity(network: Network) -> list[str]:
    """All that memory and speed of a model depend on, but the rows."""
    code = hashlib.sha256()
    for file in sorted(Path(surefoot.__file__).parent.rglob("*.py")):
        if file.parent.name in ("model", "train", "data"):
            code.update(file.read_bytes())
    weights = [(name, str(p.dtype), p.requires_grad) for name, p in network.model.named_parameters()]
    return [
        hardware.name(network.device),
        str(torch.get_num_threads()),
        torch.__version__,
        surefoot.__version__,
        code.hexdigest(),
        network.core.config.to_json_string(use_diff=False),
        hashlib.sha256(repr(weights).encode()).hexdigest(),
        str(network.product_dtype),
        str((network.packed, network.head is None)),
        str((ranks(), network.root is not None)),
    ]
