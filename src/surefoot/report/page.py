"""Slides and runs as one self-contained HTML file: scripts, styles and numbers inside, nothing from the network.

1. The numbers become JSON in a data block, arrays as base64 of float32.
2. The scripts (ES modules, which the dashboard serves as they are) and styles of assets/ are put together.
3. A content policy allows exactly these, by their hashes, and no connection at all.

Texts of rows are never trusted: they reach the page through JSON and `textContent` only.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from surefoot.microscope.slide import Opened
from surefoot.report.curves import columns
from surefoot.report.parcel import as_json, slide_parcel
from surefoot.report.runs import Run
from surefoot.report.texts import Texts, read_texts
from surefoot.report.worst import RowCost, WorstRows, worst_rows
from surefoot.runfolder import RunFolder

SCRIPTS = (
    "dom.js",
    "figure.js",
    "bars.js",
    "histogram.js",
    "strips.js",
    "heatmap.js",
    "surface.js",
    "lines.js",
    "table.js",
    "tokens.js",
    "parts.js",
    "forward.js",
    "update.js",
    "slide.js",
    "slides.js",
    "record.js",
    "run.js",
    "around.js",
    "page.js",
)
"""In an order in which each stands after what it imports."""
IMPORT, EXPORT = re.compile(r"^import .*;\n", re.M), re.compile(r"^export ", re.M)
MOST_TEXT = 400
"""Characters of a row's text."""
WORST = 30
SURROGATE = re.compile("[\ud800-\udfff]")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This report draws itself with the scripts inside this file; allow scripts to see it.</noscript>
<div id="page"></div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def render(slides: list[Opened], run: Run | None = None) -> str:
    """One HTML file of these slides, and of the run that they are from.

    It opens from disk, asks nothing of the network, and holds every number it shows.
    """
    title = f"{run.name}: run" if run else f"{slides[0].slide.model}: one step" if slides else "surefoot"
    content = {
        "title": title,
        "slides": [slide_parcel(opened) for opened in slides],
        "run": _run(run, slides) if run else None,
    }
    style, script = _assets()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return PAGE.format(
        policy=policy, title=html.escape(title), style=style, script=script, data=embedded(content)
    )


def embedded(content: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or open a comment."""
    text = as_json(content)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half of a surrogate pair, as a tokenizer's piece may be, has no UTF-8.
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _run(run: Run, slides: list[Opened]) -> dict[str, Any]:
    """The run's columns; what could not be read is said in them."""
    found = columns(run)
    problems = list(run.problems)
    if missing := len(run.slides) - len(slides):
        problems.append(f"{missing} of {len(run.slides)} slides could not be read")
    return {**found, **worst_page(run.path, run.events, problems), "problems": problems}


def worst_page(folder: Path, events: Iterable[Mapping[str, Any]], problems: list[str]) -> dict[str, Any]:
    """{worst: tables of rows with the beginning of their texts, worst_note: why there are no texts}."""
    try:
        worst = worst_rows(events, WORST)
    except (TypeError, ValueError, AttributeError):
        problems.append("the examples of some steps are no (row, sum of -log p, tokens): no worst rows")
        return {"worst": [], "worst_note": None}
    places = {row.where for rows in (worst.cost_most, worst.rose, worst.never_learned) for row in rows}
    texts = read_texts(RunFolder(folder), places, files_only=True)
    return {"worst": _worst(worst, texts), "worst_note": texts.note}


def _worst(found: WorstRows, texts: Texts) -> list[dict[str, Any]]:
    """Tables of title, remark and rows; empty ones left out. A row has the beginning of its text where it is
    known."""
    high = "" if found.high is None else f", {found.high:.3g}"
    tables = [
        ("Cost most", "Sums of −log p over all visits of a row.", found.cost_most),
        ("Rose", f"{found.rose_count} rows cost more at their last visit than at their first.", found.rose),
        (
            "Never learned",
            f"{found.never_learned_count} rows still cost more than the median row did at first{high}.",
            found.never_learned,
        ),
    ]

    def told(row: RowCost) -> dict[str, Any]:
        words = texts.short.get(row.where)
        text = {} if words is None else {"text": textwrap.shorten(words, MOST_TEXT, placeholder=" …")}
        return {**dataclasses.asdict(row), **text}

    return [
        {"title": title, "remark": remark, "rows": [told(row) for row in rows]}
        for title, remark, rows in tables
        if rows
    ]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@cache
def _assets() -> tuple[str, str]:
    """(style, script) of the page."""
    folder = files("surefoot.report") / "assets"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8").strip()

    style = read("vendor/uPlot.min.css") + "\n" + read("page.css")
    # One file has no modules to import from: all of them stand in one scope, where a test keeps names apart.
    scripts = "\n".join(EXPORT.sub("", IMPORT.sub("", read(f"js/{name}"))) for name in SCRIPTS)
    script = f'{read("vendor/uPlot.iife.min.js")}\n(() => {{\n"use strict";\n{scripts}\nstart();\n}})();'
    assert "</script" not in script.lower() and "</style" not in style.lower()
    return style, script
