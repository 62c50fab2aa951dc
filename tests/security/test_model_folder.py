"""A hostile model folder, adapter or GGUF file is refused in seconds, in bounded memory, and nothing of it runs."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
import transformers as tf

from surefoot import UserError
from surefoot.model.load import load, load_tokenizer, positions
from tests.conftest import Loaded, Surefoot
from tests.security import hostile

SECONDS = 20.0
"""Of computing, on any machine: what is refused is refused before it is read."""


def refusal(name: object) -> str:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load(str(name))
    assert time.process_time() - began < SECONDS
    return str(caught.value)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return hostile.copy(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", hostile.FOLDERS)
def test_a_hostile_folder_is_refused(name: str, folder: Path) -> None:
    spoil, said = hostile.FOLDERS[name]
    spoil(folder)
    assert said in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_a_pickle_is_not_opened(name: str, folder: Path, tmp_path: Path) -> None:
    hostile.pickled(folder, name, tmp_path / "ran")
    said = refusal(folder)
    assert (
        said.startswith(f"{folder / name}: weights as a pickle can run code") and "Convert them once" in said
    )
    assert not (tmp_path / "ran").exists()


def test_code_that_ships_with_a_model_is_named_and_not_run(folder: Path, tmp_path: Path) -> None:
    hostile.own_code(folder, tmp_path / "ran")
    said = refusal(folder)
    assert said == (
        f'{folder / "config.json"}: this model is code that ships with it ("theirs.Model"), so it is not run. '
        "Read that code, and if you trust it, say trust_remote_code=true"
    )
    with pytest.raises(
        UserError, match=r"this tokenizer is code that ships with it .* trust_remote_code=true"
    ):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="this model is code that ships with it"):
        positions(folder)
    assert not (tmp_path / "ran").exists()


def test_a_known_model_loads_without_the_code_beside_it(folder: Path, tmp_path: Path) -> None:
    hostile.own_code(folder, tmp_path / "ran")
    hostile.edit(folder / "config.json", model_type="llama")
    hostile.edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert type(load(str(folder)).model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_the_hubs_cache_may_link_into_its_blobs_and_nowhere_else(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    place, blobs = model / "snapshots" / "0123abc", model / "blobs"
    place.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (place / file.name).symlink_to(Path("../../blobs") / str(number))
    assert type(load(str(place)).model).__name__ == "LlamaForCausalLM"
    shutil.copy(place / "config.json", model / "refs")
    hostile.as_link(place / "config.json", Path("../../refs"))
    assert "config.json is a link that leads out of the folder" in refusal(place)


def test_links_within_the_folder_and_to_the_folder_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    hostile.as_link(folder / "model.safetensors", Path("w.safetensors"))
    (tmp_path / "link").symlink_to(folder)
    assert type(load(str(tmp_path / "link")).model).__name__ == "LlamaForCausalLM"


def test_a_folder_of_too_many_files_is_refused(folder: Path) -> None:
    for number in range(10_001):
        os.close(os.open(folder / f"{number}", os.O_CREAT))
    assert "has more than 10,000 files" in refusal(folder)


def test_a_whole_model_in_shards_loads(folder: Path) -> None:
    hostile.as_shards(folder)
    assert type(load(str(folder)).model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("name", hostile.ADAPTERS)
def test_a_hostile_adapter_is_refused(
    name: str, tiny_model: Loaded, tiny_folder: Path, tmp_path: Path
) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model.model, config).save_pretrained(str(tmp_path / "adapter"))  # type: ignore[arg-type]
    path = tmp_path / "adapter" / "adapter_config.json"
    hostile.edit(path, base_model_name_or_path=str(tiny_folder))
    assert load(str(tmp_path / "adapter")).notes == (f"adapter on {tiny_folder}",)
    changed, said = hostile.ADAPTERS[name]
    hostile.edit(path, **changed)
    assert said in refusal(tmp_path / "adapter")


def test_an_adapter_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    hostile.tensor(tmp_path / "adapter_model.safetensors")
    assert f"{tmp_path} is an adapter too" in refusal(tmp_path)


def test_an_adapter_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    hostile.as_pipe(tmp_path / "adapter_model.safetensors")
    assert "adapter_model.safetensors is a pipe (FIFO)" in refusal(tmp_path)


@pytest.mark.parametrize("name", hostile.GGUFS)
def test_a_hostile_gguf_file_is_refused(name: str, tmp_path: Path) -> None:
    content, said = hostile.GGUFS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert said in refusal(path)
    with pytest.raises(UserError):
        load_tokenizer(path)
    if said != "this GGUF file cannot be read":
        with pytest.raises(UserError, match="this GGUF file cannot be read"):
            positions(path)


def test_a_gguf_file_of_millions_of_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(hostile.start(keys=1) + hostile.text("a") + struct.pack("<IIQ", 9, 8, 6_000_000))
    os.truncate(path, 100_000_000)
    assert "6,000,000 texts of its lists, more than any model's" in refusal(path)


def test_what_lies_beside_a_gguf_file_is_not_read(tiny_model: Loaded, tmp_path: Path) -> None:
    from tests.model.test_load import write_gguf

    write_gguf(tmp_path / "model.gguf", tiny_model.model, tiny_model.tokenizer)
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json"):
        hostile.as_pipe(tmp_path / name)
    loaded = load(str(tmp_path / "model.gguf"))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert positions(tmp_path / "model.gguf") == 128
    assert loaded.model.name_or_path == str(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dataset_name", "ROWS", "--use_cpu", "--model_name_or_path"),
        ("evaluate", "--data", "ROWS", "--use_cpu"),
        ("preview", "--data", "ROWS"),
        ("chat", "--prompt", "Hi", "--use_cpu"),
        ("check", "--data", "ROWS", "--use_cpu", "--model"),
        ("compare", "--prompt", "Hi", "--use_cpu", "OTHER"),
        ("explain", "--prompt", "Hi", "--completion", "Ho", "--model"),
    ],
    ids=lambda words: words[0],
)
def test_each_command_says_it_in_one_line(
    command: tuple[str, ...],
    folder: Path,
    tiny_folder: Path,
    rows_file: Path,
    surefoot: Surefoot,
    tmp_path: Path,
) -> None:
    hostile.own_code(folder, tmp_path / "ran")
    given = {"ROWS": str(rows_file), "OTHER": str(tiny_folder)}
    said = surefoot(*(given.get(word, word) for word in command), folder)
    assert said.status == 2
    assert "code that ships with it" in said.err and "trust_remote_code=true" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--data", "ROWS", "--exact_match", "false", "--use_cpu"),
        ("preview", "--data", "ROWS"),
        ("chat", "--prompt", "Hi", "--max_new_tokens", "1", "--use_cpu"),
        ("compare", "--prompt", "Hi", "--max_new_tokens", "1", "--use_cpu", "OTHER"),
    ],
    ids=lambda words: words[0],
)
def test_code_that_is_trusted_runs(
    command: tuple[str, ...],
    folder: Path,
    tiny_folder: Path,
    rows_file: Path,
    surefoot: Surefoot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only with the option that the refusal names, on the command that was refused."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    hostile.own_model(folder, tmp_path / "ran")
    given = {"ROWS": str(rows_file), "OTHER": str(tiny_folder)}
    argv = [given.get(word, word) for word in command]
    said = surefoot(*argv, folder)
    assert said.status == 2 and "trust_remote_code=true" in said.err, said.err
    assert not (tmp_path / "ran").exists()
    said = surefoot(*argv, folder, "--trust_remote_code")
    assert said.status == 0, said.err
    assert (tmp_path / "ran").exists()


def test_a_chat_template_path_is_an_ordinary_file_of_a_sane_size(
    surefoot: Surefoot, tiny_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    hostile.as_pipe(tmp_path / "pipe.jinja")
    (tmp_path / "huge.jinja").touch()
    os.truncate(tmp_path / "huge.jinja", 1 << 30)
    (tmp_path / "binary.jinja").write_bytes(b"\xff")
    for name, want in (
        ("pipe.jinja", "no such file"),
        ("huge.jinja", "huge.jinja is larger than 1,048,576 bytes"),
        ("binary.jinja", "binary.jinja: not UTF-8 at byte offset 0"),
    ):
        said = surefoot("preview", tiny_folder, "--data", rows_file, "--chat_template_path", tmp_path / name)
        assert (said.status, want in said.err) == (2, True), said.err


def test_the_name_of_a_model_is_kept_for_adapters(tiny_folder: Path) -> None:
    assert load(str(tiny_folder)).model.name_or_path == str(tiny_folder)
    assert isinstance(load(str(tiny_folder)).model, tf.LlamaForCausalLM)
