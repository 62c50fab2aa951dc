"""From runs to numbers: speeds, ratios, differences of losses. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import Outcome
from benchmarks.tables import draw, median, span

WARM_UP = 2
"""Steps that touch fresh memory; speed is measured after them."""


@dataclass(frozen=True)
class Speed:
    """How fast one run was, in tokens of the user's rows."""

    steady: float
    """Tokens/s of the steps after the warm-up."""
    whole: float
    """Tokens of all steps by the time from the start of the process to the end of the last update."""
    first_update: float
    """Seconds from the start of the process to the end of the first update."""


def speed(outcome: Outcome, tokens_of_steps: Sequence[int]) -> Speed:
    """Raises ValueError when the run has no step after the warm-up."""
    steps = len(outcome.ended)
    if steps <= WARM_UP:
        raise ValueError(f"{steps} steps are too few: speed is measured after {WARM_UP}")
    timed = sum(tokens_of_steps[WARM_UP:steps])
    return Speed(
        steady=timed / (outcome.ended[-1] - outcome.ended[WARM_UP - 1]),
        whole=sum(tokens_of_steps[:steps]) / (outcome.ended[-1] - outcome.started),
        first_update=outcome.ended[0] - outcome.started,
    )


def percent(ours: float, theirs: float) -> float:
    """Difference of ours from theirs, in percent of theirs."""
    return 100 * (ours - theirs) / theirs


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """By step, in percent, as far as both go."""
    return [percent(a, b) for a, b in zip(ours, theirs, strict=False)]


@dataclass(frozen=True)
class Summary:
    """All rounds of one contender, beside surefoot's of the same rounds."""

    contender: str
    speeds: list[Speed]
    ratios: list[float]
    """surefoot's steady speed by this one's, round by round; empty without surefoot."""
    peak_bytes: int
    """The highest of all rounds."""
    largest_loss_difference: float | None
    """surefoot's loss from this one's, the largest of all steps of the first round, in percent."""
    remarks: list[str]

    @property
    def steady(self) -> float:
        """Median over the rounds."""
        return median([one.steady for one in self.speeds])


def summarise(
    rounds: Sequence[dict[str, Outcome]], tokens_of_steps: Sequence[int], ours: str = "surefoot"
) -> list[Summary]:
    """One summary for each contender, in the order of the first round in which it stands."""
    found = []
    for name in dict.fromkeys(name for one in rounds for name in one):
        runs = [one[name] for one in rounds if name in one]
        pairs = [(one[ours], one[name]) for one in rounds if name in one and ours in one]
        ratios = [
            speed(mine, tokens_of_steps).steady / speed(other, tokens_of_steps).steady
            for mine, other in pairs
        ]
        apart = differences(pairs[0][0].loss, pairs[0][1].loss) if pairs and name != ours else []
        found.append(
            Summary(
                contender=name,
                speeds=[speed(run, tokens_of_steps) for run in runs],
                ratios=ratios,
                peak_bytes=max(run.peak_bytes for run in runs),
                largest_loss_difference=max(map(abs, apart)) if apart else None,
                remarks=list(dict.fromkeys(remark for run in runs for remark in run.remarks)),
            )
        )
    return found


def table(summaries: Sequence[Summary], ideal: dict[str, float] | None = None) -> str:
    """One line for each contender. `ideal`: tokens/s of the limit, apart and shared."""
    head = [
        "",
        "tokens/s",
        "whole run",
        "surefoot is",
        "of the limit",
        "peak GB",
        "first update s",
        "loss differs",
    ]
    rows = []
    for one in summaries:
        limit = f"{one.steady / ideal['apart']:.0%}" if ideal else "-"
        differs = one.largest_loss_difference
        rows.append(
            [
                one.contender,
                span([s.steady for s in one.speeds]),
                span([s.whole for s in one.speeds]),
                span(one.ratios, 2) + " x" if one.ratios else "-",
                limit,
                f"{one.peak_bytes / 1e9:.2f}",
                span([s.first_update for s in one.speeds], 1),
                "-" if differs is None else f"{differs:.3f} %",
            ]
        )
    return draw(head, rows)


def loss_table(outcomes: dict[str, Outcome]) -> str:
    """The losses of one round, step by step."""
    steps = max(len(one.loss) for one in outcomes.values())
    rows = [
        [
            str(step + 1),
            *(f"{one.loss[step]:.6f}" if step < len(one.loss) else "-" for one in outcomes.values()),
        ]
        for step in range(steps)
    ]
    return draw(["step", *outcomes], rows)


def to_dict(summary: Summary) -> dict[str, Any]:
    """For the stored result."""
    return {
        "tokens_per_second": [round(one.steady, 1) for one in summary.speeds],
        "whole_run_tokens_per_second": [round(one.whole, 1) for one in summary.speeds],
        "seconds_to_first_update": [round(one.first_update, 2) for one in summary.speeds],
        "surefoot_is_times_as_fast": [round(ratio, 3) for ratio in summary.ratios],
        "peak_gb": round(summary.peak_bytes / 1e9, 3),
        "largest_loss_difference_percent": summary.largest_loss_difference,
        "remarks": summary.remarks,
    }
