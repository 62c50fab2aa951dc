"""Make the peers' environments: one folder each, so that nobody's versions bend anybody else's.

    python -m benchmarks.environments                 all of them
    python -m benchmarks.environments trl --environments FOLDER

torch comes first and alone, at the version surefoot is measured with: left to a peer, it would be another one.
On Linux a machine without a GPU wants torch's CPU wheels: pass pip's `--index-url` or `--find-links` for them
after `--`, if its own settings do not have it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.run import ENVIRONMENTS

TORCH = "torch==2.13.0"
PEERS = {
    "trl": ("trl==1.16.0", "peft"),
    "llamafactory": ("llamafactory==0.9.5",),
    "litgpt": ("litgpt==0.5.13",),
}
"""Environment → what is installed beside torch. Each pins what it needs, such as its own transformers."""
UNWANTED = {"llamafactory": ("torchvision",)}
"""Removed again: a wheel that expects CUDA, which transformers imports where it is there. Text needs none."""


def commands(name: str, folder: Path, more: list[str]) -> list[list[str]]:
    """What makes the environment `name` in `folder`, in this order."""
    python = str(folder / name / "bin" / "python")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", *more]
    made = [
        [sys.executable, "-m", "venv", str(folder / name)],
        [*install, TORCH],
        [*install, TORCH, *PEERS[name]],
    ]
    if name in UNWANTED:
        made.append([python, "-m", "pip", "uninstall", "-y", *UNWANTED[name]])
    return made


def main() -> int:
    """Make them one after the other; one that fails does not keep the next from being made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"{', '.join(PEERS)} (default: all)")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder to make them in")
    args, more = parser.parse_known_args()
    unknown = sorted(set(args.names) - set(PEERS))
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; known are {', '.join(PEERS)}")
    failed = []
    for name in args.names or PEERS:
        print(f"{name}: {TORCH} {' '.join(PEERS[name])}", flush=True)
        for command in commands(name, args.environments, [word for word in more if word != "--"]):
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
                print(f"{name}: failed at {' '.join(command)}", file=sys.stderr)
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
