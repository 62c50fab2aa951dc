"""surefoot plan: memory of each rank and tokens a second, on paper, before anything is rented."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.table import Table

from surefoot.cards import CARDS, card
from surefoot.commands.options import plainly_said
from surefoot.commands.recipe import RecipeOptions, parse_recipe
from surefoot.config import SFTConfig
from surefoot.console import text_console
from surefoot.errors import UserError, nearest

if TYPE_CHECKING:
    from surefoot.train.paper import Outcome, Place, Rows
    from surefoot.train.sketch import Sizes

READ = 1_000
"""Rows of the data whose lengths are looked at."""


class PlanOptions(RecipeOptions):
    """What `surefoot plan` takes beside the options of training."""

    gpu: str | None = None
    """Card by name (h100, a100, l4, ...), or cpu for processes on this machine. Default: this machine's GPU."""
    gpus: int = Field(1, gt=0)
    """Ranks in all: one a GPU."""
    nodes: int | None = Field(None, gt=0)
    """Machines that they are spread over. Default: 8 GPUs each."""
    gpu_memory: float | None = Field(None, gt=0)
    """Bytes of a card that is not known by name, or of part of one: 80e9."""
    gpu_flops: float | None = Field(None, gt=0)
    """Dense bf16 FLOP/s of a card that is not known by name: 989e12."""
    network: float = Field(400, gt=0)
    """Gbit/s that each GPU has between machines."""
    lengths: list[float] = Field(default_factory=list)
    """Instead of rows: MEAN,MAX tokens of a row, or MEAN,MAX,LEARNED (half of them if not said)."""


class _Flags(PlanOptions, SFTConfig):
    """All of them."""


@dataclass(frozen=True)
class _Plan:
    """What is said."""

    model: str
    parameters: int
    place: Place
    rows: Rows
    outcomes: list[Outcome]
    own: int
    """Which of the outcomes is the recipe's own way."""
    instead: list[str]
    notes: list[str]


def run(argv: list[str]) -> int:
    """Parse, count, print. 0: the recipe's way fits; 1: it does not."""
    own, options, as_json = parse_recipe(
        _Flags,
        PlanOptions,
        argv,
        prog="surefoot plan",
        about="Memory of each rank and expected tokens a second of a recipe, before anything is rented. Reads the "
        "model's config and the rows; no weights are read, nothing is trained.",
    )
    if "model_name_or_path" not in options or not (own.lengths or "dataset_name" in options):
        raise UserError(
            "surefoot plan --model MODEL --data FILE, or a recipe that names both; without rows, --lengths MEAN,MAX"
        )
    with plainly_said():
        plan = _plan(SFTConfig(**options), own)
    if as_json:
        print(json.dumps(_as_dict(plan)))
    else:
        _print(plan)
    return 0 if plan.outcomes[plan.own].fits else 1


# The place ---------------------------------------------------------------------------------------------


def _place(own: PlanOptions, ranks: int) -> Place:
    """So many ranks on the cards that were named. Raises UserError for a card that is not known."""
    import torch

    from surefoot.train import hardware
    from surefoot.train.paper import COLLECTIVES, CONTEXT, NODE, Place

    if own.nodes and own.nodes > own.gpus:
        raise UserError(f"{own.nodes} nodes, and {own.gpus} GPUs in all: --gpus counts all of them")
    each = math.ceil(own.gpus / own.nodes) if own.nodes else NODE
    nodes = own.nodes if own.nodes and ranks == own.gpus else math.ceil(ranks / each)
    cpu = torch.device("cpu")
    if own.gpu == "cpu":
        process = hardware.held_bytes(cpu)
        free = own.gpu_memory or (process + hardware.free_bytes(cpu)) / ranks
        usual = hardware.micro_batch_tokens(cpu)
        return Place(hardware.name(cpu), free, process, False, usual, ranks, 1, own.gpu_flops)
    name = own.gpu
    if name is None and own.gpu_memory is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    known = card(name) if name else None
    if known is None and own.gpu_memory is None:
        names = ", ".join(known.name for known in CARDS)
        said = (
            f"no card named '{name}' is known.{nearest(name.upper(), [c.name for c in CARDS])}"
            if name
            else "which card?"
        )
        raise UserError(
            f"--gpu: {said} Known: {names}, and cpu. For another, --gpu-memory 80e9 --gpu-flops 989e12 "
            "(dense bf16, by its maker's sheet)"
        )
    links = [known.link if known else None, own.network * 1e9 / 8 if nodes > 1 else None]
    return Place(
        name=known.name if known else name or "card",
        memory=own.gpu_memory or (known.memory if known else 0.0),
        process=CONTEXT + (COLLECTIVES if ranks > 1 else 0.0),
        cuda=True,
        usual=hardware.micro_batch_tokens(torch.device("cuda")),
        ranks=ranks,
        nodes=nodes,
        flops=own.gpu_flops or (known.flops if known else None),
        bandwidth=known.bandwidth if known else None,
        link=min((link for link in links if link is not None), default=None),
    )


