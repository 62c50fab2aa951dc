"""The microscope over a run in which something goes wrong: what it says is true, said once, and the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot import SFTConfig, SFTTrainer, UserError
from surefoot.microscope import opening
from surefoot.microscope.records import square
from surefoot.microscope.slide import Opened
from surefoot.train.step import NotFinite
from tests import tiny
from tests.microscope.test_run import (
    ROWS,
    At,
    alerts,
    events,
    opened,
    run_of,
    second_without_a_target,
    told,
    trainer,
)


def stopped(one: Any, at: int) -> None:
    """Train until so many steps are done, and then break off as a crash would."""

    class CutError(Exception):
        pass

    def cut() -> None:
        raise CutError

    one.add_callback(At(at, cut))
    with pytest.raises(CutError):
        one.train()


# Alerts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slides", [[], [2]])
def test_a_gradient_that_is_not_finite_opens_its_step(slides: list[int], tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    up = net.model.layers[1].mlp.up_proj.weight

    def plant() -> None:
        up.register_hook(lambda g: g * float("nan"))

    one = trainer(tmp_path, net, callbacks=[At(1, plant)], slides=slides)
    with pytest.raises(NotFinite, match="gradient's norm is nan"):
        one.train()
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("not finite", 2)
    assert "1 of 30 tensors: model.layers.1.mlp.up_proj.weight; rows: dataset[" in alert["message"]
    assert opened(one) == [2]
    slide = Opened.load(one.run.slides / "step-00000002").slide
    assert "there was no update" in slide.headline and slide.weights is None
    assert [t.name for t in slide.tensors if not np.isfinite(t.grad_norm)] == [
        "model.layers.1.mlp.up_proj.weight"
    ]


def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradient_is(tmp_path: Path) -> None:
    net = tiny.model("phi", torch.float32)

    def forbid() -> None:
        """The token that ends a turn: its logit is −∞, its gradient p − y is not."""
        with torch.no_grad():
            net.lm_head.bias[2] = float("-inf")

    one = trainer(tmp_path, net, callbacks=[At(2, forbid)])
    with pytest.raises(NotFinite, match="step 3: the loss is inf"):
        one.train()
    assert alerts(one, "not finite") == [3]
    assert opened(one) == [3]
    assert len(events(one, "step")) == 2


def test_adapters_that_have_not_moved_yet_are_no_tensors_without_gradient(tmp_path: Path) -> None:
    one = run_of(tmp_path, use_peft=True, warmup_steps=2, tensors_every=1, max_steps=5)
    assert [event["learning_rate"] > 0 for event in events(one, "step")] == [False, True, True, True, True]
    zero = [max(event["zero_share"]) for event in events(one, "tensors")]
    assert zero[:2] == [1, 1] and max(zero[2:]) < 1, "A has none while B is 0"
    assert alerts(one) == []


def test_a_step_that_goes_uphill_by_its_momentum_is_not_called_too_long(tmp_path: Path) -> None:
    """Rows that ask for one token, and then one that asks for another."""
    rows = [{"input_ids": [5, 6, asked, 2], "completion_mask": [0, 0, 1, 0]} for asked in [7] * 8 + [8] * 2]
    one = run_of(
        tmp_path, rows=rows, max_steps=10, per_device_train_batch_size=1, optim="sgd", learning_rate=3e-3,
        optim_args="momentum=0.99", max_grad_norm=0, lr_scheduler_type="constant", slide_every=1,
        slide_mountain="none", train_sampling_strategy="sequential",
    )  # fmt: skip
    slides = [Opened.load(path).slide for path in sorted(one.run.slides.glob("*"))]
    uphill = [slide for slide in slides if slide.promised is not None and slide.promised > 0]
    assert uphill, "planted"
    assert all(slide.alerts for slide in uphill if slide.obtained is not None and slide.obtained > 0)
    assert any(slide.alerts for slide in uphill)
    for slide in slides:
        for said in slide.alerts:
            assert slide.promised is not None
            assert ("too long" in said) == (slide.promised < 0)
            assert ("uphill" in said) == (slide.promised > 0)


def test_what_opening_took_is_not_the_steps_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = opening.look

    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(0.5)
        return real(*args, **more)

    def grow() -> None:
        with torch.no_grad():
            one.model.lm_head.weight.mul_(-3)  # type: ignore[operator, union-attr]

    monkeypatch.setattr(opening, "look", slow)
    one = trainer(tmp_path, callbacks=[At(22, grow)], max_steps=24, slide_mountain="none", slides=[1])
    one.train()
    assert alerts(one, "high loss") == [23, 24]
    assert "; highest: dataset[" in events(one, "alert")[0]["message"]
    assert opened(one) == [1, 23]
    for event in events(one, "step"):
        assert 0 < event["step_seconds"] < 0.5
        assert event["tokens_per_second"] > 0
    assert all(event["open_seconds"] > 1.9 for event in events(one, "slide")), "four looks"


def test_hooks_that_come_later_end_what_is_recorded(tmp_path: Path) -> None:
    """A step hook would be called once a tensor: from then on nothing is recorded, rather than zeros."""
    net = tiny.model("llama", torch.float32)
    mine = torch.optim.SGD(net.parameters(), lr=1e-2)
    calls: list[int] = []

    def hook() -> None:
        mine.register_step_post_hook(lambda *_: calls.append(1))

    args = SFTConfig(
        tmp_path / "run", max_steps=4, per_device_train_batch_size=4, use_cpu=True, precision="fp32",
        save_strategy="no", tensors_every=1, slides=[3], slide_mountain="none",
    )  # fmt: skip
    one = SFTTrainer(
        net, args, ROWS, processing_class=tiny.tokenizer(), callbacks=[At(1, hook)], optimizers=(mine, None)
    )
    one.train()
    assert [event["step"] for event in events(one, "tensors")] == [1]
    assert len(calls) == 3
    slide = Opened.load(one.run.slides / "step-00000003").slide
    assert slide.weights is None and "step hooks" in str(slide.optimizer.refused)
    assert alerts(one, "no gradient") == []


def test_a_wish_to_open_waits_for_a_step_that_has_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "run" / "open-next-step"
    one = trainer(tmp_path, callbacks=[At(1, asked.touch)])
    second_without_a_target(monkeypatch)
    one.train()
    assert alerts(one, "no target") == [2]
    assert opened(one) == [3]
    assert not asked.exists()


# A resumed run ---------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_alerts_and_slides_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    more = {
        "save_strategy": "steps", "save_steps": 2, "tensors_every": 1, "max_steps": 6, "slide_mountain": "none",
        "rows": tiny.rows(tiny.examples([(5, 4), (9, 12), (1, 3), (17, 6)])),
    }  # fmt: skip

    def net() -> Any:
        made = tiny.model("llama", torch.float32)
        made.model.layers[1].mlp.up_proj.weight.register_hook(torch.zeros_like)
        return made

    plain = trainer(tmp_path / "plain", net(), **more)
    plain.train()
    stopped(trainer(tmp_path / "cut", net(), **more), 3)
    again = trainer(tmp_path / "cut", net(), **more)
    again.train(resume_from_checkpoint=True)
    assert alerts(plain, "turn end") == [0]
    assert alerts(plain, "no gradient") == [2]
    assert opened(plain) == [1, 3]
    assert opened(again) == [1, 3]
    apart = ("start", "checkpoint")
    of_both = ([event for event in told(one) if event["type"] not in apart] for one in (again, plain))
    assert next(of_both) == next(of_both)
    because = [[event["because"] for event in events(one, "slide")] for one in (again, plain)]
    assert because[0] == because[1]


def test_slides_of_steps_that_are_taken_anew_are_gone(tmp_path: Path) -> None:
    more = {"save_strategy": "steps", "save_steps": 2, "slide_mountain": "none"}
    stopped(trainer(tmp_path, slides=[1, 3], **more), 3)
    again = trainer(tmp_path, slides=[1], **more)
    assert (again.run.slides / "step-00000003").is_dir()
    again.train(resume_from_checkpoint=True)
    assert opened(again) == [1]


def test_a_run_does_not_go_on_from_before_its_later_checkpoints(tmp_path: Path) -> None:
    more = {"save_strategy": "steps", "save_steps": 1, "slide_mountain": "none"}
    first = trainer(tmp_path, slides=[3], **more)
    first.train()
    kept = first.run.events_file.read_bytes()
    earlier = str(first.run.checkpoints / "step-00000001")
    with pytest.raises(UserError, match=r"checkpoints after step 1\. Name another output_dir"):
        trainer(tmp_path, **more).train(resume_from_checkpoint=earlier)
    assert first.run.events_file.read_bytes() == kept
    assert opened(first) == [3]
    trainer(tmp_path / "other", **more).train(resume_from_checkpoint=earlier)


# Optimizers and models of one's own ------------------------------------------------------------------------


def with_own(folder: Path, make: Callable[[Any], Any], **options: Any) -> SFTTrainer:
    """A trainer of two opened steps with an optimizer of one's own."""
    net = tiny.model("llama", torch.float32)
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "precision": "fp32",
        **options,
    }
    args = SFTConfig(folder / "run", save_strategy="no", slide_every=1, **given)
    return SFTTrainer(net, args, ROWS, processing_class=tiny.tokenizer(), optimizers=(make(net), None))


