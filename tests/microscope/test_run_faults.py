"""A slide is a luxury: what keeps it from being made or kept is said, and the run goes on as if unopened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.microscope import opening
from surefoot.microscope import slide as slides_module
from surefoot.microscope import weights as weights_module
from surefoot.train.step import NotFinite
from tests import tiny
from tests.microscope.test_run import At, alerts, assert_same, events, opened, ran, run_of, told, trainer

# A disk that will not have it ------------------------------------------------------------------------------


def test_a_slide_that_cannot_be_kept_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    plain = run_of(tmp_path / "plain")
    one = trainer(tmp_path / "looked", slides=[2, 3])

    def block() -> None:
        one.run.slides.write_text("a file")

    one.add_callback(At(1, block))
    one.train()
    for left, right in zip(plain.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert events(one, "slide") == []
    found = [(event["step"], event["kind"]) for event in events(one, "alert")]
    assert found == [(2, "slide"), (3, "slide")]
    for event in events(one, "alert"):
        assert "could not be kept" in event["message"] and str(one.run.slides) in event["message"]


def test_a_disk_that_is_full_leaves_no_half_of_a_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    one = trainer(tmp_path, slides=[1], slide_mountain="none", max_steps=2)
    monkeypatch.setattr(slides_module, "save_file", full)
    one.train()
    assert len(events(one, "step")) == 2
    assert "No space left on device" in events(one, "alert")[0]["message"]
    assert list(one.run.slides.iterdir()) == []


def test_a_gradient_that_is_not_finite_is_said_though_its_slide_cannot_be_kept(tmp_path: Path) -> None:
    net = tiny.model("llama", torch.float32)
    net.model.layers[1].mlp.up_proj.weight.register_hook(lambda g: g * float("nan"))
    one = trainer(tmp_path, net, slides=[1], slide_mountain="none")
    one.run.path.mkdir()
    one.run.slides.write_text("a file")
    with pytest.raises(NotFinite, match="gradient's norm is nan"):
        one.train()
    assert {event["kind"] for event in events(one, "alert")} == {"not finite", "slide"}


FAULTS = {
    "before": (opening, "head_panel"),
    "gradient": (opening, "WeightsWatch"),
    "update": (weights_module, "Replay"),
    "after": (opening, "batch"),
}


@pytest.mark.parametrize("when", FAULTS)
def test_a_fault_of_the_microscope_costs_the_slide_and_nothing_else(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a panel that no one has tried")

    plain = trainer(tmp_path / "plain", tensors_every=2, save_strategy="steps", save_steps=3)
    one = trainer(tmp_path / "looked", tensors_every=2, save_strategy="steps", save_steps=3, slides=[1, 3])
    left = ran(plain)
    monkeypatch.setattr(*FAULTS[when], fault)
    assert_same(left, ran(one))
    assert events(one, "slide") == []
    assert alerts(one, "slide") == [1, 3]
    for event in events(one, "alert"):
        assert (
            "could not be opened: RuntimeError: a panel that no one has tried (test_run_fa"
            in event["message"]
        )
    without = [[e for e in told(each) if when != "update" or e["type"] != "tensors"] for each in (plain, one)]
    assert without[0] == without[1]
    assert all(event["step_seconds"] > 0 for event in events(one, "step"))


@pytest.mark.parametrize("what", ["folder", "locked"])
def test_a_wish_that_cannot_be_taken_away_opens_one_step(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "run" / "open-next-step"
    if what == "folder":
        make = lambda: (asked.mkdir(), (asked / "in-it").touch())  # noqa: E731
    else:
        make = asked.touch
        real = Path.unlink

        def unlink(self: Path, missing_ok: bool = False) -> None:
            if self == asked:
                raise PermissionError(13, "Permission denied")
            real(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
    one = run_of(tmp_path, callbacks=[At(1, make)], slide_mountain="none")
    assert opened(one) == [2]
    (alert,) = events(one, "alert")
    assert (alert["kind"], alert["step"]) == ("slide", 2)
    assert "open-next-step" in alert["message"] and "delete" in alert["message"]


def test_the_same_wish_may_be_made_again(tmp_path: Path) -> None:
    asked = tmp_path / "run" / "open-next-step"
    both = [
        At(1, asked.mkdir),
        At(3, asked.touch),
    ]
    assert opened(run_of(tmp_path, callbacks=both, slide_mountain="none")) == [2, 4]
