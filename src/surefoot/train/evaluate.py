"""How good a model is on held-out rows: loss over tokens, greedy answers, watched prompts.

Nothing here touches weights, gradients or random state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from surefoot.config import Watch
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation, Example
from surefoot.model.network import Network
from surefoot.ranks import rank, ranks, texts
from surefoot.train.step import losses

NO_PROMPT = np.zeros(1, np.int64)
"""What a rank goes on with that has no prompt left while others have."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer to an example's prompt, and what was wanted."""

    where: str
    prompt: str
    answer: str
    want: str

    @property
    def exact(self) -> bool:
        return self.answer.strip() == self.want.strip()


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode, without gradients; mode and random state are put back."""
    training = network.model.training
    network.model.eval()
    try:
        with (
            torch.random.fork_rng(devices=[network.device] if network.device.type == "cuda" else []),
            torch.no_grad(),
        ):
            yield
    finally:
        network.model.train(training)


Going = Callable[[], None]
"""Called again and again in long work; raises to leave it."""


def _on() -> None:
    pass


def evaluate(
    network: Network, examples: Sequence[Example], budget: int, going: Going = _on
) -> dict[str, float]:
    """loss, perplexity and token_accuracy over all supervised tokens of `examples`, whatever the batching."""
    with evaluating(network):
        found = losses(network, examples, budget, backprop=False, seen=lambda *_: going())
    return {
        "loss": found.loss,
        "perplexity": math.exp(min(found.loss, 700.0)),
        "token_accuracy": found.token_accuracy,
    }


def exact_match(answers: Sequence[Answer]) -> float:
    """Share of answers that are word for word what was wanted, white space at the ends aside."""
    return sum(answer.exact for answer in answers) / max(1, len(answers))


def answer(
    network: Network,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    going: Going = _on,
) -> list[Answer]:
    """Greedy answers to the prompts of `examples`, in their order.

    Prompts of similar length go together, padded on the left, so that a batch costs little more than its
    longest answer; `batch_tokens` bounds prompts plus answers of a batch. Several ranks take a batch each, and all
    know all answers.
    """
    found: dict[int, str] = {}
    with evaluating(network):
        for batch in _own_batches(network, examples, max_new_tokens, batch_tokens):
            prompts = [examples[i].prompt_ids for i in batch]
            answers = generate(network, tokenizer, prompts or [NO_PROMPT], max_new_tokens, going)
            for i, ids in zip(batch, answers, strict=False):
                found[i] = str(tokenizer.decode(ids, skip_special_tokens=True))
    for said in texts(json.dumps(found)):
        found.update({int(i): text for i, text in json.loads(said).items()})
    return [
        Answer(
            where=example.where,
            prompt=str(tokenizer.decode(example.prompt_ids)),
            answer=found[i],
            want=str(tokenizer.decode(example.completion_ids, skip_special_tokens=True)),
        )
        for i, example in enumerate(examples)
    ]


def _own_batches(
    network: Network, examples: Sequence[Example], max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """This rank's part of the batches, which are the same for any number of ranks. Of a sharded model each rank has
    as many, empty ones if need be: all take part in every forward pass."""
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt_ids))
    batches = []
    while by_length:
        longest = len(examples[by_length[-1]].prompt_ids) + max_new_tokens
        size = max(1, min(64, batch_tokens // longest))
        batches.append(by_length[-size:])
        by_length = by_length[:-size]
    if network.root is not None:
        batches += [[] for _ in range(-len(batches) % ranks())]
    yield from batches[rank() :: ranks()]


def generate(
    network: Network,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    going: Going = _on,
) -> list[list[int]]:
    """Greedy continuations (token ids, ends included) of a batch of prompts, by the model's own `generate`."""
    generation = network.core.generation_config
    eos = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    ends = {int(token) for token in (eos if isinstance(eos, list | tuple) else [eos]) if token is not None}
    pad = next(iter(t for t in (tokenizer.pad_token_id, generation.pad_token_id, *ends) if t is not None), 0)
    width = max(len(ids) for ids in prompts)
    padded = [np.pad(ids, (width - len(ids), 0), constant_values=pad) for ids in prompts]
    seen = [np.pad(np.ones(len(ids), np.int64), (width - len(ids), 0)) for ids in prompts]
    write = partial(
        generating(network.model),
        input_ids=torch.from_numpy(np.stack(padded).astype(np.int64)).to(network.device),
        attention_mask=torch.from_numpy(np.stack(seen)).to(network.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        stopping_criteria=[partial(_stopping, going)],
        synced_gpus=network.root is not None,
    )
    out = network.gathered(write)
    return [_until(ids, ends) for ids in out[:, width:].tolist()]


def _stopping(going: Going, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    """No answer ends for this; but the work may be left."""
    going()
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def generating(model: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """The model's own `generate`."""
    generate = model.generate
    assert callable(generate)
    return generate


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]


@dataclass(frozen=True)
class Watched:
    """A watched prompt, tokenised: one example a candidate text."""

    watch: Watch
    examples: tuple[Example, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.watch.completion, *self.watch.alternatives)


def tokenise_watch(watch: Watch, renderer: Renderer) -> Watched:
    """The candidates' tokens at the place after `answer_start`, with what stands before as the prompt."""
    tokenizer = renderer.tokenizer
    before = watch.prompt
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": watch.prompt}]
        record = Conversation(messages, ())
        before = renderer.template(messages, record, "watch", add_generation_prompt=True)
    texts = [text.strip() for text in (watch.completion, *watch.alternatives)]
    # Words are joined by a blank, except right after a chat template's generation prompt.
    parts = [before, watch.answer_start.strip()] if watch.answer_start.strip() else [before]
    if tokenizer.chat_template:
        before = "".join(parts)
        space = " " if len(parts) == 2 else ""
    else:
        before, space = " ".join(part.rstrip() for part in parts), " "
    special = not tokenizer.chat_template
    base = tokenizer(before, add_special_tokens=special)["input_ids"]
    examples = []
    for text in texts:
        whole = tokenizer(before + space + text, add_special_tokens=special)["input_ids"]
        name = whole[len(base) :]
        if whole[: len(base)] != base:
            name = tokenizer(space + text, add_special_tokens=False)["input_ids"]
        examples.append(Example(np.array(base, np.int32), np.array(name, np.int32), 0, f"watch {text!r}"))
    return Watched(watch, tuple(examples))


def probabilities(network: Network, watched: Sequence[Watched], budget: int) -> list[dict[str, float]]:
    """For each watched prompt, the probability of each of its texts: the product over the text's tokens."""
    examples = [example for one in watched for example in one.examples]
    if not examples:
        return []
    with evaluating(network):
        found = iter(losses(network, examples, budget, backprop=False).examples)
    return [{text: math.exp(-next(found).loss) for text in one.texts} for one in watched]
