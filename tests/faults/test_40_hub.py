"""Fault 40: the hub cannot be reached, or a download stopped half way.

What is cached works; else the error says what would work without a network.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest
from huggingface_hub import constants

from surefoot import UserError
from surefoot.model.load import load, load_tokenizer, positions
from tests.conftest import Surefoot
from tests.security.hostile import as_shards

NAME = "org/tiny"
COMMIT, OTHER = "a" * 40, "b" * 40
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there."""


def reach(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub's library look for the hub there; it reads its variables when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the hub is allowed, and unreachable."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reach(NOWHERE, monkeypatch)
    monkeypatch.setattr(
        "time.sleep", lambda seconds: None
    )  # the hub's library asks six times before it gives up
    return tmp_path / "hub" / "models--org--tiny"


@pytest.fixture(params=["unreachable", "offline"])
def without_hub(request: pytest.FixtureRequest, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    return cache


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model in shards, as on a hub."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "origin"))
    as_shards(folder)
    return folder


def put(model: Path, cache: Path, commit: str = COMMIT, ref: bool = True) -> Path:
    """The model as the hub's cache has it."""
    snapshot, blobs = cache / "snapshots" / commit, cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    (cache / "refs").mkdir(exist_ok=True)
    if ref:
        (cache / "refs" / "main").write_text(commit)
    for file in model.iterdir():
        shutil.copy(file, blobs / f"{commit[0]}-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{commit[0]}-{file.name}")
    return snapshot


def refusal(name: str = NAME, **more: str) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **more)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_is_cached_works(without_hub: Path, model: Path, rows_file: Path, surefoot: Surefoot) -> None:
    put(model, without_hub)
    loaded = load(NAME)
    assert (loaded.name, loaded.model.name_or_path, loaded.notes) == (NAME, NAME, ())
    assert loaded.model.config._name_or_path == NAME  # type: ignore[union-attr]
    assert load_tokenizer(NAME).get_vocab() == loaded.tokenizer.get_vocab()
    assert positions(Path(NAME)) == 128
    said = surefoot("preview", NAME, "--data", rows_file)
    assert (said.status, said.err) == (0, "")


def test_what_is_not_cached_says_what_would_work(
    without_hub: Path, surefoot: Surefoot, rows_file: Path
) -> None:
    said = refusal()
    assert said.startswith(f"{NAME}: neither a folder or .gguf file here, nor to be had from the hub (")
    assert said.endswith("Offline, pass the path of a downloaded model, or an embedded one: smollm2-135m.")
    found = surefoot("train", "--model_name_or_path", NAME, "--dataset_name", rows_file, "--use_cpu")
    assert (found.status, found.out) == (2, "") and NAME in found.err


def test_another_commit_in_the_cache_is_named_and_works(without_hub: Path, model: Path) -> None:
    whole = put(model, without_hub, OTHER, ref=False)
    said = refusal()
    assert f"A whole copy of it is in the cache: {whole}. " in said
    assert type(load(str(whole)).model).__name__ == "LlamaForCausalLM"
    assert load(NAME, revision=OTHER).name == NAME


HALVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda s: (s / "model-00001-of-00001.safetensors").unlink(), "which is not there"),
    "a shard's blob is missing": (
        lambda s: (s / "model-00001-of-00001.safetensors").resolve().unlink(),
        "this link leads nowhere",
    ),
    "a shard is cut off": (
        lambda s: cut((s / "model-00001-of-00001.safetensors").resolve()),
        "is cut off",
    ),
    "a header is cut off": (
        lambda s: (s / "model-00001-of-00001.safetensors").resolve().write_bytes(b"\x00\x01"),
        "is cut off",
    ),
    "the index is cut off": (lambda s: cut((s / "model.safetensors.index.json").resolve()), "not JSON"),
    "the config is missing": (lambda s: (s / "config.json").unlink(), "no config.json there"),
    "the tokenizer is missing": (lambda s: [p.unlink() for p in s.glob("tok*")], "no tokenizer to be had"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", HALVES)
def test_half_a_download_is_told_from_a_whole_one(name: str, without_hub: Path, model: Path) -> None:
    half, whole = put(model, without_hub), put(model, without_hub, OTHER, ref=False)
    spoil, said = HALVES[name]
    spoil(half)
    told = refusal()
    assert said in told and COMMIT in told
    assert f"A whole copy of it is in the cache: {whole}" in told
    assert type(load(str(whole)).model).__name__ == "LlamaForCausalLM"


# A hub of our own ------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download asks for, on this machine; it may hang up in the middle of the weights."""

    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.model = model
        self.hang_up = False
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # type: ignore[assignment]

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        pass

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str], cut_at: int | None = None) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut_at])
            if cut_at is not None:
                self.wfile.flush()
                self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if self.command == "GET":
            self.server.asked.append(path.rpartition("/")[2])
        files = sorted(file for file in self.server.model.iterdir() if file.is_file())
        if path == f"/api/models/{NAME}/revision/main" or path == f"/api/models/{NAME}":
            self._json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{n:040x}"}
                for n, file in enumerate(files)
            ]
            self._json(entries)
        elif f"/{NAME}/resolve/" in path:
            file = self.server.model / path.rpartition("/")[2]
            if not file.is_file():
                self.send_error(404)
                return
            body = file.read_bytes()
            weights = file.suffix == ".safetensors"
            tag = {"ETag": f'"{files.index(file):040x}"', "Accept-Ranges": "none"}
            self._send(body, tag, len(body) // 2 if self.server.hang_up and weights else None)
        else:
            self.send_error(404)


@pytest.fixture
def hub(cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reach(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield server
        server.shutdown()


def test_a_hub_model_is_fetched_once_and_nothing_of_it_that_is_not_needed(hub: Hub, model: Path) -> None:
    for name in ("pytorch_model.bin", "model.onnx", "modeling_theirs.py", "README.md", "other.safetensors"):
        (model / name).write_bytes(b"not asked for")
    assert type(load(NAME).model).__name__ == "LlamaForCausalLM"
    assert "model-00001-of-00001.safetensors" in hub.asked
    assert not {"pytorch_model.bin", "model.onnx", "modeling_theirs.py", "README.md", "other.safetensors"} & {
        *hub.asked
    }
    hub.asked.clear()
    load(NAME)
    assert [name for name in hub.asked if "." in name] == []


def test_a_hub_model_of_pickles_alone_is_not_fetched(hub: Hub, model: Path) -> None:
    (model / "model-00001-of-00001.safetensors").rename(model / "pytorch_model.bin")
    (model / "model.safetensors.index.json").unlink()
    said = refusal()
    assert f"{NAME}: no *.safetensors of it are to be had. Weights as a pickle can run code" in said
    assert "pytorch_model.bin" not in hub.asked


def test_a_download_that_stops_half_way_goes_on(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hang_up = True
    said = refusal()
    assert said.startswith(f"{NAME}: neither a folder or .gguf file here, nor to be had from the hub (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "Offline, pass the path of a downloaded model" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hang_up = False
    assert type(load(NAME).model).__name__ == "LlamaForCausalLM"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert type(load(NAME).model).__name__ == "LlamaForCausalLM"
