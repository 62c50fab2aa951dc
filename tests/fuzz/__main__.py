"""`python -m tests.fuzz [TARGET ...] [--seconds N]`: feed each target with what has not been tried yet (atheris).

A finding stops the target; what was fed is left in the working folder as crash-..., and goes on as
`python -m tests.fuzz TARGET --file crash-...`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HOW = (
    "fuzzing needs atheris, which is not in requirements/dev.txt: pip install atheris (wheels for Linux only)"
)


def main() -> int:
    """Run the targets one after the other, each in a process of its own, which libFuzzer ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--file", help="feed this file once, without atheris")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.file:
        from tests.fuzz.targets import TARGETS

        print(TARGETS[given.targets[0]](Path(given.file).read_bytes()))
        return 0
    try:
        import atheris
    except ImportError:
        print(HOW)
        return 2
    if given.inside:
        _fuzz(atheris, given.targets[0], given.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    worst = 0
    for target in given.targets or list(TARGETS):
        print(f"== {target}, {given.seconds} s", flush=True)
        words = ("-m", "tests.fuzz", target, "--seconds", str(given.seconds), "--inside")
        worst = max(worst, subprocess.run([sys.executable, *words], check=False).returncode)
    return worst


def _fuzz(atheris, target: str, seconds: int) -> None:
    with atheris.instrument_imports(include=["surefoot.data", "surefoot.model", "surefoot.recipes"]):
        from tests.fuzz.targets import TARGETS, place, seeds
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        place()
        options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=60", "-rss_limit_mb=6000"]
        atheris.Setup(["fuzz", corpus, *options], lambda data: TARGETS[target](bytes(data)) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
