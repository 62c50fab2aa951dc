"""Record + tokenizer → examples: train what you serve.

1. The prompt is rendered exactly as at inference: the messages before the turn, tools included, with the
   generation prompt. Its ids are the ids of inference, always.
2. The completion is what the template writes after that prompt, up to and including the turn-ending token.
3. Prompt and completion are tokenised in one go; where the tokenizer would merge across the border, the
   completion is tokenised on its own, and the ledger counts it.
4. Text of a user or a tool that spells a control token stays text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from surefoot.data.ledger import Ledger
from surefoot.data.rows import Conversation, Example, PlainText, Record, TokenSpans
from surefoot.errors import UserError

BATCH = 512
"""Records tokenised at once, in parallel, by the Rust tokenizer."""
MARK = "\ue0d7{}\ue0d8"
"""Stands in a template for text that spells a control token (private-use characters)."""


@dataclass(frozen=True)
class Turn:
    """One learned turn as text, before tokenising."""

    prompt: str
    completion: str
    literals: tuple[str, ...]
    """Texts that the marks stand for."""
    kind: str
    """What the tokens count as in the ledger."""
    begin: bool
    """The tokenizer puts its own first token (BOS) before the prompt, as at inference on plain text."""


class Renderer:
    """Turns records into examples with one tokenizer, and keeps the ledger."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        overlength: Literal["drop", "error", "cut"] = "drop",
        completion_only_loss: bool = True,
        last_turn_only: bool = False,
        eos_token: str | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """`vocabulary`: rows of the model's embedding; a token id beyond it is an error of the row."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.overlength = overlength
        self.completion_only_loss = completion_only_loss
        self.last_turn_only = last_turn_only
        self.vocabulary = vocabulary
        self.eos = eos_token or tokenizer.eos_token
        if self.eos is None:
            raise UserError("the tokenizer has no end-of-turn token: pass eos_token")
        self.eos_id = tokenizer.convert_tokens_to_ids(self.eos)
        if self.eos_id is None or (self.eos_id == tokenizer.unk_token_id and self.eos != tokenizer.unk_token):
            raise UserError(f"eos_token: the tokenizer does not know '{self.eos}'")
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        spelled = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, spelled))) if spelled else None
        self.control_ids = set(tokenizer.convert_tokens_to_ids(spelled)) if spelled else set()
        self.appends_eos = tokenizer("a")["input_ids"][-1:] == [self.eos_id]
        self.ledger = Ledger()
        self._seen: set[bytes] = set()

    def examples(self, records: Iterable[tuple[Record, str]]) -> Iterator[Example]:
        """Examples of `(record, where)` pairs, in order; `row` counts the pairs from 0."""
        rows = enumerate(records)
        while batch := list(islice(rows, BATCH)):
            yield from self._batch(batch)

    def _batch(self, batch: list[tuple[int, tuple[Record, str]]]) -> Iterator[Example]:
        self.ledger.rows += len(batch)
        pieces: list[tuple[int, str, Turn | Example]] = []
        for row, (record, where) in batch:
            found: Sequence[Turn | Example]
            if isinstance(record, Conversation):
                found = self._turns(record, where)
            elif isinstance(record, PlainText):
                found = [self._plain(record)]
            else:
                found = list(_spans(record, row, where, self.completion_only_loss))
            if not found:
                self.ledger.drop("no assistant turn to learn", where)
            pieces += [(row, where, piece) for piece in found]
        turns = [piece for _, _, piece in pieces if isinstance(piece, Turn)]
        prompts = self._encode(turns, [turn.prompt for turn in turns])
        wholes = self._encode(turns, [turn.prompt + turn.completion for turn in turns])
        encoded = zip(prompts, wholes, strict=True)
        for row, where, piece in pieces:
            if isinstance(piece, Turn):
                example = self._tokenised(piece, *next(encoded), row, where)
                kind = piece.kind
            else:
                example, kind = piece, "token ids"
            kept = self._fit(example, where)
            if kept is not None:
                self._count(kept, kind)
                yield kept

    def _turns(self, record: Conversation, where: str) -> list[Turn]:
        supervised = record.supervised[-1:] if self.last_turn_only else record.supervised
        messages, literals = self._neutralise(record.messages, where)
        if not self.completion_only_loss:
            text = self.template(messages, record, where)
            return [Turn("", text, literals, "whole conversations", begin=False)]
        turns = []
        for index in supervised:
            prompt = self.template(messages[:index], record, where, add_generation_prompt=True)
            whole = self.template(messages[: index + 1], record, where)
            completion = (
                whole[len(prompt) :] if whole.startswith(prompt) else _thought(prompt, whole, messages[index])
            )
            if completion is None:
                raise UserError(_cannot_learn(prompt, whole, index, where))
            turns.append(Turn(prompt, completion, literals, _kind(messages[index]), begin=False))
        return turns

    def template(
        self, messages: Sequence[dict[str, Any]], record: Conversation, where: str, **how: Any
    ) -> str:
        """The chat template's text for `messages`; its errors become errors of the row."""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{where}: the row is a conversation, and the model's tokenizer has no chat template. Pass "
                "chat_template_path (a Jinja file, or a tokenizer that has one), or give plain text as "
                "prompt and completion columns (columns: prompt=..., completion=...)"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=record.tools, tokenize=False, **how, **record.template_kwargs
            )
        except Exception as error:
            raise UserError(
                f"{where}: the model's chat template refuses this conversation: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def _plain(self, record: PlainText) -> Turn:
        completion = (
            record.completion if record.completion.endswith(self.eos) else record.completion + self.eos
        )
        prompt = record.prompt
        kind = "completions" if prompt else "plain text"
        if not self.completion_only_loss:
            prompt, completion, kind = "", prompt + completion, "plain text"
        bos = self.tokenizer.bos_token
        begin = not (bos and (prompt or completion).startswith(bos))
        return Turn(prompt, completion, (), kind, begin)

    def _neutralise(
        self, messages: list[dict[str, Any]], where: str
    ) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Put a mark for every control token that a user's or a tool's text spells."""
        if self.control is None:
            return messages, ()
        literals: list[str] = []

        def mark(match: re.Match[str]) -> str:
            literals.append(match[0])
            return MARK.format(len(literals) - 1)

        out = []
        for message in messages:
            content = message.get("content")
            if (
                message["role"] in ("user", "tool")
                and isinstance(content, str)
                and self.control.search(content)
            ):
                message = {**message, "content": self.control.sub(mark, content)}
                self.ledger.note("text spells a control token; it stays text", where)
            out.append(message)
        return out, tuple(literals)

    def _encode(self, turns: Sequence[Turn], texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. Marks become the ids of the text they stand for, never a control token."""
        ids: list[list[int]] = [[] for _ in texts]
        for begin in (True, False):
            wanted = [i for i, t in enumerate(turns) if t.begin == begin and not t.literals]
            if wanted:
                found = self.tokenizer([texts[i] for i in wanted], add_special_tokens=begin)["input_ids"]
                for i, tokens in zip(wanted, found, strict=True):
                    ids[i] = self._without_end(tokens) if begin else tokens
        for i, turn in enumerate(turns):
            if turn.literals:
                ids[i] = self._encode_marked(texts[i], turn.literals)
        return ids

    def _without_end(self, tokens: list[int]) -> list[int]:
        """Plain text without the EOS that some tokenizers append by themselves: it would stand inside."""
        return tokens[:-1] if self.appends_eos and tokens[-1:] == [self.eos_id] else tokens

    def _encode_marked(self, text: str, literals: tuple[str, ...]) -> list[int]:
        out: list[int] = []
        opening, closing = MARK.split("{}")
        for i, part in enumerate(re.split(f"{opening}(\\d+){closing}", text)):
            literal = i % 2 == 1
            piece = literals[int(part)] if literal else part
            if piece:
                out += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=literal)[
                    "input_ids"
                ]
        return out

    def _tokenised(self, turn: Turn, prompt: list[int], whole: list[int], row: int, where: str) -> Example:
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
        else:
            completion = self.tokenizer(turn.completion, add_special_tokens=False)["input_ids"]
            self.ledger.note(
                "the tokenizer merges across the prompt's end; completion tokenised on its own", where
            )
        completion = self._until_turn_end(completion, where)
        return Example(np.array(prompt, np.int32), np.array(completion, np.int32), row, where)

    def _until_turn_end(self, ids: list[int], where: str) -> list[int]:
        """Cut what a template writes after the turn's end (a line break); add the end if there is none."""
        end = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in self.control_ids), None)
        if end is None or self.tokenizer.decode(ids[end + 1 :]).strip():
            self.ledger.note(f"the template does not end the turn; {self.eos} added", where)
            ids, end = [*ids, self.eos_id], len(ids)
        self.ledger.turn_ends[str(self.tokenizer.convert_ids_to_tokens(ids[end]))] += 1
        return ids[: end + 1]

    def _fit(self, example: Example, where: str) -> Example | None:
        if self.vocabulary is not None:
            top = max(example.prompt_ids.max(initial=0), example.completion_ids.max(initial=0))
            if top >= self.vocabulary:
                raise UserError(
                    f"{where}: token id {top} is beyond the model's {self.vocabulary} embeddings: the tokenizer "
                    "does not belong to this model"
                )
        if example.tokens <= self.max_length:
            return self._learnable(example, where)
        said = f"{example.tokens} tokens, more than max_length {self.max_length}"
        if self.overlength == "error":
            raise UserError(f"{where}: {said}. Raise max_length, or choose overlength: drop or cut")
        room = self.max_length - len(example.prompt_ids)
        if self.overlength == "drop":
            self.ledger.drop(f"longer than max_length {self.max_length}", where)
            return None
        if room <= 0:
            self.ledger.drop(f"prompt alone fills max_length {self.max_length}", where)
            return None
        self.ledger.note(f"cut at max_length {self.max_length}, so its turn end is not learned", where)
        return self._learnable(replace(example, completion_ids=example.completion_ids[:room]), where)

    def _learnable(self, example: Example, where: str) -> Example | None:
        if example.targets > 0:
            return example
        self.ledger.drop("no token to learn", where)
        return None

    def _count(self, example: Example, kind: str) -> None:
        ledger = self.ledger
        ledger.examples += 1
        ledger.supervised_tokens += example.targets
        ledger.prompt_tokens += example.tokens - example.targets
        ledger.supervised_by_role[kind] += example.targets
        ledger.longest = max(ledger.longest, example.tokens)
        border = np.int32([len(example.prompt_ids)])
        content = b"".join(part.tobytes() for part in (border, example.prompt_ids, example.completion_ids))
        digest = hashlib.blake2b(content, digest_size=12).digest()
        ledger.duplicates += digest in self._seen
        self._seen.add(digest)


