"""Fault 35: wrong types, unknown roles and empty messages are errors that name row, cause and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Surefoot
from tests.faults.refused import GOOD, refusal, says, write

USER, ASSISTANT = GOOD["messages"]


def turns(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


@pytest.mark.parametrize(("row", "cause", "fix"), [
    (turns({"role": "robot", "content": "q"}, ASSISTANT), "messages[0] has the unknown role 'robot'", "Known"),
    (turns({"role": "asistant", "content": "q"}), "unknown role 'asistant'", "Did you mean 'assistant'?"),
    (turns({"role": 3, "content": "q"}), "messages[0] has the unknown role 3", "Known roles are"),
    (turns({"role": {"a": []}, "content": "q"}), "has the unknown role {'a': []}", "Known roles are"),
    (turns({"content": "q"}), "messages[0] has no role; its keys are content", 'Write "role" and "content"'),
    (turns(), "column 'messages' has no messages", "Write at least a user and an assistant message"),
    ({"messages": None}, "column 'messages' has no messages", "Write at least"),
    ({"messages": "Hi"}, "column 'messages' is a string that is no JSON", "Write it as JSON"),
    ({"messages": {"role": "user"}}, "column 'messages' is an object", "Write a list"),
    (turns("Hi"), "messages[0] is a string", 'Write a message: {"role": "user", "content": "..."}'),
    (turns(USER, {"role": "assistant", "content": 3}), "content of messages[1] is a number", "Write a string"),
    (turns(USER, {"role": "assistant", "content": None}), "messages[1] has no content (null)", "take the mess"),
    (turns(USER, {"role": "assistant", "content": [{"type": "vidoe"}]}), "of the unknown type 'vidoe'", "Write {"),
    (turns(USER, {**ASSISTANT, "weight": [1]}), "weight of messages[1] is [1]", "Write 1 to learn the message"),
    (turns(USER, {**ASSISTANT, "tool_calls": [{}]}), "an object without the name of a function", "Write {"),
    (turns(USER, ASSISTANT, tools=[{"name": "f", "function": "g"}]), "tools[0] is an object", "Write {"),
    (turns(USER, ASSISTANT, system=["Be kind"]), "column 'system' is a list", "Write a string"),
    ({"messages": [USER, ASSISTANT], "image": "a.png"}, "column 'image' is filled", "Take the row or the"),
    ({"text": "Another"}, "mixed shapes: this data began as messages", "Put rows of another shape into a file"),
])  # fmt: skip
def test_wrong_rows(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, row: dict[str, Any], cause: str, fix: str
) -> None:
    path = write(tmp_path / "r.jsonl", [GOOD, row, GOOD])
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}:2: ")
    says(said, cause, fix, "The row begins: {")


@pytest.mark.parametrize(("row", "cause", "fix"), [
    ({"prompt": "a", "completion": 3}, "column 'completion' is a number", "Write both as strings"),
    ({"prompt": None, "completion": "a"}, "column 'prompt' is null", "Write both as strings"),
    ({"prompt": "", "completion": ""}, "columns 'prompt' and 'completion' are both empty", "Take the row out"),
])  # fmt: skip
def test_wrong_plain_rows(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path, row: dict[str, Any], cause: str, fix: str
) -> None:
    path = write(tmp_path / "r.jsonl", [row, {"prompt": "a", "completion": "b"}])
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}:1: ")
    says(said, cause, fix, "The row begins: {")


def test_a_row_whose_name_is_endless_makes_a_short_message(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.jsonl", [GOOD, turns({"role": "x\n" * 10**6, "content": "q"})])
    said = refusal(surefoot, tiny_folder, path)
    assert said.startswith(f"{path}:2: messages[0] has the unknown role") and len(said) < 3_000
    says(said, " … ", "Known roles are", "The row begins: {")


def test_a_template_that_refuses_a_conversation(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    path = write(
        tmp_path / "r.jsonl", [GOOD, turns({"role": "system", "content": "Be kind."}, USER, ASSISTANT)]
    )
    said = refusal(surefoot, tiny_folder, path, "--chat_template_path", template)
    assert said.startswith(f"{path}:2: ")
    says(said, "No system role", 'The row begins: [{"role": "system"')


def test_too_long_with_overlength_error(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    long = turns(USER, {"role": "assistant", "content": "word " * 200})
    path = write(tmp_path / "r.jsonl", [GOOD, long, GOOD])
    said = refusal(surefoot, tiny_folder, path, "--overlength", "error")
    assert said.startswith(f"{path}:2: ")
    says(said, "more than max_length 128", "Raise max_length, or choose overlength", "The row begins: [{")
