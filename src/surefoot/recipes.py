"""Recipes: options in a YAML file, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from surefoot.config import SFTConfig
from surefoot.errors import UserError, nearest
from surefoot.names import REFUSED, SHORT, SUPERSEDED, TRANSLATED
from surefoot.regular import text_of

MOST_BYTES = 1 << 17
MOST_VALUES = 20_000
"""Values of a recipe, each counted as often as it stands there by a name (`*anchor`)."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML recipe; one written for `trl sft --config` will do.

    Raises UserError that names the file, line and column when it cannot be read or is no mapping.
    """
    try:
        loader = yaml.SafeLoader(text_of(Path(path), MOST_BYTES))
        node = loader.get_single_node()
        if node is not None and _values(node) > MOST_VALUES:
            raise UserError(f"{path}: its anchors unfold to more than {MOST_VALUES:,} values; write them out")
        content = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: brackets are nested too deeply, or an anchor holds itself") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except UserError:
        raise
    except ValueError as error:  # a number of thousands of digits, a day that is none
        raise UserError(f"{path}: a value cannot be read: {error}") from None
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


def _values(node: yaml.Node, seen: dict[int, int] | None = None) -> int:
    """Values below the node when all that stands there by a name is written out. RecursionError for a circle."""
    seen = {} if seen is None else seen
    if id(node) not in seen:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        seen[id(node)] = 1 + sum(_values(part, seen) for part in parts)
    return seen[id(node)]
