"""Recipes: options in a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from surefoot.config import SFTConfig
from surefoot.errors import UserError, nearest
from surefoot.names import REFUSED, SHORT, SUPERSEDED, TRANSLATED


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML recipe; one written for `trl sft --config` will do.

    Raises UserError that names the file, line and column when it cannot be read or is no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: a recipe is a list of `option: value` lines")
    unknown = sorted(
        set(content) - set(SFTConfig.model_fields) - set(SUPERSEDED) - set(REFUSED) - TRANSLATED - set(SHORT)
    )
    if unknown:
        raise UserError(
            f"{path}: unknown option '{unknown[0]}'.{nearest(unknown[0], SFTConfig.model_fields)}"
        )
    return content
