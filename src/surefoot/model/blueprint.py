"""A model drawn without its weights, so that a rank of several never holds more of them than its own rows.

What training calls, in this order, on every rank alike:

1. `blueprint(name, dtype=…)`: the model on torch's meta device, its buffers real, and for each weight which file
   holds it. `NoBlueprint` says why there is none: then load the whole (`load`).
2. `prepare_tokenizer(drawn.model, tokenizer)`, if `len(tokenizer) <= embedding_rows(drawn.model)`: embeddings that
   must grow need the whole.
3. `adapted(drawn.model, peft_config)`, if there is an adapter, right after `torch.manual_seed`: that of an
   excerpt draws random numbers too.
4. The weights' types: `parameter.data = parameter.data.to(dtype)` does on meta what it does elsewhere. No
   `model.to(device)`: there is nothing to move.
5. `network = transferred(small, model)`, where `small` is the network that was found and checked on an `excerpt`
   (which goes through steps 3, 4 and 7 without being sharded).
6. `network = shard(network, mesh)`, with a mesh of the device to train on: `network.device` is still meta.
7. `network = fill(network, device)` (filling.py): reads this rank's rows. Weights that were tied are one object
   before and after. Then the optimizer is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import FATAL
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from surefoot.model.adapters import adapt
from surefoot.model.claims import check_size
from surefoot.model.folder import ADAPTER, CONFIG, check_model, read_json
from surefoot.model.load import locate, model_folder
from surefoot.model.save import GENERATION
from surefoot.model.sources import Joined, NoBlueprint, OnFile, Source, Traced, on_file

SOURCES = "_surefoot_sources"
"""Mark on a module: for its weights and buffers by name, where their values are. It stays with the module when that
is wrapped, copied or sharded."""
JOINING = ("MergeModulelist", "Concatenate")
"""What the model library may do to the tensors of a file, by its own names: the experts of a layer become one
tensor."""


@dataclass(frozen=True)
class Blueprint:
    """A model that has yet to be filled."""

    model: PreTrainedModel
    """All parameters on meta, each tied to what it is tied to; buffers on the CPU, those on file on meta."""
    folder: Path
    name: str
    dtype: torch.dtype | None
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What all weights take together, in their types of now."""
        return sum(p.nbytes for p in self.model.parameters())


