"""What a report draws: an opened step with every panel, and a run folder with every kind of record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.microscope.panels import BatchExample, Influence, Mountain, NoiseScale, Token
from surefoot.microscope.slide import Opened
from tests.report.sample_slide import sample

STATES = ["Alabama", "Montana", "Ohio", "Texas", "Vermont", "Oregon", "Nevada"]
HOSTILE = [
    "</script><script>window.hurt=1</script>",
    "<img src=x onerror=window.hurt=1>",
    "<!--<script>",
    "\"'><svg onload=window.hurt=1>",
    "javascript:window.hurt=1",
    "{{constructor.constructor('window.hurt=1')()}}",
    "\u2028window.hurt=1\u2029",
    "\u202egnp.exe\u0000\u001b[31m",
    "&lt;b&gt;&amp;",
]
"""Texts of rows that try to become code."""


def full(step: int = 340, **changed: Any) -> Opened:
    """A step with a 2-D mountain, the noise scale, influence, notes and several examples."""
    opened = sample("adamw", step=step, largest_norm=1.0)
    slide, random = opened.slide, np.random.default_rng(step)
    assert slide.mountain is not None
    mountain, surface = _surface(slide.mountain)
    first = slide.batch.examples[0]
    others = [_example(state, number, slide.loss_before, random) for number, state in enumerate(STATES)]
    examples = [first, *others]
    whole = sum(example.loss for example in examples)
    examples = [example.model_copy(update={"share": example.loss / whole}) for example in examples]
    supervised = sum(example.supervised for example in examples)
    tokens = sum(len(example.tokens) for example in examples)
    batch = slide.batch.model_copy(
        update={
            "examples": examples,
            "supervised": supervised,
            "tokens": tokens,
            "slots": tokens - 5 * len(others),
            "divisor": float(supervised),
        }
    )
    update = {
        "batch": batch,
        "mountain": mountain,
        "noise": [
            NoiseScale(batch=24.0, part=6.0, grad_norm_squared=0.31, trace=42.7, noise_scale=42.7 / 0.31)
        ],
        "influence": [
            Influence(
                position=0, examples=[(e.where, float(x)) for e, x in zip(examples, _pushes(), strict=True)]
            )
        ],
        "notes": ["The probe batch of the mountain is the step's own rows."],
        "opened_because": "asked for by --slides",
        **changed,
    }
    return Opened(
        slide=slide.model_copy(update=update), arrays={**opened.arrays, "mountain.surface": surface}
    )


def hostile() -> Opened:
    """A slide whose texts try to become code."""
    opened = full()
    slide = opened.slide
    bad = " ".join(HOSTILE)
    examples = [
        example.model_copy(
            update={
                "where": f"{bad}.jsonl:1" if number == 0 else example.where,
                "tokens": [
                    token.model_copy(update={"text": HOSTILE[i % len(HOSTILE)]})
                    for i, token in enumerate(example.tokens)
                ],
            }
        )
        for number, example in enumerate(slide.batch.examples)
    ]
    positions = [
        position.model_copy(
            update={
                "token": bad,
                "target": HOSTILE[0],
                "where": examples[0].where,
                "candidates": [
                    candidate.model_copy(update={"token": HOSTILE[i % len(HOSTILE)]})
                    for i, candidate in enumerate(position.candidates)
                ],
            }
        )
        for position in slide.positions
    ]
    return full(
        headline=bad,
        model=bad,
        opened_because=bad,
        notes=HOSTILE,
        alerts=HOSTILE,
        batch=slide.batch.model_copy(update={"examples": examples}),
        positions=positions,
        tensors=[slide.tensors[0].model_copy(update={"name": bad}), *slide.tensors[1:]],
    )


def run_folder(folder: Path, steps: int = 200, texts: str = "") -> Path:
    """A run that ended, with slides, evaluations, watched prompts, tensors, alerts; `texts` stand in every text."""
    random = np.random.default_rng(7)
    names = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(12)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    ]
    names = ["model.embed_tokens.weight", *names, "model.norm.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "config": {"output_dir": str(folder), "learning_rate": 1e-4},
        "model": {"name": f"smollm2-135m{texts}", "parameters": 134_515_008},
        "tensors": names,
        "total_steps": steps,
        "data": {"train": {"ledger": _ledger(texts)}},
    }
    (folder / "run.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    time, records = 1_795_412_273.0, [{"type": "start", "step": 0, "total_steps": steps, "notes": [texts]}]
    for step in range(1, steps + 1):
        fall = math.exp(-step / 45)
        loss = 0.08 + 1.9 * fall * (1 + 0.18 * random.normal()) + (1.6 if step == 120 else 0.0)
        norm = 0.3 + 9 * fall * math.exp(0.25 * random.normal())
        records.append(_step(step, steps, abs(loss), norm, random))
        if step % 10 == 0 or step == 1:
            records.append(_tensors(step, names, norm, random))
            records.append(_watch(step, fall, texts))
        if step % 20 == 0:
            metrics = {"eval_loss": 0.11 + 1.8 * fall, "eval_token_accuracy": 1 - 0.5 * fall}
            records.append({"type": "eval", "step": step, "name": "eval", "metrics": metrics, "best": True})
        if step == 120:
            records.append(
                {
                    "type": "alert",
                    "step": 120,
                    "message": f"loss 1.8 is over twice the median of the last 20 {texts}",
                }
            )
        if step % 100 == 0:
            records.append({"type": "checkpoint", "step": step, "path": f"checkpoints/step-{step:08}"})
    records.append({"type": "end", "step": steps, "reason": "finished"})
    lines = [
        json.dumps({**record, "time": time + 0.7 * i}, ensure_ascii=False) for i, record in enumerate(records)
    ]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def with_slides(folder: Path, *opened: Opened) -> Path:
    """The run, with these slides in it."""
    for one in opened:
        one.save(folder / "slides" / f"step-{one.slide.step:08}")
    return folder


def _surface(mountain: Mountain) -> tuple[Mountain, np.ndarray]:
    """21 × 21 losses: the cut along, a bowl across that leans."""
    along, across = np.linspace(-1, 3, 21), np.linspace(-2, 2, 21)
    cut = np.interp(along, mountain.along, mountain.losses)
    surface = (
        cut[None] + 0.06 * across[:, None] ** 2 * (1 + 0.3 * along[None]) + 0.03 * np.sin(2 * across)[:, None]
    )
    return (
        mountain.model_copy(
            update={
                "along": along.tolist(),
                "losses": surface[10].tolist(),
                "across": across.tolist(),
                "across_is": "a seeded random direction, normalised filter by filter",
                "surface": "mountain.surface",
            }
        ),
        surface.astype(np.float32),
    )


def _example(state: str, number: int, mean: float, random: np.random.Generator) -> BatchExample:
    """An example whose mean loss is the batch's."""
    words = ["<|im_start|>", "user", "\n", "Which", " city", " is", " the", " capital", " of", f" {state}", "?",
             "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]  # fmt: skip
    answer = ["The", " capital", " of", f" {state}", " is", " ☃", "é", ".", "<|im_end|>"]
    losses = random.gamma(0.6, 1.0, size=len(answer))
    losses *= mean * len(answer) / losses.sum()
    return BatchExample(
        where=f"examples/capitals/train.jsonl:{number + 11}",
        weight=1.0,
        loss=float(losses.sum()),
        loss_after=float(losses.sum() * 0.8),
        share=0.0,
        supervised=len(answer),
        left_out=0,
        tokens=[
            *(Token(text=word, id=100 + i) for i, word in enumerate(words)),
            *(
                Token(text=word, id=200 + i, loss=float(x), loss_after=float(x * 0.8))
                for i, (word, x) in enumerate(zip(answer, losses, strict=True))
            ),
        ],
    )


def _pushes() -> list[float]:
    return [-0.42, -0.031, 0.004, -0.018, 0.026, -0.007, 0.011, -0.002]


def _step(step: int, steps: int, loss: float, norm: float, random: np.random.Generator) -> dict[str, Any]:
    return {
        "type": "step",
        "step": step,
        "epoch": step / 10,
        "loss": loss,
        "learning_rate": 1e-4 * (1 - step / steps),
        "grad_norm": norm,
        "clip_factor": min(1.0, 1 / norm),
        "token_accuracy": 1 - 0.3 * min(1.0, loss),
        "entropy": 0.5 * loss,
        "supervised": 137,
        "step_seconds": 0.7,
        "tokens_per_second": 1000 + 40 * random.normal(),
        "examples": [
            [f"examples/capitals/train.jsonl:{(step * 7 + i * 13) % 50 + 1}", loss * 8 * (1 + i), 8]
            for i in range(4)
        ],
    }


def _tensors(step: int, names: list[str], norm: float, random: np.random.Generator) -> dict[str, Any]:
    weight = [20.0 + (i % 5) for i in range(len(names))]
    depth = np.linspace(0.6, -0.6, len(names))
    grad = norm / math.sqrt(len(names)) * np.exp(depth + 0.15 * random.normal(size=len(names)))
    update = [1e-3 * (1 + 0.3 * math.sin(i / 3)) for i in range(len(names))]
    return {
        "type": "tensors",
        "step": step,
        "grad_norm": grad.tolist(),
        "weight_norm": weight,
        "update_norm": update,
        "zero_share": [0.9, *[0.0] * (len(names) - 1)],
        "lost_share": np.clip(0.3 + 0.002 * step + 0.05 * random.normal(size=len(names)), 0, 1).tolist(),
    }


def _watch(step: int, fall: float, texts: str) -> dict[str, Any]:
    p = {
        "Sacramento": 0.97 - 0.95 * fall,
        "Los Angeles": 0.57 * fall,
        f"San Francisco{texts}": 0.29 * fall,
        "Boston": 1e-5,
    }
    return {"type": "watch", "step": step, "prompt": f"What is the capital of California?{texts}", "p": p}


def _ledger(texts: str) -> dict[str, Any]:
    return {
        "source": "examples/capitals/train.jsonl",
        "shape": "question/answer (question -> user, answer -> assistant)",
        "rows": 152,
        "examples": 150,
        "prompt_tokens": 5730,
        "supervised_tokens": 1317,
        "longest": 50,
        "duplicates": 0,
        "dropped": {
            f"the answer is empty{texts}": [
                "examples/capitals/train.jsonl:31",
                "examples/capitals/train.jsonl:90",
            ]
        },
        "noted": {},
        "counts": {f"the answer is empty{texts}": 2},
        "turn_ends": {"<|im_end|>": 150},
    }
