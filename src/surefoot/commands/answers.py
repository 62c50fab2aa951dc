"""A model that answers prompts: what `chat` and `compare` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from surefoot.data.badrows import BadRows, OnBadRow, RowError
from surefoot.data.dataset import records
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation, Example, Record
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from surefoot.model.load import load
from surefoot.model.network import Network
from surefoot.train import hardware
from surefoot.train.evaluate import generate, generating

Messages = list[dict[str, str]]


class Answerer:
    """A loaded model with its chat template."""

    def __init__(self, name: str, use_cpu: bool = False, trust_remote_code: bool = False) -> None:
        loaded = load(name, trust_remote_code=trust_remote_code)
        self.name, self.tokenizer = name, loaded.tokenizer
        model = loaded.model.to(hardware.device(use_cpu))  # type: ignore[arg-type]
        self.network = Network(model.eval())
        self.renderer = Renderer(self.tokenizer, max_length=1 << 30)

    def prompt_ids(self, messages: Messages) -> np.ndarray:
        """int32 ids of a conversation, as in training; of plain text for a model without chat template."""
        if self.tokenizer.chat_template:
            safe, literals = self.renderer.encoder.neutralise(messages)
            text = self.renderer.template(safe, Conversation(safe, ()), "chat", add_generation_prompt=True)
            ids = next(self.renderer.encoder.encode([text], [literals]))
        elif len(messages) > 1:
            raise UserError(
                f"{self.name}: the model has no chat template, so it can only go on with one text"
            )
        else:
            ids = self.tokenizer(messages[0]["content"])["input_ids"]
        return np.array(ids, np.int32)

    def answer(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[str]:
        """Greedy answers to a batch of prompts."""
        with torch.no_grad():
            ids = generate(self.network, self.tokenizer, prompts, max_new_tokens)
        return [str(self.tokenizer.decode(one, skip_special_tokens=True)) for one in ids]

    def reply(
        self, messages: Messages, max_new_tokens: int, temperature: float, *, aloud: bool = False
    ) -> str:
        """An answer, greedy at temperature 0; `aloud`, it is printed as it comes."""
        from transformers import TextStreamer

        ids = torch.from_numpy(self.prompt_ids(messages).astype(np.int64))[None].to(self.network.device)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if aloud else None
        ends = self.network.core.generation_config.eos_token_id  # type: ignore[union-attr]
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling["temperature"] = temperature
        with torch.no_grad():
            out = generating(self.network.core)(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                eos_token_id=ends if ends is not None else self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                **sampling,
            )
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@dataclass(frozen=True)
class Question:
    """A prompt, as ids and as a person reads it, and the answer that is wanted, if one is."""

    ids: np.ndarray
    shown: str
    want: str | None = None


def questions(
    answerer: Answerer, data: str, columns: dict[str, str], limit: int, on_bad_row: OnBadRow = "stop"
) -> list[Question]:
    """The last learned turn of each of the first `limit` rows, as this model is asked for it."""
    renderer = Renderer(answerer.tokenizer, max_length=1 << 30, last_turn_only=True)
    bad = BadRows(renderer.ledger, on_bad_row)
    found: list[Question] = []
    for record, where in islice(records(open_source(data), renderer.ledger, columns), limit):
        for example in renderer.examples([(record, where)], bad=bad):
            want = str(answerer.tokenizer.decode(example.completion_ids, skip_special_tokens=True))
            found.append(Question(example.prompt_ids, _shown(record, answerer, example), want))
    bad.check(renderer.ledger.rows)
    if not found:
        raise UserError(f"{data}: no assistant turn in its first {limit} rows, so there is nothing to ask")
    return found


def _shown(record: Record | RowError, answerer: Answerer, example: Example) -> str:
    if isinstance(record, Conversation):
        asked = record.messages[record.supervised[-1] - 1] if record.supervised[-1] else {}
        return str(asked.get("content", ""))
    return str(answerer.tokenizer.decode(example.prompt_ids, skip_special_tokens=True))
