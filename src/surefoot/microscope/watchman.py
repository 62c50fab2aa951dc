"""Who watches a run for what looks wrong, and remembers what has been said.

What is remembered follows from the run's events, so a resumed run says and opens what an unbroken one does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from surefoot.events import AlertEvent
from surefoot.microscope.headline import percent
from surefoot.microscope.records import Recorder
from surefoot.train.step import Change, Losses

REMEMBERED = 20
"""Losses of earlier steps that a step's loss is compared with. For so many steps an alert that has opened one opens
no other."""
FEWEST = 5
"""So many at least: a run may go wrong before its twentieth step."""
OPEN_NEXT = ("turn end", "lost updates", "no gradient")
"""Alerts that come when their own step is over, or before the first."""


@dataclass(frozen=True)
class Alert:
    """Something is wrong, or looks so."""

    kind: str
    message: str
    opens: bool = True
    """A step is opened for it."""


class Watchman:
    """Judges each step by those before it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        """Of the trained tensors, as in `tensors` events."""
        self.moved = False
        """An update with a learning rate above 0 has been made."""
        self.waiting: str | None = None
        """Why the next step is to be opened, if an alert asked for that."""
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._opened_for: dict[str, int] = {}
        self._idle: set[str] = set()

    def remember(self, events: Iterable[dict[str, Any]]) -> None:
        """What the steps before have been like, from their events."""
        steps = 0
        moved = False
        for event in events:
            match event["type"]:
                case "step":
                    steps = event["step"]
                    if event["supervised"]:
                        self._recent.append(float(event["loss"]))
                        self.waiting = None  # it was opened, if one should be
                    moved, self.moved = self.moved, self.moved or event["learning_rate"] > 0
                case "tensors":
                    idle = zip(self.names, event["zero_share"], strict=False)
                    self._idle = {name for name, zero in idle if zero == 1} if moved else set()
                case "alert":
                    opens = event["kind"] not in ("slide", "no target")
                    self.said(event["step"], Alert(event["kind"], event["message"], opens))
                    if event["step"] < steps:  # of before the first step, and told after it
                        self.waiting = None

    def memory(self) -> dict[str, Any]:
        """What it remembers, as JSON takes it."""
        return {
            "recent": list(self._recent),
            "opened_for": self._opened_for,
            "idle": sorted(self._idle),
            "moved": self.moved,
            "waiting": self.waiting,
        }

    def recall(self, memory: dict[str, Any]) -> None:
        """Remember what another one's `memory` was."""
        self._recent = deque(memory["recent"], maxlen=REMEMBERED)
        self._opened_for, self._idle = dict(memory["opened_for"]), set(memory["idle"])
        self.moved, self.waiting = memory["moved"], memory["waiting"]

    def said(self, step: int, alert: Alert) -> bool:
        """Remember an alert; true if a step should be opened for it."""
        last = self._opened_for.get(alert.kind)
        if not alert.opens or (last is not None and step - last < REMEMBERED):
            return False
        self._opened_for[alert.kind] = step
        if alert.kind in OPEN_NEXT:
            self.waiting = alert.message
        return True

    def of_data(self, ends: dict[int, str], taught: set[int], examples: int) -> Alert | None:
        """`ends`: tokens that end a turn; `taught`: tokens of the completions of so many examples."""
        if not ends or taught & set(ends) or "turn end" in self._opened_for:
            return None
        said = (
            f"no completion of the first {examples:,} examples has a token that ends a turn "
            f"({', '.join(map(repr, ends.values()))}): the model will not learn to stop"
        )
        return Alert("turn end", said)

    def of_losses(self, found: Losses) -> Alert | None:
        """What of a step's loss is alarming before the update. Its loss is remembered."""
        if not math.isfinite(found.loss):
            costly = [one.where for one in found.examples if not math.isfinite(one.loss)]
            return Alert("not finite", f"the loss is {found.loss}; rows: {few(costly)}")
        if found.supervised == 0:
            rows = few([one.where for one in found.examples])
            said = f"no token of this step is supervised; there is nothing to learn; rows: {rows}"
            return Alert("no target", said, opens=False)
        known = len(self._recent)
        usual = median(self._recent) if known >= FEWEST else math.inf
        self._recent.append(found.loss)
        if found.loss > 2 * usual > 0:
            rows = sorted((one for one in found.examples if one.tokens), key=lambda e: -e.loss / e.tokens)
            return Alert(
                "high loss",
                f"the loss, {found.loss:.4g}, is over twice the median of the last {known}, {usual:.4g}; "
                f"highest: {few([one.where for one in rows], 3)}",
            )
        return None

    def of_tensors(self, recorder: Recorder, change: Change) -> list[Alert]:
        """What of an update is alarming, and not said yet. `moved` is still that of the steps before."""
        alerts = []
        asked, lost = recorder.narrow
        if change.learning_rate > 0 and lost > asked / 2 and "lost updates" not in self._opened_for:
            said = f"{percent(lost / asked)} of the updates were lost to rounding: the weights are bf16. "
            alerts.append(Alert("lost updates", said + "precision=bf16 keeps them in fp32"))
        # Until the first update LoRA's A has no gradient, as its B is 0.
        rows = {name: recorder.found.get(name) for name in self.names if self.moved}
        idle = {name for name, row in rows.items() if row is None or row.zero_share == 1}
        if idle - self._idle:
            more = f" and {len(idle) - 1:,} other tensors" if len(idle) > 1 else ""
            alerts.append(Alert("no gradient", f"the gradient of {min(idle)}{more} is exactly 0"))
        self._idle = idle
        return alerts


def event_of(step: int, alert: Alert) -> AlertEvent:
    """The record of an alert."""
    return AlertEvent(step=step, kind=alert.kind, message=alert.message)


def few(rows: Sequence[str], most: int = 5) -> str:
    """Names of some rows, and how many there are besides."""
    rows = list(dict.fromkeys(rows))
    more = f" and {len(rows) - most:,} more" if len(rows) > most else ""
    return ", ".join(rows[:most]) + more