# The plan ----------------------------------------------------------------------------------------------


def _plan(args: SFTConfig, own: PlanOptions) -> _Plan:
    import torch

    from surefoot.train import hardware
    from surefoot.train.advice import Problem, suggestions
    from surefoot.train.paper import Way, outcome
    from surefoot.train.sketch import read_config, sizes, sketch

    place = _place(own, own.gpus)
    name = str(args.model_name_or_path)
    bf16 = place.cuda or hardware.fast_in_bf16(torch.device("cpu"))
    config = read_config(name, args.model_revision, args.trust_remote_code)
    notes: list[str] = []
    prints: dict[bool, Sizes] = {}
    if place.cuda and place.flops and place.ranks > 1 and place.link is None:
        notes.append("how fast this card talks to others is not known: communication is left out of tokens/s")
    drawn = sketch(config, args, bf16, name)
    sample, rows = _rows(args, own, drawn.model, notes)
    for peft in (args.use_peft, not args.use_peft):
        wish = args.model_copy(update={"use_peft": peft})
        try:
            wished = drawn if peft == args.use_peft else sketch(config, wish, bf16, name)
            prints[peft] = sizes(wished, wish, sample, rows.longest, place.cuda)
        except UserError as error:
            if peft == args.use_peft:
                raise
            notes.append(f"{'LoRA' if peft else 'all weights'}: {error}")
    outcomes = []
    for peft in sorted(prints):
        for shard in (False, True)[: min(2, place.ranks)]:
            for recompute in (False, True):
                way = Way(peft, shard, recompute)
                outcomes.append(outcome(prints[peft], rows, place, way, args.micro_batch_tokens))
    asked = [
        o for o in outcomes if o.way.peft == args.use_peft and o.way.recompute == args.gradient_checkpointing
    ]
    if args.shard != "auto" and place.ranks > 1:
        asked = [o for o in asked if o.way.shard == (args.shard == "full")]
    mine = next((o for o in asked if o.fits), asked[-1])
    instead: list[str] = []
    if not mine.fits:
        other = prints.get(True) if not args.use_peft else None
        problem = Problem(
            prints[args.use_peft], rows, place, mine.way, other, lambda ranks: _place(own, ranks)
        )
        instead = suggestions(problem)
    parameters = sum(p.numel() for p in drawn.model.parameters() if not args.use_peft or not p.requires_grad)
    return _Plan(name, parameters, place, rows, outcomes, outcomes.index(mine), instead, notes)


def _rows(args: SFTConfig, own: PlanOptions, model: Any, notes: list[str]) -> tuple[list[Any], Rows]:
    """Examples to measure with, and what the data asks for: read, or as --lengths says."""
    from surefoot.train.paper import rows_as_said, rows_of

    if own.lengths:
        if len(own.lengths) not in (2, 3) or own.lengths[0] > own.lengths[1] or min(own.lengths) < 1:
            raise UserError("--lengths: MEAN,MAX tokens of a row, or MEAN,MAX,LEARNED")
        mean, most, *learned = own.lengths
        return rows_as_said(mean, min(most, args.max_length or most), learned[0] if learned else None, args)
    examples = _read(args, model, notes)
    return examples, rows_of(examples, args)


def _read(args: SFTConfig, model: Any, notes: list[str]) -> list[Any]:
    from surefoot.model.load import load_tokenizer, locate, prepare_tokenizer
    from surefoot.train.loading import Prepared
    from surefoot.train.setup import open_data, read_data

    tokenizer = load_tokenizer(
        locate(str(args.model_name_or_path)),
        revision=args.model_revision,
        trust_remote_code=args.trust_remote_code,
    )
    prepare_tokenizer(
        model,
        tokenizer,
        chat_template_path=args.chat_template_path,
        eos_token=args.eos_token,
        add_special_tokens=args.add_special_tokens,
    )
    try:
        source = open_data(args.dataset_name, args.dataset_train_split, args, READ)
    except UserError as error:
        raise UserError(f"{error}. Without the rows, say how long they are: --lengths MEAN,MAX") from error
    prepared = Prepared(model, tokenizer, str(args.model_name_or_path), None, [], str, cut=False)
    data = read_data(source, prepared, args, None, READ)
    notes += prepared.notes
    return list(data.some(READ))


