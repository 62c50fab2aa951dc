"""What a step has to compute, counted from the model's shapes and the rows' token ids.

Floating point operations (one multiply-add is two) of forward and backward, all weights trained:

    linears     6 · (weights of the layers' matrices) · slots
    attention   12 · layers · heads · head width · (pairs of a token and one it sees)
    head        6 · vocabulary · hidden width · targets

With LoRA the frozen matrices have no weight gradient: 4 in place of 6, for the head too, and the adapters'
own 6 · r · (in + out) · slots come on top.

Bytes a step moves whatever its size, for each trained fp32 weight: gradient written (4), read once more for
its norm (4), AdamW: weight, gradient and two moments read, weight and moments written (28). Together 36.

Slots are the tokens of the rows as they are (no padding); with sharing, tokens that rows of one step have in
common at their beginning count once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_LEARNED = -100
"""Label of a token without a loss, as in torch."""
BYTES_A_TRAINED_WEIGHT = 36


@dataclass(frozen=True)
class Tokens:
    """A row as a trainer sees it."""

    input_ids: list[int]
    labels: list[int]
    """The token ids that are learned, NOT_LEARNED elsewhere."""

    @property
    def learned(self) -> int:
        """Supervised tokens; nothing predicts the first."""
        return sum(label != NOT_LEARNED for label in self.labels[1:])


@dataclass(frozen=True)
class Shapes:
    """A decoder with gated MLPs (Llama, Qwen, Mistral and their like)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool

    @staticmethod
    def of(config: dict[str, Any]) -> Shapes:
        """From the content of a `config.json`. Raises ValueError when it is of another kind of model."""
        try:
            heads = config["num_attention_heads"]
            return Shapes(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                heads=heads,
                key_value_heads=config.get("num_key_value_heads") or heads,
                head_width=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings")),
            )
        except KeyError as missing:
            raise ValueError(
                f"config.json has no {missing}: the shapes of this model are not known"
            ) from None

    @staticmethod
    def read(folder: Path) -> Shapes:
        """From a model's folder."""
        return Shapes.of(json.loads((folder / "config.json").read_text()))

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(out, in) of each matrix of one layer."""
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        attention = [(queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries)]
        mlp = [(self.intermediate, self.hidden)] * 2 + [(self.hidden, self.intermediate)]
        return attention + mlp

    @property
    def matrix_weights(self) -> int:
        """Weights of all layers' matrices, without embeddings and head."""
        return self.layers * sum(out * width for out, width in self.linears)

    @property
    def weights(self) -> int:
        """All weights but the norms'."""
        return self.matrix_weights + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_weights(self, rank: int) -> int:
        """Weights of a LoRA adapter on all linear layers."""
        return self.layers * sum(rank * (out + width) for out, width in self.linears)


@dataclass(frozen=True)
class Work:
    """What the rows of a step come to."""

    slots: int
    pairs: int
    """(token, token it sees), itself included."""
    targets: int


def apart(rows: Sequence[Tokens]) -> Work:
    """Every row on its own."""
    lengths = [len(row.input_ids) for row in rows]
    return Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), sum(row.learned for row in rows))


def shared(rows: Sequence[Tokens]) -> Work:
    """Rows of one step merged where they begin alike; equal targets at a shared token count once."""
    slots = pairs = targets = 0
    before: list[int] = []
    for row in sorted(rows, key=lambda row: row.input_ids):
        ids, same = row.input_ids, common(before, row.input_ids)
        slots += len(ids) - same
        pairs += (len(ids) * (len(ids) + 1) - same * (same + 1)) // 2
        targets += sum(label != NOT_LEARNED for label in row.labels[max(same, 1) :])
        before = ids
    return Work(slots, pairs, targets)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def flops(shapes: Shapes, work: Work, lora_r: int = 0) -> float:
    """Floating point operations of a step (forward and backward)."""
    factor = 4 if lora_r else 6
    linears = (factor * shapes.matrix_weights + 6 * shapes.adapter_weights(lora_r)) * work.slots
    attention = 12 * shapes.layers * shapes.heads * shapes.head_width * work.pairs
    return float(linears + attention + factor * shapes.vocabulary * shapes.hidden * work.targets)


def moved_bytes(shapes: Shapes, lora_r: int = 0) -> float:
    """Bytes of gradient and optimizer state that a step moves."""
    return float(BYTES_A_TRAINED_WEIGHT * (shapes.adapter_weights(lora_r) if lora_r else shapes.weights))


def ideal_seconds(shapes: Shapes, work: Work, rate: float, bandwidth: float, lora_r: int = 0) -> float:
    """Shortest time of a step: `rate` in FLOP/s, `bandwidth` in bytes/s."""
    return flops(shapes, work, lora_r) / rate + moved_bytes(shapes, lora_r) / bandwidth
