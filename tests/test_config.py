"""SFTConfig: every option checked, every name of TRL answered, every recipe read."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from surefoot import SFTConfig, UserError
from surefoot.config import Watch
from surefoot.names import REFUSED, SUPERSEDED, TRANSLATED, is_off

OPTIONS = """
model_name_or_path model_revision trust_remote_code chat_template_path eos_token add_special_tokens precision
gradient_checkpointing activation_offloading torch_compile use_cpu shard ddp_timeout
use_peft lora_r lora_alpha lora_dropout lora_target_modules
dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming eval_dataset_name columns
dataset_text_field completion_only_loss last_turn_only max_length overlength
on_bad_row
output_dir overwrite_output_dir per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps
learning_rate lr_scheduler_type warmup_steps warmup_ratio optim optim_args weight_decay adam_beta1 adam_beta2
adam_epsilon max_grad_norm micro_batch_tokens share_prefixes train_sampling_strategy seed
eval_strategy eval_steps eval_on_start load_best_model_at_end metric_for_best_model greater_is_better
early_stopping_patience eval_exact_match eval_samples max_new_tokens watch watch_steps
slides slide_every slide_mountain slide_extras slides_from_ui tensors_every
logging_steps logging_first_step report_to run_name tags project trackio_space_id disable_tqdm
save_strategy save_steps save_total_limit resume_from_checkpoint
""".split()  # noqa: SIM905
"""Every option there is. Adding one is a promise to keep it: change this list on purpose."""

TRUTHY = (True, "true", 1, 0.1, "nf4", {"a": 1}, ["x"])
FALSY = (None, False, 0, 0.0, "", "false", "False", "no", [], {})


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as error:
        SFTConfig(**options)
    return str(error.value)


def test_the_options_are_these() -> None:
    assert list(SFTConfig.model_fields) == OPTIONS


def test_every_option_is_described() -> None:
    for name, field in [*SFTConfig.model_fields.items(), *Watch.model_fields.items()]:
        assert len(field.description or "") > 12, name


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", "fast", "valid number"),
        ("learning_rate", -1e-5, "greater than or equal to 0"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", float("inf"), "finite"),
        ("num_train_epochs", 0, "greater than 0"),
        ("per_device_train_batch_size", 0, "greater than 0"),
        ("per_device_train_batch_size", 2.5, "integer"),
        ("gradient_accumulation_steps", -1, "greater than 0"),
        ("max_length", 1, "greater than 1"),
        ("lora_r", 0, "greater than 0"),
        ("lora_dropout", 1, "less than 1"),
        ("adam_beta1", 1, "less than 1"),
        ("adam_beta2", -0.1, "greater than or equal to 0"),
        ("warmup_ratio", 1.5, "less than or equal to 1"),
        ("warmup_steps", -1, "greater than or equal to 0"),
        ("weight_decay", -1, "greater than or equal to 0"),
        ("max_grad_norm", -1, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("logging_steps", 0, "greater than 0"),
        ("save_steps", 0, "greater than 0"),
        ("eval_steps", 0, "greater than 0"),
        ("save_total_limit", 0, "greater than 0"),
        ("max_new_tokens", 0, "greater than 0"),
        ("micro_batch_tokens", 0, "greater than 0"),
        ("optim", "adm", "'adafactor'"),
        ("lr_scheduler_type", "cosin", "'cosine'"),
        ("precision", "fp64", "'pure-bf16'"),
        ("overlength", "truncate", "'cut'"),
        ("eval_strategy", "step", "'steps'"),
        ("save_strategy", "never", "'no'"),
        ("use_cpu", "perhaps", "boolean"),
        ("columns", ["prompt"], "dictionary"),
        ("add_special_tokens", "<a>", "list"),
        ("metric_for_best_model", "eval_los", "Did you mean 'loss'?"),
    ],
)
def test_a_wrong_value_is_told_by_its_options_name(name: str, value: Any, said: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name}: ")
    assert said in message
    assert repr(value) in message


def test_all_wrong_values_are_told_at_once() -> None:
    message = refusal(learning_rate=-1, seed="x")
    assert [line.partition(":")[0] for line in message.splitlines()] == ["learning_rate", "seed"]


def test_a_wrong_part_of_a_list_is_told_by_its_place() -> None:
    assert refusal(watch=[{"prompt": "a", "completion": "b"}, {"prompt": "c"}]) == (
        "watch.1.completion: Field required"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("learning_rte", "learning_rate"),
        ("max_seq_length", "max_length"),
        ("evaluation_strategy", "eval_strategy"),
        ("per_device_batch_size", "per_device_train_batch_size"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(name: str, near: str) -> None:
    assert refusal(**{name: 1}) == f"unknown option '{name}'. Did you mean '{near}'?"


def test_an_unknown_option_with_no_near_one_is_still_an_error() -> None:
    assert refusal(zzz=None) == "unknown option 'zzz'."


def test_the_sets_of_names_are_disjoint() -> None:
    sets = [set(SFTConfig.model_fields), set(SUPERSEDED), set(REFUSED), TRANSLATED]
    assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize("name", SUPERSEDED)
def test_what_is_superseded_is_accepted_and_answered(name: str) -> None:
    with pytest.warns(UserWarning, match="nothing left to decide") as warned:
        args = SFTConfig(**{name: True})
    assert f"{name}: {SUPERSEDED[name]}" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert args == SFTConfig()


def test_many_superseded_options_are_one_warning() -> None:
    with pytest.warns(UserWarning) as warned:
        SFTConfig(packing=True, use_liger_kernel=True)
    assert len(warned) == 1
    assert "packing: " in str(warned[0].message) and "use_liger_kernel: " in str(warned[0].message)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_use_and_passes_when_it_is_off(name: str) -> None:
    for value in TRUTHY:
        assert refusal(**{name: value}) == f"{name}: {REFUSED[name]}"
    for value in FALSY:
        assert SFTConfig(**{name: value}) == SFTConfig()
    assert len(REFUSED[name]) > 15


def test_off_is_what_yaml_and_flags_say_for_it() -> None:
    assert all(map(is_off, FALSY))
    assert not any(map(is_off, TRUTHY))


@pytest.mark.parametrize("true", [True, "true", "True"])
@pytest.mark.parametrize("false", [False, "false", "False"])
def test_bf16_and_fp16_are_a_precision(true: Any, false: Any) -> None:
    assert SFTConfig(bf16=true).precision == "bf16"
    assert SFTConfig(bf16=false, fp16=false).precision == "fp32"
    assert SFTConfig(bf16=None).precision is None
    assert SFTConfig(bf16=true, precision="pure-bf16").precision == "pure-bf16"
    assert "use precision=bf16" in refusal(fp16=true)
    assert refusal(bf16="maybe") == "bf16: true or false, not 'maybe'"


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_is_a_precision(name: str) -> None:
    import torch

    for value in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        with pytest.warns(UserWarning, match="loses small updates") as warned:
            assert SFTConfig(**{name: value}).precision == "bf16"
        assert warned[0].filename == __file__
    for value in ("float32", torch.float32, "auto", None):
        assert SFTConfig(**{name: value}).precision is None
    assert SFTConfig(**{name: "bfloat16", "precision": "fp32"}).precision == "fp32"
    assert f"{name}: surefoot trains in fp32 or bf16" in refusal(**{name: "float16"})


@pytest.mark.parametrize("value", ["runs/a", Path("runs/a")])
def test_the_first_argument_is_output_dir(value: str | Path) -> None:
    args = SFTConfig(value, learning_rate=1)
    assert (args.output_dir, args.learning_rate) == ("runs/a", 1.0)
    assert SFTConfig(output_dir=value) == SFTConfig(value)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("", "auto"),
        (None, "auto"),
        ("auto", "auto"),
        ("runs/a/checkpoints/step-00000001", "runs/a/checkpoints/step-00000001"),
        (Path("a/b"), "a/b"),
    ],
)
def test_resuming_is_a_switch_or_a_path(said: Any, meant: bool | str) -> None:
    assert SFTConfig(resume_from_checkpoint=said).resume_from_checkpoint == meant
    assert type(SFTConfig(resume_from_checkpoint=said).resume_from_checkpoint) is type(meant)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("all-linear", "all-linear"),
        (["all-linear"], "all-linear"),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("q_proj", ["q_proj"]),
        (["q_proj"], ["q_proj"]),
        (r".*\.q_proj$", r".*\.q_proj$"),
        ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"),
        (r".{1,9}proj", r".{1,9}proj"),
    ],
)
def test_target_modules_are_names_or_a_pattern(said: Any, meant: Any) -> None:
    assert SFTConfig(lora_target_modules=said).lora_target_modules == meant


def test_a_strategy_of_yamls_no_is_never() -> None:
    args = SFTConfig(eval_strategy=False, save_strategy=False)
    assert (args.eval_strategy, args.save_strategy) == ("no", "no")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_best_model_at_end": True}, "eval_strategy=steps or epoch"),
        ({"early_stopping_patience": 2}, "eval_strategy=steps or epoch"),
        ({"dataset_streaming": True}, "set max_steps"),
    ],
)
def test_options_that_need_another_say_which(options: dict[str, Any], said: str) -> None:
    assert said in refusal(**options)


def test_the_best_metric_knows_its_direction() -> None:
    assert not SFTConfig().best_is_greater
    assert not SFTConfig(metric_for_best_model="perplexity").best_is_greater
    assert SFTConfig(metric_for_best_model="token_accuracy").best_is_greater
    assert SFTConfig(greater_is_better=True).best_is_greater
    assert SFTConfig(metric_for_best_model="exact_match").eval_exact_match


def test_reporters_find_what_they_read_off_their_arguments() -> None:
    from transformers.integrations import integration_utils as theirs

    for reporter in ("TensorBoard", "Wandb", "MLflow", "Trackio", "Comet", "SwanLab", "DVCLive"):
        source = inspect.getsource(getattr(theirs, f"{reporter}Callback"))
        for name in re.findall(r"(?<![\w.])args\.(\w+)", source):
            assert hasattr(SFTConfig(), name), f"{reporter} reads args.{name}"


def test_to_dict_is_plain_and_complete() -> None:
    args = SFTConfig(Path("x"), watch=[Watch(prompt="p", completion="c")], columns={"a": "b"})
    plain = json.loads(json.dumps(args.to_dict(), allow_nan=False))
    assert list(plain) == OPTIONS
    assert SFTConfig(**plain) == args
    assert json.loads(args.to_json_string()) == plain
    assert all(isinstance(value, bool | int | float | str) for value in args.to_sanitized_dict().values())