def test_weights_that_an_optimizer_of_ones_own_leaves_out_keep_no_gradient(tmp_path: Path) -> None:
    def make(net: Any) -> Any:
        return torch.optim.AdamW([p for name, p in net.named_parameters() if "layers.2" in name], lr=1e-3)

    left_over = []
    one = with_own(tmp_path, make)
    one.add_callback(At(1, lambda: left_over.extend(p for p in one.model.parameters() if p.grad is not None)))
    one.train()
    assert opened(one) == [1, 2]
    assert left_over == []


def test_a_group_that_stands_still_does_not_make_it_a_step_without_a_learning_rate(tmp_path: Path) -> None:
    def make(net: Any) -> Any:
        still = [p for p in net.parameters() if p.ndim < 2]
        moves = [p for p in net.parameters() if p.ndim > 1]
        return torch.optim.AdamW([{"params": still, "lr": 0.0}, {"params": moves, "lr": 1e-3}])

    one = with_own(tmp_path, make)
    one.train()
    assert events(one, "step")[0]["learning_rate"] == 1e-3
    assert all("the learning rate was 0" not in event["headline"] for event in events(one, "slide"))


def test_an_optimizer_whose_tensors_cannot_be_recorded_is_said_at_the_start(tmp_path: Path) -> None:
    class Mine(torch.optim.AdamW):
        pass

    one = with_own(tmp_path, lambda net: Mine(net.parameters(), lr=1e-3))
    one.train()
    assert events(one, "tensors") == []
    (note,) = [
        note for note in events(one, "start")[0]["notes"] if note.startswith("tensors are not recorded")
    ]
    assert "Mine is not among the optimizers" in note


