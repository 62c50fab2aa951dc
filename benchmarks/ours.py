"""surefoot's command line, and the highest GPU memory of the process written down: `ours.py OUT.json train ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from surefoot.cli import main

if __name__ == "__main__":
    status = main(sys.argv[2:])
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    Path(sys.argv[1]).write_text(json.dumps({"gpu_peak_bytes": peak}))
    sys.exit(status)
