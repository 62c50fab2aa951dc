"""One update, opened, outside any run: a model, one example, one step of an optimizer.

The model is a name as for training, a run folder, or a checkpoint of a run; of a checkpoint, the run's own
optimizer goes on with its state, unless another is asked for. Nothing on the disk is touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.config import SFTConfig, Watch
from surefoot.data.formats import detect, to_record
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation, Example, PlainText, Record, Row
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from surefoot.microscope.opening import MOST_PLACES, Opening, Told, Wish
from surefoot.microscope.predict import Place, seen_before
from surefoot.microscope.slide import Opened
from surefoot.model.network import Network
from surefoot.names import TRANSLATED
from surefoot.regular import text_of
from surefoot.runfolder import MOST_CONFIG
from surefoot.train import checkpoint
from surefoot.train.evaluate import Watched
from surefoot.train.loading import Prepared, prepare_model, prepare_network
from surefoot.train.manifest import verify
from surefoot.train.optim import Optimizers, build, schedule
from surefoot.train.progress import counting, working
from surefoot.train.recompute import checkpoint_layers, decoder_layers
from surefoot.train.setup import make_renderer
from surefoot.train.step import seed_of

TRUST = ("trust_remote_code",)
"""Options that a run's folder cannot give: whoever opens it does."""


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


@dataclass(frozen=True)
class _Asked:
    """What is to be learned, before any tokenizer has seen it."""

    record: Record | None
    """None: the question's own prompt and completion, as the model's template has it."""
    where: str


def explain(question: Question, args: SFTConfig, given: Sequence[str] = ()) -> Explained:
    """Take one step on one example, under the microscope.

    `args`: model, precision, optimizer and learning rate, as for training; `given`: the options among them that the
    user chose, for a checkpoint has its own. Raises UserError for what cannot be explained.
    """
    place = Path(args.model_name_or_path or "").expanduser()
    chosen = {"precision" if name in TRANSLATED else name for name in given}
    of_run = (place / "state.json").is_file()
    if of_run:
        args, chosen = _args_of_run(place, args, chosen)
        verify(place)
    elif (place / "run.json").is_file() and not (place / "model").is_dir():
        newest = checkpoint.newest(place / "checkpoints")
        instead = f"name its newest checkpoint: {newest}" if newest else "it has no checkpoint either"
        raise UserError(f"{place}: this run has no result yet; {instead}")
    asked = _asked(question, args)
    with working("loading the model"):
        prepared = prepare_model(None, args, None)
        optimizers = build(prepared.model, args)
        step = _continue(place, prepared, optimizers, args, chosen) if of_run else 1
    renderer = make_renderer(prepared.model, prepared.tokenizer, args)
    example, notes = _example(question, asked, renderer)
    if not 0 <= question.position < example.targets:
        last = example.targets - 1
        raise UserError(
            f"position {question.position}: of the completion {example.targets} tokens are learned, from "
            f"position 0 to {last}"
        )
    with working("looking at the model"):
        network = prepare_network(prepared, [example], args)
    checkpoint_layers(
        prepared.model, len(decoder_layers(prepared.model)) if args.gradient_checkpointing else 0
    )
    with counting("passes: one update, under the microscope") as told:
        opened = _open(question, args, prepared, network, optimizers, example, step, str(place), told, notes)
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
    notes: Sequence[str],
) -> Opened:
    watched = _watched(question, prepared, example)
    others = [place for place in range(example.targets) if place != question.position]
    places = [question.position, *others[: MOST_PLACES - 1]]
    wish = Wish(
        because="surefoot explain asked for it",
        places=tuple(Place(0, place) for place in places),
        watched=tuple(dict.fromkeys(int(one.completion_ids[0]) for one in watched.examples)),
        texts=(watched,),
        mountain=args.slide_mountain,
        extras=args.slide_extras,
    )
    with _scratch() as folder:
        opening = Opening(
            network,
            prepared.tokenizer,
            [example],
            example.tokens,
            step=step,
            seed=seed_of(args.seed, step - 1),
            wish=wish,
            model_name=name,
            scratch=folder,
            told=told,
        )
        opening.notes.extend(notes)
        opening.losses()
        opening.update(optimizers, args.max_grad_norm)
        return _in_order(opening.slide(args.max_grad_norm))


def _in_order(opened: Opened) -> Opened:
    """The positions as they stand in the completion; the one that was asked for, which was the first, is named."""
    slide = opened.slide
    order = sorted(range(len(slide.positions)), key=lambda n: slide.positions[n].index)
    changed = {
        "positions": [slide.positions[n] for n in order],
        "looked_at": order.index(0),
        "influence": [
            one.model_copy(update={"position": order.index(one.position)}) for one in slide.influence
        ],
    }
    return opened.model_copy(update={"slide": slide.model_copy(update=changed)})


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="surefoot-") as folder:
        yield Path(folder)


