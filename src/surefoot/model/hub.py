"""A model's id on the hub → a folder with its files, from the hub's cache or the network.

Only what is asked for is fetched: configs and the tokenizer first, then the safetensors files that the index names.
Nothing here opens a file as a model; folder.py looks at the folder first.
"""

from __future__ import annotations

from pathlib import Path

from surefoot.errors import UserError
from surefoot.model.folder import (
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    base_name,
    check_model,
    read_json,
)

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""Configs and tokenizers; no weights."""


def snapshot(name: str, revision: str | None, *, weights: bool, code: bool) -> Path:
    """The folder of a hub model, with its weights if wanted, and with its Python files if `code`.

    Raises UserError when it is neither in the cache nor to be had, telling what would work without a network.
    """
    from huggingface_hub import snapshot_download

    try:
        small = [*SMALL, *(["*.py"] if code else [])]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=small))
        if weights and (missing := _missing(name, folder)):
            snapshot_download(name, revision=folder.name, allow_patterns=missing)
    except UserError:
        raise
    except Exception as error:  # of the network, of the hub, of the file system: they have no base in common
        raise UserError(_not_to_be_had(name, error)) from error
    if weights and not (folder / INDEX).is_file() and not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{name}: no *.safetensors of it are to be had. Weights as a pickle can run code when read, so "
            "surefoot never does. Convert them once, where you trust them: "
            "AutoModelForCausalLM.from_pretrained(name).save_pretrained(folder)"
        )
    return folder


def _missing(name: str, folder: Path) -> list[str]:
    """Names of the files that hold the weights and are not there yet."""
    index = folder / INDEX
    if index.is_file():
        try:
            where = read_json(index).get("weight_map")
            named = {base_name(file, index) for file in (where if isinstance(where, dict) else {}).values()}
        except UserError as error:
            raise UserError(f"{error}.{copies(name, but=folder)}") from error
        return sorted(
            file for file in named if file.endswith(".safetensors") and not (folder / file).exists()
        )
    single = [SINGLE, ADAPTER_WEIGHTS]
    return [] if any((folder / name).exists() for name in single) else single


def _not_to_be_had(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return (
        f"{name}: neither a folder or .gguf file here, nor to be had from the hub ({reason}).{copies(name)}"
    )


def copies(name: str, but: Path | None = None) -> str:
    """Where else in the hub's cache the model is whole, as a sentence; empty when it is nowhere."""
    whole = [path for path in whole_copies(name) if path != but]
    return f" A whole copy of it is in the cache: {whole[-1]}." if whole else ""


def whole_copies(name: str) -> list[Path]:
    """Snapshots of the model in the hub's cache that could be loaded without a network, oldest first."""
    from huggingface_hub import constants, file_download

    try:
        folder = Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(
            repo_id=name, repo_type="model"
        )
        found = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    except (OSError, ValueError):
        return []
    whole = []
    for path in found:
        try:
            check_model(path)
        except UserError:
            continue
        whole.append(path)
    return whole
