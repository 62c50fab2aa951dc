"""Chat templates that fall short of a row: an error with its fix, or a word in the ledger."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import PreTrainedTokenizerBase

from surefoot.errors import UserError
from tests import templates, toys
from tests.data.rendered import TOOL, assistant, call, chat, check, render, texts, tool, user


@cache
def chatml(template: str) -> PreTrainedTokenizerBase:
    return toys.byte_level(template=template)


def error_of(tokenizer: PreTrainedTokenizerBase, *messages: dict) -> str:
    with pytest.raises(UserError) as caught:
        render(tokenizer, chat(user("Hi"), assistant("Hello!")), chat(*messages))
    return str(caught.value)


def test_no_turn_end_gets_eos_and_a_note() -> None:
    ledger = check(
        chatml(templates.NO_TURN_END),
        chat(user("Hi"), assistant("Hello!"), user("Ok"), assistant("Bye.")),
        ("user: Hi\nassistant: ", "Hello!\n<|im_end|>"),
        ("user: Hi\nassistant: Hello!\nuser: Ok\nassistant: ", "Bye.\n<|im_end|>"),
    )
    assert ledger.noted == {"the template does not end the turn; <|im_end|> added": ["rows:1"]}
    assert ledger.turn_ends == {"<|im_end|>": 2}


def test_a_generation_prompt_that_no_turn_follows_is_an_error() -> None:
    said = error_of(chatml(templates.OTHER_HEADER), user("Hi"), assistant("Hello!"))
    assert said.startswith("rows:1: message 1 cannot be learned as it will be asked for: at inference")
    assert "'bot\\n'" in said and "'assistant\\nHello!<|im_end|>\\n'" in said
    assert "chat_template_path" in said


def test_no_chat_template() -> None:
    with pytest.raises(UserError) as caught:
        render(toys.byte_level(), chat(user("Hi"), assistant("Hello!")))
    assert str(caught.value).startswith("rows:1: the row is a conversation")
    assert "chat_template_path" in str(caught.value)
    assert "prompt and completion" in str(caught.value)


def test_a_template_without_tools_drops_the_calls_and_says_so() -> None:
    tokenizer = chatml(templates.CHATML)
    record = chat(
        user("Rain?"),
        assistant(tool_calls=[call("Paris")]),
        tool("21"),
        assistant("No.", reasoning_content="Dry."),
        tools=[TOOL],
    )
    examples, ledger = render(tokenizer, record)
    assert [texts(tokenizer, example)[1] for example in examples] == ["No.<|im_end|>"]
    assert ledger.dropped == {
        "the chat template does not write tool calls (chat_template_path takes one that does)": ["rows:1"]
    }
    assert list(ledger.noted) == [
        "the chat template does not write tools, so they are not seen",
        "the chat template does not write reasoning, so it is not learned",
    ]


def test_a_template_that_asks_for_what_the_row_lacks_names_the_row() -> None:
    tokenizer = chatml("{{ messages[0].content.upper() + messages[0].city.name }}")
    with pytest.raises(UserError) as caught:
        render(tokenizer, chat(user("Hi"), assistant("Hello!")))
    assert str(caught.value).startswith("rows:1: the model's chat template refuses this conversation: ")
    assert "city" in str(caught.value)
