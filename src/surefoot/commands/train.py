"""surefoot train: fine-tune by a recipe, by flags, or both."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from surefoot.commands.options import parse, plainly_said
from surefoot.commands.outlived import outlived
from surefoot.config import SFTConfig
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED
from surefoot.recipes import read_recipe
from surefoot.runfolder import RunFolder


def run(argv: list[str]) -> int:
    """Parse, train, print. Flags override the recipe."""
    parsed = parse(
        SFTConfig,
        argv,
        prog="surefoot train",
        about="Fine-tune a model. Options come from the recipe (YAML; one for `trl sft` will do) and flags.",
        positional={"recipe": ("?", "YAML file of options")},
        also_known=[*SUPERSEDED, *REFUSED, *TRANSLATED],
    )
    recipe = parsed.positional["recipe"]
    options: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if TRANSLATED & set(parsed.options):
        options.pop("precision", None)
    options.update(parsed.options)
    with outlived(), plainly_said():
        args = SFTConfig(**options)
        return _train(args, argv, as_json=parsed.json)


def _train(args: SFTConfig, argv: list[str], *, as_json: bool) -> int:
    from surefoot.train.interrupt import Interrupted
    from surefoot.train.resume import refuse_early
    from surefoot.train.trainer import SFTTrainer

    refuse_early(RunFolder(args.output_dir), args)
    trainer = SFTTrainer(args=args)
    for line in [*trainer.ledgers(), *trainer.notes()]:
        print(line, file=sys.stderr)
    try:
        metrics = trainer.train()
    except Interrupted as stopped:
        on = ["--overwrite_output_dir", "false"] if args.overwrite_output_dir else []
        on += ["--resume", "auto"] if args.resume_from_checkpoint != "auto" else []
        again = shlex.join(["surefoot", "train", *argv, *on])
        print(f"\n{stopped}. Go on with:\n  {again}", file=sys.stderr)
        return 128 + stopped.signal
    result = {"output_dir": str(trainer.run.path), "steps": trainer.progress.step, **metrics}
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1:]
    result.update({key: value for entry in last for key, value in entry.items() if key.startswith("eval_")})
    if as_json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['steps']} steps in {metrics['train_runtime']:.1f} s, mean loss {metrics['train_loss']:.4f}"
    )
    for key, value in result.items():
        if key.startswith("eval_"):
            print(f"{key} {value:.4f}")
    folder = shlex.quote(str(trainer.run.path))
    print(f"model: {trainer.run.model}")
    print(f"next:  surefoot chat {folder}   surefoot report {folder}   surefoot compare {folder} --data ...")
    return 0
