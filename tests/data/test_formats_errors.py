"""What is wrong with a row is said with its place, its beginning, the cause and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from surefoot.data.formats import detect, to_record
from surefoot.data.rows import Row
from surefoot.errors import UserError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def error_of(data: dict[str, Any], **options: Any) -> str:
    row = Row(data, "rows.jsonl:7")
    with pytest.raises(UserError) as caught:
        to_record(row, detect(row, **options))
    return str(caught.value)


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


def calls(*tool_calls: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": list(tool_calls)}]}


def test_unknown_shape_lists_columns_and_shapes() -> None:
    message = error_of({"state": "Ohio", "capital": "Columbus", "note": "é" * 500})
    says(
        message,
        "the columns state, capital, note",
        "messages; conversations; prompt + completion",
        "input_ids",
    )
    says(message, '--columns \'{"user": "COLUMN", "assistant": "COLUMN"}\'')
    assert message.startswith("rows.jsonl:7: unknown shape")
    beginning = '{"state": "Ohio", "capital": "Columbus", "note": "'
    assert message.endswith(f"begins: {beginning.ljust(120, 'é')}…")
    says(error_of({}), "the row has no columns")


def test_columns_that_cannot_be() -> None:
    says(
        error_of({"a": "x"}, columns={"promt": "a"}),
        "unknown field 'promt'",
        "Did you mean 'prompt'?",
        "completion",
    )
    message = error_of(
        {"question": "q", "answer": "a"}, columns={"prompt": "qestion", "completion": "answer"}
    )
    says(
        message,
        "rows.jsonl:7: no column 'qestion'",
        "Did you mean 'question'?",
        "the columns question, answer",
    )
    says(
        error_of({"a": "x", "b": "y"}, columns={"text": "a", "user": "b"}), "text=a, user=b", "no known shape"
    )
    says(error_of({"text": "x"}, text_field="txet"), "no column 'txet'", "Did you mean 'text'?")


def test_a_later_row_of_another_shape() -> None:
    shape = detect(Row({"question": "q", "answer": "a"}, "rows.jsonl:1"))
    with pytest.raises(UserError) as caught:
        to_record(Row({"question": "q", "anwser": "a"}, "rows.jsonl:9"), shape)
    says(
        str(caught.value), "rows.jsonl:9: mixed shapes: this data began as question/answer (question -> user"
    )
    says(
        str(caught.value), "no 'answer'", "Did you mean 'anwser'?", "a file of their own", "The row begins: {"
    )


@pytest.mark.parametrize(("messages", "parts"), [
    ([], ["column 'messages' has no messages", "Write at least"]),
    (None, ["column 'messages' has no messages"]),
    ("hello", ["column 'messages' is a string that is no JSON", "line 1 column 1", "double quotes"]),
    ({"role": "user"}, ["column 'messages' is an object. Write a list."]),
    (["hi"], ["messages[0] is a string", '{"role": "user", "content": "..."}']),
    ([{"content": "q"}], ["messages[0] has no role; its keys are content"]),
    ([USER, {"role": "asistant", "content": "a"}], ["messages[1] has the unknown role 'asistant'",
        "'assistant'?"]),
    ([{"role": 3, "content": "a"}], ["messages[0] has the unknown role 3", "Known roles are system"]),
    ([{"role": "user", "content": None}], ["messages[0] has no content (null)"]),
    ([{"role": "assistant", "tool_calls": []}], ["messages[0] has no content (null)"]),
    ([{"role": "user", "content": 3}], ["the content of messages[0] is a number. Write a string."]),
    ([{"role": "user", "content": {"a": 1}}], ["the content of messages[0] is an object"]),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
     ["part 0 of messages[0]", "'image_url'", "not supported yet"]),
    ([{"role": "user", "content": [{"type": "texd", "text": "q"}]}],
     ["unknown type 'texd'", "Did you mean 'text'?", '{"type": "text", "text": "..."}']),
    ([{"role": "user", "content": [3]}], ["part 0 of messages[0] is a number"]),
    ([{"role": "user", "content": [{"type": "text"}]}], ["the text of part 0 of messages[0] is null"]),
    ([{**USER, "tool_calls": [{"name": "f"}]}], ["messages[0] is of the role user",
        "Give it the role assistant"]),
    ([{**ASSISTANT, "weight": 0.5}], ["weight of messages[0] is 0.5. Write 1 to learn"]),
    ([{**ASSISTANT, "reasoning": ["x"]}], ["the reasoning of messages[0] is a list"]),
])  # fmt: skip
def test_messages(messages: Any, parts: list[str]) -> None:
    message = error_of({"messages": messages})
    assert message.startswith("rows.jsonl:7: ")
    says(message, *parts, 'The row begins: {"messages": ')


@pytest.mark.parametrize(("row", "parts"), [
    (calls({"name": "f", "arguments": "{'x': 1}"}),
     ["tool_calls of messages[1], call 0: arguments of 'f' is a string that is no JSON", "column 2",
         "double quotes"]),
    (calls({"name": "f", "arguments": '{"x": "\\ud83d"}'}), ["arguments of 'f'", "half of a character"]),
    (calls({"name": "f", "arguments": "[1]"}), ["arguments of 'f' is a list. Write an object."]),
    (calls({"id": "c"}), ["call 0: an object without the name of a function", '"arguments": {...}}']),
    (calls(3), ["call 0: a number without the name"]),
    ({"conversations": [{"from": "function_call", "value": "f(x)"}]},
     ["the tool call in conversations[0] is a string that is no JSON"]),
    ({"messages": [USER], "tools": "[{"}, ["column 'tools' is a string that is no JSON"]),
    ({"messages": [USER], "tools": [{"x": 1}]}, ["tools[0] is an object without a function's name"]),
    ({"messages": [USER], "chat_template_kwargs": [1]}, ["column 'chat_template_kwargs' is a list"]),
    ({"messages": [USER], "images": ["cat.png"]}, ["column 'images' is filled", "not supported yet"]),
    ({"conversations": [{"from": "system", "value": "s"}, USER], "system": "t"},
     ["two different system prompts"]),
    ({"conversations": [USER], "system": 3}, ["column 'system' is a number. Write a string."]),
])  # fmt: skip
def test_tools_and_what_stands_beside_messages(row: dict[str, Any], parts: list[str]) -> None:
    says(error_of(row), "rows.jsonl:7: ", *parts)


@pytest.mark.parametrize(("row", "parts"), [
    ({"prompt": "", "completion": ""},
     ["columns 'prompt' and 'completion' are both empty", "Take the row out"]),
    ({"prompt": "p", "completion": [ASSISTANT]},
     ["'prompt' is a string", "'completion' is a list", "Write both"]),
    ({"prompt": [USER], "completion": []}, ["column 'completion' has no messages"]),
    ({"prompt": "p", "completion": 4}, ["column 'completion' is a number"]),
    ({"prompt": "p", "completion": "c", "system": "s"},
     ["column 'system' needs a chat template",
      '--columns \'{"user": "prompt", "assistant": "completion"}\'']),
    ({"question": "q", "answer": 4}, ["column 'answer' is a number. Write a string."]),
    ({"question": None, "answer": "a"}, ["column 'question' is null. Write a string."]),
    ({"instruction": "i", "output": "o", "history": [["q"]]},
     ["history[0] is a list", '["question", "answer"]']),
    ({"instruction": "i", "output": "o", "history": [["q", 1]]}, ["column 'history[0]' is a number"]),
    ({"text": ["a"]}, ["column 'text' is a list. Write a string."]),
])  # fmt: skip
def test_plain_shapes(row: dict[str, Any], parts: list[str]) -> None:
    says(error_of(row), "rows.jsonl:7: ", *parts, "The row begins: ")


@pytest.mark.parametrize(("row", "parts"), [
    ({"input_ids": []}, ["column 'input_ids' has no tokens"]),
    ({"input_ids": [1, 2.0]}, ["input_ids[1] is 2.0. Write whole numbers only."]),
    ({"input_ids": [True]}, ["input_ids[0] is True"]),
    ({"input_ids": [1, -1]}, ["the token id -1", "Ids are from 0"]),
    ({"input_ids": [1, 2], "labels": [1]}, ["column 'labels' has 1 values, and 'input_ids' has 2"]),
    ({"input_ids": [1, 2], "labels": [2, -100]},
     ["labels[0] is 2, but input_ids[0] is 1", "not shifted", "-100"]),
    ({"input_ids": [1, 2], "completion_mask": [0, 2]}, ["column 'completion_mask' holds 2"]),
    ({"input_ids": [1, 2], "assistant_masks": [0]}, ["column 'assistant_masks' has 1 values"]),
])  # fmt: skip
def test_token_ids(row: dict[str, Any], parts: list[str]) -> None:
    says(error_of(row), "rows.jsonl:7: ", *parts)
