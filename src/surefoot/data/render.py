"""Record + tokenizer → examples: train what you serve.

1. The prompt is rendered exactly as at inference: the messages before the turn, tools included, with the
   generation prompt. Its ids are the ids of inference, always.
2. The completion is what the template writes after that prompt, up to and including the turn-ending token.
3. Prompt and completion are tokenised in one go; where the tokenizer would merge across the border, the
   completion is tokenised on its own, and the ledger counts it.
4. Text of a user or a tool that spells a control token stays text (encode.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from surefoot.data.encode import Encoder
from surefoot.data.ledger import Ledger
from surefoot.data.repeats import Repeats
from surefoot.data.rows import Conversation, Example, PlainText, Record, TokenSpans
from surefoot.errors import UserError

BATCH = 512
"""Records tokenised at once, in parallel, by the Rust tokenizer."""
BATCH_TEXT = 1 << 24
"""Characters of a batch's turns, prompts and all, from which on it is not filled further."""


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
    remarks: tuple[str, ...] = ()
    """What the ledger notes if the turn is kept."""


Piece: TypeAlias = tuple[int, str, Turn | Example]
"""Row, where, and what is learned there."""


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
        self.eos = str(eos_token or tokenizer.eos_token or "")
        if not self.eos:
            raise UserError("the tokenizer has no end-of-turn token: pass eos_token")
        self.eos_id = tokenizer.convert_tokens_to_ids(self.eos)
        if self.eos_id is None or (self.eos_id == tokenizer.unk_token_id and self.eos != tokenizer.unk_token):
            raise UserError(f"eos_token: the tokenizer does not know '{self.eos}'")
        self.encoder = Encoder(tokenizer)
        self.ledger = Ledger()
        self._repeats = Repeats()

    def examples(
        self, records: Iterable[tuple[Record, str]], at_most: int | None = None
    ) -> Iterator[Example]:
        """Examples of `(record, where)` pairs, in order; `row` counts the pairs from 0.

        `at_most` stops after so many rows that have something to learn, and reads no further.
        """
        rows = enumerate(records)
        learned, last, read = 0, -1, -1
        while read != self.ledger.rows:
            read = self.ledger.rows
            pieces = self._pieces(islice(rows, BATCH if at_most is None else min(BATCH, at_most - learned)))
            for example in self._examples(pieces):
                learned += example.row != last
                last = example.row
                yield example
        self.ledger.duplicates = self._repeats.count()

    def _pieces(self, rows: Iterable[tuple[int, tuple[Record, str]]]) -> list[Piece]:
        """What is to be learned of the next rows, up to `BATCH_TEXT`; turns are not tokenised yet."""
        pieces: list[Piece] = []
        length = 0
        for row, (record, where) in rows:
            self.ledger.rows += 1
            found: Sequence[Turn | Example]
            if isinstance(record, Conversation):
                found = self._turns(record, where)
            elif isinstance(record, PlainText):
                found = [self._plain(record)]
            else:
                found = list(_spans(record, row, where, self.completion_only_loss))
                if not found:
                    self.ledger.drop("no token to learn", where)
            pieces += [(row, where, piece) for piece in found]
            length += sum(
                len(piece.prompt) + len(piece.completion) for piece in found if isinstance(piece, Turn)
            )
            if length > BATCH_TEXT:
                break
        return pieces

    def _examples(self, pieces: list[Piece]) -> Iterator[Example]:
        """The turns tokenised; all that fits, counted."""
        turns = [piece for _, _, piece in pieces if isinstance(piece, Turn)]
        pairs = [text for turn in turns for text in (turn.prompt, turn.prompt + turn.completion)]
        ids = self.encoder.encode(pairs, [turn.literals for turn in turns for _ in range(2)])
        for row, where, piece in pieces:
            if isinstance(piece, Turn):
                example, remarks = self._tokenised(piece, next(ids), next(ids), row, where)
                kind = piece.kind
            else:
                example, remarks, kind = piece, [], "token ids"
            kept = self._fit(example, where)
            if kept is not None:
                for remark in remarks:
                    self.ledger.note(remark, where)
                self._count(kept, kind)
                yield kept

    def _turns(self, record: Conversation, where: str) -> list[Turn]:
        messages, literals = self.encoder.neutralise(record.messages)
        remarks = ["text spells a control token; it stays text"] if literals else []
        if not self.completion_only_loss:
            text = self.template(messages, record, where)
            remarks += _left_out(record, record.messages, text, text)
            return [Turn("", text, literals, "whole conversations", begin=False, remarks=tuple(remarks))]
        if not record.supervised:
            self.ledger.drop("no assistant turn to learn", where)
        turns = []
        for index in record.supervised[-1:] if self.last_turn_only else record.supervised:
            if index == 0:
                self.ledger.drop("the conversation begins with the answer: nothing asks for it", where)
                continue
            prompt = self.template(messages[:index], record, where, add_generation_prompt=True)
            whole = self.template(messages[: index + 1], record, where)
            answer = messages[index]
            completion = whole[len(prompt) :] if whole.startswith(prompt) else _thought(prompt, whole, answer)
            if completion is None:
                raise UserError(_cannot_learn(prompt, whole, index, where))
            left_out = _left_out(record, [answer], prompt, completion)
            if NO_TOOL_CALLS in left_out:
                self.ledger.drop(NO_TOOL_CALLS, where)
                continue
            said = f"{answer.get('content') or ''}{answer.get('reasoning_content') or ''}"
            if self.encoder.control.search(said):
                left_out.append("an answer spells a control token, and it is learned as that token")
            notes = (*remarks, *left_out)
            turns.append(Turn(prompt, completion, literals, _kind(answer), begin=False, remarks=notes))
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
                list(messages), tools=cast(Any, record.tools), tokenize=False, **how, **record.template_kwargs
            )
        except Exception as error:
            raise UserError(
                f"{where}: the model's chat template refuses this conversation: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def _plain(self, record: PlainText) -> Turn:
        prompt, completion = record.prompt, record.completion
        ended = completion.rstrip()  # what stands after the end would never be written
        completion = ended if ended.endswith(self.eos) else completion + self.eos
        kind = "completions" if prompt else "plain text"
        if not self.completion_only_loss:
            prompt, completion, kind = "", prompt + completion, "plain text"
        bos = str(self.tokenizer.bos_token or "")
        begin = not (bos and (prompt or completion).startswith(bos))
        return Turn(prompt, completion, (), kind, begin)

    def _tokenised(
        self, turn: Turn, prompt: list[int], whole: list[int], row: int, where: str
    ) -> tuple[Example, list[str]]:
        """The example, and what to note of it."""
        remarks = list(turn.remarks)
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
        else:
            completion = self.encoder.within(turn.completion)
            remarks.append("the tokenizer merges across the prompt's end; completion tokenised on its own")
        if not self._ends(completion):
            remarks.append(f"the template does not end the turn; {self.eos} added")
            completion = [*completion, self.eos_id]
        while completion[-1] not in self.encoder.control_ids:  # a line break after the turn's end
            completion.pop()
        if turn.begin:
            prompt = self.encoder.before + prompt
        return Example(np.array(prompt, np.int32), np.array(completion, np.int32), row, where), remarks

    def _ends(self, ids: list[int]) -> bool:
        """Whether a control token ends the turn: nothing but blanks after it."""
        end = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in self.encoder.control_ids), None)
        return end is not None and not str(self.tokenizer.decode(ids[end + 1 :])).strip()

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
        last = int(example.completion_ids[-1])
        if last in self.encoder.control_ids:
            ledger.turn_ends[str(self.tokenizer.convert_ids_to_tokens([last])[0])] += 1
        border = np.array([len(example.prompt_ids)], np.int32)
        content = b"".join(part.tobytes() for part in (border, example.prompt_ids, example.completion_ids))
        self._repeats.add(content)


