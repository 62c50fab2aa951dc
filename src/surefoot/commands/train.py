"""surefoot train: fine-tune by a recipe, by flags, or both."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

from surefoot.commands.beside import page_beside
from surefoot.commands.launch import launch, number, without
from surefoot.commands.options import parse, plainly_said
from surefoot.commands.outlived import outlived
from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED
from surefoot.recipes import read_recipe
from surefoot.runfolder import RunFolder

LAUNCHING = ("nproc", "max_restarts")
"""Flags of the launcher, which are no options of a run."""
PAGE = "--ui"
"""The flag that starts the run's page beside it."""


def run(argv: list[str]) -> int:
    """Parse, train, print. Flags override the recipe."""
    typed, argv = argv, [word for word in argv if word != PAGE]
    parsed = parse(
        SFTConfig,
        argv,
        prog="surefoot train",
        about="Fine-tune a model. Options come from the recipe (YAML; one for `trl sft` will do) and flags. "
        "--nproc N trains with N processes on this machine; should one die, all go on from the last checkpoint, "
        "up to --max_restarts times (3). On several machines, start it with torchrun: -m surefoot train ... "
        "--ui: show the run in the browser while it trains; prints the link.",
        positional={"recipe": ("?", "YAML file of options")},
        also_known=[*SUPERSEDED, *REFUSED, *TRANSLATED, *LAUNCHING],
    )
    processes, restarts = number(parsed.options, "nproc", 1, 1), number(parsed.options, "max_restarts", 0, 3)
    recipe = parsed.positional["recipe"]
    options: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if TRANSLATED & set(parsed.options):
        options.pop("precision", None)
    options.update(parsed.options)
    with outlived(), plainly_said():
        args = SFTConfig(**options)
        if processes > 1:
            return _launched(args, argv, processes, restarts, ui=typed != argv)
        return _train(args, typed, as_json=parsed.json, ui=typed != argv)


def _launched(args: SFTConfig, argv: list[str], processes: int, restarts: int, *, ui: bool) -> int:
    from surefoot.train.resume import refuse_early

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--nproc: torchrun has started several processes already; leave it out")
    refuse_early(RunFolder(args.output_dir), args)  # said once, not by each
    with page_beside(args.output_dir, wanted=ui):
        return launch(without(argv, LAUNCHING), processes, restarts, use_cpu=args.use_cpu)


def _train(args: SFTConfig, argv: list[str], *, as_json: bool, ui: bool) -> int:
    from surefoot.ranks import join, rank, together
    from surefoot.train.restarts import restarted
    from surefoot.train.resume import refuse_early

    args = restarted(args)
    join(args.ddp_timeout, args.use_cpu)
    together(lambda: refuse_early(RunFolder(args.output_dir, writes=rank() == 0), args))
    with page_beside(args.output_dir, wanted=ui and rank() == 0):
        return _trained(args, argv, as_json=as_json)


def _trained(args: SFTConfig, argv: list[str], *, as_json: bool) -> int:
    from surefoot.ranks import rank
    from surefoot.train.interrupt import Interrupted
    from surefoot.train.trainer import SFTTrainer

    trainer = SFTTrainer(args=args)
    for line in [*trainer.ledgers(), *trainer.notes()] if rank() == 0 else ():
        print(line, file=sys.stderr)
    try:
        metrics = trainer.train()
    except Interrupted as stopped:
        if rank() > 0:
            return 128 + stopped.signal
        on = ["--overwrite_output_dir", "false"] if args.overwrite_output_dir else []
        on += ["--resume", "auto"] if args.resume_from_checkpoint != "auto" else []
        again = shlex.join(["surefoot", "train", *argv, *on])
        print(f"\n{stopped}. Go on with:\n  {again}", file=sys.stderr)
        return 128 + stopped.signal
    if rank() > 0:
        return 0
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
