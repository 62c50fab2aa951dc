"""Opened steps on any number of processes: their slides, and whether the steps are those that nobody looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.config import Watch
from surefoot.data.rows import Example
from surefoot.microscope.opening import Opening, Wish
from surefoot.microscope.records import Recorder
from surefoot.microscope.slide import Opened
from surefoot.model.network import Network
from surefoot.train.distributed import local, micro_batches
from surefoot.train.evaluate import Watched
from surefoot.train.optim import Optimizers
from surefoot.train.step import losses, update
from tests import tiny
from tests.distributed import ranks
from tests.distributed.ranks import Case

CLIP = 0.05
CASES = ranks.held_both_ways(
    [
        Case(optim="sgd", optim_args="momentum=0.9", bias=True),
        Case("llama_tied"),
        Case("gemma2", "adafactor", "scale_parameter=true"),
        Case("gptj"),
        Case(lora=True),
    ]
)
"""Heads: one with a bias, one tied, one soft-capped too, one whose formula is not known, one that is frozen."""
OF_FOUR = [replace(CASES[4], shard="none")]
"""What four processes try too."""
MOUNTAINS = CASES[:2]
"""The others are without: it is the most of the work, and the same for all."""


def examples() -> list[list[Example]]:
    """Of two steps: shared prefixes, cut between two processes; and one that has nothing for the second of them."""
    return [tiny.family(5), tiny.examples([(7, 3)], seed=1)]


def budget() -> int:
    """One process has all examples in a single micro-batch; two have two or three each, the last one empty."""
    return 20 if ranks.ranks() > 1 else 1000


@contextmanager
def in_double() -> Iterator[None]:
    """Forward passes in float64 throughout. Not the microscope, which counts weights by their float32 bits."""
    plain = Network.open

    @contextmanager
    def opened(network: Network) -> Iterator[None]:
        with tiny.InDouble(), plain(network):
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "open", opened)
        yield


def watched() -> Watched:
    """Two texts whose probability is taken."""
    texts = Watch(prompt="w5 w6", completion="w7 w8", alternatives=["w9"])
    return Watched(texts, tuple(tiny.examples([(2, 2), (2, 1)], seed=9)))


def opened(
    network: Network, optimizers: Optimizers, folder: Path, hill: bool
) -> tuple[list[Opened], list[dict[str, Any]]]:
    """The steps, under the microscope; and what a recorder keeps of them."""
    wish = Wish(
        "a test", watched=(5, 90), texts=(watched(),), mountain="cut" if hill else "none", extras=True
    )
    slides, recorded = [], []
    for number, of in enumerate(examples()):
        opening = Opening(
            network,
            tiny.tokenizer(),
            of,
            budget(),
            step=number + 1,
            seed=number,
            wish=wish,
            model_name="tiny",
            scratch=folder,
        )
        opening.losses()
        recorder = Recorder()
        opening.look_at_gradient(optimizers, recorder)
        opening.update(optimizers, CLIP)
        slides.append(opening.slide(CLIP))
        recorded.append({name: asdict(found) for name, found in recorder.found.items()})
    return slides, recorded


def plain(network: Network, optimizers: Optimizers) -> None:
    """The same steps."""
    for number, of in enumerate(examples()):
        losses(network, of, budget(), backprop=True, seed=number)
        update(optimizers, CLIP)


def run(case: Case, folder: Path) -> tuple[list[Opened], dict[str, Any]]:
    """The slides, and what else came of it."""
    with in_double():
        seen, unseen = ranks.prepared(case), ranks.prepared(case)
        slides, recorded = opened(*seen, folder, case in MOUNTAINS)
        plain(*unseen)
    kept = [{**dict(network.model.named_parameters()), **o.state()[0]} for network, o in (seen, unseen)]
    batches = micro_batches(unseen[0], examples()[0], budget())
    return slides, {
        "same": {name: torch.equal(local(kept[0][name]), local(kept[1].pop(name))) for name in kept[0]},
        "left": list(kept[1]),
        "recorded": recorded,
        "gradients": [p.grad is not None for p in seen[0].model.parameters()],
        "batches": [[example.row for example in batch] for batch in batches],
    }


def leave(case: Case, folder: Path) -> None:
    """What this process has of `run`, as a folder."""
    slides, said = run(case, folder)
    for number, slide in enumerate(slides):
        slide.save(folder / f"{number}")
    (folder / "said.json").write_text(json.dumps(said))