def blueprint(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Blueprint:
    """The model that `load` would load, with the same arguments, drawn only.

    Raises UserError where `load` does, and NoBlueprint where files and model do not correspond tensor by tensor.
    """
    place = locate(name)
    if place.suffix == ".gguf":
        raise NoBlueprint("a GGUF file is dequantised as a whole")
    folder = model_folder(place, revision, weights=True, trust_remote_code=trust_remote_code)
    if (folder / ADAPTER).is_file():
        raise NoBlueprint("an adapter is read onto the whole of its base model")
    weights = check_model(folder, trust_remote_code=trust_remote_code)
    if trust_remote_code and read_json(folder / CONFIG).get("auto_map"):
        raise NoBlueprint("code that ships with a model is not known to build it without memory")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise NoBlueprint(f"its config cannot be read: {_first_line(error)}") from error
    check_size(config, weights.elements, name)
    # A hub model's config says its id, for others to find an adapter's base.
    config.name_or_path = str(folder) if folder == locate(name) else name
    return draw(config, folder, name, dtype)


def draw(config: Any, folder: Path, name: str, dtype: torch.dtype | None, some: bool = False) -> Blueprint:
    """The model of a config, to be filled from a folder that has been looked at. `some`: that the files hold more
    than this model is meant to be. Raises NoBlueprint."""
    if getattr(config, "quantization_config", None) is not None:
        raise NoBlueprint("its weights are quantised")
    if getattr(type(config), "extra_files", ()):
        raise NoBlueprint("its weights are in several places")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not isinstance(kind, type) or getattr(kind, "config_class", None) is not type(config):
        raise NoBlueprint(f"which class builds it is not known ({type(config).__name__})")
    traced = Traced()
    stand_ins = {key: OnFile(source, traced) for key, source in on_file(folder).items()}
    label = config.name_or_path
    try:
        with _quiet(), traced:
            model, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=stand_ins,
                dtype=dtype or "auto",
                output_loading_info=True,
            )
        model.generation_config = _generation(folder)
    except Exception as error:
        raise NoBlueprint(
            f"the model library does not build it without memory: {_first_line(error)}"
        ) from error
    model.config._name_or_path = model.name_or_path = label
    if missing := sorted(found["missing_keys"]):
        raise NoBlueprint(f"{missing[0]} is not in the weight files")
    _mark(model, traced)
    _all_tied(model)
    notes = ()
    if (unknown := sorted(found["unexpected_keys"])) and not some:
        others = f" and {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
        notes = (f"not part of the model, so not read: {unknown[0]}{others}",)
    return Blueprint(model, folder, name, dtype, notes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's report of what is missing goes unsaid: it is found here, or said when the whole is loaded."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(FATAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _generation(folder: Path) -> GenerationConfig:
    """How to generate: what the folder says, or what is left of it in an old model's config."""
    if (folder / GENERATION).is_file():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig.from_pretrained(str(folder), config_file_name=CONFIG, _from_model_config=True)


# Where each tensor is ----------------------------------------------------------------------------------


def _mark(model: PreTrainedModel, traced: Traced) -> None:
    """Write to each module where its tensors are. Raises NoBlueprint for one that is not to be had by rows."""
    for conversion in vars(model).get("_weight_conversions") or ():
        for operation in getattr(conversion, "operations", ()):
            if (what := type(operation).__name__) not in JOINING:
                raise NoBlueprint(
                    f"its weights are kept in another form than the model's, and converted ({what})"
                )
    for where, module in model.named_modules():
        sources: dict[str, Source | Joined] = {}
        kept = {key: t for key, t in module._buffers.items() if key not in module._non_persistent_buffers_set}
        for key, tensor in (*module._parameters.items(), *kept.items()):
            if tensor is None:
                continue
            if (source := traced.source(tensor)) is None:
                raise NoBlueprint(f"{where}.{key} is not in the weight files as it is in the model")
            sources[key] = source
        rest = {key: t for key, t in module._buffers.items() if key not in kept}
        for key, tensor in {**vars(module), **rest}.items():
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                raise NoBlueprint(
                    f"{where}.{key} is a table of the model's that only building it whole fills"
                )
        if sources:
            vars(module)[SOURCES] = sources


def _all_tied(model: PreTrainedModel) -> None:
    """Where the files hold both of two tied weights, the library compares them, which without memory it cannot."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for target, source in tied.items():
        if model.get_parameter(target) is not model.get_parameter(source):
            raise NoBlueprint(
                f"{target} and {source} are both in the weight files, though the config ties them"
            )


# Adapters ----------------------------------------------------------------------------------------------


class _StayOnCpu(TorchFunctionMode):
    """While open, what is on the CPU does not go to meta: PEFT draws an adapter's values, then sends them where the
    weights are, which is nowhere."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and not args[0].is_meta:
            args = tuple(_real(value) for value in args)
            kwargs = {name: _real(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _real(value: Any) -> Any:
    meta = value == "meta" if isinstance(value, str) else value == torch.device("meta")
    return torch.device("cpu") if isinstance(value, str | torch.device) and meta else value


def adapted(model: torch.nn.Module, peft_config: Any) -> torch.nn.Module:
    """`adapt` for a model that is drawn only: the adapter is real, on the CPU, with the values that it would have
    on the whole model after the same `torch.manual_seed`, on every rank.

    Raises UserError as `adapt` does, and NoBlueprint for an adapter that begins with what it finds in the weights.
    """
    try:
        with _StayOnCpu():
            whole = adapt(model, peft_config)
    except RuntimeError as error:  # such as "Cannot copy out of meta tensor"
        raise NoBlueprint(
            f"the adapter begins with what it finds in the weights ({_first_line(error)})"
        ) from error
    if lacking := unsourced(whole):
        raise NoBlueprint(f"the adapter begins with what it finds in the weights ({lacking[0]})")
    return whole


def unsourced(model: torch.nn.Module) -> list[str]:
    """Names of the tensors on meta that are in no file."""
    return [
        f"{where}.{key}"
        for where, module in model.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and tensor.device.type == "meta" and key not in vars(module).get(SOURCES, {})
    ]
