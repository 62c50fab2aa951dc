"""Record + tokenizer → examples: train what you serve.

1. The prompt is rendered exactly as at inference: the messages before the turn, tools included, with the
   generation prompt. Its ids are the ids of inference, always.
2. The completion is what the template writes after that prompt, up to and including the turn-ending token.
3. Prompt and completion are tokenised in one go; where the tokenizer would merge across the border, the
   completion is tokenised on its own, and the ledger counts it.
4. Text of a user or a tool that spells a control token stays text (encode.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import Any, Literal, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from surefoot.data import chat_template
from surefoot.data.badrows import BadRows, RowError, refused
from surefoot.data.chat_template import TemplateFault
from surefoot.data.encode import Encoder
from surefoot.data.ledger import Ledger
from surefoot.data.repeats import Repeats
from surefoot.data.rows import Conversation, Example, PlainText, Record, TokenSpans
from surefoot.data.turns import (
    NO_QUESTION,
    NO_TOKEN,
    NO_TOOL_CALLS,
    NO_TURN,
    cannot_learn,
    left_out,
    thought,
    turn_kind,
)
from surefoot.errors import UserError

BATCH = 512
"""Records tokenised at once, in parallel, by the Rust tokenizer."""
BATCH_TEXT = 1 << 24
"""Characters of a batch's turns, prompts and all, from which on it is not filled further."""
SLOW_SECONDS = 1.0
"""A template that takes longer to refuse one row is not tried on all the others."""


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


Piece: TypeAlias = tuple[int, str, Record, Turn | Example]
"""Row, where, what it says, and what is learned there."""