def _kind(message: dict[str, Any]) -> str:
    if message.get("tool_calls"):
        return "tool calls"
    return "reasoning and answers" if message.get("reasoning_content") else "answers"


NO_TOOL_CALLS = "the chat template does not write tool calls (chat_template_path takes one that does)"


def _left_out(
    record: Conversation, answers: Sequence[dict[str, Any]], prompt: str, completion: str
) -> list[str]:
    """What the row says and its template does not write."""
    names = [str((tool.get("function") or tool).get("name", "")) for tool in record.tools or ()]
    out = []
    if not all(name in prompt for name in names):
        out.append("the chat template does not write tools, so they are not seen")
    for message in answers:
        called = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        if not all(name in completion for name in called):
            out.append(NO_TOOL_CALLS)
        elif called and (message.get("content") or "").strip() not in completion:
            out.append("the chat template does not write the text beside a tool call")
        if (message.get("reasoning_content") or "").strip() not in completion:
            out.append("the chat template does not write reasoning, so it is not learned")
    return list(dict.fromkeys(out))


def _thought(prompt: str, whole: str, message: dict[str, Any]) -> str | None:
    """The completion for a generation prompt that opens the reasoning (`<think>`), where the template writes
    turns without it: the reasoning (perhaps none), its end, and what the template writes of the turn.
    """
    begun = prompt.rstrip()
    start = begun.removesuffix("<think>")
    if start == begun or not whole.startswith(start):
        return None
    written = whole[len(start) :].lstrip().removeprefix("</think>").lstrip()
    if "</think>" in written:  # reasoning is written after all, in a way that the prompt does not open
        return None
    content = message.get("content") or ""
    inside = content.partition("<think>")[2] if "<think>" in content else content
    reasoning = message.get("reasoning_content") or inside.rpartition("</think>")[0]
    line = "" if prompt != begun else "\n"
    return f"{line}{reasoning.strip()}\n</think>\n\n{written}"


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