def _kind(message: dict[str, Any]) -> str:
    if message.get("tool_calls"):
        return "tool calls"
    return "reasoning and answers" if message.get("reasoning_content") else "answers"


def _thought(prompt: str, whole: str, message: dict[str, Any]) -> str | None:
    """The completion for a generation prompt that opens the reasoning (`<think>`), where the template writes
    turns without it: the reasoning (perhaps none), its end, the answer, and what the template ends a turn with.
    """
    answer = (message.get("content") or "").rpartition("</think>")[2].strip()
    written = (message.get("content") or "").partition("<think>")[2].partition("</think>")[0].strip()
    at = whole.rfind(answer)
    if not prompt.rstrip().endswith("<think>") or message.get("tool_calls") or not answer or at < 0:
        return None
    reasoning = (message.get("reasoning_content") or written).strip()
    return f"{reasoning}\n</think>\n\n{whole[at:]}"


def _cannot_learn(prompt: str, whole: str, index: int, where: str) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return (
        f"{where}: message {index} cannot be learned as it will be asked for: at inference the prompt goes on "
        f"{prompt[same:][:60]!r}, but the chat template writes {whole[same:][:60]!r} there. Pass "
        'chat_template_kwargs with the row (such as {"enable_thinking": false}), or a chat_template_path whose '
        "generation prompt is how it writes an assistant's turn"
    )


def _spans(record: TokenSpans, row: int, where: str, completion_only: bool) -> Iterator[Example]:
    """One example for each run of supervised tokens; what stands before it is its prompt."""
    ids = np.array(record.input_ids, np.int32)
    learned = np.array(record.supervised, bool) if completion_only else np.ones(len(ids), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield Example(ids[:start], ids[start:end], row, where)
