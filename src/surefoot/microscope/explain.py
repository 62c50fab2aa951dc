"""One update, opened, outside any run: a model, one example, one step of an optimizer.

The model is a name as for training, a run folder, or a checkpoint of a run; of a checkpoint, the run's own
optimizer goes on with its state, unless another is asked for. Nothing on the disk is touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.config import SFTConfig, Watch
from surefoot.data.formats import detect, to_record
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation, Example, PlainText, Record
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from surefoot.microscope.opening import MOST_PLACES, Opening, Told, Wish
from surefoot.microscope.predict import Place, seen_before
from surefoot.microscope.slide import Opened
from surefoot.model.network import Network
from surefoot.names import TRANSLATED
from surefoot.train import checkpoint
from surefoot.train.evaluate import Watched
from surefoot.train.optim import Optimizers, build, schedule
from surefoot.train.progress import counting, working
from surefoot.train.setup import Prepared, make_renderer, prepare_model, prepare_network

RATES = {"sgd": 0.1, "muon": 1e-2}
"""Learning rates of a lesson, where none is given: large enough to see. 1e-4 for the others."""


def lesson_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of training for one step that is looked at: what was given, and else plain SGD in float32 at a
    learning rate that shows."""
    options = dict(given)
    optim = str(options.get("optim", "sgd"))
    options["optim"] = optim = {"adamw": "adamw_torch"}.get(optim, optim)
    options.setdefault("learning_rate", RATES.get(optim, 1e-4))
    if not TRANSLATED & set(options):
        options.setdefault("precision", "fp32")
    return options


@dataclass(frozen=True)
class Question:
    """What to explain."""

    prompt: str | None = None
    completion: str | None = None
    data: str | None = None
    """A file of rows, instead of prompt and completion."""
    row: int = 1
    """Which of them, from 1."""
    watch: tuple[str, ...] = ()
    """Other texts that might have stood there."""
    position: int = 0
    """The target to look at first: 0 is the completion's first token."""


@dataclass(frozen=True)
class Explained:
    """The slide, and the model as the update left it."""

    opened: Opened
    prepared: Prepared


def explain(question: Question, args: SFTConfig, given: Sequence[str] = ()) -> Explained:
    """Take one step on one example, under the microscope.

    `args`: model, precision, optimizer and learning rate, as for training; `given`: the options among them that the
    user chose, for a checkpoint has its own. Raises UserError for what cannot be explained.
    """
    place = Path(args.model_name_or_path or "").expanduser()
    of_run = (place / "state.json").is_file()
    with working("loading the model"):
        if of_run:
            args = _args_of_run(place, args, given)
        prepared = prepare_model(None, args, None)
        optimizers = build(prepared.model, args)
        step = 1
        if of_run:
            step = _continue(place, prepared, optimizers, args, own="optim" not in given)
    renderer = make_renderer(prepared.model, prepared.tokenizer, args)
    example = _example(question, renderer, args)
    if not 0 <= question.position < example.targets:
        raise UserError(f"position {question.position}: the completion has {example.targets} targets, from 0")
    with working("looking at the model"):
        network = prepare_network(prepared, [example], args)
    with counting("passes: one update, under the microscope") as told:
        opened = _open(question, args, prepared, network, optimizers, example, step, str(place), told)
    return Explained(opened, prepared)


def _open(
    question: Question,
    args: SFTConfig,
    prepared: Prepared,
    network: Network,
    optimizers: Optimizers,
    example: Example,
    step: int,
    name: str,
    told: Told,
) -> Opened:
    watched = _watched(question, prepared, example)
    others = [place for place in range(example.targets) if place != question.position]
    places = [question.position, *others[: MOST_PLACES - 1]]
    wish = Wish(
        because="explained",
        places=tuple(Place(0, place) for place in places),
        watched=tuple(dict.fromkeys(int(one.completion_ids[0]) for one in watched.examples)),
        texts=(watched,),
        mountain=args.slide_mountain,
        extras=args.slide_extras,
    )
    budget = max(args.micro_batch_tokens or 0, example.tokens)
    with _scratch() as folder:
        opening = Opening(
            network,
            prepared.tokenizer,
            [example],
            budget,
            step=step,
            seed=args.seed,
            wish=wish,
            model_name=name,
            scratch=folder,
            told=told,
        )
        opening.losses()
        opening.update(optimizers, args.max_grad_norm)
        return opening.slide(args.max_grad_norm)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="surefoot-") as folder:
        yield Path(folder)


