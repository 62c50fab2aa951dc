"""Everything before step 1: model, tokenizer, rows and hardware, each checked, each said in run.json."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import nullcontext
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

import surefoot
from surefoot.config import SFTConfig
from surefoot.console import text_console
from surefoot.data.cache import cache_folder
from surefoot.data.dataset import Dataset, Formatting, read
from surefoot.data.render import Renderer
from surefoot.data.sharing import NowAndThen
from surefoot.data.sources import Source, open_source
from surefoot.errors import UserError
from surefoot.model.network import Network, embedding_rows, unwrapped
from surefoot.ranks import local_rank, ranks
from surefoot.train import hardware
from surefoot.train.loading import Prepared
from surefoot.train.progress import counting

LOOKED_AT = 1_000
"""Examples among which those are found that tell how the model can be run."""
LONG = 2_000
"""Rows from which on tokenising shows a bar."""


def open_data(data: Any, split: str, args: SFTConfig, at_most: int | None = None) -> Source:
    """Find the rows; nothing of them is read yet but what tells that they are there."""
    named = isinstance(data, str) and not Path(data).expanduser().is_file()
    source = open_source(
        data, split=split if named else None, config=args.dataset_config, streaming=args.dataset_streaming
    )
    if source.length is None and at_most is None:
        raise UserError(f"{source.name} is a stream without a known end: set max_steps")
    return source


def open_all(
    train: Any, held_out: Any, args: SFTConfig, at_most: int | None
) -> tuple[Source | None, dict[str, Source]]:
    """Find the rows to train on and to evaluate on. Raises UserError when there are none at all."""
    rows = train if train is not None else args.dataset_name
    source = open_data(rows, args.dataset_train_split, args, at_most) if rows is not None else None
    held = open_held_out(held_out if held_out is not None else args.eval_dataset_name, args)
    if source is None and not held:
        raise UserError("no rows: pass train_dataset=..., or dataset_name in the recipe or as a flag")
    return source, held


def open_held_out(data: Any, args: SFTConfig) -> dict[str, Source]:
    """Find the held-out rows, by name."""
    if data is None and args.eval_strategy != "no":
        data = args.dataset_name  # its test split
        if data is None or Path(data).is_file():
            raise UserError(f"eval_strategy={args.eval_strategy} needs held-out rows: eval_dataset_name")
    parts = data if isinstance(data, dict) else {"eval": data} if data is not None else {}
    return {name: open_data(part, args.dataset_test_split, args) for name, part in parts.items()}


def read_data(
    source: Source,
    prepared: Prepared,
    args: SFTConfig,
    formatting: Formatting | None,
    at_most: int | None = None,
) -> Dataset:
    """Read and tokenise rows for the prepared model, or find them as an earlier run has kept them.

    Long work shows a bar; of several ranks, the first of each machine says a line now and then where there is no
    terminal for a bar, and while it waits for other machines. What keeps rows from being kept goes to the model's
    notes.
    """
    renderer = make_renderer(prepared.model, prepared.tokenizer, args)
    console = text_console(stderr=True)
    speaks, pace = ranks() > 1 and local_rank() == 0, NowAndThen()
    long = (source.length or 0) >= LONG and console.is_terminal and local_rank() == 0
    bar = counting(f"tokenising {source.name}", console) if long else nullcontext(lambda done, total: None)
    with bar as told:

        def seen(rows: int) -> None:
            told(rows, source.length)
            if speaks and not long and pace.due():
                of = f" of {source.length:,}" if source.length else ""
                say(f"tokenising {source.name} on {gethostname()}: {rows:,}{of} rows")

        def waits(late: str) -> None:
            if speaks:
                say(f"{source.name} is tokenised on {gethostname()}; waiting: {late}")

        def say(text: str) -> None:
            console.print(text, soft_wrap=True)

        data = read(
            source,
            renderer,
            columns=args.columns,
            text_field=args.dataset_text_field,
            formatting=formatting,
            at_most=at_most,
            on_bad_row=args.on_bad_row,
            seen=seen,
            cache=cache_folder() / "examples",
            waits=waits,
        )
    prepared.notes.extend(note for note in data.notes if note not in prepared.notes)
    return data


def make_renderer(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> Renderer:
    """The renderer for this model's context length and vocabulary."""
    core = unwrapped(model)
    config = core.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 1 << 20
    if args.max_length is not None and args.max_length > positions:
        raise UserError(f"max_length {args.max_length} is more than the model's {positions} positions")
    return Renderer(
        tokenizer,
        max_length=args.max_length or positions,
        overlength=args.overlength,
        completion_only_loss=args.completion_only_loss,
        last_turn_only=args.last_turn_only,
        eos_token=args.eos_token,
        vocabulary=embedding_rows(core),
    )


def describe(prepared: Prepared, network: Network, args: SFTConfig) -> dict[str, Any]:
    """What run.json says of model, precision, machine and versions."""
    parameters = list(network.model.parameters())
    template = prepared.tokenizer.chat_template
    vocabulary = sorted(prepared.tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {
        "config": args.to_dict(),
        "model": {
            "name": prepared.name,
            "architecture": type(network.core).__name__,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "weights": sorted({str(p.dtype).removeprefix("torch.") for p in parameters}),
            "products": str(network.product_dtype or parameters[0].dtype).removeprefix("torch."),
            "packed": network.packed,
            "prefixes_shared": network.packed and network.merged,
            "notes": [*prepared.notes, *network.reasons],
        },
        "hashes": {
            "base_model": prepared.digest(),
            "chat_template": _digest(template if isinstance(template, str) else repr(template)),
            "tokenizer": _digest(repr(vocabulary)),
            "model_config": _digest(_plainly(network.core.config)),
        },
        "machine": {
            "device": _device_name(network.device),
            "threads": torch.get_num_threads(),
            "heap_kept": hardware.keep_heap() if network.device.type == "cpu" else False,
            "ranks": ranks(),
            "sharded": network.root is not None,
        },
        "versions": {
            "surefoot": surefoot.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "cpu")


def _plainly(config: Any) -> str:
    """What of a model's config is no default: not where it lies, nor which version has read it."""
    found = config.to_diff_dict()
    for place in ("_name_or_path", "_commit_hash", "transformers_version"):
        found.pop(place, None)
    return json.dumps(found, sort_keys=True, default=repr)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
