"""Plain text and token ids → examples: where they begin, end and part; and what is too long or unknown."""

from __future__ import annotations

from typing import Any

import pytest

from surefoot.data.render import BATCH, Renderer
from surefoot.data.rows import PlainText, TokenSpans
from surefoot.errors import UserError
from tests import templates, toys
from tests.data.rendered import MERGED, assistant, chat, ids, render, texts, user


def error_of(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        render(*args, **options)
    return str(caught.value)


# Plain text


def test_a_merge_across_the_border_leaves_the_prompt_as_it_is() -> None:
    tokenizer = toys.byte_level(sentences=["ab cd", "ab cd", "ab"], across_words=True)
    assert len(ids(tokenizer, "ab cd")) == 1
    examples, ledger = render(tokenizer, PlainText("ab c", "d"), PlainText("xx", "ab"))
    assert examples[0].prompt_ids.tolist() == ids(tokenizer, "ab c")
    assert examples[0].completion_ids.tolist() == [*ids(tokenizer, "d"), tokenizer.eos_token_id]
    assert texts(tokenizer, examples[0]) == ("ab c", "d<|im_end|>")
    assert ledger.noted == {MERGED: ["rows:1"]}
    assert ledger.counts[MERGED] == 1


@pytest.mark.parametrize("always", [False, True])
def test_a_completion_on_its_own_gets_no_blank_of_the_tokenizers(always: bool) -> None:
    tokenizer = toys.prefix_space(always=always)
    examples, ledger = render(tokenizer, PlainText("What is the cap", "ital of France?"))
    assert list(ledger.noted) == [MERGED]
    prompt, completion = (
        "".join(tokenizer.convert_ids_to_tokens(part.tolist()))
        for part in (examples[0].prompt_ids, examples[0].completion_ids)
    )
    assert prompt == "▁What▁is▁the▁cap"
    assert completion == "ital▁of▁France?</s>"


@pytest.mark.parametrize("eos_too", [False, True])
def test_begin_and_end_once(eos_too: bool) -> None:
    tokenizer = toys.adds_bos(eos_too=eos_too)
    bos, eos = 0, 1
    assert ids(tokenizer, "<s></s>") == [bos, eos]
    one, two = ids(tokenizer, "One"), ids(tokenizer, " two")
    cases = {
        PlainText("One", " two"): ([bos, *one], [*two, eos]),
        PlainText("One", " two</s>"): ([bos, *one], [*two, eos]),
        PlainText("One", " two</s>\n"): ([bos, *one], [*two, eos]),
        PlainText("<s>One", " two"): ([bos, *one], [*two, eos]),
        PlainText("", "One two"): ([bos], [*one, *two, eos]),
        PlainText("", "<s>One two</s>"): ([], [bos, *one, *two, eos]),
        PlainText("One", ""): ([bos, *one], [eos]),
    }
    examples, ledger = render(tokenizer, *cases)
    found = [(e.prompt_ids.tolist(), e.completion_ids.tolist()) for e in examples]
    assert found == list(cases.values())
    assert ledger.noted == {}
    assert ledger.supervised_by_role["plain text"] == examples[4].targets + examples[5].targets
    assert examples[4].targets == examples[5].targets  # a spelled BOS is input only, like the tokenizer's own


def test_another_end_than_the_tokenizer_appends() -> None:
    tokenizer = toys.adds_bos(("<s>", "</s>", "<end>"), eos_too=True)
    examples, _ = render(tokenizer, PlainText("One", " two"), eos_token="<end>")
    assert texts(tokenizer, examples[0]) == ("<s>One", " two<end>")


def test_plain_text_without_a_begin_token_learns_from_its_second_token() -> None:
    tokenizer = toys.byte_level()
    examples, ledger = render(tokenizer, PlainText("", "One two"))
    assert examples[0].prompt_ids.tolist() == []
    assert texts(tokenizer, examples[0])[1] == "One two<|im_end|>"
    assert ledger.supervised_tokens == examples[0].targets == len(examples[0].completion_ids) - 1


def test_prompt_and_completion_learned_whole() -> None:
    for tokenizer, before in ((toys.adds_bos(), "<s>"), (toys.byte_level(), "")):
        examples, ledger = render(tokenizer, PlainText("One", " two"), completion_only_loss=False)
        assert texts(tokenizer, examples[0]) == (before, f"One two{tokenizer.eos_token}")
        assert list(ledger.supervised_by_role) == ["plain text"]


def test_eos_token_must_be_known() -> None:
    with pytest.raises(UserError, match="eos_token: the tokenizer does not know '<stop>'"):
        Renderer(toys.byte_level(), max_length=9, eos_token="<stop>")
    tokenizer = toys.byte_level()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-turn token: pass eos_token"):
        Renderer(tokenizer, max_length=9)


# Token ids


def test_each_run_of_supervised_tokens_is_an_example() -> None:
    record = TokenSpans([5, 6, 7, 8, 9, 10], [False, True, True, False, False, True])
    examples, ledger = render(toys.byte_level(), record)
    found = [(e.prompt_ids.tolist(), e.completion_ids.tolist()) for e in examples]
    assert found == [([5], [6, 7]), ([5, 6, 7, 8, 9], [10])]
    assert ledger.supervised_by_role == {"token ids": 3}
    examples, _ = render(toys.byte_level(), record, completion_only_loss=False)
    assert [(e.prompt_ids.tolist(), e.completion_ids.tolist()) for e in examples] == [
        ([], [5, 6, 7, 8, 9, 10])
    ]


def test_token_ids_with_nothing_to_learn() -> None:
    _, ledger = render(
        toys.byte_level(), TokenSpans([5, 6], [False, False]), TokenSpans([5, 6], [True, False])
    )
    assert ledger.dropped == {"no token to learn": ["rows:1", "rows:2"]}
    assert (ledger.rows, ledger.examples) == (2, 0)


# Too long, unknown, seen before


def test_overlength() -> None:
    tokenizer = toys.byte_level()
    long, short = TokenSpans([5] * 6, [False] * 3 + [True] * 3), TokenSpans([5, 6], [False, True])
    examples, ledger = render(tokenizer, long, short, max_length=5)
    assert [example.where for example in examples] == ["rows:2"]
    assert ledger.dropped == {"longer than max_length 5": ["rows:1"]}
    assert error_of(tokenizer, short, long, max_length=5, overlength="error") == (
        "rows:2: 6 tokens, more than max_length 5. Raise max_length, or choose overlength: drop or cut. "
        'The row begins: {"input_ids": [5, 5, 5, 5, 5, 5]}'
    )
    examples, ledger = render(tokenizer, long, short, max_length=5, overlength="cut")
    assert [example.completion_ids.tolist() for example in examples] == [[5, 5], [6]]
    assert ledger.noted == {"cut at max_length 5, so its turn end is not learned": ["rows:1"]}
    examples, ledger = render(tokenizer, long, short, max_length=3, overlength="cut")
    assert [example.where for example in examples] == ["rows:2"]
    assert ledger.dropped == {"prompt alone fills max_length 3": ["rows:1"]}


def test_the_ledger_tells_of_what_is_kept_only() -> None:
    tokenizer = toys.byte_level(template=templates.NO_TURN_END)
    record = chat(user("Hi"), assistant("Hello!"))
    _, ledger = render(tokenizer, record, max_length=4)
    assert (ledger.noted, ledger.turn_ends, ledger.longest) == ({}, {}, 0)
    length = len(ids(tokenizer, "user: Hi\nassistant: Hello!\n"))
    examples, ledger = render(tokenizer, record, max_length=length, overlength="cut")
    assert texts(tokenizer, examples[0])[1] == "Hello!\n"
    assert ledger.turn_ends == {}


def test_a_token_beyond_the_embedding() -> None:
    tokenizer = toys.byte_level()
    assert len(render(tokenizer, TokenSpans([1, 9], [False, True]), vocabulary=10)[0]) == 1
    said = error_of(tokenizer, TokenSpans([1, 10], [False, True]), vocabulary=10)
    assert said.startswith("rows:1: token id 10 is beyond the model's 10 embeddings")


def test_rows_are_numbered_through_batches_and_duplicates_counted() -> None:
    tokenizer = toys.byte_level()
    count = BATCH + 3
    spans = [TokenSpans([1, 2, 3], [False, i % 2 == 0, True]) for i in range(count)]
    examples, ledger = render(tokenizer, *spans)
    assert [(example.row, example.where) for example in examples] == [
        (i, f"rows:{i + 1}") for i in range(count)
    ]
    assert (ledger.rows, ledger.examples, ledger.duplicates) == (count, count, count - 2)
    # The same tokens with another border are another example.
    assert render(tokenizer, *spans[:2])[1].duplicates == 0
