"""Pictures of reports for the docs, light and dark, with Chromium (needs playwright).

python docs/screens.py RUN         a run's report, from its beginning: docs/report-{light,dark}.png
python docs/screens.py PAGE.html   the landscape of a page that `surefoot explain … --slide_mountain surface --html`
                                   wrote: docs/surface-{light,dark}.png
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

from surefoot.cli import main as surefoot

HERE = Path(__file__).resolve().parent
CHROMIUM = "/usr/bin/chromium"


def shoot(page: Path, parts: Mapping[str, str | None], height: int = 1180) -> None:
    """Write docs/NAME-light.png and docs/NAME-dark.png of a report's page, for each name and CSS selector of
    `parts`; without a selector, of the page's beginning."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for theme in ("light", "dark"):
            window = browser.new_page(viewport={"width": 1120, "height": height}, color_scheme=theme)
            window.goto(page.resolve().as_uri())
            window.wait_for_timeout(1_000)
            for name, selector in parts.items():
                place = window.locator(selector).first if selector else window
                place.screenshot(path=HERE / f"{name}-{theme}.png")
        browser.close()


def main() -> None:
    """The report of a run, or the landscape of a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", type=Path, help="a run folder with slides, or a page with a surface")
    args = parser.parse_args()
    if args.what.suffix == ".html":
        shoot(args.what, {"surface": "#landscape"})
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        assert surefoot(["report", str(args.what), "-o", str(file)]) == 0
        shoot(file, {"report": None}, height=1800)


if __name__ == "__main__":
    main()
