"""The lesson in the docs tells the numbers of the step that it says it tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"−?\d[\d,]*(?:\.\d+)?(?: · 10\^−?\d+)?")


def value(number: str) -> float:
    mantissa, _, exponent = number.replace("−", "-").replace(",", "").partition(" · 10^")
    return float(mantissa) * 10 ** int(exponent or 0)


def test_the_lessons_numbers_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import one_step  # pyright: ignore[reportMissingImports]

    written = (DOCS / "one-step.md").read_text(encoding="utf-8")
    made = one_step.reflowed(one_step.page(one_step.worked_case().slide))
    sys.modules.pop("one_step")
    (rows,) = re.findall(r"\| token \| p before .*?\n\n", written, flags=re.DOTALL)
    cells = [line.split("|")[1:-1] for line in rows.strip().splitlines()[2:]]
    for column, whole in ((1, 1.0), (3, 0.0), (4, 0.0), (5, 1.0)):  # p before, p − y, weighted, p after
        assert sum(value(row[column].strip()) for row in cells) == pytest.approx(whole, abs=2e-3)
    told = [" ".join(NUMBER.sub("N", text).split()) for text in (written, made)]
    assert told[0] == told[1], "the page is not as its template makes it: run python docs/one_step.py"
    numbers = [[value(number) for number in NUMBER.findall(text)] for text in (written, made)]
    assert len(numbers[0]) > 200
    # Another processor rounds differently; the errors' sum and the difference from autograd are nothing but that.
    assert numbers[1] == pytest.approx(numbers[0], rel=0.03, abs=1e-6)
