"""Chat messages as people write them → messages as chat templates take them.

1. Any role name of OpenAI, Hugging Face or ShareGPT becomes system, developer, user, assistant or tool.
2. Content becomes a string; reasoning and tool calls found among typed parts move to keys of their own.
3. Tool calls become `{"type": "function", "function": {"name", "arguments"}}`, the arguments an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

from surefoot.data.badrows import RowError
from surefoot.data.rows import Row
from surefoot.data.strictjson import JsonError, beginning, parse
from surefoot.errors import nearest

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "tool call",
    "tool_call": "tool call",
}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_REASONING_PARTS = ("reasoning", "thinking")
_MEDIA_PARTS = (
    "image",
    "image_url",
    "input_image",
    "audio",
    "audio_url",
    "input_audio",
    "video",
    "video_url",
    "file",
)
_PARTS = (*_TEXT_PARTS, *_REASONING_PARTS, "tool_call")
_MISSING = object()


def problem(row: Row, kind: str, message: str) -> RowError:
    """The error that says where, what is wrong and what to write instead, and shows the row's beginning.

    `kind`: the fault in a few words that are the same in every row with it.
    """
    return RowError(row.where, kind, f"{row.where}: {message} The row begins: {beginning(dict(row.data))}")


def type_name(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value)) or (
        "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    )


def parsed(row: Row, what: str, value: Any) -> Any:
    """`value`, read as JSON if it is a string."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except JsonError as error:
        raise problem(
            row,
            "not usable JSON",
            f"{what} is a string that is no JSON: {error.reason} at line {error.line} column {error.column} "
            f"of "
            f"{beginning(value)!r}. Write it as JSON, with double quotes.",
        ) from None


def as_list(row: Row, what: str, value: Any) -> list[Any]:
    """A list, an array or a JSON string of a list as a list; null and the empty string as an empty one."""
    if type(value) is list:
        return value
    if value is None or (isinstance(value, str) and not value):
        return []
    value = parsed(row, what, value)
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list):
        raise problem(row, "wrong type", f"{what} is {type_name(value)}. Write a list.")
    return value


