"""A slide whose numbers belong together: one real update of a toy model, small enough to be plain NumPy.

The model: h_l = GAIN · h_{l−1} + s_l · b_l, logits = W h_L. W [V, D] and every b_l [N, D] are trained, N targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from surefoot.microscope.panels import (
    Backward,
    Batch,
    BatchExample,
    Candidate,
    ChosenWeight,
    Head,
    HeadRow,
    Histogram,
    Layer,
    Mountain,
    OptimizerRecord,
    Position,
    Rest,
    Stage,
    TensorRecord,
    Token,
    WatchedText,
    Weights,
)
from surefoot.microscope.slide import Opened, Slide

VOCABULARY, WIDTH, BLOCKS, GAIN = 49_152, 32, 30, 1.03
WHERE = "capitals.jsonl:5"
PROMPT = ["<|im_start|>", "user", "\n", "What", " is", " the", " capital", " of", " California", "?",
          "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]  # fmt: skip
LEARNED = [" Sac", "ramento", "<|im_end|>"]
LIKELY = [
    {" Los": 0.5777, " San": 0.2917, " Sac": 0.0188, " California": 0.0164, " C": 0.0088, " Oakland": 0.0061},
    {"ramento": 0.9931, "ra": 0.0022},
    {"<|im_end|>": 0.6, ".": 0.35},
]
WATCHED = (" San", " Los", " Boston")
NAMES = [*PROMPT[:3], *LEARNED, " Los", " San", " Boston", " California", " C", " Oakland", "ra", "."]

Update = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(gradient, weights) → Δ."""


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def name_of(token: int) -> str:
    return NAMES[token] if token < len(NAMES) else f" word{token}"


def bf16(values: np.ndarray) -> np.ndarray:
    """Top 16 bits of float32, rounded to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Toy:
    """Weights, and what follows from them."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.scales = 0.5 + np.linspace(1.0, 0.1, BLOCKS) + 0.3 * random.random(BLOCKS)
        self.blocks = random.normal(size=(BLOCKS, len(LEARNED), WIDTH)) * 0.2
        self.head = random.normal(size=(VOCABULARY, WIDTH)) * 0.2
        hidden = self.hidden()[-1]
        for h, wanted in zip(hidden, LIKELY, strict=True):
            ids = [NAMES.index(name) for name in wanted]
            p = np.array(list(wanted.values()))
            others = np.delete(self.head @ h, ids)
            logits = np.log(p) + np.log(np.exp(others).sum()) - math.log(1 - p.sum())
            self.head[ids] += np.outer((logits - self.head[ids] @ h) / (h @ h), h)

    def hidden(self) -> np.ndarray:
        """[BLOCKS, N, D]: output of every block."""
        h, outputs = np.zeros_like(self.blocks[0]), []
        for scale, block in zip(self.scales, self.blocks, strict=True):
            h = GAIN * h + scale * block
            outputs.append(h)
        return np.array(outputs)

    def moved(self, head: np.ndarray | float, blocks: np.ndarray | float) -> Toy:
        other = object.__new__(Toy)
        other.scales, other.head, other.blocks = self.scales, self.head + head, self.blocks + blocks
        return other

    def p(self) -> np.ndarray:
        """[N, V]."""
        return softmax(self.hidden()[-1] @ self.head.T)

    def loss(self) -> float:
        return float(np.mean(-np.log(self.p()[range(len(LEARNED)), labels()])))


def labels() -> list[int]:
    return [NAMES.index(name) for name in LEARNED]


def sgd(learning_rate: float) -> Update:
    return lambda g, _: -learning_rate * g


def adamw(learning_rate: float, decay: float = 0.0) -> Update:
    """The first step: m̂ = g and v̂ = g²."""
    return lambda g, w: -learning_rate * (g / (np.abs(g) + 1e-8) + decay * w)


