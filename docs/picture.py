"""Draw docs/capitals.svg from the numbers of the last `make demo` (runs/capitals/demo.json)."""

from __future__ import annotations

import io
import json
import re
import runpy
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the demo's table into an SVG that needs no font from elsewhere."""
    show = runpy.run_path(str(ROOT / "examples" / "capitals" / "demo.py"))["show"]
    result = json.loads((ROOT / "runs" / "capitals" / "demo.json").read_text(encoding="utf-8"))
    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    show(console, result)
    svg = console.export_svg(title="make demo")
    # Blanks at a line's start are part of the picture.
    svg = svg.replace("<text ", '<text xml:space="preserve" ')
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, monospace"
    )
    (ROOT / "docs" / "capitals.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
