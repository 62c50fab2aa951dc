"""Prints the tables of docs/scale.md: bytes that ranks send, and the tokens behind which sending can hide.

python docs/scale.py   (needs the extra `lora`; models are built without their weights, in seconds)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from surefoot.cards import card
from surefoot.config import SFTConfig
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.flops import Costs, costs
from surefoot.model.network import Network
from surefoot.train.distributed import only_multiplies
from surefoot.train.paper import LINK_REACHED, MFU, NODE
from surefoot.train.recompute import decoder_layers

MODELS: dict[str, Any] = {
    "0.5 B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "1.7 B": Qwen3Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "8 B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
"""The shapes of Qwen2.5-0.5B, Qwen3-1.7B and Llama-3.1-8B."""
RANKS = (8, 64, 512)
ROW = 1024
"""Tokens of a row, of which"""
LEARNED = 0.5
"""are learned."""
CARD = "H100"
NETWORK = 50e9
"""Bytes a second that each GPU has between machines: 400 Gbit/s."""


@dataclass(frozen=True)
class Shape:
    """What a way of training one model sends and computes."""

    name: str
    layers: int
    """Bytes of the decoder layers' weights, as they are gathered."""
    rest: int
    """Of all other weights, and those that go with them."""
    trained: int
    """Weights that train, fp32."""
    costs: Costs

    def sent(self, ranks: int, shard: str) -> float:
        """Bytes that each rank sends: a step with none, a micro-batch with full."""
        others = (ranks - 1) / ranks
        if shard == "none":
            return 2 * others * 4 * self.trained
        return others * (2 * self.layers + self.rest + 4 * self.trained)

    def tokens(self, ranks: int, shard: str) -> float:
        """Tokens of a rank that take as long to compute as that takes to send, at worst: compute as fast and the
        links as slow as is assumed."""
        known = card(CARD)
        assert known is not None
        token = self.costs.slot + LEARNED * self.costs.target + self.costs.pair * (ROW + 1) / 2
        seconds = self.sent(ranks, shard) / (link(ranks) * LINK_REACHED[0])
        return seconds * known.flops * MFU[1] / token


def link(ranks: int) -> float:
    """Bytes a second out of a rank: of a ring's neighbours in a machine one pair is on different machines, so that
    the machine's cards for the network share the way out."""
    known = card(CARD)
    assert known is not None
    return known.link if ranks <= NODE else min(known.link, NODE * NETWORK)


def shapes() -> list[Shape]:
    """Each model, all weights and LoRA."""
    found = []
    for name, config in MODELS.items():
        for peft in (False, True):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=torch.bfloat16 if peft else torch.float32
                )
                if peft:
                    model = adapt(model, lora_config(SFTConfig(use_peft=True)))
            trained = [p for p in model.parameters() if p.requires_grad]
            network = Network(model, torch.bfloat16)
            of_layers = [p for layer in decoder_layers(model) for p in layer.parameters()]
            layers = sum(map(_bytes, of_layers))
            rest = sum(map(_bytes, model.parameters())) - layers
            if all(only_multiplies(network, layer) for layer in decoder_layers(model)):
                layers = sum(2 * p.numel() for p in of_layers if p.ndim > 1)
                rest += sum(_bytes(p) for p in of_layers if p.ndim < 2)
            found.append(
                Shape(
                    f"{name}, {'LoRA' if peft else 'all weights'}",
                    layers,
                    rest,
                    sum(p.numel() for p in trained),
                    costs(model),
                )
            )
    return found


def _bytes(weight: torch.nn.Parameter) -> int:
    return weight.numel() * (4 if weight.requires_grad else weight.itemsize)


def _giga(size: float) -> str:
    return f"{size / 1e9:,.3f}" if size < 1e9 else f"{size / 1e9:,.1f}"


def _tokens(count: float) -> str:
    return f"{max(1, round(count)):,}" if count < 1000 else f"{round(count, -2):,.0f}"


def table() -> str:
    """As the page has it."""
    lines = [
        "| | trained weights | GB a step, none | tokens to hide it: 8 / 64 / 512 | GB a micro-batch, full | "
        "tokens to hide it: 8 / 64 / 512 |",
        "|---|---|---|---|---|---|",
    ]
    for shape in shapes():
        cells = [shape.name, f"{shape.trained / 1e6:,.0f} M"]
        for shard in ("none", "full"):
            cells.append(_giga(shape.sent(64, shard)))
            cells.append(" / ".join(_tokens(shape.tokens(ranks, shard)) for ranks in RANKS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
