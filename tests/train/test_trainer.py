"""The loop as a user sees it: logs, events, evaluation, the best model, callbacks, the run folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from transformers import TrainerCallback

from surefoot import SFTConfig, SFTTrainer, UserError
from surefoot.train.step import NotFinite
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 2), (30, 2), (4, 4), (6, 6), (7, 7)]


def trainer(folder: Path, net: torch.nn.Module | None = None, **options: object) -> SFTTrainer:
    callbacks = options.pop("callbacks", None)
    eval_dataset = options.pop("eval_dataset", None)
    given = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "use_cpu": True,
        "precision": "fp32",
        **options,
    }
    return SFTTrainer(
        net or tiny.model("llama", torch.float32),
        SFTConfig(folder / "run", **given),
        tiny.rows(tiny.examples(LENGTHS)),
        eval_dataset,
        tiny.tokenizer(),
        callbacks=callbacks,
    )


HELD_OUT = tiny.rows(tiny.examples([(4, 6), (8, 3), (2, 9)], seed=9))


def test_logs_have_hugging_faces_keys(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    metrics = one.train()
    logs = [entry for entry in one.state.log_history if "loss" in entry]
    keys = {
        "loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "mean_token_accuracy",
        "num_tokens",
        "epoch",
        "step",
    }
    assert [entry["step"] for entry in logs] == [2, 4, 6]
    assert keys <= set(logs[0])
    assert set(metrics) == {
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
    }
    assert logs[-1]["num_tokens"] == 2 * sum(p + c for p, c in LENGTHS)
    assert logs[-1]["epoch"] == 2.0


def test_the_events_tell_every_step(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_grad_norm=0.5)
    one.train()
    events = list(one.run.events())
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert events[0]["type"] == "start"
    assert events[-1] == {**events[-1], "type": "end", "reason": "finished", "step": 6}
    for event in steps:
        rows = event["examples"]
        assert event["loss"] == pytest.approx(
            sum(loss for _, loss, _ in rows) / event["supervised"], rel=1e-5
        )
        assert event["clip_factor"] == pytest.approx(min(1.0, 0.5 / event["grad_norm"]))
    assert sum(len(event["examples"]) for event in steps) == 2 * len(LENGTHS)
    losses = [event["loss"] for event in steps]
    assert losses[-1] < losses[0]
    loss = sum(losses[:2]) / 2
    assert one.state.log_history[0]["loss"] == pytest.approx(loss)


def test_run_json_says_what_was_done(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.train()
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["config"]["learning_rate"] == 1e-2
    assert content["data"]["train"]["ledger"]["examples"] == len(LENGTHS)
    assert content["model"]["packed"] is True
    assert content["machine"]["micro_batch_tokens"] == one.progress.micro_batch_tokens
    assert content["versions"]["torch"] == torch.__version__
    assert content["total_steps"] == 6


def test_evaluation_is_over_tokens_and_independent_of_the_batching(tmp_path: Path) -> None:
    nets = [tiny.model("llama", torch.float64) for _ in range(2)]
    one, other = (
        trainer(tmp_path / str(i), net, eval_dataset=HELD_OUT, micro_batch_tokens=budget)
        for i, (net, budget) in enumerate(zip(nets, (1, 1000), strict=True))
    )
    found = one.evaluate()
    want = tiny.naive_loss(nets[0], tiny.examples([(4, 6), (8, 3), (2, 9)], seed=9)).item()
    assert found["eval_loss"] == pytest.approx(want, rel=1e-6)
    assert found["eval_perplexity"] == pytest.approx(math.exp(want), rel=1e-6)
    assert found == pytest.approx(other.evaluate(), rel=1e-9)


def test_evaluating_leaves_no_trace(tmp_path: Path) -> None:
    plain, looked = (
        trainer(tmp_path / name, eval_dataset=HELD_OUT, eval_strategy=strategy, eval_steps=1, eval_samples=1,
                max_new_tokens=3, watch=watch)
        for name, strategy, watch in (
            ("a", "no", []),
            ("b", "steps", [{"prompt": "w5 w6", "completion": "w7", "alternatives": ["w8 w9"]}]),
        )
    )  # fmt: skip
    plain.train()
    looked.train()
    for a, b in zip(plain.model.parameters(), looked.model.parameters(), strict=True):
        assert torch.equal(a, b)
    events = list(looked.run.events())
    assert [event["step"] for event in events if event["type"] == "eval"] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events if event["type"] == "sample"] == [1, 2, 3, 4, 5, 6]


def test_several_held_out_sets_by_name(tmp_path: Path) -> None:
    one = trainer(tmp_path, eval_dataset={"easy": HELD_OUT[:1], "hard": HELD_OUT[1:]})
    assert {"eval_easy_loss", "eval_hard_loss"} <= set(one.evaluate())


def test_the_best_model_is_kept_and_early_stopping_stops(tmp_path: Path) -> None:
    one = trainer(
        tmp_path, eval_dataset=HELD_OUT, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        early_stopping_patience=2, learning_rate=0.05, num_train_epochs=20, save_total_limit=1,
    )  # fmt: skip
    one.train()
    evaluations = [event for event in one.run.events() if event["type"] == "eval"]
    losses = [event["metrics"]["eval_loss"] for event in evaluations]
    best = losses.index(min(losses))
    assert one.progress.best_step == evaluations[best]["step"]
    assert len(losses) == best + 1 + 2, "stops after two evaluations without a better one"
    assert one.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert list(one.run.events())[-1]["reason"] == "stopped early"


def test_watched_prompts_give_the_probability_of_the_whole_text(tmp_path: Path) -> None:
    watch = {"prompt": "w5 w6", "completion": "w7", "alternatives": ["w8 w9"], "answer_start": "w20"}
    net = tiny.model("llama", torch.float64)
    with torch.no_grad():
        p = net(torch.tensor([[5, 6, 20]])).logits[0, -1].softmax(-1)
        p8 = p[8] * net(torch.tensor([[5, 6, 20, 8]])).logits[0, -1].softmax(-1)[9]
    one = trainer(tmp_path, net, watch=[watch], watch_steps=3)
    one.train()
    seen = [event for event in one.run.events() if event["type"] == "watch"]
    assert [event["step"] for event in seen] == [0, 3, 6]
    assert seen[0]["p"] == pytest.approx({"w7": p[7].item(), "w8 w9": p8.item()}, rel=1e-5)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "muon", "adafactor"])
def test_resuming_from_any_step_is_bitwise(optim: str, tmp_path: Path) -> None:
    options = {"optim": optim, "save_steps": 1, "save_strategy": "steps", "eval_dataset": HELD_OUT}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    for step in (1, 3, 4):
        again = trainer(tmp_path / f"again{step}", **options)
        again.train(
            resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoints" / f"step-{step:08d}")
        )
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert again.state.log_history[-2]["num_tokens"] == whole.state.log_history[-2]["num_tokens"]


def test_a_stopped_run_goes_on_in_its_folder_with_the_same_events(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("power cut")

    whole = trainer(tmp_path / "a", save_steps=2)
    whole.train()
    broken = trainer(tmp_path / "b", save_steps=2, callbacks=[Stop])
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    with pytest.raises(UserError, match="resume_from_checkpoint"):
        trainer(tmp_path / "b", save_steps=2).train(resume_from_checkpoint=False)
    again = trainer(tmp_path / "b", save_steps=2)
    again.train()

    def told(one: SFTTrainer) -> list[tuple]:
        steps = [event for event in one.run.events() if event["type"] == "step"]
        return [(event["step"], event["loss"], event["grad_norm"], event["examples"]) for event in steps]

    assert told(again) == told(whole)


def test_a_finished_run_is_not_trained_over_unasked(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(UserError, match=r"finished after step 6.*overwrite_output_dir"):
        trainer(tmp_path).train()
    trainer(tmp_path, overwrite_output_dir=True).train()


def test_hugging_face_callbacks_are_told_and_obeyed(tmp_path: Path) -> None:
    told: list[str] = []

    class Listen(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            told.append(f"begin of {state.max_steps} with {type(kwargs['model']).__name__}")

        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(f"log at {state.global_step}")

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                control.should_save = True
                control.should_training_stop = True

        def on_save(self, args, state, control, **kwargs):
            told.append(f"saved at {state.global_step}")

    one = trainer(tmp_path)
    one.add_callback(Listen())
    one.train()
    assert told == ["begin of 6 with LlamaForCausalLM", "log at 2", "saved at 3", "log at 3"]
    assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-00000003"]


def test_an_unknown_reporter_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="report_to"):
        trainer(tmp_path, report_to="tensorbored")


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    one = trainer(tmp_path, net)

    class Breaks(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            net.model.norm.weight.data.fill_(float("nan"))

    one.add_callback(Breaks)
    with pytest.raises(NotFinite, match=r"step 1: .*nothing was updated. Rows: dataset\[\d\]"):
        one.train()


def test_a_model_that_is_broken_is_refused_before_any_training(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    one = trainer(tmp_path, net)
    net.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"dataset\[\d\].*: the model's own loss is nan"):
        one.train()


def test_datasets_and_streams_are_taken(tmp_path: Path) -> None:
    rows = tiny.rows(tiny.examples(LENGTHS))
    data = datasets.Dataset.from_list(rows)
    weights = []
    for name, source in (("map", data), ("stream", data.to_iterable_dataset()), ("list", rows)):
        net = tiny.model("llama", torch.float32)
        args = SFTConfig(
            tmp_path / name, max_steps=2, per_device_train_batch_size=5, train_sampling_strategy="sequential",
            use_cpu=True, precision="fp32",
        )  # fmt: skip
        SFTTrainer(net, args, source, processing_class=tiny.tokenizer()).train()
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_max_steps_draws_from_all_rows(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_steps=1, per_device_train_batch_size=3)
    one.train()
    (step,) = [event for event in one.run.events() if event["type"] == "step"]
    assert len(one.train_data.rows) == len(LENGTHS)
    assert [where for where, _, _ in step["examples"]] != ["dataset[0]", "dataset[1]", "dataset[2]"]


def test_a_stream_without_an_end_needs_max_steps(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list(tiny.rows(tiny.examples(LENGTHS))).to_iterable_dataset()
    with pytest.raises(UserError, match="max_steps"):
        SFTTrainer(tiny.model("llama"), SFTConfig(tmp_path), stream, processing_class=tiny.tokenizer())


def test_formatting_func_makes_rows(tmp_path: Path) -> None:
    rows = [{"a": "w5 w6", "b": "w7"}, {"a": "w8", "b": "w9 w10"}]
    one = SFTTrainer(
        tiny.model("llama"),
        SFTConfig(tmp_path / "run", max_steps=1),
        rows,
        processing_class=tiny.tokenizer(),
        formatting_func=lambda row: {"prompt": row["a"] + " ", "completion": row["b"]},
    )
    assert [e.completion_ids.tolist() for e in one.train_data.examples] == [[7, 2], [9, 10, 2]]


def test_lora_trains_the_adapter_only_and_exactly(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights="gaussian", task_type="CAUSAL_LM"
    )
    net = tiny.model("llama")
    one = SFTTrainer(
        net,
        SFTConfig(tmp_path / "run", optim="sgd", max_grad_norm=0, max_steps=1, learning_rate=0.1,
                  lr_scheduler_type="constant", per_device_train_batch_size=10, use_cpu=True),
        tiny.rows(tiny.examples(LENGTHS)),
        processing_class=tiny.tokenizer(),
        peft_config=config,
    )  # fmt: skip
    assert one.network.packed
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    tiny.naive_loss(one.model, tiny.examples(LENGTHS))
    want = {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}
    one.model.zero_grad()
    one.train()
    assert all("lora" in name for name in want)
    whole = torch.stack([gradient.norm() for gradient in want.values()]).norm()
    for name, p in one.model.named_parameters():
        moved = before[name] - p.detach()
        if name not in want:
            assert torch.equal(moved, torch.zeros_like(moved))
        else:
            assert (moved - 0.1 * want[name]).norm() <= 1e-6 * 0.1 * whole
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()


def test_a_script_for_trl_runs_after_the_import_is_changed(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"prompt": "w5 w6 ", "completion": "w7"}] * 8).train_test_split(0.25)
    with pytest.warns(UserWarning, match="packing"):
        args = SFTConfig(
            output_dir=str(tmp_path / "out"), max_length=64, packing=True, per_device_train_batch_size=2,
            gradient_accumulation_steps=2, gradient_checkpointing=True, learning_rate=2e-4, num_train_epochs=1,
            lr_scheduler_type="cosine", warmup_ratio=0.1, logging_steps=1, eval_strategy="steps", eval_steps=1,
            save_strategy="epoch", save_total_limit=2, bf16=False, use_cpu=True, report_to="none", seed=0,
            optim="adamw_torch", completion_only_loss=True, dataset_num_proc=2, push_to_hub=False,
            load_best_model_at_end=True, metric_for_best_model="eval_loss",
        )  # fmt: skip
    one = SFTTrainer(
        model=tiny.model("llama", torch.float32),
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tiny.tokenizer(),
    )
    one.train()
    one.save_model(args.output_dir + "/final")
    assert (tmp_path / "out" / "final" / "model.safetensors").is_file()
    assert "eval_loss" in one.evaluate()
    assert any("eval_loss" in entry for entry in one.state.log_history)


def test_pure_bf16_weights_say_how_much_is_lost(tmp_path: Path) -> None:
    one = trainer(tmp_path, precision="pure-bf16", warmup_steps=2, learning_rate=1e-4)
    assert {p.dtype for p in one.model.parameters()} == {torch.bfloat16}
    one.train()
    (alert,) = [
        event for event in one.run.events() if event["type"] == "alert" and event["kind"] == "lost updates"
    ]
    assert alert["step"] == 2, "not at step 1, whose learning rate is 0"
    assert "lost to rounding" in alert["message"]


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_lora_on_a_bf16_checkpoint_trains_in_fp32(
    precision: str, frozen: torch.dtype, tmp_path: Path
) -> None:
    one = trainer(tmp_path, tiny.model("llama", torch.bfloat16), precision=precision, use_peft=True)
    assert {p.dtype for p in one.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in one.model.parameters() if not p.requires_grad} == {frozen}
    one.train()
    losses = [event["loss"] for event in one.run.events() if event["type"] == "step"]
    assert losses[-1] < losses[0]


def test_hugging_faces_reporters_write(tmp_path: Path) -> None:
    one = trainer(tmp_path, report_to="tensorboard")
    one.train()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_run_that_began_from_anothers_checkpoint_goes_on_by_the_same_command(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                raise RuntimeError("power cut")

    whole = trainer(tmp_path / "a", save_steps=1)
    whole.train()
    start = str(tmp_path / "a" / "run" / "checkpoints" / "step-00000002")
    for step in (3, 5):  # before its first checkpoint, and after
        with pytest.raises(RuntimeError, match="power cut"):
            trainer(tmp_path / "b", save_steps=4, callbacks=[Stop(step)]).train(resume_from_checkpoint=start)
    again = trainer(tmp_path / "b", save_steps=4)
    again.train(resume_from_checkpoint=start)
    steps = [event["step"] for event in again.run.events() if event["type"] == "step"]
    assert steps == [3, 4, 5, 6]
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_peak_that_a_step_reaches_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was computed: slots, attending pairs and targets, counted here one by one. Of a card that is not
    known, nothing is said."""
    known: list[float | None] = [None, 3e9]
    for peak in known:
        monkeypatch.setattr("surefoot.train.between.peak_flops", lambda _, peak=peak: peak)
        one = trainer(
            tmp_path, callbacks=[(heard := Heard())], overwrite_output_dir=True, share_prefixes=False
        )
        one.train()
        steps = [event for event in one.run.events() if event["type"] == "step"]
        assert not any("mfu" in entry for entry in one.state.log_history), "a clock, in every checkpoint"
        if peak is None:
            assert [event["mfu"] for event in steps] == [None] * 6
            assert not any("mfu" in logs for logs in heard.logs)
            continue
        config = one.network.core.config
        layer = [p for name, p in one.model.named_parameters() if ".layers." in name and p.ndim == 2]
        flops = []
        for event in steps:
            of = [int(where.removeprefix("dataset[").removesuffix("]")) for where, _, _ in event["examples"]]
            slots = [sum(LENGTHS[row]) - 1 for row in of]
            assert event["slots"] == sum(slots), "nothing is shared"
            by_slot = 6 * sum(p.numel() for p in layer) * sum(slots)
            pairs = sum(count * (count + 1) / 2 for count in slots)
            by_pair = 12 * config.num_hidden_layers * config.hidden_size * pairs
            head = 6 * tiny.VOCABULARY * config.hidden_size * sum(LENGTHS[row][1] for row in of)
            flops.append(by_slot + by_pair + head)
            assert event["mfu"] == pytest.approx(flops[-1] / event["step_seconds"] / peak)
        logged = [logs["mfu"] for logs in heard.logs if "loss" in logs]
        seconds = [event["step_seconds"] for event in steps]
        assert logged == [
            pytest.approx(sum(flops[at : at + 2]) / sum(seconds[at : at + 2]) / peak) for at in (0, 2, 4)
        ]


class Heard(TrainerCallback):
    """Of logs."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *_: object, **told: dict[str, float]) -> None:  # type: ignore[override]
        self.logs.append(told["logs"])