Refuse: TypeAlias = Callable[[RowError], None]


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
        self,
        records: Iterable[tuple[Record | RowError, str]],
        at_most: int | None = None,
        bad: BadRows | None = None,
    ) -> Iterator[Example]:
        """Examples of `(record, where)` pairs, in order; `row` counts the pairs from 0.

        `at_most` stops after so many rows that have something to learn, and reads no further; a row for which
        the work will stop counts too. `bad` takes the rows that are refused; without it, RowError is raised.
        """
        rows = enumerate(records)
        learned, last, read = 0, -1, -1
        refuse = _raise if bad is None else bad.add
        while read != self.ledger.rows:
            read = self.ledger.rows
            count = BATCH
            if at_most is not None:
                count = min(BATCH, max(0, at_most - learned - (bad.count if bad else 0)))
            for example in self._examples(self._pieces(islice(rows, count), refuse), refuse):
                learned += example.row != last
                last = example.row
                yield example
        self.ledger.duplicates = self._repeats.count()

    def _pieces(
        self, rows: Iterable[tuple[int, tuple[Record | RowError, str]]], refuse: Refuse
    ) -> list[Piece]:
        """What is to be learned of the next rows, up to `BATCH_TEXT`; turns are not tokenised yet."""
        pieces: list[Piece] = []
        length = 0
        for row, (record, where) in rows:
            self.ledger.rows += 1
            if isinstance(record, RowError):
                refuse(record)
                continue
            began = monotonic()
            try:
                found = self._found(record, row, where)
            except RowError as error:
                refuse(error)
                continue
            except TemplateFault:
                raise  # of all rows
            except UserError as error:
                if not self.tokenizer.chat_template or monotonic() - began > SLOW_SECONDS:
                    raise  # of all rows
                said = str(error).removeprefix(f"{where}: ")
                said += "" if said.endswith((".", "!", "?")) else "."
                refuse(refused(record, where, "refused by the chat template", said))
                continue
            pieces += [(row, where, record, piece) for piece in found]
            length += sum(
                len(piece.prompt) + len(piece.completion) for piece in found if isinstance(piece, Turn)
            )
            if length > BATCH_TEXT:
                break
        return pieces

    def _found(self, record: Record, row: int, where: str) -> Sequence[Turn | Example]:
        """What is to be learned of one row. Raises RowError, and UserError for what the template refuses."""
        if isinstance(record, TokenSpans):
            spans = list(_spans(record, row, where, self.completion_only_loss))
            if not spans:
                self.ledger.drop(NO_TOKEN, where)
            return spans
        turns = self._turns(record, where) if isinstance(record, Conversation) else [self._plain(record)]
        try:
            for text in (text for turn in turns for text in (turn.prompt, turn.completion)):
                text.encode()
        except UnicodeEncodeError as error:
            said = f"a text holds {error.object[error.start]!r}, half of a character (a lone surrogate). Remove it."
            raise refused(record, where, "lone surrogate", said) from None
        return turns

    def _examples(self, pieces: list[Piece], refuse: Refuse) -> Iterator[Example]:
        """The turns tokenised; all that fits, counted."""
        turns = [piece for *_, piece in pieces if isinstance(piece, Turn)]
        pairs = [text for turn in turns for text in (turn.prompt, turn.prompt + turn.completion)]
        ids = self.encoder.encode(pairs, [turn.literals for turn in turns for _ in range(2)])
        for row, where, record, piece in pieces:
            if isinstance(piece, Turn):
                example, remarks = self._tokenised(piece, next(ids), next(ids), row, where)
                kind = piece.kind
            else:
                example, remarks, kind = piece, [], "token ids"
            try:
                kept = self._fit(example, record, where)
            except RowError as error:
                refuse(error)
                continue
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
            remarks += left_out(record, record.messages, text, text)
            return [Turn("", text, literals, "whole conversations", begin=False, remarks=tuple(remarks))]
        if not record.supervised:
            self.ledger.drop(NO_TURN, where)
        turns = []
        for index in record.supervised[-1:] if self.last_turn_only else record.supervised:
            if index == 0:
                self.ledger.drop(NO_QUESTION, where)
                continue
            prompt = self.template(messages[:index], record, where, add_generation_prompt=True)
            whole = self.template(messages[: index + 1], record, where)
            answer = messages[index]
            completion = whole[len(prompt) :] if whole.startswith(prompt) else thought(prompt, whole, answer)
            if completion is None:
                said = cannot_learn(prompt, whole, index)
                raise refused(record, where, "not learned as it will be asked for", said)
            missing = left_out(record, [answer], prompt, completion)
            if NO_TOOL_CALLS in missing:
                self.ledger.drop(NO_TOOL_CALLS, where)
                continue
            said = f"{answer.get('content') or ''}{answer.get('reasoning_content') or ''}"
            if self.encoder.control.search(said):
                missing.append("an answer spells a control token, and it is learned as that token")
            notes = (*remarks, *missing)
            turns.append(Turn(prompt, completion, literals, turn_kind(answer), begin=False, remarks=notes))
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
        return chat_template.render(
            self.tokenizer, messages, where, tools=record.tools, variables=record.template_kwargs, **how
        )

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

    def _fit(self, example: Example, record: Record, where: str) -> Example | None:
        if self.vocabulary is not None:
            top = max(example.prompt_ids.max(initial=0), example.completion_ids.max(initial=0))
            if top >= self.vocabulary:
                said = (
                    f"token id {top} is beyond the model's {self.vocabulary} embeddings: the tokenizer does"
                )
                said += " not belong to this model. Use the model's own."
                raise refused(record, where, "token id beyond the embedding", said)
        if example.tokens <= self.max_length:
            return self._learnable(example, where)
        said = f"{example.tokens} tokens, more than max_length {self.max_length}"
        if self.overlength == "error":
            said += ". Raise max_length, or choose overlength: drop or cut."
            raise refused(record, where, f"longer than max_length {self.max_length}", said)
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
        self.ledger.drop(NO_TOKEN, where)
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


def _raise(error: RowError) -> None:
    raise error


def _spans(record: TokenSpans, row: int, where: str, completion_only: bool) -> Iterator[Example]:
    """One example for each run of supervised tokens; what stands before it is its prompt."""
    ids = np.array(record.input_ids, np.int32)
    learned = np.array(record.supervised, bool) if completion_only else np.ones(len(ids), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield Example(ids[:start], ids[start:end], row, where)
