"""The ledger: what became of every row, counted and listed, so that nothing is lost without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LISTED = 20
"""How many rows of a kind are listed by name; the rest is counted."""
COUNTERS = ("supervised_by_role", "turn_ends", "counts")


@dataclass
class Ledger:
    """Counts of one data set on its way to the model."""

    source: str = ""
    shape: str = ""
    rows: int = 0
    examples: int = 0
    prompt_tokens: int = 0
    supervised_tokens: int = 0
    supervised_by_role: Counter[str] = field(default_factory=Counter)
    """Supervised tokens of plain answers, tool calls, reasoning turns, plain text."""
    longest: int = 0
    """Tokens of the longest example kept."""
    duplicates: int = 0
    """Examples whose prompt and completion both stood before."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Reason → where (each place once)."""
    noted: dict[str, list[str]] = field(default_factory=dict)
    """Remark → where, for examples that were kept."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each reason or remark came up (the lists above stop at 20)."""
    turn_ends: Counter[str] = field(default_factory=Counter)
    """How many learned turns each token ends."""

    def drop(self, reason: str, where: str) -> None:
        """Record an example or row that is not trained on."""
        self._list(self.dropped, reason, where)

    def note(self, remark: str, where: str) -> None:
        """Record something to know of an example that is kept."""
        self._list(self.noted, remark, where)

    def _list(self, lists: dict[str, list[str]], key: str, where: str) -> None:
        self.counts[key] += 1
        places = lists.setdefault(key, [])
        if len(places) < LISTED and where not in places[-1:]:
            places.append(where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for run.json."""
        out = dict(self.__dict__)
        for name in COUNTERS:
            out[name] = dict(out[name])
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """The ledger that `to_dict` made these values of. Raises TypeError when they are of another kind."""
        counters = {name: Counter(values[name]) for name in COUNTERS}
        return cls(**{**values, **counters})

    def lines(self) -> list[str]:
        """The ledger in words, a fact a line."""
        tokens = self.prompt_tokens + self.supervised_tokens
        share = self.supervised_tokens / max(1, tokens)
        roles = ", ".join(f"{role} {count:,}" for role, count in self.supervised_by_role.most_common())
        out = [
            f"{self.source}: {self.rows:,} rows read as {self.shape}",
            f"{self.examples:,} examples, {tokens:,} tokens, longest {self.longest:,}",
            f"{self.supervised_tokens:,} tokens supervised ({share:.0%}): {roles or 'none'}",
        ]
        if self.turn_ends:
            out.append(f"answers end with {' or '.join(self.turn_ends)}")
        if self.duplicates:
            out.append(f"{self.duplicates:,} examples stood before, word for word (kept)")
        for kind, lists in (("dropped", self.dropped), ("note", self.noted)):
            for reason, places in lists.items():
                more = ", ..." if len(places) > 3 else ""
                out.append(f"{kind}: {self.counts[reason]:,} × {reason} ({', '.join(places[:3])}{more})")
        return out
