"""Secrets that stand in an address: `https://user:secret@host/...`, `?token=secret`. They are written nowhere."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/?#\s\"'@]+(?=@)")
_QUERY = re.compile(
    r"([?&#;](?:[\w-]*(?:token|secret|password|passwd|signature|credential|api[_-]?key)|key|sig|auth)=)[^&#;\s\"']+",
    re.IGNORECASE,
)


def without_credentials(value: Any) -> Any:
    """The same plain value, with `***` for what is secret in the addresses of its texts, at any depth."""
    if isinstance(value, str):
        return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(HIDDEN, value)) if "://" in value else value
    if isinstance(value, dict):
        return {key: without_credentials(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_credentials(item) for item in value]
    return value
