"""Each row shape becomes the record it says; `columns` and the order of shapes decide which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from surefoot.data.formats import Format, detect, to_record
from surefoot.data.rows import Conversation, PlainText, Record, Row, TokenSpans

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def record(data: dict[str, Any], **options: Any) -> Record:
    row = Row(data, "rows.jsonl:7")
    return to_record(row, detect(row, **options))


def chat(data: dict[str, Any], **options: Any) -> Conversation:
    result = record(data, **options)
    assert isinstance(result, Conversation)
    return result


def test_messages() -> None:
    row = {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT, USER, ASSISTANT], "id": 3}
    assert record(row) == Conversation(row["messages"], (2, 4))
    assert record({"messages": json.dumps(row["messages"])}) == Conversation(row["messages"], (2, 4))


def test_messages_with_tools_arguments_become_objects_and_nulls_vanish() -> None:
    called = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": 1}'},
        "index": None,
    }
    row = {
        "messages": [
            {**USER, "tool_calls": None, "name": None},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f", "tool_calls": None},
            ASSISTANT,
        ],
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": False, "other": None},
    }
    assert record(row) == Conversation(
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
            {"role": "tool", "content": "42", "name": "f", "tool_call_id": "c1"},
            ASSISTANT,
        ],
        (1, 3),
        [TOOL],
        {"enable_thinking": False},
    )


@pytest.mark.parametrize("call", [
    {"name": "f", "arguments": {"x": 1}},
    {"function": {"name": "f", "arguments": '{"x": 1}'}},
    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
])  # fmt: skip
def test_tool_calls_flat_or_nested(call: dict[str, Any]) -> None:
    expected = [CALL]
    for written in ([call], json.dumps([call])):
        row = {"messages": [USER, {"role": "assistant", "tool_calls": written}]}
        assert chat(row).messages[1] == {"role": "assistant", "content": "", "tool_calls": expected}
    legacy = {"messages": [USER, {"role": "assistant", "content": None, "function_call": call}]}
    assert chat(legacy).messages[1]["tool_calls"] == expected


def test_explicit_null_arguments_of_a_json_row_stay() -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": None}}]}]}
    assert chat(row).messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": None}


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_without_arguments(arguments: Any) -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}]}
    assert chat(row).messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize("key", ["value", "text"])
def test_typed_parts(key: str) -> None:
    parts = [
        {"type": "reasoning", key: "hm"},
        {"type": "text", key: "one ", "image_url": None},
        {"type": "text", key: "two"},
        {"type": "tool_call", key: '{"name": "f", "arguments": {"x": 1}}'},
        {"type": "tool_call", key: {"name": "f", "arguments": {"x": 1}}},
    ]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", key: "q"}]},
            {**ASSISTANT, "content": parts},
        ]
    }
    assert chat(row).messages == [
        USER,
        {"role": "assistant", "content": "one two", "reasoning_content": "hm", "tool_calls": [CALL, CALL]},
    ]


def test_reasoning_beside_the_content() -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        row = {"messages": [USER, {**ASSISTANT, key: "hm"}]}
        assert chat(row).messages[1] == {**ASSISTANT, "reasoning_content": "hm"}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_weight_and_train_take_messages_out(mark: dict[str, Any]) -> None:
    row = {"messages": [USER, {**ASSISTANT, **mark}, USER, {**ASSISTANT, "weight": 1, "train": None}]}
    assert record(row) == Conversation([USER, ASSISTANT, USER, ASSISTANT], (3,))


def test_no_assistant_message_is_no_error() -> None:
    assert chat({"messages": [USER]}).supervised == ()


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], json.dumps([TOOL["function"]])]
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_as_list_or_string(column: str, tools: Any) -> None:
    assert chat({"messages": [USER, ASSISTANT], column: tools}).tools == [TOOL]


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert chat({"messages": [USER, ASSISTANT], "tools": tools}).tools is None


def test_an_optional_column_may_begin_after_the_first_row() -> None:
    shape = detect(Row({"messages": [USER, ASSISTANT]}, "rows.jsonl:1"))
    later = to_record(Row({"messages": [USER, ASSISTANT], "functions": [TOOL]}, "rows.jsonl:2"), shape)
    assert isinstance(later, Conversation)
    assert later.tools == [TOOL]


def test_prompt_and_completion() -> None:
    assert record({"prompt": "p", "completion": "c"}) == PlainText("p", "c")
    assert record({"prompt": "", "completion": "c", "tools": None, "system": ""}) == PlainText("", "c")
    turns = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT, USER, {**ASSISTANT, "weight": 0}]}
    assert record(turns) == Conversation([USER, ASSISTANT, USER, ASSISTANT, USER, ASSISTANT], (3,))


def test_sharegpt_with_tools() -> None:
    call = json.dumps(CALL["function"])
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": call},
            {"from": "function_call", "value": f"[{call}]"},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "a"},
        ],
        "system": "s",
        "tools": json.dumps([TOOL["function"]]),
    }
    assert record(row) == Conversation(
        [
            {"role": "system", "content": "s"},
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "42"},
            ASSISTANT,
        ],
        (2, 4),
        [TOOL],
    )


@pytest.mark.parametrize("name", ["gpt", "assistant", "model", "chatgpt"])
@pytest.mark.parametrize("asker", ["human", "user"])
def test_sharegpt_role_names(asker: str, name: str) -> None:
    row = {"conversations": [{"from": asker, "value": "q"}, {"from": name, "value": "a"}]}
    assert record(row) == Conversation([USER, ASSISTANT], (1,))
    assert record({"conversations": [USER, ASSISTANT]}) == Conversation([USER, ASSISTANT], (1,))


@pytest.mark.parametrize("name", ["tool", "observation", "function_response"])
def test_sharegpt_tool_results(name: str) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": name, "value": "42"}]}
    assert chat(row).messages[1] == {"role": "tool", "content": "42"}


def test_a_system_column_that_repeats_the_first_message_is_one_system_prompt() -> None:
    system = {"role": "system", "content": "s"}
    assert chat({"conversations": [system, USER, ASSISTANT], "system": "s"}).messages == [
        system,
        USER,
        ASSISTANT,
    ]


def test_alpaca() -> None:
    row: dict[str, Any] = {"instruction": "Add.", "input": "1+1", "output": "a"}
    assert record(row) == Conversation([{"role": "user", "content": "Add.\n\n1+1"}, ASSISTANT], (1,))
    for empty in ("", None):
        assert chat({**row, "input": empty}).messages[0]["content"] == "Add."
    assert chat({"instruction": "q", "output": "a"}).messages == [USER, ASSISTANT]
    full = chat({"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]})
    assert full.messages == [{"role": "system", "content": "s"}, USER, ASSISTANT, USER, ASSISTANT]
    assert full.supervised == (2, 4)


def test_dolly_names() -> None:
    row = {"instruction": "q", "context": "c", "response": "a", "category": "x"}
    assert chat(row).messages == [{"role": "user", "content": "q\n\nc"}, ASSISTANT]


@pytest.mark.parametrize(("user", "assistant"), [
    ("question", "answer"), ("query", "response"), ("input", "output"), ("user", "assistant"), ("prompt",
        "response"),
])  # fmt: skip
def test_pairs(user: str, assistant: str) -> None:
    assert record({user: "q", assistant: "a"}) == Conversation([USER, ASSISTANT], (1,))
    with_system = chat({user: "q", assistant: "a", "system": "s"})
    assert with_system == Conversation([{"role": "system", "content": "s"}, USER, ASSISTANT], (2,))


def test_text() -> None:
    assert record({"text": "once", "label": 1}) == PlainText("", "once")
    assert record({"body": "once"}, text_field="body") == PlainText("", "once")
    assert record({"body": "once"}, columns={"text": "body"}) == PlainText("", "once")


def test_token_spans() -> None:
    ids = [5, 6, 7]
    assert record({"input_ids": ids}) == TokenSpans(ids, [True] * 3)
    assert record({"input_ids": "[5, 6, 7]"}) == TokenSpans(ids, [True] * 3)
    assert record({"input_ids": ids, "labels": [-100, 6, 7]}) == TokenSpans(ids, [False, True, True])
    assert record({"input_ids": ids, "completion_mask": [0, 0, 1]}) == TokenSpans(ids, [False, False, True])
    assert record({"input_ids": ids, "assistant_masks": [True, False, True]}) == TokenSpans(
        ids, [True, False, True]
    )
    padded = {"input_ids": [0, 5, 6], "labels": [-100, -100, 6], "attention_mask": [0, 1, 1]}
    assert record(padded) == TokenSpans([5, 6], [False, True])


def test_token_ids_may_be_arrays() -> None:
    numpy = pytest.importorskip("numpy")
    row = {"input_ids": numpy.array([5, 6]), "labels": numpy.array([-100, 6])}
    assert record(row) == TokenSpans([5, 6], [False, True])


def test_columns_map_the_users_names() -> None:
    row = {"question": "q", "answer": "a", "persona": "s"}
    assert record(row, columns={"prompt": "question", "completion": "answer"}) == PlainText("q", "a")
    named = chat(row, columns={"user": "answer", "assistant": "question", "system": "persona"})
    assert [message["content"] for message in named.messages] == ["s", "a", "q"]
    assert chat(row, columns={"question": "question", "answer": "answer"}).messages == [USER, ASSISTANT]
    assert chat({"x": "q", "y": "a"}, columns={"input": "x", "output": "y"}).messages == [USER, ASSISTANT]
    assert chat({"x": "q", "output": "a"}, columns={"instruction": "x"}).messages == [USER, ASSISTANT]
    assert chat({"dialog": [USER, ASSISTANT]}, columns={"messages": "dialog"}).messages == [USER, ASSISTANT]


def test_named_columns_go_before_the_fixed_order() -> None:
    row = {"messages": [USER, ASSISTANT], "text": "t", "category": "c"}
    assert record(row, columns={"text": "text"}) == PlainText("", "t")
    assert chat(row, columns={"user": "text", "assistant": "category"}).messages[1]["content"] == "c"


def test_ambiguous_rows_are_of_the_first_shape_in_the_fixed_order() -> None:
    row: dict[str, Any] = {
        "messages": [USER, ASSISTANT],
        "conversations": [USER, ASSISTANT],
        "prompt": "p",
        "completion": "c",
        "instruction": "i",
        "output": "o",
        "question": "q",
        "answer": "a",
        "text": "t",
        "input_ids": [1],
    }
    names = []
    while row:
        shape = detect(Row(row, "x:1"))
        names.append(shape.name)
        for column in shape.columns.values():
            del row[column]
    expected = ["messages", "conversations", "prompt/completion", "instruction/output", "question/answer"]
    assert names == [*expected, "text", "input_ids"]


def test_columns_of_other_shapes_that_arrow_filled_with_null_do_not_count() -> None:
    assert record({"messages": None, "text": "t"}) == PlainText("", "t")


@pytest.mark.parametrize(("row", "columns", "line"), [
    ({"question": "q", "answer": "a"}, {}, "question/answer (question -> user, answer -> assistant)"),
    ({"text": "q", "label": "a"}, {"user": "text", "assistant": "label"},
     "text/label (text -> user, label -> assistant)"),
    ({"instruction": "i", "input": "", "output": "o"}, {},
     "instruction/output (instruction -> user, output -> assistant, input -> user)"),
    ({"messages": [], "tools": []}, {}, "messages (messages, tools)"),
    ({"x": "", "y": ""}, {"prompt": "x", "completion": "y"},
     "prompt/completion (x -> prompt, y -> completion)"),
    ({"text": ""}, {}, "text (text -> completion)"),
])  # fmt: skip
def test_describe(row: dict[str, Any], columns: dict[str, str], line: str) -> None:
    assert detect(Row(row, "x:1"), columns).describe() == line


def test_format_is_plain_data() -> None:
    assert detect(Row({"text": "t"}, "x:1")) == Format("text", {"text": "text"})
