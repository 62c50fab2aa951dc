"""Explaining one step from Python: what a slide's headline and alerts say of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot import UserError
from surefoot.microscope.headline import alerts, headline
from surefoot.microscope.lesson import OPTIMIZERS, lesson_options
from surefoot.microscope.slide import Slide
from surefoot.report.notebook import explain
from tests.report.sample_slide import sample


def lost(share: float) -> str:
    slide = sample().slide
    assert slide.weights is not None
    weights = slide.weights.model_copy(update={"lost_share": share})
    return headline(slide.model_copy(update={"weights": weights})).rpartition("; ")[2]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        *((0.0, "0 %"), (1e-9, "0.01 %"), (0.004, "0.40 %"), (0.41, "41 %")),
        *((0.9976, "99.76 %"), (0.9999999, "99.99 %"), (1.0, "100 %")),
    ],
)
def test_all_is_said_only_of_all(share: float, said: str) -> None:
    assert lost(share) == f"{said} of the changed weights are the same in bf16"


def rose(promised: float, obtained: float, products: str) -> list[str]:
    changed = {
        "promised": promised,
        "obtained": obtained,
        "precision": {"weights": "float32", "products": products},
    }
    slide: Slide = sample().slide.model_copy(update=changed)
    return [alert for alert in alerts(slide) if "rose" in alert]


def test_why_the_loss_rose() -> None:
    assert rose(-0.1, -0.1, "float32") == []
    assert rose(-0.004, 0.06, "float32")[0].endswith("rose by 0.06: the step was too long")
    assert rose(-0.004, 0.06, "bfloat16")[0].endswith("the step was too long, or lost in bf16's rounding")
    # A logit of 8 is known to 0.03 in bf16, and so is the loss.
    logits = max(c.logit_before for c in sample().slide.positions[0].candidates)
    assert rose(-0.9 * logits / 256, 0.0001, "bfloat16")[0].endswith("or lost in bf16's rounding")
    assert rose(-0.9 * logits / 256, 0.0001, "float32")[0].endswith("the step was too long")
    assert rose(0.1, 0.2, "bfloat16")[0].endswith("not by this step's gradient")
    assert rose(-6.0, 0.06, "bfloat16")[0].endswith(
        "the step was too long"
    )  # far more than rounding was promised


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_lesson_of_every_optimizer_is_followed(optimizer: str, tiny_folder: Path) -> None:
    """At the learning rate that it has where none is given, the right answer is likelier afterwards."""
    view = explain(tiny_folder, "Hello?", "Yes.", optim=optimizer, slide_mountain="none")
    assert view.slide.obtained is not None
    assert view.slide.obtained < 0
    assert view.slide.opened_because == "surefoot explain asked for it"


def test_a_mistake_in_the_notebook_is_told_by_its_name(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="where output_dir decides nothing: leave it out; no run is written"):
        explain(tiny_folder, "a", "b", output_dir="x")
    with pytest.raises(UserError, match=r"unknown option 'learning_rat'. Did you mean 'learning_rate'"):
        explain(tiny_folder, "a", "b", learning_rat=0.1)
    with pytest.raises(UserError, match="optimizer: there is no 'rmsprop'"):
        explain(tiny_folder, "a", "b", optim="rmsprop")


def test_options_that_are_given_are_left_alone() -> None:
    given = {"optim": "adamw", "learning_rate": 3.0, "bf16": True}
    assert lesson_options(given) == {"optim": "adamw_torch", "learning_rate": 3.0, "bf16": True}
    assert given["optim"] == "adamw"
    assert lesson_options({"torch_dtype": "float32"})["precision"] == "fp32"
    assert "precision" not in lesson_options({"dtype": "torch.bfloat16"})
    assert lesson_options({}) == {"optim": "sgd", "learning_rate": 0.1, "precision": "fp32"}
