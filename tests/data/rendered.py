"""What tests of rendering share: records in, examples and ledger out, and the ids of inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.data.ledger import Ledger
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation, Example, Record

Message = dict[str, Any]
MERGED = "the tokenizer merges across the prompt's end; completion tokenised on its own"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str = "", **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def tool(text: str) -> Message:
    return {"role": "tool", "content": text, "name": "weather"}


def call(city: str) -> Message:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def chat(
    *messages: Message,
    learn: Sequence[int] | None = None,
    tools: list[dict[str, Any]] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Conversation:
    every = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return Conversation(list(messages), tuple(every if learn is None else learn), tools, kwargs or {})


def render(
    tokenizer: PreTrainedTokenizerBase, *records: Record, max_length: int = 4096, **options: Any
) -> tuple[list[Example], Ledger]:
    """The examples of `records`, which stand at rows:1, rows:2, ..."""
    renderer = Renderer(tokenizer, max_length=max_length, **options)
    placed = [(record, f"rows:{number}") for number, record in enumerate(records, start=1)]
    return list(renderer.examples(placed)), renderer.ledger


def check(
    tokenizer: PreTrainedTokenizerBase, record: Conversation, *expected: tuple[str, str], **options: Any
) -> Ledger:
    """Each learned turn's (prompt, completion), as text and as ids: the prompt's are those of inference, the
    completion's are the text's own. There are no remarks but those that the caller looks for in the ledger.
    """
    examples, ledger = render(tokenizer, record, **options)
    assert [texts(tokenizer, example) for example in examples] == list(expected)
    learned = record.supervised[-1:] if options.get("last_turn_only") else record.supervised
    for index, example, (_, completion) in zip(learned, examples, expected, strict=True):
        prompt_ids = inference(tokenizer, record, index)
        assert example.prompt_ids.tolist() == prompt_ids
        assert example.completion_ids.tolist() == ids(tokenizer, completion)
    return ledger


def inference(tokenizer: PreTrainedTokenizerBase, record: Conversation, index: int, **how: Any) -> list[int]:
    """The prompt's ids as transformers makes them when it is asked for message `index`."""
    found = tokenizer.apply_chat_template(
        record.messages[:index],
        tools=record.tools,  # type: ignore[arg-type]
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **how,
        **record.template_kwargs,
    )
    assert isinstance(found, list)
    return found  # type: ignore[return-value]


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which special tokens are spelled."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, str]:
    """Prompt and completion as a person reads them."""
    prompt, completion = (tokenizer.decode(part) for part in (example.prompt_ids, example.completion_ids))
    return str(prompt), str(completion)
