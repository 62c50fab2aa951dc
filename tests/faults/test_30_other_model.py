"""Fault 30: another tokenizer, template, base model or config than the run was begun with is an error, named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from surefoot import SFTConfig, SFTTrainer, UserError
from tests import tiny
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe
from tests.faults.crashes import crashed, outcome, tree


def weights(folder: Path) -> None:
    """The last bit of one weight."""
    found = load_file(folder / "model.safetensors")
    one = found["model.layers.1.mlp.up_proj.weight"]
    one.view(torch.int32)[3, 4] ^= 1
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def config(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 1e-5}), encoding="utf-8")


def tokenizer(folder: Path) -> None:
    """Two tokens that no row has change places."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = content["model"]["vocab"]
    ids["Ā"], ids["ā"] = ids["ā"], ids["Ā"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text("utf-8") + "{# other #}", encoding="utf-8")


CHANGES: dict[str, Callable[[Path], None]] = {
    "the base model's weights": weights,
    "the model's config": config,
    "the tokenizer": tokenizer,
    "the chat template": template,
}


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "lora"])
def test_what_has_changed_is_named(
    adapter: bool, zygote: Zygote, recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"use_peft": adapter, "lora_r": 2}
    done = zygote.run(["train", recipe(output_dir=str(tmp_path / "whole"), **options)], tmp_path)
    assert done.wait() == 0, done.err
    run = crashed(tmp_path / "whole", tmp_path / "run", 6)
    before = tree(run)
    for number, (what, change) in enumerate(CHANGES.items()):
        other = tmp_path / f"other-{number}"
        shutil.copytree(tiny_folder, other)
        change(other)
        done = zygote.run(["train", recipe(model_name_or_path=str(other), **options)], tmp_path)
        assert (done.wait(), done.out) == (2, ""), what
        where, said, *fix = done.err.partition("surefoot: ")[2].splitlines()
        assert where == f"{run}/checkpoints/step-00000006 is of another run than the one asked for:"
        assert said.startswith(f"  {what}: sha256 ") and "… then, " in said, said
        assert len(fix) == 1 and "overwrite_output_dir=true" in fix[0]
        assert tree(run) == before
    done = zygote.run(["train", recipe(**options)], tmp_path)
    assert done.wait() == 0, done.err
    assert outcome(run, 12)["hashes"] == outcome(tmp_path / "whole", 12)["hashes"]


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("power cut")


def trainer(folder: Path, net: torch.nn.Module, **more: Any) -> SFTTrainer:
    args = SFTConfig(
        folder, max_steps=4, per_device_train_batch_size=2, use_cpu=True, precision="fp32", save_steps=1,
        learning_rate=0.01, disable_tqdm=True, use_peft=more.pop("use_peft", False),
    )  # fmt: skip
    rows = tiny.rows(tiny.examples([(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 2)]))
    return SFTTrainer(net, args, rows, processing_class=tiny.tokenizer(), **more)


def moved(net: Any) -> Any:
    with torch.no_grad():
        net.lm_head.weight.add_(1)
    return net


def test_of_a_model_object_what_trains_comes_from_the_checkpoint(tmp_path: Path) -> None:
    """It may have been trained further in this process: only what is frozen is compared."""
    whole = trainer(tmp_path / "whole", tiny.model("llama"))
    whole.train()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path / "run", tiny.model("llama"), callbacks=[Stop]).train()
    again = trainer(tmp_path / "run", moved(tiny.model("llama")))
    again.train()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_of_a_model_object_what_is_frozen_must_be_the_same(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path / "run", tiny.model("llama"), callbacks=[Stop], use_peft=True).train()
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="the base model's weights: sha256"):
        trainer(tmp_path / "run", moved(tiny.model("llama")), use_peft=True).train()
    assert tree(tmp_path / "run") == before
    trainer(tmp_path / "run", tiny.model("llama"), use_peft=True).train()