def test_an_optimizer_that_cannot_train_this_model_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LBFGS calls the model by itself"):
        with_own(tmp_path, lambda net: torch.optim.LBFGS(net.parameters())).train()
    with pytest.raises(UserError, match="SGD holds no weight that is trained here"):
        with_own(tmp_path, lambda net: torch.optim.SGD(net.parameters(), lr=1e-3), use_peft=True).train()
    assert not (tmp_path / "run").exists()


def test_the_norms_on_a_slide_are_right_to_the_last_digits(tmp_path: Path) -> None:
    """In one go over so many float32 entries, torch's norm is off by more than 1 in 10,000."""
    of = torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)) + 1
    exact = sum(piece.double().square().sum().item() for piece in of.split(1 << 20))
    assert abs(square(of) / exact - 1) < 1e-6


def test_steps_that_will_not_come_are_said_at_the_start(tmp_path: Path) -> None:
    one = run_of(tmp_path, slides=[2, 2, 9, 40], slide_mountain="none")
    assert opened(one) == [2]
    assert "slides: the run has 4 steps, so 9, 40 will not be opened" in events(one, "start")[0]["notes"]


def test_a_step_without_a_learning_rate_is_not_said_to_have_changed_a_weight(tmp_path: Path) -> None:
    one = run_of(tmp_path, warmup_steps=1, slides=[1], max_steps=2)
    (event,) = events(one, "slide")
    assert event["headline"].endswith("the step gave +0; the learning rate was 0")
    assert alerts(one) == []


def test_updates_too_small_for_a_float32_are_counted_among_those_that_bf16_does_not_show(
    tmp_path: Path,
) -> None:
    one = run_of(
        tmp_path, optim="sgd", learning_rate=1e-9, lr_scheduler_type="constant", slides=[1], max_steps=1,
        slide_mountain="none",
    )  # fmt: skip
    (event,) = events(one, "tensors")
    slide = Opened.load(one.run.slides / "step-00000001").slide
    by_name = {tensor.name: tensor.lost_share for tensor in slide.tensors}
    of_event = dict(zip([name for name, _ in one.model.named_parameters()], event["lost_share"], strict=True))
    assert by_name == pytest.approx(of_event)
    assert min(of_event.values()) > 0.99
