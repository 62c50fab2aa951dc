"""A model and its tokenizer → an ordinary Hugging Face folder, or a PEFT adapter folder.

Of several ranks that all hold the whole model, the first writes it. Of a sharded model no rank ever holds all:

1. The first rank decides what is written and by whom: whole weights, in order, about as many bytes for each rank.
2. They are gathered one after the other, and each is kept by the rank that writes it, on its CPU.
3. The first rank writes configs and tokenizer; then each its file, and the first one their index.

An adapter, and a model whose weights transformers keeps otherwise than it computes with them, the first rank
gathers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from surefoot.durable import sync_file
from surefoot.model.folder import SINGLE
from surefoot.model.network import unwrapped
from surefoot.ranks import by_first, rank, ranks, texts, together

GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
RESIZED = "_surefoot_resized"
"""Mark on a model whose embeddings have grown: an adapter's folder must hold them too."""


@dataclass(frozen=True)
class Shares:
    """Who writes what of a sharded model."""

    names: dict[str, str]
    """Name in the state dict → in the folder."""
    owners: dict[str, int]
    """Name in the state dict → the rank that writes it."""
    apart: bool
    """In a file for each rank; else the first rank writes all by the library's own means."""
    bytes: int


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """An ordinary Hugging Face folder (or PEFT adapter folder): weights, configs, tokenizer, chat template.

    All ranks must call it, and the folder is whole when it has returned on all. What fails on one is raised there
    when the others can do without it.
    """
    if any(isinstance(p, DTensor) for p in model.parameters()) and ranks() > 1:
        _save_shares(model, tokenizer, folder)
    elif rank() == 0:
        write_folder(model, tokenizer, folder)


def write_folder(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """The folder, written by this process alone. `state`: weights, if not the model's own."""
    folder.mkdir(parents=True, exist_ok=True)
    core = unwrapped(model)
    more: dict[str, Any] = {} if state is None else {"state_dict": dict(state)}
    with _no_generation(core) as generation:
        model.save_pretrained(str(folder), **more, **_grown(model))  # type: ignore[operator]
    # Written apart: PEFT leaves it out, and transformers refuses a temperature without sampling, which is
    # common on the hub, as soon as anything of the config was changed.
    generation.to_json_file(folder / GENERATION, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(str(folder))


@contextmanager
def _no_generation(core: PreTrainedModel) -> Iterator[GenerationConfig]:
    generation = core.generation_config
    assert isinstance(generation, GenerationConfig)
    core.generation_config = GenerationConfig()  # type: ignore[assignment]
    try:
        yield generation
    finally:
        core.generation_config = generation  # type: ignore[assignment]


def _grown(model: torch.nn.Module) -> dict[str, Any]:
    """PEFT's own guess needs the hub."""
    core = unwrapped(model)
    return {"save_embedding_layers": True} if model is not core and RESIZED in vars(core) else {}


# Sharded -----------------------------------------------------------------------------------------------


def _save_shares(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    shares = _agreed(model)
    kept = together(lambda: _gathered(model, shares))
    # Before any file of weights: it takes away what an earlier save has left.
    by_first(lambda: write_folder(model, tokenizer, folder, {} if shares.apart else kept))
    if not shares.apart:
        return
    writers = sorted(set(shares.owners.values()))
    files = {n: f"model-{i:05d}-of-{len(writers):05d}.safetensors" for i, n in enumerate(writers, start=1)}
    if kept:
        place = folder / files[rank()]
        save_file({shares.names[name]: tensor for name, tensor in kept.items()}, place, {"format": "pt"})
        sync_file(place)
    if rank() == 0:
        (folder / SINGLE).unlink(missing_ok=True)
        where = {shares.names[name]: files[owner] for name, owner in shares.owners.items()}
        index = {"metadata": {"total_size": shares.bytes}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _agreed(model: torch.nn.Module) -> Shares:
    """What the first rank has decided."""
    own = by_first(
        lambda: _adapters_shares(model) if model is not unwrapped(model) else _shares(unwrapped(model))
    )
    return Shares(**json.loads(texts(json.dumps(asdict(own)) if own is not None else "")[0]))


def _likenesses(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole tensors' shapes and types, without their content."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict().items()
    }


def _shares(core: PreTrainedModel) -> Shares:
    """Of a whole model: as `save_pretrained` would write it."""
    ignored = set(core._keys_to_ignore_on_save or ())
    found = {name: one for name, one in _likenesses(core).items() if name not in ignored}
    found = remove_tied_weights_from_state_dict(found, core)
    original = {id(one): name for name, one in found.items()}
    try:
        written = revert_weight_conversion(core, dict(found))
    except Exception:  # whatever it does with weights, these have no content
        written = {}
    names = {original[id(one)]: name for name, one in written.items() if id(one) in original}
    total = sum(one.nbytes for one in found.values())
    if set(names) != set(found) or len(written) != len(found):
        return Shares(dict.fromkeys(found, ""), dict.fromkeys(found, 0), apart=False, bytes=total)
    owners, before = {}, 0
    for name, one in found.items():
        owners[name] = min(ranks() - 1, before * ranks() // max(1, total))
        before += one.nbytes
    return Shares(names, owners, apart=True, bytes=total)


def _adapters_shares(model: torch.nn.Module) -> Shares:
    """Of an adapter: what trains, and what else PEFT would write."""
    from peft import get_peft_model_state_dict

    found = _likenesses(model)
    written: set[int] = set()
    for adapter in model.peft_config:  # type: ignore[union-attr]
        state = get_peft_model_state_dict(model, dict(found), adapter, **_grown(model))
        written |= {id(one) for one in state.values()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, one in found.items() if id(one) in written or name in trained]
    total = sum(found[name].nbytes for name in names)
    return Shares(dict.fromkeys(names, ""), dict.fromkeys(names, 0), apart=False, bytes=total)


def _gathered(model: torch.nn.Module, shares: Shares) -> dict[str, torch.Tensor]:
    """What this rank writes, on the CPU. A rank that has no room for it goes on gathering with the others first."""
    kept: dict[str, torch.Tensor] = {}
    failed: Exception | None = None
    state = model.state_dict()
    for name, owner in shares.owners.items():
        tensor = state[name].detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        try:
            if owner == rank() and failed is None:
                kept[name] = whole.to("cpu", copy=not isinstance(tensor, DTensor)).contiguous()
        except (MemoryError, RuntimeError) as error:
            failed = error
            kept.clear()
    if failed is not None:
        raise failed
    return kept
