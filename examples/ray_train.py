"""Train a recipe with Ray Train as the launcher: python examples/ray_train.py recipe.yaml --workers 16 --gpu

Ray starts the workers and makes their process group; surefoot finds the group and trains as under torchrun. When a
worker is lost, Ray starts all of them again, and they go on from the run's last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

FAILURES = 3


def train(options: dict[str, Any]) -> str:
    """What each worker does. Returns what is wrong with the user's input: an error would be tried again."""
    from surefoot import SFTConfig, SFTTrainer
    from surefoot.errors import UserError

    try:
        SFTTrainer(args=SFTConfig(**options)).train()
    except UserError as error:
        return str(error)
    return ""


def options_of(recipe: str) -> dict[str, Any]:
    """The recipe's options as workers can take them: their working folder is another one, and when they are
    started again they must go on with what is there."""
    from surefoot import SFTConfig
    from surefoot.recipes import read_recipe
    from surefoot.runfolder import RunFolder
    from surefoot.train.resume import refuse_early

    options = read_recipe(recipe)
    options.setdefault("output_dir", SFTConfig().output_dir)
    for name in ("output_dir", "dataset_name", "eval_dataset_name", "model_name_or_path"):
        said = options.get(name)
        if said and (name == "output_dir" or Path(str(said)).exists()):  # else it is a name on the hub
            options[name] = str(Path(str(said)).resolve())
    if options.pop("overwrite_output_dir", False):
        sys.exit("overwrite_output_dir: with Ray, name a new output_dir, or delete the old one")
    options["resume_from_checkpoint"] = "auto"
    args = SFTConfig(**options)
    refuse_early(RunFolder(args.output_dir), args)  # said once, before anything is started
    return options


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--workers", type=int, default=2, help="processes in all, over all of Ray's machines")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each")
    said = parser.parse_args()
    options = options_of(said.recipe)

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from surefoot import SFTConfig

    output = Path(options["output_dir"])
    timeout = round(SFTConfig(**options).ddp_timeout) + 60  # surefoot's watchdog is to speak first
    backend = "cpu:gloo,cuda:nccl" if said.gpu else "gloo"
    result = TorchTrainer(
        train,
        train_loop_config=options,
        torch_config=TorchConfig(backend=backend, timeout_s=timeout),
        scaling_config=ScalingConfig(num_workers=said.workers, use_gpu=said.gpu),
        run_config=RunConfig(
            name=output.name,
            storage_path=str(output.parent / "ray"),  # what Ray notes down; the run is in output_dir
            failure_config=FailureConfig(max_failures=FAILURES),
        ),
    ).fit()
    if result.return_value:
        print(f"surefoot: {result.return_value}", file=sys.stderr)
        return 2
    print(f"model: {output / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
