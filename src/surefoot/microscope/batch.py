"""Panels 1 and 5: what the step was made of, and how its gradient is spread over the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from surefoot.data.rows import Example
from surefoot.microscope.capture import EMBEDDINGS, Targets
from surefoot.microscope.panels import Batch, BatchExample, Layer, TensorRecord, Token
from surefoot.microscope.spell import Speller
from surefoot.model.network import Network
from surefoot.train.recompute import decoder_layers
from surefoot.train.step import Losses

EXAMPLES = 32
"""Examples of a step whose tokens are shown."""
PROMPT, COMPLETION = 160, 400
"""Tokens shown of an example's prompt (its end) and of its completion (its beginning)."""


def batch(
    examples: Sequence[Example],
    found: Losses,
    divisor: float,
    before: Targets,
    after: Targets | None,
    speller: Speller,
) -> Batch:
    """Panel 1. Examples beyond the first 32 are left out; the costliest are always in."""
    parts = [e.weight * one.loss / divisor for e, one in zip(examples, found.examples, strict=True)]
    costly = sorted(range(len(examples)), key=lambda i: -parts[i])[: EXAMPLES // 2]
    shown = sorted({*costly, *range(len(examples))[: EXAMPLES - len(costly)]})
    return Batch(
        tokens=found.tokens,
        supervised=found.supervised,
        slots=found.slots,
        micro_batches=found.micro_batches,
        divisor=divisor,
        examples=[
            _example(i, examples[i], parts[i] / found.loss if found.loss else 0.0, before, after, speller)
            for i in shown
        ],
        examples_left_out=len(examples) - len(shown),
    )


def _example(
    number: int, example: Example, share: float, before: Targets, after: Targets | None, speller: Speller
) -> BatchExample:
    first, count = before.first_E[number], example.targets
    losses = before.nll_N[first : first + count].tolist()
    later = after.nll_N[first : first + count].tolist() if after is not None else None
    left_out = max(0, len(example.prompt_ids) - PROMPT)
    tokens = [Token(text=speller.one(int(t)), id=int(t)) for t in example.prompt_ids[left_out:]]
    blind = len(example.completion_ids) - count  # without a prompt, nothing predicts the first token
    for place, token in enumerate(example.completion_ids[:COMPLETION].tolist()):
        at = place - blind
        tokens.append(
            Token(
                text=speller.one(token),
                id=token,
                loss=losses[at] if at >= 0 else None,
                loss_after=later[at] if later is not None and at >= 0 else None,
            )
        )
    return BatchExample(
        where=example.where,
        weight=example.weight,
        loss=sum(losses),
        loss_after=sum(later) if later is not None else None,
        share=share,
        supervised=count,
        left_out=left_out,
        tokens=tokens,
    )


def layer_names(network: Network) -> dict[str, str]:
    """For each trained tensor, the layer it belongs to: a decoder layer, the head, the embeddings, or the module
    that holds it. From the last layer to the first, the head before all."""
    core, of_core = network.core, {id(p): name for name, p in network.core.named_parameters()}
    ids = {id(layer) for layer in decoder_layers(network.model)}
    blocks = [name for name, module in core.named_modules() if id(module) in ids]
    ends = {id(p): EMBEDDINGS for p in core.get_input_embeddings().parameters()}
    head = core.get_output_embeddings()
    for p in head.parameters() if head is not None else ():
        ends[id(p)] = f"head and {EMBEDDINGS}" if id(p) in ends else "head"
    found = {}
    for name, p in network.model.named_parameters():
        if p.requires_grad:
            own = of_core.get(id(p), name)
            block = next((b for b in blocks if own.startswith(f"{b}.")), None)
            found[name] = ends.get(id(p)) or block or own.rpartition(".")[0]
    order = {name: place for place, name in enumerate(dict.fromkeys(found.values()))}
    return dict(
        sorted(found.items(), key=lambda item: (not item[1].startswith("head"), -order[item[1]])),
    )


def layers(tensors: Sequence[TensorRecord], rms: Mapping[str, float]) -> list[Layer]:
    """Panel 5 by layer, in the order of the tensors; layers without trained weights stand where `rms` has them."""
    grouped: dict[str, list[TensorRecord]] = {}
    for tensor in tensors:
        grouped.setdefault(tensor.layer, []).append(tensor)
    names = _merged(list(grouped), list(rms))
    found = []
    for name in names:
        parts = grouped.get(name, [])
        weight = _norm(part.weight_norm for part in parts)
        moved = [part.update_norm for part in parts if part.update_norm is not None]
        update = _norm(moved) if moved else None
        found.append(
            Layer(
                name=name,
                grad_norm=_norm(part.grad_norm for part in parts),
                share=sum(part.share for part in parts),
                hidden_grad_rms=rms.get(name),
                weight_norm=weight,
                update_norm=update,
                update_ratio=update / weight if update is not None and weight else None,
            )
        )
    return found


def _merged(trained: list[str], watched: list[str]) -> list[str]:
    """Both lists in one: each watched block that trains nothing goes before the next one that does."""
    out, rest = list(trained), [name for name in watched if name not in trained]
    for name in rest:
        later = [n for n in watched[watched.index(name) + 1 :] if n in out]
        out.insert(out.index(later[0]) if later else len(out), name)
    return out


def _norm(values) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).norm()) if values is not None else 0.0