def _args_of_run(place: Path, args: SFTConfig, given: set[str]) -> tuple[SFTConfig, set[str]]:
    """The run's own options, with what the user gave instead; and which those are: not the optimizer, if it is the
    run's anyway."""
    config = place.resolve().parent.parent / "run.json"
    try:
        content = json.loads(text_of(config, MOST_CONFIG))
        of_run, name = dict(content["config"]), str(content["model"]["name"])
        optim = str(of_run["optim"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{place} is a checkpoint, but {config} does not tell of which run") from None
    own = {key: value for key, value in of_run.items() if key in SFTConfig.model_fields and key not in TRUST}
    kind = optim.removesuffix("_fused")
    if args.optim.removesuffix("_fused") == kind:
        given = given - {"optim"}
    if "optim" in given:  # what was set for the run's optimizer does not fit another
        own = {key: value for key, value in own.items() if key not in ("learning_rate", "optim_args")}
        given = given | {"learning_rate"}
    chosen = {key: getattr(args, key) for key in given if key in SFTConfig.model_fields}
    lesson = {"slide_mountain": args.slide_mountain, "slide_extras": args.slide_extras}
    return SFTConfig(**{**own, **chosen, **lesson, "model_name_or_path": name}), given


def _continue(
    place: Path, prepared: Prepared, optimizers: Optimizers, args: SFTConfig, given: set[str]
) -> int:
    """Put the checkpoint's weights in; unless another optimizer is `given`, the state of the run's too, and the
    learning rate that its next step has unless that is given. Returns the number of the update that comes next."""
    if "optim" in given:
        checkpoint.load_weights(place, prepared.model)
        return checkpoint.progress_of(place).step + 1
    steps = checkpoint.load(place, prepared.model, optimizers).step
    if "learning_rate" not in given:
        total = max(_total_steps(place.resolve().parent.parent / "run.json"), steps + 1)
        optimizers.set_factor(schedule(args, total, steps))
    return steps + 1


def _total_steps(config: Path) -> int:
    try:
        return int(json.loads(text_of(config, MOST_CONFIG))["total_steps"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{config} does not tell how many steps the run has; give --learning_rate") from None


def _asked(question: Question, args: SFTConfig) -> _Asked:
    """The row, or the prompt and its completion."""
    own = [name for name in ("prompt", "completion") if getattr(question, name) is not None]
    if question.data is None:
        if len(own) < 2:
            missing = f"{own[0]} alone is half of it: give " if own else "explain what? Give "
            raise UserError(f"{missing}both prompt and completion, or data (a file of rows) and row")
        if question.row != 1:
            raise UserError(f"row {question.row} of what? Give data (a file of rows) too")
        return _Asked(None, "your example")
    if own:
        raise UserError(f"{' and '.join(own)} or data: an example is either your own or a row, not both")
    row, count = _row(question.data, question.row)
    if row is None:
        has = f"it has {count:,}, counted from 1" if count else "it is empty"
        raise UserError(f"{question.data} has no row {question.row}; {has}")
    return _Asked(to_record(row, detect(row, args.columns, args.dataset_text_field)), row.where)


def _row(data: str, number: int) -> tuple[Row | None, int]:
    """The row of that number, from 1; None and how many there are when there are fewer."""
    count = 0
    for row in open_source(data):
        count += 1
        if count == number:
            return row, count
    return None, count


def _example(question: Question, asked: _Asked, renderer: Renderer) -> tuple[Example, list[str]]:
    """The one example, rendered as for training; and what is to be known of it."""
    record = asked.record
    if record is None:
        assert question.prompt is not None and question.completion is not None
        turns = [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": question.completion},
        ]
        chat = bool(renderer.tokenizer.chat_template)
        record = Conversation(turns, (1,)) if chat else PlainText(question.prompt, question.completion)
    examples = list(renderer.examples([(record, asked.where)]))
    if not examples:
        why = "; ".join(renderer.ledger.lines())
        raise UserError(f"{asked.where}: nothing of it can be learned: {why}")
    several = f"of the {len(examples)} turns of {asked.where} that training learns, this is the last"
    return examples[-1], [several] if len(examples) > 1 else []


def _watched(question: Question, prepared: Prepared, example: Example) -> Watched:
    """What is wanted there, and the other texts, as tokens after what the model has seen."""
    before = seen_before(example, question.position)
    tokenizer: Any = prepared.tokenizer
    wanted = question.completion
    ids = example.completion_ids[len(example.completion_ids) - example.targets + question.position :]
    named = None if wanted is None or question.position else _named(tokenizer, ids, wanted)
    if wanted is None or named is None:
        wanted = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    else:
        ids = named
    # A word in the middle of a text has a blank in front; right after a chat template's prompt it has not.
    space = "" if tokenizer.chat_template and question.position == 0 else " "
    found = [Example(before, ids, 0, f"watch {wanted!r}")]
    texts = [
        text for text in dict.fromkeys(map(str.strip, question.watch)) if text not in ("", wanted.strip())
    ]
    for text in texts:
        of_text = tokenizer(space + text, add_special_tokens=False)["input_ids"]
        found.append(Example(before, np.array(of_text, np.int32), 0, f"watch {text!r}"))
    return Watched(Watch(prompt=question.prompt or "", completion=wanted, alternatives=texts), tuple(found))


def _named(tokenizer: Any, ids: np.ndarray, text: str) -> np.ndarray | None:
    """The beginning of a completion that spells `text`: without the token that ends the turn. None where it begins
    with something else, such as the prompt where that is learned too."""
    for count in range(1, len(ids) + 1):
        if str(tokenizer.decode(ids[:count])).strip() == text.strip():
            return ids[:count]
    return None
