"""surefoot evaluate: how good a model is on held-out rows."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from surefoot.commands.options import parse, plainly_said
from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.validation import checked


class EvaluateOptions(BaseModel):
    """Options of `surefoot evaluate`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data: str | None = None
    """Held-out rows: a file, a folder or a hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column is what: prompt=question,completion=answer."""
    max_new_tokens: int = Field(256, gt=0)
    """Longest generated answer, in tokens."""
    exact_match: bool = True
    """Answer every prompt greedily and count the exact ones; false is quicker."""
    precision: str | None = None
    """As in training: bf16 or fp32 matrix products."""
    max_length: int | None = Field(None, gt=1)
    """Longest example in tokens."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with rows that cannot be read or learned: stop, or leave them out."""
    use_cpu: bool = False
    """Use the CPU even when there is a GPU."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you say so; a model cannot turn it on."""


def run(argv: list[str]) -> int:
    """Parse, evaluate, print."""
    parsed = parse(
        EvaluateOptions,
        argv,
        prog="surefoot evaluate",
        about="Loss, perplexity and token accuracy over supervised tokens, and exact greedy answers.",
        positional={"model": ("?", "a run folder, or whatever names a model")},
    )
    options = checked(EvaluateOptions, parsed.options).model_dump()
    model, data = parsed.positional["model"], options.pop("data")
    if model is None or data is None:
        raise UserError("surefoot evaluate MODEL --data FILE: both are needed")
    exact = options.pop("exact_match")
    with plainly_said():
        args = SFTConfig(**options, eval_exact_match=exact)
        result = evaluate(model, data, args)
    if parsed.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<15} {value:,}" if isinstance(value, int) else f"{key:<15} {value:.4f}")
    return 0


def evaluate(model: str, data: str, args: SFTConfig) -> dict[str, float]:
    """`loss`, `perplexity`, `token_accuracy`, `exact_match` (unless switched off) and `of`, the examples."""
    from surefoot.train.trainer import SFTTrainer

    trainer = SFTTrainer(model, args, eval_dataset=data)
    found = trainer.evaluate()
    result = {key.removeprefix("eval_"): value for key, value in found.items()}
    result["of"] = len(trainer.eval_data["eval"].examples)
    return result
