"""A slide in the terminal: the numbers are the slide's, the words explain them, and nothing harms the terminal."""

from __future__ import annotations

import io
import json
import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from surefoot import UserError
from surefoot.microscope.panels import Influence, NoiseScale
from surefoot.microscope.slide import Opened
from surefoot.report import glyphs
from surefoot.report.terminal import show
from tests.report.sample_slide import VOCABULARY, sample
from tests.report.samples import full

TITLES = [
    "1  The batch",
    "2  The prediction",
    "3  The loss",
    "4  The error column",
    "5  The head: error × hidden state",
    "6  Backwards through the layers",
    "7  The optimizer",
    "8  The weights before and after",
    "9  The mountain",
    "10  The prediction after",
    "11  Promised and obtained",
]


@cache
def opened(optimizer: str = "sgd", largest_norm: float = 0.0) -> Opened:
    return sample(optimizer, largest_norm=largest_norm)


def changed(path: str, value: Any, of: Opened | None = None) -> Opened:
    """The sample with one field, "positions.0.token" say, set to `value`."""
    plain = json.loads((of or opened()).slide.model_dump_json())
    at, (*way, last) = plain, path.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return Opened(slide=type(opened().slide).model_validate(plain), arrays=opened().arrays)


def shown(slide: Opened | None = None, width: int = 100, position: int | None = 0, **terminal: Any) -> str:
    file = io.StringIO()
    show(slide or opened(), Console(file=file, width=width, **terminal), position)
    return file.getvalue()


def panel(number: int, text: str) -> str:
    """The text below a panel's title."""
    return text.partition(f"\n{TITLES[number - 1]}\n")[2].partition("\n\n")[0]


def minus(value: str) -> str:
    return value.replace("-", "−")


def row(text: str, begins: str) -> list[str]:
    """The words of the line that begins so, marks aside."""
    found = [line for line in text.splitlines() if f"{line.lstrip(' ▶○')} ".startswith(f"{begins} ")]
    assert found, (begins, text)
    return found[0].lstrip(" ▶○").split()


# What is true of this step only -------------------------------------------------------------------------------


def test_the_lesson_ends_as_the_step_did() -> None:
    assert "Not so here" not in shown()
    assert "likelier. Not so here: the loss rose." in " ".join(shown(changed("obtained", 0.5)).split())
    assert "Not so here: the loss stayed." in " ".join(shown(changed("obtained", 0.0)).split())
    assert "Not so here: there was no update." in " ".join(shown(changed("obtained", None)).split())


def test_the_slide_says_which_position_comes_first() -> None:
    second = changed("looked_at", 1)
    said = shown(second, position=None)
    whole = "All from this token on, “"
    assert whole in said
    assert said.replace(whole, "The whole answer “") == shown(position=1)
    assert shown(second).replace(whole, "The whole answer “") == shown()
    assert "Position 1 is looked at, of 0 “" in " ".join(said.split())


def test_a_loss_that_rose_kept_nothing_of_what_was_promised() -> None:
    text = panel(11, shown(changed("obtained", 0.25)))
    assert "obtained +0.2500 (the other way)" in text
    assert "% of it" not in text


def test_each_chosen_weight_has_a_letter_of_its_own() -> None:
    """Also where they have other arithmetic, and stand in tables of their own."""
    text = panel(7, shown(changed("chosen.1.stages.0.formula", "another")))
    letters = re.findall(r"^  ([A-Z]) = ", text, re.MULTILINE)
    assert letters == list("ABCDEFGH"[: len(opened().slide.chosen)])


def test_an_update_that_is_lost_is_named() -> None:
    assert "stored as before" not in shown()
    lost = changed("chosen.0.after", opened().slide.chosen[0].before)
    assert "A: stored as before: its Δ is too small for the type, and lost." in panel(7, shown(lost))


