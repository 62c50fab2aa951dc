"""Text → token ids: those of inference, each stretch of text tokenised once.

1. Special tokens split a text, for the tokenizer as for us; what stands between them is tokenised by itself.
   The turns of a conversation, and rows under one system prompt, share most of these stretches.
2. Text of a user or a tool that spells a special token is marked (`neutralise`) and never becomes that token.
   It gets the ids that `apply_chat_template(..., sanitize_control_tokens=True)` gives it.
3. A tokenizer that looks past its special tokens (it puts a space before the first word, or strips the blanks
   around a token) gets each text whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "\ue0d7", "\ue0d8"
"""Around a number: stands in a template for text that spells a control token (private-use characters)."""
MARK = re.compile(f"{OPENING}(\\d+){CLOSING}")
UNTRUSTED = ("user", "tool")
"""Roles whose text comes from outside."""


class Encoder:
    """One tokenizer: its control tokens, and the ids of texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        special = {*(str(token) for token in added if token.special), *tokenizer.all_special_tokens}
        spelled = sorted(special, key=len, reverse=True)
        self._id: dict[str, int] = {token: self._tokenizer.convert_tokens_to_ids(token) for token in spelled}
        self.control_ids = set(self._id.values())
        self.control = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._marked = re.compile(f"({self.control.pattern})|{MARK.pattern}")
        # expensive: an alternative that is not a control token makes the search a hundred times as slow
        self._unmarked = re.compile(f"({self.control.pattern})")
        alone, framed = self._ids("a"), self._tokenizer("a")["input_ids"]
        starts = [i for i in range(len(framed)) if framed[i : i + len(alone)] == alone]
        self.before: list[int] = framed[: starts[0]] if starts else []
        """What the tokenizer puts before plain text by itself: BOS, or nothing."""
        self._separable = (
            tokenizer.is_fast
            and self._ids("\na") == self._ids("\n") + alone
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
            and not any(inner in str(token) for token in added if not token.special for inner in spelled)
            and all(
                self._ids(token + text) == [self._id[token], *self._ids(text)]
                for token in spelled
                for text in ("a", " a", "\n", "é")
            )
        )

    def neutralise(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Messages with a mark for every control token that a user's or a tool's text spells; and these."""
        contents = [m.get("content") or "" for m in messages if m["role"] in UNTRUSTED]
        if not any(map(self.control.search, contents)):
            return messages, ()
        literals: list[str] = []

        def mark(match: re.Match[str]) -> str:
            literals.append(match[0])
            return f"{OPENING}{len(literals) - 1}{CLOSING}"

        # What looks like a mark already is marked too, whoever wrote it.
        return [
            {**m, "content": (self._marked if m["role"] in UNTRUSTED else MARK).sub(mark, m["content"])}
            if m.get("content")
            else m
            for m in messages
        ], tuple(literals)

    def encode(self, texts: Sequence[str], literals: Sequence[tuple[str, ...]]) -> Iterator[list[int]]:
        """Token ids of each text, without BOS and EOS but those it spells; marks stand for `literals`.

        Tokenised when called, put together one after the other: the texts of a long conversation are many
        times as long as their stretches.
        """
        pairs = list(zip(texts, literals, strict=True))
        if not self._separable:
            found = iter(self._all(text for text, marked in pairs if not marked))
            return (self._whole(text, marked) if marked else next(found) for text, marked in pairs)
        # text, control token (or None, number of a mark or None), text, ...
        split = [(self._marked if marked else self._unmarked).split(text) for text, marked in pairs]
        stretches = list(
            dict.fromkeys(
                text
                for pieces, marked in zip(split, literals, strict=True)
                for text in pieces[:: 3 if marked else 2]
            )
        )
        ids = dict(zip(stretches, self._all(stretches), strict=True))
        return (self._joined(*one, ids) for one in zip(split, literals, strict=True))

    def _joined(self, pieces: list[str], marked: tuple[str, ...], ids: dict[str, list[int]]) -> list[int]:
        tokens, width = list(ids[pieces[0]]), 3 if marked else 2
        for at in range(1, len(pieces), width):
            control = pieces[at]
            tokens += [self._id[control]] if control else self._literal(marked[int(pieces[at + 1])])
            tokens += ids[pieces[at + width - 1]]
        return tokens

    def within(self, text: str) -> list[int]:
        """Token ids of `text` as they are inside a longer one: no space of the tokenizer's own before it."""
        if not self._separable:
            for anchor in ("\n", ".", "a"):
                start, whole = self._ids(anchor), self._ids(anchor + text)
                if whole[: len(start)] == start:
                    return whole[len(start) :]
        return self._ids(text)

    def _whole(self, text: str, literals: tuple[str, ...]) -> list[int]:
        """Token ids of a text with marks; only what they stand for is tokenised apart."""
        start, *rest = MARK.split(text)
        out = self._ids(start)
        for number, part in zip(rest[::2], rest[1::2], strict=True):
            out += self._literal(literals[int(number)]) + (self.within(part) if part else [])
        return out

    def _literal(self, text: str) -> list[int]:
        """Token ids of a control token's name as text."""
        anchor = "\n"
        start, whole = self._all([anchor, anchor + text], split_special_tokens=True)
        ids = whole[len(start) :]
        if whole[: len(start)] == start and not self.control_ids.intersection(ids):
            return ids
        return list(chain.from_iterable(map(self.within, text)))  # the vocabulary has the name as a word

    def _ids(self, text: str) -> list[int]:
        return self._all([text])[0]

    def _all(self, texts: Iterable[str], **how: Any) -> list[list[int]]:
        if not (texts := list(texts)):
            return []
        how = {"add_special_tokens": False, "split_special_tokens": False, **how}
        return self._tokenizer(texts, **how, return_attention_mask=False, verbose=False)["input_ids"]
