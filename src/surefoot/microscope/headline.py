"""A slide in a line, and what on it should not be."""

from __future__ import annotations

from surefoot.microscope.slide import Slide


def alerts(slide: Slide) -> list[str]:
    """What on a slide should not be."""
    found = []
    if slide.obtained is not None and slide.obtained > 0:
        found.append(f"the loss of the step's own rows rose by {slide.obtained:.3g}: {_blame(slide)}")
    for position in slide.positions:
        if not abs(position.error_sum) <= 1e-3 * position.weight:
            found.append(
                f"the errors at target {position.index} of {position.where} add up to {position.error_sum:.3g}, "
                "not to 0"
            )
    return found


def headline(slide: Slide) -> str:
    """ "Step 340: loss on this batch 1.83 → 1.71; the slope promised −0.14, the step gave −0.12; ..."."""
    if slide.loss_after is None or slide.obtained is None:
        return f"Step {slide.step:,}: loss on this batch {slide.loss_before:.4g}; there was no update"
    said = f"Step {slide.step:,}: loss on this batch {slide.loss_before:.4g} → {slide.loss_after:.4g}"
    if slide.promised is not None:
        said += f"; the slope promised {_signed(slide.promised)}, the step gave {_signed(slide.obtained)}"
    else:
        said += f" ({_signed(slide.obtained)})"
    if slide.optimizer.learning_rate == 0:
        said += "; the learning rate was 0"
    elif slide.weights is not None:
        said += f"; {percent(slide.weights.lost_share)} of the changed weights are the same in bf16"
    return said


def _blame(slide: Slide) -> str:
    """Why a loss that should have fallen rose: it went uphill, was too long, or too short for bf16."""
    if slide.promised is not None and slide.promised > 0:
        return "the update went uphill, led by earlier gradients or weight decay, not by this step's gradient"
    rounded = "bfloat16" in slide.precision.values()
    # bf16 keeps 8 bits of a logit, and a loss is as exact as its logits.
    logits = [abs(c.logit_before) for p in slide.positions for c in p.candidates]
    unsure = max(logits, default=0.0) * 2.0**-8
    small = slide.promised is not None and -slide.promised < max(slide.obtained or 0.0, unsure)
    return (
        "the step was too long, or lost in bf16's rounding" if rounded and small else "the step was too long"
    )


def percent(part: float) -> str:
    """41 %, 99.76 %: not all and not none, where it is not."""
    percent = 100 * part
    if 0 < percent < 1 or 99 < percent < 100:
        return f"{min(99.99, max(0.01, percent)):.2f} %"
    return f"{percent:.0f} %"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