def test_products_in_bfloat16_excuse_what_they_must() -> None:
    assert "two to three digits" not in shown()
    text = panel(5, shown(changed("precision.products", "bfloat16")))
    assert "bfloat16 keeps two to three digits" in " ".join(text.split())


def test_tokens_that_predict_nothing_do_not_go_through() -> None:
    batch = opened().slide.batch
    assert "predicts nothing" not in shown()
    one = changed("batch.slots", batch.tokens - len(batch.examples) - batch.examples_left_out)
    assert "went through the model, for the last predicts nothing" in " ".join(shown(one).split())


# Reading order and size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 110])
def test_the_panels_stand_in_reading_order(width: int) -> None:
    lines = shown(width=width).splitlines()
    assert [line for line in lines if line in TITLES] == TITLES
    for number in range(1, len(TITLES) + 1):  # each opens with a sentence
        first = panel(number, "\n".join(lines)).splitlines()[0]
        assert len(first.split()) > 5, first
        assert not first.startswith(" ")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("width", [80, 100, 110])
def test_lines_fit_and_are_whole(width: int, optimizer: str) -> None:
    text = shown(opened(optimizer, 1.0), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    assert not re.search(r" $", text, re.MULTILINE)


def test_a_wide_terminal_does_not_stretch_it_and_a_narrow_one_does_not_break_it() -> None:
    assert shown(width=300) == shown(width=110)
    assert max(map(cell_len, shown(width=40).splitlines())) <= 60


def test_it_is_short_enough_to_be_read() -> None:
    assert len(shown(width=100).splitlines()) <= 160


# Pipes and colours -------------------------------------------------------------------------------------------


def test_a_pipe_gets_no_codes_and_says_the_same_as_a_terminal() -> None:
    plain = shown()
    assert "\x1b" not in plain
    coloured = shown(force_terminal=True, color_system="256")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_no_colour_is_black_white_or_yellow() -> None:
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", shown(force_terminal=True, color_system="256")))
    colours = {code for found in codes for code in re.findall(r"38;5;(\d+)", found)}
    assert {"32", "166"} <= colours <= {"32", "166", "136", "97"}
    assert not any(
        re.search(r"(^|;)(3[0-7]|4\d|9\d)(;|$)", code) for code in codes - {"0"} if "38;5" not in code
    )


# The numbers -------------------------------------------------------------------------------------------------


def test_the_loss_is_worked_out() -> None:
    slide = opened().slide
    text = panel(3, shown())
    assert "−ln 0.0188 = 3.97   for ·Sac" in text
    terms = [t.loss for t in slide.batch.examples[0].tokens if t.loss is not None]
    assert slide.loss_before == pytest.approx(math.fsum(terms) / 3)
    assert f"(3.97 + {terms[1]:.3g} + 0.511) / 3 = {slide.loss_before:.2f}" in text


def test_the_loss_of_a_large_step_is_not_spelled_out() -> None:
    text = panel(3, shown(changed("batch.supervised", 1317)))
    assert "adds up 1,317 learned tokens and divides once, by 3" in text
    assert "+" not in text


def test_the_prediction_table_has_probability_and_rank() -> None:
    text = panel(2, shown())
    assert "each of its 49,152 tokens" in text
    for one in opened().slide.positions[0].candidates[:5]:
        word, p, rank, *_ = row(text, one.token.replace(" ", "·"))
        assert (word, rank) == (one.token.replace(" ", "·"), f"{one.rank_before:,}")
        assert float(p) == pytest.approx(one.p_before, rel=6e-3)
    assert "▶ ·Sac " in text
    assert text.count("○ ·") == 3  # watched, the unlikely Boston too


def test_the_error_column_is_negative_for_the_target_alone_and_adds_up_to_nothing() -> None:
    position = opened().slide.positions[0]
    text = panel(4, shown())
    raw = {}
    for name in ("·Sac", "·Los", "·San", "·Boston"):
        _, error, weighted, *_ = row(text, name)
        raw[name] = float(error.replace("−", "-"))
        assert float(weighted.replace("−", "-")) == pytest.approx(raw[name] / 3, rel=1e-3)
        assert error[0] == ("−" if name == "·Sac" else "+")
    words = row(text, "all other")
    assert words[2:5] == [f"{VOCABULARY - 4:,}", "tokens", "together"]
    assert math.fsum([*raw.values(), float(words[5])]) == pytest.approx(0, abs=2e-4)
    assert raw["·Sac"] == pytest.approx(position.candidates[2].p_before - 1, abs=1e-4)
    assert "(0, up to rounding" in text


def test_an_error_column_that_does_not_add_up_is_said() -> None:
    text = panel(4, shown(changed("positions.0.error_sum", 0.01)))
    assert "+0.010  (but it should be 0)" in text


def test_weight_one_has_one_column_of_errors() -> None:
    plain = changed("positions.0.weight", 1.0)
    assert "weight" not in panel(4, shown(plain)).splitlines()[2]


def test_the_head_rows_are_mirrored_by_the_sign_of_the_error() -> None:
    text = panel(5, shown())
    strips = {name: row(text, name)[-3 if name != "h" else -2] for name in ("h", "·Sac", "·Los", "·Boston")}
    heights = {name: [ord(c) - ord("▄") for c in strip] for name, strip in strips.items()}
    assert heights["·Sac"] == [-h for h in heights["h"]]
    assert all(a * b >= 0 for a, b in zip(heights["·Los"], heights["h"], strict=True))
    assert any(heights["·Los"])
    assert not any(heights["·Boston"])
    first = opened().slide.positions[0].head_rows[0]
    assert float(row(text, "·Sac")[-2]) == pytest.approx(first.norm, rel=6e-3)
    off = (first.max_abs_difference_from_autograd or 0) / first.largest
    assert row(text, "·Sac")[-1] == minus(f"{off:.0e}")
    rows = opened().slide.head.rows
    worst = max(row.max_abs_difference_from_autograd or 0 for row in rows)
    said = f"max |formula − autograd| is {minus(f'{worst:.2g}')}, where the largest entry is"
    assert f"{said} {max(row.largest for row in rows):.3g}." in " ".join(text.split())


def test_a_tied_head_shows_both_sides() -> None:
    tied = changed("head.tied", True)
    tied = changed("head.rows.0.input_norm", 0.125, tied)
    tied = changed("head.rows.0.total_norm", 4.5, tied)
    text = panel(5, shown(tied))
    assert "Head and input embeddings are one weight" in text
    table = text.partition("head's part")[2]
    assert row(table, "·Sac")[1:4] == [f"{opened().slide.head.rows[0].norm:.2f}", "0.125", "4.50"]
    assert row(table, "·Los")[2:4] == ["–", "–"]


def test_a_frozen_or_unknown_head_is_said() -> None:
    frozen = shown(changed("head.trained", False))
    text = " ".join(panel(5, frozen).split())
    assert "The head is frozen: its rows stay, and the error only passes through it. h " in text
    assert "Wᵀ × error ▁" in text
    assert "pulls its token up" not in text  # no row moves
    assert "head only" not in panel(10, frozen)
    assert "the body's doing" in panel(10, frozen)
    text = panel(5, shown(changed("head.unknown", "the model computes its own logits")))
    assert "Not shown: the model computes its own logits." in text


@pytest.mark.parametrize("width", [80, 110])
def test_every_layer_has_its_gradient_from_last_to_first(width: int) -> None:
    text = panel(6, shown(width=width))
    for layer in opened().slide.layers:
        found = re.search(rf"{re.escape(layer.name)} +([\d.]+) ", text)
        assert found, layer.name
        assert float(found[1]) == pytest.approx(layer.grad_norm, rel=6e-3)
    if width == 80:
        names = re.findall(r"^  (lm_head|layers\.\d+)", text, re.MULTILINE)
        assert names == [layer.name for layer in opened().slide.layers]
        bars = {line.split()[0]: line.count("█") for line in text.splitlines() if "█" in line}
        assert bars["lm_head"] == max(bars.values()) > 2 * bars["layers.0"] > 2 * bars["layers.29"] > 0


def test_of_a_very_deep_model_the_ends_and_some_between_are_shown() -> None:
    layers = opened().slide.layers
    deep = [layers[0].model_copy(update={"name": f"deep.{n}"}) for n in range(100)]
    text = panel(6, shown(changed("layers", [layer.model_dump() for layer in deep]), 80))
    assert "Of 100 layers, one in 3 is shown." in text
    assert "deep.0 " in text
    assert "deep.99 " in text
    assert "deep.1 " not in text
    assert len(text.splitlines()) < 50


def test_clipping_is_said() -> None:
    assert "not clipped." in panel(6, shown())
    slide = opened("adamw", 1.0)
    text = " ".join(panel(6, shown(slide)).split())
    factor = slide.slide.backward.clip_factor
    assert f"more than max_grad_norm 1: the whole gradient is multiplied by {factor:.4g}" in text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizers_lines_lead_from_gradient_to_weight(optimizer: str) -> None:
    slide = opened(optimizer, 1.0)
    text = panel(7, shown(slide))
    for column, weight in enumerate(slide.slide.chosen):
        assert weight.why in text
        for stage in weight.stages:
            line = next(x for x in text.splitlines() if x.startswith(f"  {stage.name}  "))
            assert f"= {stage.formula}" in line
            value = float(line.split()[column - 2].replace("−", "-").replace(",", ""))
            assert value == pytest.approx(stage.value, rel=1e-3)
        line = next(x for x in text.splitlines() if x.startswith("  θ after"))
        assert float(line.split()[column - 2].replace("−", "-")) == pytest.approx(weight.after, abs=1e-6)
        for name, move in weight.would.items():
            value = row(text, f"Δ by {name} instead")[column - 2]
            assert float(value.replace("−", "-")) == pytest.approx(move, rel=1e-3)


def test_the_chosen_weights_tensors_are_summed_up() -> None:
    slide = opened("adamw", 1.0).slide
    text = panel(7, shown(opened("adamw", 1.0)))
    tensors = {tensor.name: tensor for tensor in slide.tensors}
    for stage in ("g", "Δ"):
        values = [float(word) for word in row(text, f"RMS of {stage}, whole tensor")[-2:]]
        assert values == pytest.approx([tensors[c.tensor].rms[stage] for c in slide.chosen], rel=6e-3)


def test_weights_without_arithmetic_still_show_where_they_went() -> None:
    text = panel(7, shown(changed("chosen.0.stages", [])))
    assert text.count("θ before") == 2
    assert text.count("= θ + Δ, as stored") == 2


def test_weights_of_other_arithmetic_get_a_table_of_their_own() -> None:
    other = changed("chosen.1.stages.1.formula", "0.5 · g")
    text = panel(7, shown(other))
    assert text.count("θ before") == 2
    assert panel(7, shown()).count("θ before") == 1


def test_an_update_that_was_refused() -> None:
    assert "the update was refused" in panel(7, shown(changed("loss_after", None)))
    refused = changed("optimizer.refused", "its tensors are not independent")
    assert "Its arithmetic is not shown: its tensors are not independent." in panel(7, shown(refused))


def test_the_weights_and_what_rounding_loses() -> None:
    weights = opened().slide.weights
    assert weights is not None
    text = " ".join(panel(8, shown()).split())
    assert weights.asked < weights.count
    moves = f"the update moves {weights.asked:,} of the {weights.count:,} weights"
    assert f"{moves}; {100 * weights.lost_share:.2f} % of them" in text
    assert weights.lost_means in text
    assert f"= {weights.update_ratio:.3g}".replace("e-", "e−") in text
    change = [b - a for a, b in zip(weights.before.counts, weights.after.counts, strict=True)]
    assert minus(f"new − old, {min(change):+,} to {max(change):+,}") in text
    assert "They were not recorded." in panel(8, shown(changed("weights", None)))


def test_histograms_that_differ_are_told_apart_without_colour() -> None:
    weights = opened().slide.weights
    assert weights is not None
    shifted = weights.after.counts[30:] + weights.after.counts[:30]
    text = panel(8, shown(changed("weights.after.counts", shifted)))
    drawn = text.splitlines()[2:7]
    assert any("o" in line for line in drawn)
    assert any("n" in line for line in drawn)
    assert not any(set(line) & set("on") for line in panel(8, shown()).splitlines()[2:7])


def test_the_mountain_has_start_landing_and_slope() -> None:
    mountain = opened().slide.mountain
    assert mountain is not None
    text = panel(9, shown())
    drawn = [line.partition("│")[2] for line in text.splitlines() if "│" in line]
    start, landing = ([line.find(mark) for line in drawn] for mark in "○◆")
    assert max(start) < max(landing)  # further along
    assert start.index(max(start)) < landing.index(max(landing))  # and lower
    assert sum(line.count("●") for line in drawn) == len(mountain.along) - 2
    assert f"○ before {opened().slide.loss_before:.3f}   ◆ landed {opened().slide.loss_after:.3f}" in text
    assert minus(f"slope {mountain.slope:.4f}") in text
    assert mountain.caption in " ".join(text.split())
    assert "It was not measured." in panel(9, shown(changed("mountain", None)))


def test_a_surface_is_drawn_from_above() -> None:
    of = full()
    recorded = of.slide.mountain
    assert recorded is not None and recorded.surface is not None
    heights = of.arrays[recorded.surface]
    text = panel(9, shown(of))
    drawn = [line.partition("│")[2].split() for line in text.splitlines() if "│" in line][7:]
    assert [len(row) for row in drawn] == [21] * 21
    digits = {digit for row in drawn for digit in row}
    assert digits == {*"0123456789", "○", "◆"}
    order = np.sort(heights, axis=None)
    for n, row in enumerate(reversed(drawn)):
        for m, digit in enumerate(row):
            if digit.isdigit():
                tenth = int(digit)
                assert (
                    order[tenth * 441 // 10] <= heights[n, m] <= order[min(440, -(-(tenth + 1) * 441 // 10))]
                )
    assert drawn[10].index("○") == recorded.along.index(0.0)
    assert drawn[10].index("◆") == recorded.along.index(1.0)
    assert recorded.across_is in " ".join(text.split())
    assert max(map(len, panel(9, shown(of, width=60)).splitlines())) <= 60


def test_where_the_step_landed_on_the_parabola() -> None:
    said = {
        30.0: "the step ended short of it",
        0.5: "the step ended past it",
        1.01: "landed at the lowest point",
    }
    for lowest, words in said.items():
        assert words in " ".join(panel(9, shown(changed("mountain.lowest_at", lowest))).split())
    assert "no lowest point" in " ".join(panel(9, shown(changed("mountain.lowest_at", None))).split())


def test_a_mountain_with_holes_is_drawn_around_them() -> None:
    mountain = opened().slide.mountain
    assert mountain is not None
    text = panel(9, shown(changed("mountain.losses", [*mountain.losses[:-2], math.inf, math.nan])))
    assert text.count("●") - 1 == len(mountain.along) - 4  # one stands in the key
    assert "not finite" in panel(9, shown(changed("mountain.losses", [math.nan] * 9)))


def test_after_is_beside_before() -> None:
    text = panel(10, shown())
    for one in opened().slide.positions[0].candidates[:5]:
        words = row(text, one.token.replace(" ", "·"))
        assert one.p_after is not None and one.p_head is not None and one.p_body is not None
        found = [float(words[n]) for n in (1, 2, -2, -1)]
        assert found == pytest.approx([one.p_before, one.p_after, one.p_head, one.p_body], rel=6e-3)
        assert words[3] == ("▲" if one.p_after > one.p_before else "▼")
    assert "The whole answer “Sacramento”: p 0.0187 → 0.0297" in text


def test_promised_and_obtained() -> None:
    slide = opened().slide
    assert slide.promised is not None and slide.obtained is not None
    said = f"promised {slide.promised:.4f}, obtained {slide.obtained:.4f} (98 % of it)"
    assert minus(said) in panel(11, shown())
    assert "it was not measured" in panel(11, shown(changed("loss_after", None)))


def test_what_was_asked_for_besides() -> None:
    noise = NoiseScale(batch=3, part=1, grad_norm_squared=2.0, trace=50.0, noise_scale=25.0)
    influence = Influence(position=1, examples=[("rows.jsonl:1", -0.5), ("rows.jsonl:2", 0.25)])
    text = shown(changed("influence", [influence.model_dump()], changed("noise", [noise.model_dump()])))
    assert "12  The gradient's noise" in text
    assert "25 targets" in text
    assert "Who pushed ramento?" in text
    assert row(text, "−0.5000")[-1] == "rows.jsonl:1"
    assert row(text, "+0.2500")[-1] == "rows.jsonl:2"
    few = changed("noise", [{**noise.model_dump(), "noise_scale": None}])
    assert "too few targets to tell" in shown(few)


def test_alerts_and_notes_are_there() -> None:
    text = shown(changed("alerts", ["the loss rose"], changed("notes", ["rounded to bf16"])))
    assert "\n! the loss rose\n" in text
    assert text.index("! the loss rose") < text.index("1  The batch")
    assert "Note: rounded to bf16" in text


# Positions and steps of many shapes ----------------------------------------------------------------------------


def test_another_position() -> None:
    text = shown(position=1)
    assert "After “·Sac” (capitals.jsonl:5, learned token 2)" in panel(2, text)
    assert f"−ln 0.99310 = {opened().slide.positions[1].loss_before:.3g}" in panel(3, text)
    with pytest.raises(UserError, match="position 3: the slide has no such position; it has 3, from 0 to 2"):
        shown(position=3)


def test_a_slide_without_positions() -> None:
    bare = changed("positions", [])
    text = shown(bare)
    assert "No target was looked at" in text
    assert [title for title in TITLES if title in text] == [TITLES[0], *TITLES[5:9], TITLES[10]]
    with pytest.raises(UserError, match="it has none"):
        shown(bare, position=1)


def test_a_slide_of_which_only_the_first_half_was_measured() -> None:
    """As after a gradient that was not finite: nothing after the update."""
    half = opened()
    for path in (
        "loss_after",
        "promised",
        "obtained",
        "weights",
        "mountain",
        "positions.0.loss_after",
    ):
        half = changed(path, None, half)
    for path, value in (("chosen", []), ("backward.grad_norm", "NaN"), ("layers.3.grad_norm", "Infinity")):
        half = changed(path, value, half)
    text = shown(half)
    assert "‖g‖ = NaN" in text
    assert "It was not measured." in panel(10, text)


def test_long_prompts_and_answers_keep_their_important_parts() -> None:
    example = opened().slide.batch.examples[0].model_dump()
    prompt = [{"text": f" w{n}", "id": n} for n in range(2000)]
    answer = [{"text": f" a{n}", "id": n, "loss": 0.1 + (n == 700) * 8} for n in range(1000)]
    text = panel(1, shown(changed("batch.examples.0", {**example, "tokens": [*prompt, *answer]})))
    assert "…" in text  # the beginning is left out
    assert "·w1999\n" in text
    assert "·w0·" not in text
    assert "·a0 " in text
    assert re.search(r"… \d+ more lines of learned tokens", text)
    assert "costliest: “·a700” 8.10" in text
    assert len(text.splitlines()) < 25


def test_steps_of_many_examples_list_some() -> None:
    example = opened().slide.batch.examples[0].model_dump()
    many = [{**example, "where": f"capitals.jsonl:{n}", "share": 1 / 9} for n in range(1, 10)]
    wide = changed("batch.examples_left_out", 7, changed("batch.examples", many))
    text = panel(1, shown(wide))
    assert text.splitlines()[2].startswith("  capitals.jsonl:5: ")  # the one that is looked at
    assert text.count("capitals.jsonl:") == 6
    assert "and 10 more" in text


# Untrusted text ------------------------------------------------------------------------------------------------

HOSTILE = [
    ("\x1b[2J\x1b[31m", r"\x1b[2J\x1b[31m"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\x9b31m", r"\x9b31m"),
    ("a\nb\tc\rd", r"a⏎b⇥c\rd"),
    ("\u202eabc", r"\u202eabc"),
    ("\u200b\u2028", r"\u200b\u2028"),
    ("\u00a0x", r"\xa0x"),
    ("\u0301e", "◌\u0301e"),
    ("\ud800", r"\ud800"),
    ("[red]x[/red]", "[red]x[/red]"),
    ("[/]", "[/]"),
    (":smile:", ":smile:"),
    ("", "(empty)"),
    ("   ", "···"),
]


@pytest.mark.parametrize(("text", "seen"), HOSTILE)
def test_tokens_are_seen_and_never_obeyed(text: str, seen: str) -> None:
    positions = [p.model_dump() for p in opened().slide.positions]
    positions[0] |= {"token": text, "target": text}
    positions[0]["candidates"][2]["token"] = positions[0]["head_rows"][0]["token"] = text
    slide = opened().slide.model_copy(
        update={"positions": [type(opened().slide.positions[0])(**p) for p in positions]}
    )
    hostile = Opened(slide=slide, arrays=opened().arrays)
    said = shown(hostile)
    short = seen if len(seen) <= 16 else seen[:15]
    for number in (2, 4, 5, 10):
        assert short in panel(number, said)
    assert not [c for c in said if c != "\n" and not c.isprintable()]
    assert max(map(cell_len, said.splitlines())) <= 100


@pytest.mark.parametrize("path", [
    "headline", "model", "opened_because", "notes", "alerts", "batch.examples.0.where",
    "batch.examples.0.tokens.3.text", "batch.examples.0.tokens.15.text", "layers.2.name", "tensors.0.name",
    "optimizer.name", "chosen.0.why", "chosen.0.tensor", "chosen.0.stages.0.name",
    "chosen.0.stages.0.formula", "chosen.0.would_state", "weights.lost_means", "mountain.caption",
    "mountain.probe", "watched.0.text", "head.unknown", "head.top_rows.0.token", "positions.0.where",
])  # fmt: skip
def test_every_text_of_a_slide_is_made_harmless(path: str) -> None:
    evil = "\x1b[2J[bold]\x07\r"
    said = shown(changed(path, [evil] if path in ("notes", "alerts") else evil))
    assert r"\x1b[2J" in said
    assert not [c for c in said if c != "\n" and not c.isprintable()]


def test_wide_characters_keep_columns() -> None:
    text = shown(changed("positions.0.candidates.3.token", " 加利福尼亚州首府是萨克拉门托"), 80)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "·加利福尼亚州首…" in panel(2, text)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 3, "1,234"),
        (9999.7, 4, "10,000"),
        (150.0, 2, "150"),
        (999.9, 3, "1,000"),
        (0.001234, 4, "0.001234"),
        (-1.2e-7, 2, "−1.2e−07"),
        (2e9, 3, "2e09"),
    ],
)
def test_large_numbers_are_written_out(value: float, digits: int, text: str) -> None:
    assert glyphs.number(value, digits) == text
    if abs(value) >= 1:
        assert glyphs.fixed(value, digits) == text
