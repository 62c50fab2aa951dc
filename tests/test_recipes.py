"""Recipes: YAML files of options, one written for `trl sft --config` among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot import SFTConfig, UserError
from surefoot.recipes import read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
FOR_TRL = """\
# trl sft --config recipe.yaml
model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
model_revision: main
torch_dtype: float32
attn_implementation: flash_attention_2
dataset_name: trl-lib/Capybara
dataset_num_proc: 8
learning_rate: 2.0e-5
weight_decay: 1e-2
adam_epsilon: 1e-8
num_train_epochs: 1
packing: true
max_length: 2048
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
bf16: true
fp16: false
use_peft: true
load_in_4bit: false
bnb_4bit_quant_type: nf4
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, k_proj, v_proj, o_proj]
lr_scheduler_type: cosine
warmup_ratio: 0.1
eval_strategy: steps
eval_steps: 100
save_strategy: no
logging_steps: 5
report_to: [wandb]
ddp_timeout: 180000000
push_to_hub: false
hub_strategy: every_save
output_dir: data/smol-sft
seed: 42
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_for_trl_runs_as_it_is(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path / "recipe.yaml", FOR_TRL))
    with pytest.warns(UserWarning, match="packing") as warned:
        args = SFTConfig(**recipe)
    assert len(warned) == 1
    assert args.learning_rate == 2e-5
    assert (args.weight_decay, args.adam_epsilon) == (1e-2, 1e-8)  # YAML 1.1 reads 1e-2 as text
    assert (args.precision, args.use_peft, args.lora_r, args.lora_alpha) == ("bf16", True, 32, 16)
    assert args.lora_target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (args.step_rows, args.num_train_epochs, args.warmup_ratio) == (16, 1.0, 0.1)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy) == ("steps", 100.0, "no")
    assert (args.report_to, args.lr_scheduler_type, args.gradient_checkpointing) == (
        ["wandb"],
        "cosine",
        True,
    )


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.parent.name)
def test_the_shipped_recipes_are_read_without_a_word(recipe: Path) -> None:
    assert SFTConfig(**read_recipe(recipe)).model_name_or_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 1\n  seed: 2\n", "recipe.yaml:2:7: not valid YAML: "),
        ("a: [1, 2\n", "recipe.yaml:2:1: not valid YAML: "),
        ("- learning_rate\n", "recipe.yaml: a recipe is a list of `option: value` lines"),
        ("just words\n", "recipe.yaml: a recipe is a list of `option: value` lines"),
        ("1: 2\n", "recipe.yaml: a recipe is a list of `option: value` lines"),
        ("learnin_rate: 1\n", "recipe.yaml: unknown option 'learnin_rate'. Did you mean 'learning_rate'?"),
        ("run_name: \x00\n", "recipe.yaml: not valid YAML: "),
    ],
)
def test_a_broken_recipe_is_told_by_its_place(text: str, said: str, tmp_path: Path) -> None:
    recipe = written(tmp_path / "recipe.yaml", text)
    with pytest.raises(UserError) as error:
        read_recipe(recipe)
    assert str(error.value).startswith(str(tmp_path / said))


def test_a_recipe_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder, not an ordinary file"):
        read_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: not UTF-8 at byte offset 0"):
        read_recipe(tmp_path / "binary.yaml")


def test_an_empty_recipe_says_nothing(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path / "recipe.yaml", "# nothing\n")) == {}
