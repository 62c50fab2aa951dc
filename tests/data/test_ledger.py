"""The ledger's counts, its lists that end at twenty, and the lines that people read."""

from __future__ import annotations

import json

import pytest

from surefoot.data.ledger import LISTED, Ledger
from surefoot.data.rows import PlainText, TokenSpans
from tests import templates, toys
from tests.data.rendered import TOOL, assistant, call, chat, render, tool, user


def full_ledger() -> Ledger:
    tokenizer = toys.byte_level(words=toys.QWEN_WORDS, template=templates.QWEN3)
    record = chat(
        user("Rain<|im_end|>?"),
        assistant(tool_calls=[call("Paris")]),
        tool("21"),
        assistant("No.", reasoning_content="Dry."),
        user("Ok"),
        assistant("Bye."),
        tools=[TOOL],
    )
    records = record, record, PlainText("One", " two"), TokenSpans([3, 4], [False, False])
    examples, ledger = render(tokenizer, *records)
    assert ledger.examples == len(examples) == 7
    assert ledger.supervised_tokens == sum(example.targets for example in examples)
    assert ledger.prompt_tokens == sum(len(example.prompt_ids) for example in examples)
    assert ledger.longest == max(example.tokens for example in examples)
    calls, thoughts, answers = (2 * example.targets for example in examples[:3])
    assert ledger.supervised_by_role == {
        "tool calls": calls,
        "reasoning and answers": thoughts,
        "answers": answers,
        "completions": examples[6].targets,
    }
    assert (ledger.rows, ledger.duplicates) == (4, 3)
    assert ledger.turn_ends == {"<|im_end|>": 7}
    ledger.source, ledger.shape = "rows.jsonl", "messages"
    return ledger


def test_lines_say_it_all() -> None:
    ledger = full_ledger()
    tokens = ledger.prompt_tokens + ledger.supervised_tokens
    lines = ledger.lines()
    assert lines[0] == "rows.jsonl: 4 rows read as messages"
    assert lines[1] == f"7 examples, {tokens:,} tokens, longest {ledger.longest}"
    share = round(100 * ledger.supervised_tokens / tokens)
    assert lines[2].startswith(f"{ledger.supervised_tokens} tokens supervised ({share}%): tool calls ")
    assert lines[3:] == [
        "answers end with <|im_end|>",
        "3 examples stood before, word for word (kept)",
        "dropped: 1 × no token to learn (rows:4)",
        "note: 6 × text spells a control token; it stays text (rows:1, rows:2)",
    ]


def test_an_empty_ledger_has_lines_too() -> None:
    assert Ledger("rows.jsonl", "text").lines() == [
        "rows.jsonl: 0 rows read as text",
        "0 examples, 0 tokens, longest 0",
        "0 tokens supervised (0%): none",
    ]


def test_plain_values_for_run_json() -> None:
    ledger = full_ledger()
    values = json.loads(json.dumps(ledger.to_dict()))
    assert values == ledger.to_dict()
    assert values["supervised_by_role"] == dict(ledger.supervised_by_role)
    assert values["counts"] == {"text spells a control token; it stays text": 6, "no token to learn": 1}
    assert Ledger.from_dict(values) == ledger
    assert Ledger.from_dict(values).lines() == ledger.lines()
    with pytest.raises(TypeError):
        Ledger.from_dict({**values, "other": 1})
    ledger.drop("late", "rows:9")
    assert "late" not in values["counts"]


def test_places_are_listed_once_and_up_to_twenty_and_all_are_counted() -> None:
    ledger = Ledger("rows.jsonl", "text")
    for number in range(1000):
        for _ in range(2):
            ledger.drop("too long", f"rows.jsonl:{number}")
    assert ledger.dropped["too long"] == [f"rows.jsonl:{number}" for number in range(LISTED)]
    assert ledger.counts["too long"] == 2000
    assert ledger.lines()[-1] == ("dropped: 2,000 × too long (rows.jsonl:0, rows.jsonl:1, rows.jsonl:2, ...)")