def normalise(row: Row, column: str, value: Any) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The messages of one column, and the indices of the assistant messages that are to be learned."""
    items = as_list(row, f"column '{column}'", value)
    if not items:
        raise problem(
            row,
            "no messages",
            f"column '{column}' has no messages. Write at least a user and an assistant message.",
        )
    messages: list[dict[str, Any]] = []
    supervised: list[int] = []
    called_before = False
    for index, item in enumerate(items):
        what = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            raise problem(
                row,
                "wrong type",
                f'{what} is {type_name(item)}. Write a message: {{"role": "user", "content": "..."}}.',
            )
        role = _role(row, what, item)
        if role == "tool call":
            calls = tool_calls(row, f"the tool call in {what}", _content(item))
            if called_before:  # ShareGPT writes calls made at once as messages in a row: they are one turn
                messages[-1]["tool_calls"] += calls
                continue
            message = {"role": "assistant", "content": "", "tool_calls": calls}
        else:
            message = _message(row, what, role, item)
        called_before = role == "tool call"
        if message["role"] == "assistant" and _is_learned(row, what, item):
            supervised.append(len(messages))
        messages.append(message)
    return messages, tuple(supervised)


def _role(row: Row, what: str, item: Mapping[str, Any]) -> str:
    role = item.get("role")
    if role is None:
        role = item.get("from")
    known = ROLES.get(role) if isinstance(role, str) else None
    if known:
        return known
    if role is None:
        raise problem(
            row,
            "no role",
            f'{what} has no role; its keys are {", ".join(map(str, item))}. Write "role" and "content".',
        )
    close = nearest(role[:100], ROLES) if isinstance(role, str) else ""
    raise problem(
        row,
        "unknown role",
        f"{what} has the unknown role {role!r}.{close} Known roles are {', '.join(ROLES)}.",
    )


def _content(item: Mapping[str, Any]) -> Any:
    content = item.get("content")
    return item.get("value") if content is None else content


def _message(row: Row, what: str, role: str, item: Mapping[str, Any]) -> dict[str, Any]:
    content = _content(item)
    message: dict[str, Any] = {"role": role, "content": content}
    reasoning = item.get("reasoning_content") or item.get("reasoning") or item.get("thinking")
    calls: list[dict[str, Any]] = []
    if item.get("tool_calls") is not None:
        calls = tool_calls(row, f"tool_calls of {what}", item["tool_calls"])
    elif item.get("function_call") is not None:
        calls = tool_calls(row, f"function_call of {what}", item["function_call"])
    if not isinstance(content, str) and content is not None:
        message["content"], thought, called = _from_parts(row, what, content)
        reasoning, calls = reasoning or thought, calls + called
    if (reasoning or calls) and role != "assistant":
        raise problem(
            row,
            "wrong role",
            f"{what} is of the role {role} but has tool calls or reasoning. Give it the role assistant.",
        )
    if content is None:
        if not (calls or reasoning or role == "tool"):
            raise problem(
                row,
                "no content",
                f'{what} has no content (null). Write "content": "..." or take the message out.',
            )
        message["content"] = ""
    if reasoning:
        if not isinstance(reasoning, str):
            raise problem(
                row, "wrong type", f"the reasoning of {what} is {type_name(reasoning)}. Write a string."
            )
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if item.get(key) is not None:
            message[key] = item[key]
    return message


def _from_parts(row: Row, what: str, content: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """(text, reasoning, tool calls) of content that is a list of typed parts."""
    if not isinstance(content, list | tuple):
        raise problem(row, "wrong type", f"the content of {what} is {type_name(content)}. Write a string.")
    text, reasoning, calls = "", "", []
    for number, part in enumerate(content):
        place = f"part {number} of {what}"
        if isinstance(part, str):
            text += part
            continue
        kind = part.get("type") if isinstance(part, Mapping) else _MISSING
        if kind in _MEDIA_PARTS:
            raise problem(
                row,
                "images or sound",
                f"{place} is of type {kind!r}, but vision and audio models are not supported yet. Keep text.",
            )
        if kind not in _PARTS:
            close = nearest(kind[:100], _PARTS) if isinstance(kind, str) else ""
            found = type_name(part) if kind is _MISSING else f"of the unknown type {kind!r}"
            raise problem(
                row, "unknown part", f'{place} is {found}.{close} Write {{"type": "text", "text": "..."}}.'
            )
        value = next((part[key] for key in ("value", kind, "text") if part.get(key) is not None), None)
        if kind == "tool_call":
            calls += tool_calls(row, f"the tool call in {place}", value)
        elif not isinstance(value, str):
            raise problem(row, "wrong type", f"the text of {place} is {type_name(value)}. Write a string.")
        elif kind in _REASONING_PARTS:
            reasoning += value
        else:
            text += value
    return text, reasoning, calls


def _is_learned(row: Row, what: str, item: Mapping[str, Any]) -> bool:
    for key in ("weight", "train"):
        value = item.get(key)
        if value is not None and not (isinstance(value, Number) and value in (0, 1)):
            raise problem(
                row, "wrong weight", f"{key} of {what} is {value!r}. Write 1 to learn the message, 0 not to."
            )
        if value is not None and not value:
            return False
    return True


def tool_calls(row: Row, what: str, value: Any) -> list[dict[str, Any]]:
    """Tool calls, nested or flat, one or a list, perhaps as a JSON string, in the nested form."""
    value = parsed(row, what, value)
    if isinstance(value, Mapping):
        return [_tool_call(row, what, value)]
    return [_tool_call(row, f"{what}, call {n}", call) for n, call in enumerate(as_list(row, what, value))]


def _tool_call(row: Row, what: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        function = call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise problem(
            row,
            "wrong tool call",
            f"{what}: {type_name(call)} without the name of a function. Write "
            f'{{"name": "...", "arguments": {{...}}}}.',
        )
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    arguments = parsed(row, f"{what}: arguments of '{name}'", arguments)
    if not isinstance(arguments, Mapping):
        raise problem(
            row,
            "wrong tool call",
            f"{what}: arguments of '{name}' is {type_name(arguments)}. Write an object.",
        )
    nested: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    return nested if call.get("id") is None else {"id": call["id"], **nested}


def tool_schemas(row: Row, column: str, value: Any) -> list[dict[str, Any]] | None:
    """The tools of a row, as a list or a JSON string, each `{"type": "function", "function": {...}}`."""
    value = parsed(row, f"column '{column}'", value) if value != "" else None
    items = [value] if isinstance(value, Mapping) else as_list(row, f"column '{column}'", value)
    tools = []
    for index, item in enumerate(items):
        tool = parsed(row, f"{column}[{index}]", item)
        function = tool.get("function") if isinstance(tool, Mapping) else None
        named = isinstance(tool, Mapping) and function is None and "name" in tool
        if not isinstance(tool, Mapping) or not (named or isinstance(function, Mapping)):
            raise problem(
                row,
                "wrong tool",
                f"{column}[{index}] is {type_name(tool)} without a function's name. Write "
                f'{{"type": "function", "function": {{"name": "...", "parameters": {{...}}}}}}.',
            )
        nested = "function" in tool or tool.get("type") not in (None, "function")
        plain = {key: item for key, item in tool.items() if key != "type"}
        tools.append(dict(tool) if nested else {"type": "function", "function": plain})
    return tools or None