def _args_of_run(place: Path, args: SFTConfig, given: Sequence[str]) -> SFTConfig:
    """The run's own options, with what the user gave instead."""
    config = place.resolve().parent.parent / "run.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        of_run, name = content["config"], content["model"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{place} is a checkpoint, but {config} does not tell of which run") from None
    own = {key: value for key, value in of_run.items() if key in SFTConfig.model_fields}
    chosen = {key: getattr(args, key) for key in given if key in SFTConfig.model_fields}
    lesson = {"slide_mountain": args.slide_mountain, "slide_extras": args.slide_extras}
    return SFTConfig(**{**own, **chosen, **lesson, "model_name_or_path": name})


def _continue(place: Path, prepared: Prepared, optimizers: Optimizers, args: SFTConfig, own: bool) -> int:
    """Put the checkpoint's weights in; with `own`, the optimizer's state and learning rate too. Returns the number
    of the update that comes next."""
    state = json.loads((place / "state.json").read_text(encoding="utf-8"))
    steps = int(state["progress"]["step"])
    if not own:
        checkpoint.load_weights(place, prepared.model)
        return steps + 1
    checkpoint.load(place, prepared.model, optimizers)
    content = json.loads((place.resolve().parent.parent / "run.json").read_text(encoding="utf-8"))
    total = max(int(content["total_steps"]), steps + 1)
    optimizers.set_factor(schedule(args, total, steps))
    return steps + 1


def _example(question: Question, renderer: Renderer, args: SFTConfig) -> Example:
    """The one example, rendered as for training."""
    if question.data is not None:
        rows = open_source(question.data)
        row = next(islice(rows, question.row - 1, question.row), None)
        if row is None:
            raise UserError(f"{question.data} has no row {question.row}; rows are counted from 1")
        record: Record = to_record(row, detect(row, args.columns, args.dataset_text_field))
        where = row.where
    elif question.prompt is None or question.completion is None:
        raise UserError("explain what? Give --prompt and --completion, or --data FILE and --row N")
    elif renderer.tokenizer.chat_template:
        turns = [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": question.completion},
        ]
        record, where = Conversation(turns, (1,)), "the prompt"
    else:
        record, where = PlainText(question.prompt, question.completion), "the prompt"
    examples = list(renderer.examples([(record, where)]))
    if not examples:
        why = "; ".join(renderer.ledger.lines())
        raise UserError(f"{where}: nothing of it can be learned: {why}")
    return examples[-1]


def _watched(question: Question, prepared: Prepared, example: Example) -> Watched:
    """What is wanted there, and the other texts, as tokens after what the model has seen."""
    before = seen_before(example, question.position)
    tokenizer: Any = prepared.tokenizer
    wanted = question.completion
    ids = example.completion_ids[len(example.completion_ids) - example.targets + question.position :]
    if wanted is None or question.position:
        wanted = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    else:
        ids = _named(tokenizer, ids, wanted)
    # A word in the middle of a text has a blank in front; right after a chat template's prompt it has not.
    space = "" if tokenizer.chat_template and question.position == 0 else " "
    found = [Example(before, ids, 0, f"watch {wanted!r}")]
    texts = list(dict.fromkeys(text for text in question.watch if text.strip() and text != wanted))
    for text in texts:
        of_text = tokenizer(space + text.strip(), add_special_tokens=False)["input_ids"]
        found.append(Example(before, np.array(of_text, np.int32), 0, f"watch {text!r}"))
    return Watched(Watch(prompt=question.prompt or "", completion=wanted, alternatives=texts), tuple(found))


def _named(tokenizer: Any, ids: np.ndarray, text: str) -> np.ndarray:
    """The beginning of a completion that spells `text`: without the token that ends the turn."""
    for count in range(1, len(ids) + 1):
        if str(tokenizer.decode(ids[:count])).strip() == text.strip():
            return ids[:count]
    return ids