def sample(optimizer: str = "sgd", *, step: int = 1, largest_norm: float = 0.0, **changed: Any) -> Opened:
    """One update of the toy model by `optimizer` (sgd or adamw), clipped to `largest_norm` (0: not);
    `changed` fields of the slide win."""
    toy = Toy()
    rate = {"sgd": 0.002, "adamw": 1e-3}[optimizer]
    update = sgd(rate) if optimizer == "sgd" else adamw(rate, decay=0.01)
    p, hidden, count = toy.p(), toy.hidden(), len(LEARNED)
    error = p.copy()
    error[range(count), labels()] -= 1
    error /= count
    head_grad = error.T @ hidden[-1]
    down = error @ toy.head
    deltas = np.array([down * GAIN ** (BLOCKS - 1 - layer) for layer in range(BLOCKS)])
    block_grad = deltas * toy.scales[:, None, None]
    whole = math.hypot(np.linalg.norm(head_grad), np.linalg.norm(block_grad))
    clip = min(1.0, largest_norm / whole) if largest_norm else 1.0
    move_head, move_blocks = update(head_grad * clip, toy.head), update(block_grad * clip, toy.blocks)
    after = toy.moved(move_head, move_blocks)
    only_head, only_body = toy.moved(move_head, 0.0), toy.moved(0.0, move_blocks)
    later = [t.p() for t in (after, only_head, only_body)]
    promised = float((head_grad * move_head).sum() + (block_grad * move_blocks).sum())
    loss_before, loss_after = toy.loss(), after.loss()

    norms = [float(np.linalg.norm(head_grad)), *(float(np.linalg.norm(g)) for g in block_grad[::-1])]
    sizes = [toy.head, *toy.blocks[::-1]]
    moves = [move_head, *move_blocks[::-1]]
    names = ["lm_head", *(f"layers.{n}" for n in range(BLOCKS - 1, -1, -1))]
    layers = [
        Layer(
            name=name,
            grad_norm=norm,
            share=norm**2 / whole**2,
            hidden_grad_rms=None if n == 0 else float(np.sqrt(np.mean(deltas[BLOCKS - n] ** 2))),
            weight_norm=float(np.linalg.norm(weight)),
            update_norm=float(np.linalg.norm(move)),
            update_ratio=float(np.linalg.norm(move) / np.linalg.norm(weight)),
        )
        for n, (name, norm, weight, move) in enumerate(zip(names, norms, sizes, moves, strict=True))
    ]
    tensors = [
        TensorRecord(
            name=f"{layer.name}.weight",
            shape=list(weight.shape),
            dtype="float32",
            layer=layer.name,
            grad_norm=layer.grad_norm,
            share=layer.share,
            zero_share=0.0,
            weight_norm=layer.weight_norm,
            update_norm=layer.update_norm,
            update_ratio=layer.update_ratio,
            lost_share=float(np.mean(bf16(weight) == bf16(weight + move))),
            rms={"g": layer.grad_norm / weight.size**0.5, "Δ": layer.update_norm / weight.size**0.5},
        )
        for layer, weight, move in zip(layers, sizes, moves, strict=True)
    ]

    arrays = {"hidden": hidden[-1].astype(np.float32), "flows_back": down.astype(np.float32)}
    positions = []
    for t in range(count):
        arrays[f"positions.{t}.hidden"] = hidden[-1][t].astype(np.float32)
        arrays[f"positions.{t}.flows_back"] = down[t].astype(np.float32)
        positions.append(_position(t, toy, p, later, error, hidden[-1], down))

    old = np.concatenate([w.ravel() for w in sizes]).astype(np.float32)
    new = np.concatenate([(w + m).ravel() for w, m in zip(sizes, moves, strict=True)]).astype(np.float32)
    edges = np.linspace(-1.2, 1.2, 61)
    lost = int((bf16(old) == bf16(new))[old != new].sum())
    asked = int((old != new).sum())
    change = np.log10(np.abs(new - old)[old != new].astype(np.float64))
    for name, values in (("before", old), ("after", new)):
        arrays[f"weights.{name}"] = np.bincount(values.view(np.uint32) >> 16, minlength=65536).astype(
            np.int64
        )
    weights = Weights(
        count=old.size,
        dtype="float32",
        asked=asked,
        lost=lost,
        lost_share=lost / asked,
        lost_means="kept: the weights are float32; only their bf16 copies are unchanged",
        stored_lost=int(old.size - asked),
        weight_norm=float(np.linalg.norm(old)),
        update_norm=float(np.linalg.norm(new - old)),
        update_ratio=float(np.linalg.norm(new - old) / np.linalg.norm(old)),
        before=_histogram(old, edges),
        after=_histogram(new, edges),
        change=_histogram(change, np.linspace(-12, 0, 49)),
        counts_before="weights.before",
        counts_after="weights.after",
    )

    along = np.linspace(-1, 3, 9).tolist()
    losses = [toy.moved(move_head * a, move_blocks * a).loss() for a in along]
    curvature = 2 * (loss_after - loss_before - promised)
    mountain = Mountain(
        probe="the step's own rows",
        caption=f"a 1-D cut through {old.size:,} dimensions, on this probe batch",
        along=along,
        losses=losses,
        slope=promised,
        curvature=curvature,
        lowest_at=-promised / curvature if curvature > 0 else None,
    )
    before_losses = -np.log(p[range(count), labels()])
    after_losses = -np.log(later[0][range(count), labels()])
    tokens = [Token(text=text, id=n) for n, text in enumerate(PROMPT)]
    tokens += [
        Token(text=text, id=NAMES.index(text), loss=float(b), loss_after=float(a))
        for text, b, a in zip(LEARNED, before_losses, after_losses, strict=True)
    ]
    example = BatchExample(
        where=WHERE,
        weight=1.0,
        loss=float(before_losses.sum()),
        loss_after=float(after_losses.sum()),
        share=1.0,
        supervised=count,
        left_out=0,
        tokens=tokens,
    )
    watched = [
        WatchedText(
            text="Sacramento",
            tokens=LEARNED[:2],
            p_before=float(np.exp(-before_losses[:2].sum())),
            p_after=float(np.exp(-after_losses[:2].sum())),
        )
    ]
    fields: dict[str, Any] = {
        "step": step,
        "model": "smollm2-135m",
        "opened_because": "asked for",
        "precision": {"weights": "float32", "products": "float32"},
        "headline": f"Step {step}: loss on this batch {loss_before:.2f} → {loss_after:.2f}; the slope promised "
        f"{promised:.2f}, the step gave {loss_after - loss_before:.2f}.".replace("-", "−"),
        "notes": [],
        "alerts": [],
        "loss_before": loss_before,
        "loss_after": loss_after,
        "promised": promised,
        "obtained": loss_after - loss_before,
        "batch": Batch(
            tokens=len(tokens),
            supervised=count,
            slots=len(tokens),
            micro_batches=1,
            divisor=float(count),
            examples=[example],
            examples_left_out=0,
        ),
        "positions": positions,
        "watched": watched,
        "head": Head(
            trained=True,
            tied=False,
            scale=1.0,
            softcap=None,
            bias=False,
            rows=[_head_row(n, head_grad[n], error[:, n], hidden[-1]) for n in _shown()],
            top_rows=[
                _head_row(int(n), head_grad[n], error[:, n], hidden[-1])
                for n in np.argsort(-np.linalg.norm(head_grad, axis=1))[:10]
            ],
            norms=_histogram(np.log10(np.linalg.norm(head_grad, axis=1)), np.linspace(-9, 2, 45)),
        ),
        "backward": Backward(grad_norm=whole, max_grad_norm=largest_norm, clip_factor=clip),
        "layers": layers,
        "tensors": tensors,
        "optimizer": OptimizerRecord(
            name=optimizer,
            learning_rate=rate,
            settings={"weight_decay": 0.01 * (optimizer == "adamw")},
            updates_before=0,
        ),
        "chosen": _chosen(optimizer, rate, clip, toy, head_grad, block_grad, move_head, move_blocks),
        "weights": weights,
        "mountain": mountain,
        "seconds": {"step": 0.5, "plain": 0.2},
    }
    return Opened(slide=Slide(**{**fields, **changed}), arrays=arrays)


