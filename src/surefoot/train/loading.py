"""The model of a run: loaded, adapted, of the right types, on its device; whole, or each rank its own rows.

Where several ranks cut the weights, nobody loads the whole: the model is drawn (`blueprint`), the way through
it is found and checked on an excerpt of a few layers, and what is cut is filled rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from surefoot.config import SFTConfig
from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.model.adapters import adapt, lora_config
from surefoot.model.blueprint import Blueprint, adapted, blueprint
from surefoot.model.excerpt import excerpt, transferred
from surefoot.model.filling import fill, fill_model
from surefoot.model.load import load, load_tokenizer, prepare_tokenizer
from surefoot.model.network import Network, embedding_rows, look_at, unwrapped
from surefoot.model.sources import NoBlueprint
from surefoot.ranks import ranks
from surefoot.train import hardware
from surefoot.train.accord import to_be_cut
from surefoot.train.compiling import compile_layers
from surefoot.train.distributed import shard
from surefoot.train.identity import weights_digest
from surefoot.train.recompute import offload_activations


@dataclass(frozen=True)
class Prepared:
    """A model ready to train, and its tokenizer."""

    model: torch.nn.Module
    """Without its weights, if there is an `excerpt`."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    product_dtype: torch.dtype | None
    notes: list[str]
    digest: Callable[[], str]
    """sha256 of the base model's weights; of a model object, of those that do not train: the others change. All
    ranks must ask, before the first step."""
    cut: bool
    """The weights are to be cut into a piece for each rank."""
    excerpt: torch.nn.Module | None = None
    """A few whole layers of a model that nobody has whole."""


def prepare_model(
    model: str | Path | torch.nn.Module | None,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: Any = None,
) -> Prepared:
    """Load what has to be loaded, add the adapter, choose precision, move to the device."""
    torch.manual_seed(args.seed)
    place = hardware.device(args.use_cpu)
    model = model if model is not None else args.model_name_or_path
    if model is None:
        raise UserError("no model: pass model=..., or model_name_or_path in the recipe or as a flag")
    lora = args.use_peft or peft_config is not None
    adapter = (peft_config or lora_config(args)) if lora else None
    notes: list[str] = []
    named = not isinstance(model, torch.nn.Module)
    if isinstance(model, torch.nn.Module):
        name = unwrapped(model).config._name_or_path or type(unwrapped(model)).__name__
        tokenizer = tokenizer or load_tokenizer(name)
    else:
        name = str(model)
        if (found := _drawn(name, args, tokenizer, adapter, place, notes)) is not None:
            return found
        loaded = load(
            name,
            dtype=_loaded_type(args, lora),
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
        model, tokenizer = loaded.model, tokenizer or loaded.tokenizer
        notes += loaded.notes
    notes += _prepare_tokenizer(model, tokenizer, args)
    digest = weights_digest(model) if named else ""
    if adapter is not None:
        model = adapt(model, adapter)
    model.to(place)
    product_dtype = _set_precision(model, args.precision, place)
    model.train()
    digest = digest or weights_digest(model, frozen_only=True)
    cut, why = to_be_cut(model.parameters(), place, args.shard)
    notes += [why] if why else []
    return Prepared(model, tokenizer, name, product_dtype, notes, lambda: digest, cut)


def _loaded_type(args: SFTConfig, lora: bool) -> torch.dtype | None:
    pure = torch.bfloat16 if args.precision == "pure-bf16" else torch.float32
    return None if lora else pure


def _prepare_tokenizer(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, args: SFTConfig
) -> list[str]:
    return prepare_tokenizer(
        model,
        tokenizer,
        chat_template_path=args.chat_template_path,
        eos_token=args.eos_token,
        add_special_tokens=args.add_special_tokens,
    )


def _drawn(
    name: str,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Any,
    place: torch.device,
    notes: list[str],
) -> Prepared | None:
    """A model that each rank is to hold its rows of, drawn only; None where all is to be loaded, which is noted if
    it is a pity."""
    if ranks() == 1 or args.shard == "none":
        return None
    try:
        drawn = blueprint(
            name,
            dtype=_loaded_type(args, adapter is not None),
            revision=args.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
        tokenizer = tokenizer or load_tokenizer(drawn.folder, trust_remote_code=args.trust_remote_code)
        if args.add_special_tokens or len(tokenizer) > embedding_rows(drawn.model):
            raise NoBlueprint("its embeddings must grow")
        small = excerpt(drawn)
    except NoBlueprint as error:
        if args.shard == "full":
            notes.append(f"each rank loads the whole model before it is cut: {error}")
        return None
    notes += [*drawn.notes, *_prepare_tokenizer(drawn.model, tokenizer, args)]
    model, product_dtype = _as_trained(drawn, args, adapter, place)
    cut, why = to_be_cut(model.parameters(), place, args.shard, loaded=False)
    if not cut:
        return None
    part, _ = _as_trained(small, args, adapter, place)
    fill_model(part, place)
    digest = cache(partial(weights_digest, model, base_only=adapter is not None))
    return Prepared(model, tokenizer, name, product_dtype, [*notes, why], digest, True, part)


def _as_trained(
    drawn: Blueprint, args: SFTConfig, adapter: Any, place: torch.device
) -> tuple[torch.nn.Module, torch.dtype | None]:
    """With its adapter, and of the types that it is trained in."""
    torch.manual_seed(args.seed)
    model = adapted(drawn.model, adapter) if adapter is not None else drawn.model
    product_dtype = _set_precision(model, args.precision, place)
    model.train()
    return model, product_dtype


def _set_precision(model: torch.nn.Module, precision: str | None, place: torch.device) -> torch.dtype | None:
    """Give the trained weights their type; returns the type of the matrix products, None for the weights' own.

    A float64 model stays as it is. Frozen weights keep the checkpoint's type, but for precision=fp32: fp32
    products need both sides in fp32.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if any(p.dtype == torch.float64 for p in trained):
        return None
    if precision is None:
        precision = "bf16" if hardware.fast_in_bf16(place) else "fp32"
    wanted = torch.bfloat16 if precision == "pure-bf16" else torch.float32
    for parameter in model.parameters() if precision == "fp32" else trained:
        parameter.data = parameter.data.to(wanted)
    return None if precision == "fp32" else torch.bfloat16


def prepare_network(prepared: Prepared, examples: Sequence[Example], args: SFTConfig) -> Network:
    """The fastest exact way through this model, tried on these examples; if nobody has it whole, through its
    excerpt."""
    model = prepared.model if prepared.excerpt is None else prepared.excerpt
    if next(model.parameters()).device.type == "cpu":
        hardware.keep_heap()
    return look_at(model, examples, prepared.product_dtype, args.share_prefixes)


def as_shared(prepared: Prepared, found: Network, args: SFTConfig) -> Network:
    """The model's own network, of the way that was found: compiled and offloading if that is asked for, and cut and
    filled if it is to be cut. All ranks must call it, once."""
    network = found if prepared.excerpt is None else transferred(found, prepared.model)
    if args.activation_offloading:
        network = offload_activations(network)
    if args.torch_compile:
        network = compile_layers(network)
    if not prepared.cut:
        return network
    place = hardware.device(args.use_cpu)
    network = shard(network, place)
    return network if prepared.excerpt is None else fill(network, place)


def on_path(network: Network, checked: Network) -> Network:
    """The network by the way that was checked, which may be a slower one."""
    head = None if checked.head is None else network.head
    reasons = (*network.reasons, *(said for said in checked.reasons if said not in network.reasons))
    return replace(network, packed=checked.packed, merged=checked.merged, head=head, reasons=reasons)
