"""What pydantic finds wrong with options, said in the words of the options."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from surefoot.errors import UserError

Options = TypeVar("Options", bound=BaseModel)


def checked(options: type[Options], given: dict[str, Any]) -> Options:
    """`options(**given)`, with what is wrong said as a UserError."""
    try:
        return options(**given)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Pydantic's findings, a line each, in the words of the options."""
    lines = []
    for finding in error.errors(include_url=False):
        where = ".".join(str(part) for part in finding["loc"])
        message = finding["msg"].removeprefix("Value error, ")
        got = "" if not where or finding["type"] == "missing" else f" (got {finding['input']!r})"
        lines.append(f"{where}: {message}{got}" if where else message)
    return "\n".join(dict.fromkeys(lines))
