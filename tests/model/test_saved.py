"""What is saved is what was trained: ordinary folders, adapters, and what is done to tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from surefoot import SFTConfig, SFTTrainer, UserError
from surefoot.model.load import Loaded, chat_template, load, prepare_tokenizer, stop_at
from surefoot.model.save import save
from tests import templates, toys
from tests.conftest import greedy, tiny_llama


def refusal(name: str | Path, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        load(str(name), **more)
    return str(error.value)


# Saving ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_an_ordinary_folder(tiny_run: Path) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_run / "model")
    said = greedy(model, tokenizer)
    assert tokenizer.decode(said) == "Paris.<|im_end|>"
    assert tokenizer.chat_template == templates.CHATML
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    loaded = load(str(tiny_run))
    assert greedy(loaded.model, loaded.tokenizer) == said


def test_saving_and_loading_changes_no_weight(tiny_model: Loaded, tmp_path: Path) -> None:
    save(tiny_model.model, tiny_model.tokenizer, tmp_path)
    again = load(str(tmp_path)).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in tiny_model.model.state_dict().items())


def test_a_generation_config_that_transformers_would_not_save_is_saved(
    tiny_model: Loaded, tmp_path: Path
) -> None:
    generation = tiny_model.model.generation_config
    generation.update(do_sample=False, temperature=0.6, top_p=0.9)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        generation.save_pretrained(tmp_path)
    save(tiny_model.model, tiny_model.tokenizer, tmp_path)
    assert tiny_model.model.generation_config is generation
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert (content["temperature"], content["top_p"]) == (0.6, 0.9)
    assert content["eos_token_id"] == tiny_model.tokenizer.eos_token_id


# Adapters --------------------------------------------------------------------------------------------------


def train_adapter(model: str | Path, rows: Path, output: Path, **options: Any) -> SFTTrainer:
    args = SFTConfig(
        output,
        **{"max_steps": 3, "learning_rate": 1e-2, "lora_r": 4, "use_peft": True, **options},
        save_strategy="no",
        use_cpu=True,
    )
    trainer = SFTTrainer(str(model), args, str(rows))
    trainer.train()
    return trainer


def test_an_adapter_run_loads_on_its_base_and_can_be_trained_on(
    tiny_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    trainer = train_adapter(tiny_folder, rows_file, tmp_path / "one")
    assert (tmp_path / "one" / "model" / "adapter_model.safetensors").is_file()
    loaded = load(str(tmp_path / "one"))
    assert loaded.notes[0] == f"adapter on {tiny_folder}"
    ids = torch.arange(3, 30)[None]
    want = trainer.model.eval()(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, want)
    assert not torch.allclose(load(str(tiny_folder)).model(ids).logits, want, atol=1e-3)
    on = train_adapter(tmp_path / "one", rows_file, tmp_path / "two", use_peft=False)
    trained = [name for name, p in on.model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert (tmp_path / "two" / "model" / "adapter_model.safetensors").is_file()
    with pytest.raises(UserError, match="has an adapter already"):
        train_adapter(tmp_path / "one", rows_file, tmp_path / "three")


def test_an_adapter_keeps_new_tokens_and_where_generation_stops(
    tiny_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    trainer = train_adapter(
        tiny_folder, rows_file, tmp_path, add_special_tokens=["<|new|>"], eos_token="<|endoftext|>"
    )
    loaded = load(str(tmp_path))
    assert loaded.tokenizer.convert_tokens_to_ids("<|new|>") == len(loaded.tokenizer) - 1
    ids = torch.tensor([[3, 4, len(loaded.tokenizer) - 1]])
    torch.testing.assert_close(loaded.model(ids).logits, trainer.model.eval()(ids).logits)
    stops = loaded.model.generation_config.eos_token_id
    assert stops == trainer.model.generation_config.eos_token_id


def test_a_plain_peft_adapter_takes_its_bases_tokenizer(
    tiny_folder: Path, tiny_model: Loaded, tmp_path: Path
) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model.model, config).save_pretrained(str(tmp_path))
    assert load(str(tmp_path)).tokenizer.chat_template == templates.CHATML


def test_adapters_that_cannot_be_read(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    train_adapter(tiny_folder, rows_file, tmp_path)
    place = tmp_path / "model"
    config = json.loads((place / "adapter_config.json").read_text())
    spoil: dict[str, Callable[[], object]] = {
        "does not fit": lambda: (place / "adapter_config.json").write_text(json.dumps({**config, "r": 2})),
        "its base model is not to be had": lambda: (place / "adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": "/gone"})
        ),
        "does not name a base model": lambda: (place / "adapter_config.json").write_text("{}"),
    }
    for said, change in spoil.items():
        change()
        assert said in refusal(tmp_path)
    (place / "adapter_config.json").write_text(json.dumps(config))
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refusal(tmp_path)


def test_an_adapter_with_no_place_in_the_model(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora_target_modules: .*c_attn"):
        train_adapter(tiny_folder, rows_file, tmp_path, lora_target_modules=["c_attn"])


# Tokenizer -------------------------------------------------------------------------------------------------


def test_a_chat_template_from_a_file_or_another_tokenizer(tiny_model: Loaded, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(templates.NO_TURN_END)
    other = toys.byte_level(template=templates.QWEN3)
    other.save_pretrained(tmp_path / "other")
    for path, want in ((file, templates.NO_TURN_END), (tmp_path / "other", templates.QWEN3)):
        notes = prepare_tokenizer(tiny_model.model, tiny_model.tokenizer, chat_template_path=str(path))
        assert tiny_model.tokenizer.chat_template == want
        assert notes == [f"chat template: {path}"]
    save(tiny_model.model, tiny_model.tokenizer, tmp_path / "saved")
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == templates.QWEN3


def test_a_chat_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"chat_template_path: .*none\.jinja: no such file"):
        chat_template(str(tmp_path / "none.jinja"))
    toys.byte_level().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="has no chat template"):
        chat_template(str(tmp_path / "bare"))


def test_new_special_tokens_resize_the_embeddings(tiny_model: Loaded) -> None:
    rows = len(tiny_model.tokenizer)
    old = tiny_model.model.get_input_embeddings().weight.clone()
    notes = prepare_tokenizer(
        tiny_model.model, tiny_model.tokenizer, add_special_tokens=["<a>", "<b>", "<|im_end|>"]
    )
    assert notes == [
        "new special tokens: <a>, <b>",
        f"embeddings resized from {rows:,} to {rows + 2:,} rows for the tokenizer's new tokens",
    ]
    assert tiny_model.model.get_input_embeddings().weight.shape[0] == rows + 2
    assert tiny_model.model.get_output_embeddings().weight.shape[0] == rows + 2
    assert torch.equal(tiny_model.model.get_input_embeddings().weight[:rows], old)
    assert tiny_model.tokenizer("<a>", add_special_tokens=False)["input_ids"] == [rows]
    assert tiny_model.tokenizer.eos_token == "<|im_end|>"


def test_room_in_the_embeddings_is_used_first() -> None:
    tokenizer = toys.byte_level()
    model = tiny_llama(len(tokenizer) + 8)
    prepare_tokenizer(model, tokenizer, add_special_tokens=["<a>"])
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 7


def test_eos_token_is_set_or_refused(tiny_model: Loaded) -> None:
    prepare_tokenizer(tiny_model.model, tiny_model.tokenizer, eos_token="<|endoftext|>")
    assert tiny_model.tokenizer.eos_token == "<|endoftext|>"
    with pytest.raises(UserError) as error:
        prepare_tokenizer(tiny_model.model, tiny_model.tokenizer, eos_token="<|im_ende|>")
    assert str(error.value) == (
        "eos_token: the tokenizer does not know '<|im_ende|>'. Did you mean '<|im_end|>'? "
        "add_special_tokens can add it"
    )
    prepare_tokenizer(tiny_model.model, tiny_model.tokenizer, add_special_tokens=["<eot>"], eos_token="<eot>")
    assert tiny_model.tokenizer.eos_token == "<eot>"


def test_generation_stops_at_the_turn_end(tiny_model: Loaded) -> None:
    generation = tiny_model.model.generation_config
    ids = tiny_model.tokenizer.get_vocab()
    end, text_end = ids["<|im_end|>"], ids["<|endoftext|>"]
    for known, after, notes in (
        (None, end, 0),  # the tokenizer's own
        (end, end, 0),
        ([text_end, end], [text_end, end], 0),
        (text_end, [text_end, end], 1),
    ):
        generation.eos_token_id = known
        assert len(stop_at(tiny_model.model, tiny_model.tokenizer, ["<|im_end|>"])) == notes
        assert generation.eos_token_id == after
    generation.eos_token_id = text_end
    assert stop_at(tiny_model.model, tiny_model.tokenizer, []) == []
    assert generation.eos_token_id == text_end
