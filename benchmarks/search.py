"""A peer's best settings for a workload, by short runs, and the file that keeps them.

One setting at a time: every value of the first is tried with the others as they are, the fastest is kept, then the
next setting, and again from the first until nothing changes. A run that fails (memory, a combination that the peer
does not take) counts as slowest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """One combination."""

    settings: Settings
    tokens_per_second: float | None
    """None when it failed."""
    said: str = ""
    """Why it failed."""


def search(
    start: Settings, choices: Mapping[str, Sequence[Any]], measure: Callable[[Settings], Tried]
) -> list[Tried]:
    """Everything that was tried; `best` picks from it."""
    tried: list[Tried] = []

    def score(settings: Settings) -> float:
        known = next((one for one in tried if one.settings == settings), None)
        if known is None:
            known = measure(settings)
            tried.append(known)
        return known.tokens_per_second or 0.0

    chosen, before = dict(start), None
    score(chosen)
    while chosen != before:
        before = dict(chosen)
        for name, values in choices.items():
            chosen = max(({**chosen, name: value} for value in [chosen[name], *values]), key=score)
    return tried


def best(tried: Sequence[Tried]) -> Settings | None:
    """The fastest settings, or None when all failed."""
    fastest = max(tried, key=lambda one: one.tokens_per_second or 0.0)
    return fastest.settings if fastest.tokens_per_second else None


def stored(file: Path, workload: str, contender: str) -> Settings:
    """What was found before; empty when nothing was."""
    if not file.is_file():
        return {}
    return json.loads(file.read_text()).get(workload, {}).get(contender, {}).get("best", {})


def store(
    file: Path, workload: str, contender: str, tried: Sequence[Tried], about: dict[str, Any]
) -> Settings | None:
    """Keep what was tried and the best of it; `about` says when and where."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    chosen = best(tried)
    if chosen is not None:
        found.setdefault(workload, {})[contender] = {
            "best": chosen,
            **about,
            "tried": [
                {
                    **one.settings,
                    "tokens_per_second": one.tokens_per_second and round(one.tokens_per_second, 1),
                    **({"failed": one.said.splitlines()[0]} if one.said else {}),
                }
                for one in tried
            ],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    return chosen
