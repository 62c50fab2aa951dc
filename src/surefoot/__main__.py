"""`python -m surefoot` and the `surefoot` script."""

from __future__ import annotations

import sys

from surefoot.cli import main as _main


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(_main(sys.argv[1:]))


if __name__ == "__main__":
    main()
