"""The microscope over a run: it changes no bit of it, opens the steps it should, and says what it saw."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from surefoot import SFTConfig, SFTTrainer
from surefoot.data.dataset import Dataset
from surefoot.data.rows import Example
from surefoot.microscope import run as microscope
from surefoot.microscope.slide import Opened
from surefoot.train.step import NotFinite
from tests import tiny
from tests.faults.children import clock_free

END = 2
LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 2), (30, 2), (4, 4), (6, 6), (7, 7)]
Row = dict[str, list[int]]


def ended(of: list[Example]) -> list[Row]:
    """Rows of which each ends its turn."""
    rows = tiny.rows(of)
    return [
        {"input_ids": [*r["input_ids"], END], "completion_mask": [*r["completion_mask"], 1]} for r in rows
    ]


ROWS = ended(tiny.examples(LENGTHS))


def trainer(
    folder: Path, net: Any = None, rows: list[Row] = ROWS, callbacks: Any = None, **options: Any
) -> SFTTrainer:
    given = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "use_cpu": True,
        "precision": "fp32",
        "save_strategy": "no",
        **options,
    }
    net = net if net is not None else tiny.model("llama", torch.float32)
    args = SFTConfig(folder / "run", **given)
    return SFTTrainer(net, args, rows, processing_class=tiny.tokenizer(), callbacks=callbacks)


def events(one: SFTTrainer, kind: str) -> list[dict[str, Any]]:
    return [event for event in one.run.events() if event["type"] == kind]


def opened(one: SFTTrainer) -> list[int]:
    """Steps that were opened; each has its folder, and nothing else is there."""
    told = events(one, "slide")
    assert sorted(path.name for path in one.run.slides.glob("*")) == sorted(event["path"] for event in told)
    for event in told:
        slide = Opened.load(one.run.slides / event["path"]).slide
        assert (slide.step, slide.headline) == (event["step"], event["headline"])
        assert slide.opened_because == event["because"]
    return [event["step"] for event in told]


def alerts(one: SFTTrainer, kind: str | None = None) -> list[int]:
    return [event["step"] for event in events(one, "alert") if kind in (None, event["kind"])]


# Bit for bit -----------------------------------------------------------------------------------------------


class At(TrainerCallback):
    """Does something when so many steps are done."""

    def __init__(self, steps: int, what: Callable[[], Any]) -> None:
        self.steps, self.what = steps, what

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.steps:
            self.what()


def told(one: SFTTrainer) -> list[dict[str, Any]]:
    """The events, without those of slides and without what is read off a clock or the process."""
    of_slides = [("slide", None), ("alert", "slide")]
    return clock_free([e for e in one.run.events() if (e["type"], e.get("kind")) not in of_slides])


def ran(one: SFTTrainer, **resume: Any) -> dict[str, Any]:
    """Train; all that a run leaves behind."""
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    one.train(**resume)
    left: dict[str, Any] = {f"weight {name}": p.detach() for name, p in one.model.named_parameters()}
    for path in sorted(one.run.checkpoints.glob("*/*.safetensors")):
        left |= {f"{path.parent.name}/{path.stem} {name}": value for name, value in load_file(path).items()}
    for path in sorted(one.run.checkpoints.glob("*/state.json")):
        left[f"{path.parent.name}/optimizer"] = json.loads(path.read_text())["optimizer"]
    left["torch"] = torch.random.get_rng_state()
    left["numpy"] = np.random.get_state()[1].tolist()  # type: ignore[index]
    left["python"] = random.getstate()
    left["modes"] = [module.training for module in one.model.modules()]
    left["trains"] = [p.requires_grad for p in one.model.parameters()]
    return left


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[name].dtype
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


def partly_frozen() -> Any:
    net = tiny.model("llama_tied", torch.float32)
    net.model.layers[0].requires_grad_(False)
    net.model.norm.requires_grad_(False)
    return net


EYES_OPEN = {"slide_every": 1, "slide_mountain": "cut", "slide_extras": True}
RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "tied": (lambda: tiny.model("llama_tied", torch.float32), {}),
    "micro-batches": (
        lambda: tiny.model("gemma2", torch.float32),
        {"micro_batch_tokens": 25, "optim": "adam"},
    ),
    "LoRA, dropout": (
        lambda: tiny.model("llama", torch.float32),
        {"use_peft": True, "lora_dropout": 0.1, "weight_decay": 0.1},
    ),
    "dropout, its own logits": (
        lambda: tiny.model("gpt2", torch.float32, attn_pdrop=0.1, resid_pdrop=0.1),
        {"optim": "sgd", "optim_args": "momentum=0.9"},
    ),
    "frozen layers": (partly_frozen, {"max_grad_norm": 0.1}),
    "adafactor": (lambda: tiny.model("llama", torch.float32), {"optim": "adafactor"}),
    "muon": (lambda: tiny.model("phi", torch.float32), {"optim": "muon", "weight_decay": 0.1}),
    "pure bf16": (lambda: tiny.model("llama_tied", torch.float32), {"precision": "pure-bf16"}),
    "autocast": (lambda: tiny.model("qwen3", torch.float32), {"precision": "bf16"}),
    "recomputed": (lambda: tiny.model("llama", torch.float32), {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_under_the_microscope_is_the_same_run(name: str, tmp_path: Path) -> None:
    make, options = RUNS[name]
    more = {**options, "tensors_every": 2, "save_strategy": "steps", "save_steps": 3}
    more["watch"] = [{"prompt": "w5 w6", "completion": "w7", "alternatives": ["w8 w9"]}]
    plain, looked = (
        trainer(tmp_path / folder, make(), **more, **eyes)
        for folder, eyes in (("plain", {}), ("looked", EYES_OPEN))
    )
    left = ran(plain)
    assert_same(left, ran(looked))
    assert told(looked) == told(plain)
    assert opened(plain) == []
    assert opened(looked) == [1, 2, 3, 4]
    assert not plain.run.slides.exists()
    for event in events(looked, "slide"):
        slide = Opened.load(looked.run.slides / event["path"]).slide
        assert slide.mountain is not None
        assert not [note for note in slide.notes if note.startswith("no mountain")]
        assert all(0 < one.p_before < 1 and one.p_after is not None for one in slide.watched)
        assert [one.text for one in slide.watched] == ["w7", "w8 w9"]


def test_a_run_that_is_resumed_under_the_microscope_is_the_same_run(tmp_path: Path) -> None:
    more = {"save_strategy": "steps", "save_steps": 2, "tensors_every": 2}
    plain = trainer(tmp_path / "plain", **more)
    left = ran(plain)

    class CutError(Exception):
        pass

    def cut() -> None:
        raise CutError

    broken = trainer(tmp_path / "looked", callbacks=[At(3, cut)], **more, **EYES_OPEN)
    with pytest.raises(CutError):
        broken.train()
    assert opened(broken) == [1, 2, 3]
    again = trainer(tmp_path / "looked", **more, **EYES_OPEN)
    assert_same(left, ran(again, resume_from_checkpoint=True))
    assert opened(again) == [1, 2, 3, 4]
    # Which event says that a checkpoint was saved is not in that checkpoint.
    apart = ("start", "checkpoint")
    of_both = ([event for event in told(one) if event["type"] not in apart] for one in (again, plain))
    assert next(of_both) == next(of_both)


# Which steps are opened ------------------------------------------------------------------------------------


def test_slides_and_slide_every_open_these_steps(tmp_path: Path) -> None:
    assert opened(run_of(tmp_path / "none")) == []
    one = run_of(tmp_path / "some", slides=[0, 3])
    assert opened(one) == [1, 3]
    assert {event["because"] for event in events(one, "slide")} == {"asked for"}
    assert opened(run_of(tmp_path / "every", slide_every=2)) == [2, 4]
    assert opened(run_of(tmp_path / "both", slide_every=3, slides=[4])) == [3, 4]


def run_of(folder: Path, *args: Any, **options: Any) -> SFTTrainer:
    one = trainer(folder, *args, **options)
    one.train()
    return one


def test_a_file_in_the_run_folder_opens_the_next_step(tmp_path: Path) -> None:
    asked = tmp_path / "run" / "open-next-step"
    one = run_of(tmp_path, callbacks=[At(2, asked.touch)])
    assert opened(one) == [3]
    assert "open-next-step" in events(one, "slide")[0]["because"]
    assert not asked.exists()
    assert alerts(one) == []


def test_a_bad_row_opens_its_step_but_not_twice_in_twenty(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = ended(tiny.examples([(4, 6)]))[0]
    rows = [good] * 50
    for at in (10, 30, 35, 49):
        bad = [*rng.integers(3, tiny.VOCABULARY, 10).tolist(), END]
        rows[at] = {"input_ids": bad, "completion_mask": [0] * 4 + [1] * 7}
    one = run_of(
        tmp_path, rows=rows, max_steps=50, per_device_train_batch_size=1, learning_rate=3e-3,
        train_sampling_strategy="sequential", slide_mountain="none", tensors_every=0,
    )  # fmt: skip
    losses = [event["loss"] for event in events(one, "step")]
    high = [s for s in range(6, 51) if losses[s - 1] > 2 * median(losses[max(0, s - 21) : s - 1])]
    assert {31, 36, 50} <= set(high), "planted"
    assert alerts(one, "high loss") == high
    first, *rest = high
    want = [first]
    for step in rest:
        if step - want[-1] >= 20:
            want.append(step)
    assert opened(one) == want
    assert "dataset[30]" in [
        e.where for e in Opened.load(one.run.slides / "step-00000031").slide.batch.examples
    ]
    assert all(later - sooner >= 20 for sooner, later in pairwise(opened(one)))


def test_a_loss_that_is_not_finite_leaves_a_slide_and_the_weights(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    kept: dict[str, torch.Tensor] = {}

    def plant() -> None:
        net.model.norm.weight.data[0] = float("inf")
        kept.update({name: p.detach().clone() for name, p in net.named_parameters()})

    one = trainer(tmp_path, net, callbacks=[At(2, plant)])
    with pytest.raises(NotFinite, match=r"step 3: .*nothing was updated. Rows: dataset\[\d\]"):
        one.train()
    assert opened(one) == [3]
    alert = events(one, "alert")[0]
    assert (alert["kind"], alert["step"]) == ("not finite", 3)
    assert set(alerts(one)) == {3}
    assert "dataset[" in alert["message"]
    slide = Opened.load(one.run.slides / "step-00000003").slide
    assert not np.isfinite(slide.loss_before)
    assert (slide.loss_after, slide.promised, slide.obtained) == (None, None, None)
    assert "there was no update" in slide.headline
    assert len(events(one, "step")) == 2
    for name, p in net.named_parameters():
        assert torch.equal(p, kept[name]), name


def test_a_gradient_that_is_not_finite_on_an_opened_step(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    net.model.layers[1].mlp.up_proj.weight.register_hook(lambda g: g * float("nan"))
    one = trainer(tmp_path, net, slides=[1])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(NotFinite, match="gradient's norm is nan"):
        one.train()
    assert opened(one) == [1]
    slide = Opened.load(one.run.slides / "step-00000001").slide
    assert np.isfinite(slide.loss_before) and slide.loss_after is None
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), name


def second_without_a_target(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The second step's rows become one that has nothing to learn; returns what rows the steps asked for."""
    real, calls = Dataset.of_rows, []

    def of_rows(self: Dataset, rows: list[int]) -> list[Example]:
        calls.append(rows)
        if len(calls) != 2:
            return real(self, rows)
        return [Example(np.zeros(0, np.int32), np.array([7], np.int32), 0, "dataset[0]")]

    monkeypatch.setattr(Dataset, "of_rows", of_rows)
    return calls


