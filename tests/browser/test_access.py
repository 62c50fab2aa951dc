"""The report for all: contrast, names for what can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from surefoot.microscope.slide import Opened
from surefoot.report.page import render

if TYPE_CHECKING:
    from tests.browser.conftest import Open


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(show: Open, slide: Opened, scheme: str) -> None:
    page = show(render([slide]), scheme=scheme)
    names = ("ink", "soft", "panel", "bg", "fill", "hot")
    style = "getComputedStyle(document.documentElement)"
    colours = {name: page.evaluate(f"{style}.getPropertyValue('--{name}').trim()") for name in names}
    for text, ground in (
        ("ink", "panel"),
        ("ink", "hot"),
        ("soft", "panel"),
        ("soft", "bg"),
        ("soft", "fill"),
    ):
        light, dark = sorted(map(luminance, (colours[text], colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}: WCAG asks for 4.5"


def test_everything_that_can_be_reached_has_a_name(show: Open, run_page: str) -> None:
    page = show(run_page)
    reached = page.locator("button, select, input, canvas, [tabindex='0']")
    nameless = """all => all.filter(x => !(x.getAttribute("aria-label") || x.textContent.trim()
      || x.labels?.length || x.title)).map(x => x.outerHTML.slice(0, 80))"""
    assert reached.count() > 60
    assert reached.evaluate_all(nameless) == []
