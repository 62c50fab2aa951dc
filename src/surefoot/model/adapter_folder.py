"""A PEFT adapter's folder, looked at before PEFT opens it, as folder.py does for a model's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from surefoot.errors import UserError
from surefoot.model.folder import ADAPTER, ADAPTER_WEIGHTS, check_files, headers, read_json

STARTS = (None, True, False, "gaussian", "olora", "orthogonal", "true", "false")
"""What `init_lora_weights` may be; others have PEFT read more files, or compute for hours. pissa as well."""
LONGEST = 2_000
"""Characters of a pattern."""
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_COUNTED = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")
_GROUP_COUNTED = re.compile(r"\)(?:[*+]|\{\d*,\d*\})")


def check_adapter(folder: Path) -> tuple[dict[str, Any], str]:
    """The adapter's config, and the name of its base model. Raises UserError for what PEFT must not see."""
    check_files(folder)
    path = folder / ADAPTER
    content = read_json(path)
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder}: its {ADAPTER} does not name a base model")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder}: the adapter has no {ADAPTER_WEIGHTS}")
    held = headers([weights])
    for name in content:
        if name.endswith(("_path", "_file", "_dir")) and name != "base_model_name_or_path" and content[name]:
            raise UserError(f"{path}: {name} names another file, which is not read; take it out")
    start = content.get("init_lora_weights")
    if not (start in STARTS or (isinstance(start, str) and re.fullmatch(r"pissa(_niter_\d{1,3})?", start))):
        raise UserError(
            f"{path}: init_lora_weights is {str(start)[:80]!r}, which has PEFT read other files or compute anew "
            "what the adapter holds. Write true there"
        )
    if content.get("megatron_config") or content.get("megatron_core") not in (None, "megatron.core"):
        raise UserError(
            f"{path}: megatron_core names a module to import, and none is imported for an adapter"
        )
    for name in PATTERNS:
        given = content.get(name)
        for pattern in [given] if isinstance(given, str) else given or ():
            _check_pattern(path, name, pattern, strictly=isinstance(given, str) or name.endswith("_pattern"))
    ranks = content.get("rank_pattern")
    for rank in (content.get("r"), *(ranks.values() if isinstance(ranks, dict) else ())):
        if isinstance(rank, int) and rank > held.largest:
            raise UserError(
                f"{path}: rank {rank:,} is larger than anything in {ADAPTER_WEIGHTS}; they do not belong together"
            )
    return content, base


def _check_pattern(path: Path, name: str, pattern: Any, *, strictly: bool) -> None:
    """Raises UserError for a regular expression that could take for ever to try on a module's name."""
    if not isinstance(pattern, str) or len(pattern) > LONGEST:
        raise UserError(
            f"{path}: {name} is not a list of names, nor a pattern of {LONGEST:,} characters at most"
        )
    if strictly and (len(_COUNTED.findall(pattern)) > 4 or _GROUP_COUNTED.search(pattern)):
        raise UserError(
            f"{path}: {name} is a pattern that could take for ever: {pattern[:80]!r}. Write the modules' names as "
            "a list"
        )