@pytest.mark.parametrize("slides", [[], [2]])
def test_a_step_without_a_target_is_said(
    slides: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tmp_path, slides=slides)
    calls = second_without_a_target(monkeypatch)
    one.train()
    assert len(calls) == 4
    assert alerts(one) == alerts(one, "no target") == [2]
    assert [event["supervised"] == 0 for event in events(one, "step")] == [False, True, False, False]
    assert opened(one) == [], "there is nothing to see"


def test_completions_that_never_end_their_turn_open_the_first_step(tmp_path: Path) -> None:
    one = run_of(tmp_path, rows=tiny.rows(tiny.examples(LENGTHS)))
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("turn end", 0)
    assert "'</s>'" in alert["message"]
    assert opened(one) == [1]


def test_a_tensor_without_any_gradient_opens_the_next_step_once(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    net.model.layers[1].mlp.up_proj.weight.register_hook(torch.zeros_like)
    one = run_of(tmp_path, net, tensors_every=1, max_steps=5)
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("no gradient", 2)
    assert "model.layers.1.mlp.up_proj.weight is exactly 0" in alert["message"]
    assert opened(one) == [3]
    slide = Opened.load(one.run.slides / "step-00000003").slide
    assert [t.name for t in slide.tensors if t.zero_share == 1] == ["model.layers.1.mlp.up_proj.weight"]


def test_a_tensor_that_the_loss_does_not_reach_is_said_too(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    net.model.layers[1].register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    one = run_of(tmp_path, net, tensors_every=1, max_steps=5)
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("no gradient", 2)
    assert "model.layers.1.idle is exactly 0" in alert["message"]


@pytest.mark.parametrize("every", [0, 1])
def test_lost_updates_are_said_once_and_open_the_next_step(every: int, tmp_path: Path) -> None:
    one = run_of(
        tmp_path, precision="pure-bf16", learning_rate=1e-5, lr_scheduler_type="constant", tensors_every=every
    )
    assert len(events(one, "tensors")) == 4 * every
    assert alerts(one, "lost updates") == [1]
    assert opened(one) == [2]
    slide = Opened.load(one.run.slides / "step-00000002").slide
    assert slide.weights is not None
    assert slide.weights.lost_share > 0.5
    assert slide.weights.stored_lost == slide.weights.lost
    assert slide.weights.lost_means == "lost: the weights are bf16"


def test_a_step_that_is_too_long_is_said_on_its_slide(tmp_path: Path) -> None:
    one = run_of(
        tmp_path, optim="sgd", learning_rate=30.0, max_grad_norm=0.0, slides=[1], max_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("slide", 1)
    assert "rose by" in alert["message"]
    slide = Opened.load(one.run.slides / "step-00000001").slide
    assert slide.alerts == [alert["message"]]
    assert slide.obtained is not None and slide.obtained > 0


# The record of every N-th step -----------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "want"), [(0, []), (1, [1, 2, 3, 4]), (3, [1, 3])])
def test_tensors_are_recorded_every_so_many_steps(every: int, want: list[int], tmp_path: Path) -> None:
    one = run_of(tmp_path, tensors_every=every)
    assert [event["step"] for event in events(one, "tensors")] == want


@pytest.mark.parametrize("slides", [[], [1]])
@pytest.mark.parametrize(
    ("optim", "precision"), [("sgd", "fp32"), ("adamw_torch", "pure-bf16"), ("muon", "fp32")]
)
def test_the_record_is_what_the_tensors_say(
    optim: str, precision: str, slides: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = 1e-4 if precision == "pure-bf16" else 1e-3
    one = trainer(
        tmp_path, optim=optim, precision=precision, learning_rate=rate, max_steps=1, max_grad_norm=0.1,
        lr_scheduler_type="constant", slides=slides,
    )  # fmt: skip
    net: Any = one.model
    net.model.layers[0].mlp.down_proj.weight.register_hook(lambda g: g * (torch.arange(g.shape[1]) % 4 > 0))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    real = microscope.Microscope.update

    def update(self: microscope.Microscope, step: int) -> Any:
        gradients.update({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
        return real(self, step)

    monkeypatch.setattr(microscope.Microscope, "update", update)
    one.train()
    assert opened(one) == slides
    (event,) = events(one, "tensors")
    names = json.loads(one.run.config_file.read_text())["tensors"]
    assert names == [name for name, _ in net.named_parameters()]
    for place, name in enumerate(names):
        g, old = gradients[name].double(), before[name]
        new = net.get_parameter(name).detach()
        delta = (new.double() - old.double()).norm().item()
        moved = (old != new) | (g != 0)
        lost = moved & (old.bfloat16() == new.bfloat16())
        off = (
            1e-2 if precision == "pure-bf16" else 1e-4
        )  # its gradient is clipped, and rounded, before it is read
        assert event["grad_norm"][place] == pytest.approx(g.norm().item(), rel=off), name
        assert event["zero_share"][place] == pytest.approx((g == 0).double().mean().item(), abs=1e-9)
        assert event["weight_norm"][place] == pytest.approx(old.double().norm().item(), rel=1e-5)
        assert event["update_norm"][place] == pytest.approx(delta, rel=1e-4)
        assert event["lost_share"][place] == pytest.approx(lost.sum().item() / max(1, moved.sum().item()))
    assert event["zero_share"][names.index("model.layers.0.mlp.down_proj.weight")] == 0.25
    assert 0 < max(event["lost_share"]) <= 1