def _shown() -> list[int]:
    return [NAMES.index(name) for name in (" Sac", *WATCHED)]


def _head_row(token: int, row: np.ndarray, error: np.ndarray, hidden: np.ndarray) -> HeadRow:
    formula = sum(np.float32(e) * h.astype(np.float32) for e, h in zip(error, hidden, strict=True))
    return HeadRow(
        token=name_of(token),
        id=token,
        norm=float(np.linalg.norm(row)),
        max_abs_difference_from_autograd=float(np.abs(formula - row).max()),
        largest=float(np.abs(row).max()),
    )


def _position(
    t: int,
    toy: Toy,
    p: np.ndarray,
    later: Sequence[np.ndarray],
    error: np.ndarray,
    hidden: np.ndarray,
    down: np.ndarray,
) -> Position:
    after, head, body = (q[t] for q in later)
    now, target, count = p[t], labels()[t], len(LEARNED)
    logits = toy.head @ hidden[t]
    ranks, ranks_after = (np.argsort(np.argsort(-q)) + 1 for q in (now, after))
    watched = [NAMES.index(name) for name in WATCHED] if t == 0 else []
    union = {*np.argsort(-now)[:20].tolist(), *np.argsort(-after)[:10].tolist(), target, *watched}
    ids = sorted(union, key=lambda n: -now[n])
    candidates = [
        Candidate(
            token=name_of(n),
            id=n,
            is_target=n == target,
            is_watched=n in watched,
            p_before=now[n],
            rank_before=int(ranks[n]),
            logit_before=logits[n],
            error=error[t, n],
            error_raw=error[t, n] * count,
            error_product=error[t, n],
            p_after=after[n],
            rank_after=int(ranks_after[n]),
            p_head=head[n],
            p_body=body[n],
        )
        for n in ids
    ]
    return Position(
        where=WHERE,
        index=t,
        token=([*PROMPT[-1:], *LEARNED])[t],
        target=LEARNED[t],
        target_id=target,
        weight=1 / count,
        loss_before=float(-np.log(now[target])),
        rank_before=int(ranks[target]),
        entropy_before=float(-(now * np.log(now)).sum()),
        loss_after=float(-np.log(after[target])),
        rank_after=int(ranks_after[target]),
        entropy_after=float(-(after * np.log(after)).sum()),
        kl=float((now * np.log(now / after)).sum()),
        candidates=candidates,
        rest=Rest(
            tokens=VOCABULARY - len(ids),
            p_before=float(np.delete(now, ids).sum()),
            error=float(np.delete(error[t], ids).sum()),
            p_after=float(np.delete(after, ids).sum()),
        ),
        error_sum=float(error[t].sum()),
        hidden_norm=float(np.linalg.norm(hidden[t])),
        hidden=f"positions.{t}.hidden",
        flows_back=f"positions.{t}.flows_back",
        flows_back_norm=float(np.linalg.norm(down[t])),
        head_rows=[
            _head_row(n, error[t, n] * hidden[t], error[t : t + 1, n], hidden[t : t + 1])
            for n in ([target, *watched])
        ],
    )


