"""What commands take that look at a training before it is one: a recipe, options of training, and their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from surefoot.commands.options import parse
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED
from surefoot.recipes import read_recipe
from surefoot.validation import checked


class RecipeOptions(BaseModel):
    """What each such command takes beside the options of training."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str | None = None
    """Short for model_name_or_path."""
    data: str | None = None
    """Short for dataset_name."""


Own = TypeVar("Own", bound=RecipeOptions)


def parse_recipe(
    flags: type[BaseModel], own: type[Own], argv: Sequence[str], *, prog: str, about: str
) -> tuple[Own, dict[str, Any], bool]:
    """The command's own options; those of training, the typed ones over the recipe's; and whether to print JSON.

    Args:
        flags: a class of both kinds of options.
        own: the class of the command's own.

    Raises UserError for what cannot be read.
    """
    parsed = parse(
        flags,
        argv,
        prog=prog,
        about=f"{about} Options as in surefoot train.",
        positional={"recipe": ("?", "YAML file of options")},
        also_known=[*SUPERSEDED, *REFUSED, *TRANSLATED],
    )
    given = checked(
        own, {name: parsed.options.pop(name) for name in own.model_fields if name in parsed.options}
    )
    recipe = parsed.positional["recipe"]
    options: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if TRANSLATED & set(parsed.options):
        options.pop("precision", None)
    options.update(parsed.options)
    options.update({"model_name_or_path": given.model} if given.model else {})
    options.update({"dataset_name": given.data} if given.data else {})
    return given, options, parsed.json
