"""The turns that each family's chat template has learned: exact prompt ids of inference, exact completion."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import PreTrainedTokenizerBase

from surefoot.errors import UserError
from tests import templates, toys
from tests.data.rendered import (
    TOOL,
    assistant,
    call,
    chat,
    check,
    ids,
    inference,
    render,
    system,
    texts,
    tool,
    user,
)


@cache
def qwen3(template: str = templates.QWEN3) -> PreTrainedTokenizerBase:
    return toys.byte_level(words=toys.QWEN_WORDS, template=template)


@cache
def llama3() -> PreTrainedTokenizerBase:
    return toys.byte_level(toys.LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>", template=templates.LLAMA3)


@cache
def gemma(template: str) -> PreTrainedTokenizerBase:
    return toys.byte_level(toys.GEMMA, eos="<eos>", bos="<bos>", template=template)


@cache
def mistral(always: bool = False) -> PreTrainedTokenizerBase:
    return toys.prefix_space(template=templates.MISTRAL, always=always)


@cache
def deepseek() -> PreTrainedTokenizerBase:
    return toys.byte_level(
        toys.DEEPSEEK,
        eos=toys.DEEPSEEK[1],
        bos=toys.DEEPSEEK[0],
        words=("<think>", "</think>"),
        template=templates.DEEPSEEK_R1,
    )


def error_of(tokenizer: PreTrainedTokenizerBase, *messages: dict) -> str:
    with pytest.raises(UserError) as caught:
        render(tokenizer, chat(user("Hi"), assistant("Hello!")), chat(*messages))
    return str(caught.value)


# Qwen3


def test_qwen3_writes_old_reasoning_out_of_the_prompt_but_learns_it() -> None:
    record = chat(
        system("Be kind."),
        user("Hi"),
        assistant("Hello!", reasoning_content="A greeting."),
        user("2+2?"),
        assistant("4", reasoning_content="Two and two."),
    )
    first = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ledger = check(
        qwen3(),
        record,
        (first, "<think>\nA greeting.\n</think>\n\nHello!<|im_end|>"),
        (
            f"{first}Hello!<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
            "<think>\nTwo and two.\n</think>\n\n4<|im_end|>",
        ),
    )
    assert set(ledger.supervised_by_role) == {"reasoning and answers"}
    assert ledger.noted == {}
    assert ledger.turn_ends == {"<|im_end|>": 2}


def test_qwen3_reasoning_inside_the_content() -> None:
    check(
        qwen3(),
        chat(user("Hi"), assistant("<think>\nA greeting.\n</think>\n\nHello!")),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            "<think>\nA greeting.\n</think>\n\nHello!<|im_end|>",
        ),
    )


def test_qwen3_without_thinking_has_the_empty_thought_in_the_prompt() -> None:
    messages = user("Hi"), assistant("Hello!")
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    thought = "<think>\n\n</think>\n\n"
    check(qwen3(), chat(*messages), (prompt, f"{thought}Hello!<|im_end|>"))
    check(
        qwen3(),
        chat(*messages, kwargs={"enable_thinking": False}),
        (prompt + thought, "Hello!<|im_end|>"),
    )


def test_qwen3_reasoning_that_the_prompt_forbids_is_an_error_with_a_fix() -> None:
    record = chat(user("Hi"), assistant("Hello!", reasoning_content="Hm."), kwargs={"enable_thinking": False})
    with pytest.raises(UserError, match=r"rows:1: message 1 cannot be learned .* chat_template_kwargs"):
        render(qwen3(), record)


def test_qwen3_tools_calls_and_results() -> None:
    record = chat(
        user("Rain?"),
        assistant(tool_calls=[call("Paris"), call("Köln")], reasoning_content="Ask."),
        tool("21"),
        tool("19"),
        assistant("No."),
        tools=[TOOL],
    )
    tools = (
        '<|im_start|>system\n# Tools\n\n<tools>\n{"type": "function", "function": {"name": "weather", '
        '"description": "The weather in a city.", "parameters": {"type": "object", "properties": '
        '{"city": {"type": "string"}}}}}\n</tools><|im_end|>\n'
    )
    first = f"{tools}<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n"
    calls = (
        '<think>\nAsk.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>'
    )
    results = (
        "\n<|im_start|>user\n<tool_response>\n21\n</tool_response>\n<tool_response>\n19\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = qwen3()
    ledger = check(
        tokenizer,
        record,
        (first, calls),
        (first + calls + results, "<think>\n\n</think>\n\nNo.<|im_end|>"),
    )
    assert ledger.supervised_by_role == {
        "tool calls": len(ids(tokenizer, calls)),
        "answers": len(ids(tokenizer, "<think>\n\n</think>\n\nNo.<|im_end|>")),
    }
    assert ledger.noted == {}


# Llama 3


def test_llama3_begins_once_and_ends_each_turn() -> None:
    record = chat(system("Be kind."), user("Hi"), assistant("Hello!"), user("Ok"), assistant(" Bye. "))
    first = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    between = (
        "<|start_header_id|>user<|end_header_id|>\n\nOk<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ledger = check(
        llama3(),
        record,
        (first, "Hello!<|eot_id|>"),
        (f"{first}Hello!<|eot_id|>{between}", "Bye.<|eot_id|>"),
    )
    assert ledger.turn_ends == {"<|eot_id|>": 2}
    examples, _ = render(llama3(), record)
    assert all(example.prompt_ids.tolist().count(0) == 1 for example in examples)


def test_llama3_tool_call_as_json() -> None:
    record = chat(
        user("Rain?"), assistant(tool_calls=[call("Paris")]), tool("21"), assistant("No."), tools=[TOOL]
    )
    examples, ledger = render(llama3(), record)
    assert [texts(llama3(), example)[1] for example in examples] == [
        '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>',
        "No.<|eot_id|>",
    ]
    assert [example.prompt_ids.tolist() for example in examples] == [
        inference(llama3(), record, 1),
        inference(llama3(), record, 3),
    ]
    assert texts(llama3(), examples[1])[0].endswith(
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "weather", "parameters": {"city": "Paris"}}'
        "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n21<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ledger.noted == {}


def test_llama3_leaves_out_the_text_beside_a_call_and_the_ledger_says_so() -> None:
    _, ledger = render(llama3(), chat(user("Rain?"), assistant("Let me see.", tool_calls=[call("Paris")])))
    assert ledger.noted == {"the chat template does not write the text beside a tool call": ["rows:1"]}


def test_llama3_refuses_two_calls_at_once() -> None:
    said = error_of(llama3(), user("Rain?"), assistant(tool_calls=[call("Paris"), call("Rome")]))
    assert said.startswith(
        "rows:2: the model's chat template refuses this conversation: This model only supports single "
        'tool-calls at once! The row begins: [{"role": "user", "content": "Rain?"}'
    )


# Gemma


def test_gemma_ends_turns_with_another_token_than_eos() -> None:
    record = chat(user("Hi"), assistant("Hello!"), user("Ok"), assistant("Bye."))
    first = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    ledger = check(
        gemma(templates.GEMMA2),
        record,
        (first, "Hello!<end_of_turn>"),
        (
            f"{first}Hello!<end_of_turn>\n<start_of_turn>user\nOk<end_of_turn>\n<start_of_turn>model\n",
            "Bye.<end_of_turn>",
        ),
    )
    assert ledger.turn_ends == {"<end_of_turn>": 2}
    assert ledger.noted == {}


def test_gemma2_has_no_system_role() -> None:
    said = error_of(gemma(templates.GEMMA2), system("Be kind."), user("Hi"), assistant("Hello!"))
    assert said.startswith(
        "rows:2: the model's chat template refuses this conversation: System role not supported. The row begins: "
    )


def test_gemma2_refuses_two_answers_in_a_row() -> None:
    said = error_of(gemma(templates.GEMMA2), user("Hi"), assistant("Hello!"), assistant("Well?"))
    assert said.startswith("rows:2: the model's chat template refuses this conversation: Conversation roles")


def test_gemma3_merges_the_system_prompt_into_the_user_turn() -> None:
    check(
        gemma(templates.GEMMA3),
        chat(system("Be kind."), user("Hi"), assistant("Hello!")),
        (
            "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
            "Hello!<end_of_turn>",
        ),
    )


# Mistral


@pytest.mark.parametrize("always", [False, True])
def test_mistral_answer_begins_with_the_blank_of_the_template(always: bool) -> None:
    tokenizer = mistral(always)
    record = chat(user("Hello!"), assistant("Paris"), user("What?"), assistant("city"))
    examples, ledger = render(tokenizer, record)
    blank = ["▁", "▁"] if always else ["▁"]
    begins = ["<s>", "[INST]"]
    assert [tokenizer.convert_ids_to_tokens(e.prompt_ids.tolist())[:2] for e in examples] == [begins] * 2
    assert [example.prompt_ids.tolist() for example in examples] == [
        inference(tokenizer, record, 1),
        inference(tokenizer, record, 3),
    ]
    for example, word in zip(examples, ("Paris", "city"), strict=True):
        learned = tokenizer.convert_ids_to_tokens(example.completion_ids.tolist())
        assert "".join(learned) == "".join([*blank, word, "</s>"])
        assert example.completion_ids.tolist() == ids(tokenizer, f"[/INST] {word}</s>")[-len(learned) :]
    assert ledger.noted == {}
    assert ledger.turn_ends == {"</s>": 2}


# Generation prompts that open the reasoning


def test_deepseek_r1_learns_reasoning_its_end_and_the_answer() -> None:
    prompt = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n"
    learned = "A greeting.\n</think>\n\nHello!<｜end▁of▁sentence｜>"
    history = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Ok"
    for first in (
        assistant("Hello!", reasoning_content="A greeting."),
        assistant("<think>\nA greeting.\n</think>\n\nHello!"),
        assistant("A greeting.\n</think>\n\nHello!"),
    ):
        examples, ledger = render(deepseek(), chat(user("Hi"), first, user("Ok"), assistant("Bye.")))
        assert texts(deepseek(), examples[0]) == (prompt, learned)
        assert examples[0].completion_ids.tolist() == ids(deepseek(), learned)
        begins, end = texts(deepseek(), examples[1])
        assert begins.replace("\n\nHello!", "Hello!") == f"{history}<｜Assistant｜><think>\n"
        assert end == "\n</think>\n\nBye.<｜end▁of▁sentence｜>"
        assert ledger.noted == {}


@pytest.mark.parametrize("answer", ["e", "sentence", "｜", "", "A"])
def test_deepseek_r1_answers_that_stand_elsewhere_in_the_text_too(answer: str) -> None:
    check(
        deepseek(),
        chat(user("A?"), assistant(answer, reasoning_content=f"So {answer}.")),
        (
            "<｜begin▁of▁sentence｜><｜User｜>A?<｜Assistant｜><think>\n",
            f"So {answer}.\n</think>\n\n{answer}<｜end▁of▁sentence｜>",
        ),
    )


def test_qwq_tool_call_after_reasoning() -> None:
    check(
        qwen3(templates.QWQ),
        chat(user("Rain?"), assistant(tool_calls=[call("Paris")], reasoning_content="Ask.")),
        (
            "<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<think>\n",
            'Ask.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
            "<|im_end|>",
        ),
    )