def _histogram(values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts = np.histogram(values, edges)[0]
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), outside=int(values.size - counts.sum()))


def _chosen(
    optimizer: str,
    rate: float,
    clip: float,
    toy: Toy,
    head_grad: np.ndarray,
    block_grad: np.ndarray,
    move_head: np.ndarray,
    move_blocks: np.ndarray,
) -> list[ChosenWeight]:
    row, deepest = labels()[0], np.unravel_index(np.abs(block_grad[-1]).argmax(), block_grad[-1].shape)
    column = int(np.abs(head_grad[row]).argmax())
    last = tuple(int(n) for n in deepest)
    places = [
        ("lm_head.weight", (row, column), "Sac's row of the head, where |h| is largest",
         toy.head, head_grad, move_head),
        (f"layers.{BLOCKS - 1}.weight", last, "the largest gradient of the last block",
         toy.blocks[-1], block_grad[-1], move_blocks[-1]),
    ]  # fmt: skip
    chosen = []
    for name, index, why, weight, grad, move in places:
        before, g, delta = (float(x[index]) for x in (weight, grad, move))
        clipped = "g, not clipped" if clip == 1 else f"{clip:.6g} · g"
        stages = [
            Stage(name="g", value=g, formula="∂ loss / ∂ θ"),
            Stage(name="clipped g", value=g * clip, formula=clipped),
        ]
        if optimizer == "adamw":
            g *= clip
            stages += [
                Stage(name="m", value=0.1 * g, formula="0.9 · m + 0.1 · clipped g"),
                Stage(name="v", value=0.001 * g * g, formula="0.999 · v + 0.001 · (clipped g)²"),
                Stage(name="m̂", value=g, formula="m / (1 − 0.9^1)"),
                Stage(name="v̂", value=g * g, formula="v / (1 − 0.999^1)"),
                Stage(
                    name="−η·m̂/(√v̂+ε)", value=-rate * g / (abs(g) + 1e-8), formula="−0.001 · m̂ / (√v̂ + 1e-08)"
                ),
                Stage(name="−ηλθ", value=-rate * 0.01 * before, formula="−0.001 · 0.01 · θ"),
            ]
        stages.append(
            Stage(
                name="Δ",
                value=delta,
                formula=f"−{rate} · clipped g" if optimizer == "sgd" else "−η·m̂/(√v̂+ε) − ηλθ",
            )
        )
        gradient = float(grad[index]) * clip
        chosen.append(
            ChosenWeight(
                tensor=name,
                index=list(index),
                why=why,
                before=before,
                stages=stages,
                after=before + delta,
                replay_error=0.0,
                would={
                    "sgd": -rate * gradient,
                    "adam": float(adamw(rate)(np.array(gradient), np.array(before))),
                    "adamw": float(adamw(rate, 0.01)(np.array(gradient), np.array(before))),
                },
                would_state="none, as in a first step",
            )
        )
    return chosen
