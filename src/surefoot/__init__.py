"""surefoot: supervised fine-tuning of language models that is exact, fast, and can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SFTConfig", "SFTTrainer", "SlideView", "UserError", "__version__", "explain", "open_slide"]

if TYPE_CHECKING:
    from surefoot.config import SFTConfig
    from surefoot.errors import UserError
    from surefoot.report.notebook import SlideView, explain, open_slide
    from surefoot.train.trainer import SFTTrainer

_HOME = {
    "SFTConfig": "surefoot.config",
    "SFTTrainer": "surefoot.train.trainer",
    "UserError": "surefoot.errors",
    "SlideView": "surefoot.report.notebook",
    "explain": "surefoot.report.notebook",
    "open_slide": "surefoot.report.notebook",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `surefoot --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'surefoot' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
