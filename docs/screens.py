"""Pictures of reports and pages for the docs, light and dark, with Chromium (needs playwright).

python docs/screens.py RUN         a run's report, from its beginning: docs/report-{light,dark}.png
python docs/screens.py PAGE.html   the landscape of a page that `surefoot explain … --slide_mountain surface --html`
                                   wrote: docs/surface-{light,dark}.png
python docs/screens.py RUNS        the pages of a folder with runs: docs/ui-{runs,run,compare}-{light,dark}.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.cli import main as surefoot
from surefoot.report.runs import is_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).resolve().parent
CHROMIUM = "/usr/bin/chromium"
TOP = {"x": 0, "y": 0, "width": 1120}


def windows(height: int = 1180) -> Iterator[tuple[str, Page]]:
    """A fresh window for each theme, and its name."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for theme in ("light", "dark"):
            yield theme, browser.new_page(viewport={"width": 1120, "height": height}, color_scheme=theme)
        browser.close()


def shoot(page: Path, parts: Mapping[str, str | None], height: int = 1180) -> None:
    """Write docs/NAME-light.png and docs/NAME-dark.png of a report's page, for each name and CSS selector of
    `parts`; without a selector, of the page's beginning."""
    for theme, window in windows(height):
        window.goto(page.resolve().as_uri())
        window.wait_for_timeout(1_000)
        for name, selector in parts.items():
            place = window.locator(selector).first if selector else window
            place.screenshot(path=HERE / f"{name}-{theme}.png")


def visit(runs: Path) -> None:
    """Write docs/ui-{runs,run,compare}-{light,dark}.png of the pages over these runs."""
    words = [sys.executable, "-m", "surefoot", "ui", str(runs), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        link = json.loads(server.stdout.readline())["url"]
        for theme, window in windows(height=1400):
            window.goto(link)
            window.locator(".run").nth(1).wait_for()
            window.wait_for_timeout(500)
            cards = window.locator(".run")
            window.screenshot(
                path=HERE / f"ui-runs-{theme}.png", clip={**TOP, "height": 130 + 165 * cards.count()}
            )
            ids = [str(card.get_attribute("id")).removeprefix("run-") for card in cards.all()]
            address = link.partition("/#")[0]
            window.goto(f"{address}/run/{ids[-1]}")
            window.wait_for_timeout(1_500)
            window.screenshot(path=HERE / f"ui-run-{theme}.png")
            window.goto(f"{address}/compare?runs={','.join(ids)}")
            window.wait_for_timeout(1_000)
            window.screenshot(path=HERE / f"ui-compare-{theme}.png")
        server.terminate()


def main() -> None:
    """The report of a run, the landscape of a page, or the pages of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "what", type=Path, help="a run with slides, a page with a surface, or a folder with runs"
    )
    args = parser.parse_args()
    if args.what.suffix == ".html":
        shoot(args.what, {"surface": "#landscape"})
        return
    if not is_run(args.what):
        visit(args.what)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        assert surefoot(["report", str(args.what), "-o", str(file)]) == 0
        shoot(file, {"report": None}, height=1800)


if __name__ == "__main__":
    main()