# Saying it ---------------------------------------------------------------------------------------------


def _as_dict(plan: _Plan) -> dict[str, Any]:
    from surefoot.train import paper

    assumed = ("MFU", "MEMORY_REACHED", "LINK_REACHED", "CONTEXT", "COLLECTIVES")
    return {
        "model": plan.model,
        "parameters": plan.parameters,
        "place": {**asdict(plan.place), "room": plan.place.room},
        "rows": {**asdict(plan.rows), "step": plan.rows.step, "step_most": plan.rows.step_most},
        "ways": [outcome.to_dict() for outcome in plan.outcomes],
        "own": plan.own,
        "suggestions": plan.instead,
        "assumed": {name.lower(): getattr(paper, name) for name in assumed},
        "notes": plan.notes,
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 5e7 else "-"


def _print(plan: _Plan) -> None:
    from surefoot.train.paper import MFU

    place, rows = plan.place, plan.rows
    table = Table(box=None, pad_edge=False)
    parts = ("weights", "gradients", "optimizer", "copies", "gathered", "activations", "process")
    table.add_column("GB a rank")
    for name in (*parts, "total", "", "micro-batch", "at most", "tokens/s", "bound by"):
        table.add_column(name, justify="left" if name in ("", "bound by") else "right")
    for number, outcome in enumerate(plan.outcomes):
        way, taken, pace = outcome.way, outcome.memory, outcome.speed
        words = ["LoRA" if way.peft else "full"]
        words += [("shard=full" if way.shard else "shard=none")] * (place.ranks > 1)
        words += ["recomputing"] * way.recompute
        table.add_row(
            ("> " if number == plan.own else "  ") + ", ".join(words),
            *(_gb(getattr(taken, part)) for part in parts),
            f"{taken.total / 1e9:.1f}",
            "fits" if outcome.fits else "TOO MUCH",
            f"{taken.micro_batch_tokens:,}",
            f"{outcome.largest:,}" if outcome.largest else "-",
            f"{_rounded(pace.low)} - {_rounded(pace.high)}" if pace else "-",
            pace.binds if pace else "",
        )
    console = text_console(width=None if sys.stdout.isatty() else 190)
    on = f"{place.ranks} x {place.name}" + (f" on {place.nodes} machines" if place.nodes > 1 else "")
    console.print(
        f"{plan.model}: {plan.parameters:,} weights, on {on} of {place.memory / 1e9:.0f} GB, of which "
        f"{place.room / 1e9:.1f} may be used; rows of {rows.mean + 1:.0f} tokens, the longest "
        f"{rows.longest + 1:,}, {rows.step_rows * place.ranks} a step\n",
        soft_wrap=True,
    )
    console.print(table)
    console.print(f"\n{_conclusion(plan)}", soft_wrap=True)
    if plan.place.flops is not None:
        console.print(
            f"tokens/s: compute at {MFU[0]:.0%} to {MFU[1]:.0%} of the card's peak, which is assumed, not measured",
            soft_wrap=True,
        )
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _rounded(value: float) -> str:
    """Two digits say as much as is known."""
    digits = max(0, math.floor(math.log10(value)) - 1) if value > 0 else 0
    return f"{round(value, -digits):,.0f}"


def _conclusion(plan: _Plan) -> str:
    mine = plan.outcomes[plan.own]
    total, room = mine.memory.total / 1e9, plan.place.room / 1e9
    if mine.fits:
        return f"> is the recipe's way: {total:.1f} GB of {room:.1f} on each rank"
    size = mine.memory.micro_batch_tokens
    said = f"> is the recipe's way: micro-batches of {size:,} tokens need {total:.1f} GB"
    if not plan.instead:
        return f"{said}, and {room:.1f} may be used. Nothing that is tried here makes it fit: take a smaller model"
    return f"{said}, and {room:.1f} may be used. What would fit: {'; or '.join(plan.instead)}"
