"""The report in a browser, from disk with the network blocked: it draws, reads out, zooms, and runs no text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from surefoot.microscope.slide import Opened
from surefoot.report.page import render
from surefoot.report.runs import read_run
from tests.report import samples

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Open

COLOURS = """canvases => canvases.map(canvas => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const ink = copy.getContext("2d", { willReadFrequently: true });
  ink.drawImage(canvas, 0, 0);
  const { data } = ink.getImageData(0, 0, copy.width, copy.height);
  const found = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) found.add(data.slice(i, i + 3).join());
  return found.size;
})"""
"""How many colours each canvas has."""
PIXELS = 'canvases => canvases.map(canvas => canvas.toDataURL().length + ":" + canvas.toDataURL().slice(-400, -40))'


def figure(page: Page, label: str) -> Locator:
    return page.locator("figure").filter(
        has=page.locator("figcaption", has_text=re.compile(f"^{re.escape(label)}"))
    )


def numbers(page: Page, label: str) -> list[list[str]]:
    """The rows of the figure's table, which is made when it is asked for."""
    rows = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    reveal = figure(page, label).get_by_role("button", name=re.compile("^Numbers of"))
    if reveal.get_attribute("aria-pressed") == "false":
        reveal.click()
    return figure(page, label).locator(".numbers tbody tr").evaluate_all(rows)


def hover(page: Page, canvas: Locator, x: float, y: float) -> str:
    """What the figure says at a point, in parts of its width and height."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    return canvas.locator("xpath=ancestor::figure").locator(".tip").inner_text()


def read(text: str) -> float:
    """A number as the page writes it."""
    text = text.replace("−", "-").replace(",", "").replace("+", "")
    superscript = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    text = re.sub(r"^(-?)10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻])", r"\g<1>1·10\2", text)
    return float(re.sub(r"·10(.+)", lambda found: f"e{found[1].translate(superscript)}", text))


def test_every_drawing_draws_in_light_and_dark(show: Open, slide: Opened, run_page: str) -> None:
    for text in (render([slide]), run_page):
        page = show(text, scheme="light")
        canvases = page.locator("canvas")
        assert canvases.count() > 15
        assert min(canvases.evaluate_all(COLOURS)) > 3
        light = canvases.evaluate_all(PIXELS)
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(100)
        dark = canvases.evaluate_all(PIXELS)
        assert min(canvases.evaluate_all(COLOURS)) > 3
        assert all(a != b for a, b in zip(light, dark, strict=True))
        page.locator("#theme").click()
        assert canvases.evaluate_all(PIXELS) == light, "the button turns to light, whatever the system says"


def test_tables_of_a_slide_agree_with_its_numbers(show: Open, slide: Opened) -> None:
    page = show(render([slide]))
    numbers_of, found = slide.slide, lambda label: numbers(page, label)
    position = numbers_of.positions[0]
    bars = found("Probability of the next token")
    by_token = [
        (c.p_before, c.p_after)
        for i, c in enumerate(position.candidates)
        if i < 12 or c.is_target or c.is_watched
    ]
    assert [(float(row[1]), float(row[2])) for row in bars] == by_token
    errors = [float(row[1]) for row in found("Error column")]
    assert sum(errors) == pytest.approx(position.error_sum, abs=1e-9)
    assert sum(error < 0 for error in errors) == 1
    figure(page, "Error column").get_by_role("button", name="without w").click()
    raw = [float(row[1]) for row in found("Error column without")]
    assert [error * position.weight for error in raw] == pytest.approx(errors, rel=1e-6)
    hidden = slide.arrays[position.hidden or ""]
    assert [float(row[1]) for row in found("The hidden state h")] == hidden.astype(float).tolist()
    rows = found("Gradient of the head's rows")
    target = next(c for c in position.candidates if c.is_target)
    assert [float(row[1]) for row in rows] == pytest.approx(
        (hidden * target.error_product).tolist(), rel=1e-6
    )
    assert [float(row[1]) for row in found("‖g‖ of each layer")] == [
        layer.grad_norm for layer in numbers_of.layers
    ]
    weights = numbers_of.weights
    mountain = numbers_of.mountain
    assert weights is not None and mountain is not None and mountain.surface is not None
    counts = [[int(row[2]), int(row[3])] for row in found("All weights, before and after")]
    assert counts == [list(pair) for pair in zip(weights.before.counts, weights.after.counts, strict=True)]
    assert [int(row[2]) for row in found("Difference of the counts")] == [b - a for a, b in counts]
    assert [int(row[2]) for row in found("How far weights moved")] == weights.change.counts
    cut = {float(row[0]): float(row[1]) for row in found("Altitude (loss") if row[1] != "NaN"}
    assert cut == dict(zip(mountain.along, mountain.losses, strict=True))
    surface = slide.arrays[mountain.surface]
    for label in ("Altitude from above", "The same as a landscape"):
        assert [[float(cell) for cell in row[1:]] for row in found(label)] == surface.astype(float).tolist()
    share = page.locator("#weights .meter i").evaluate(
        "bar => bar.offsetWidth / bar.parentElement.clientWidth"
    )
    assert share == pytest.approx(weights.lost_share, abs=0.01)


def test_pointing_reads_the_number(show: Open, slide: Opened) -> None:
    page = show(render([slide]))
    layers = slide.slide.layers
    canvas = figure(page, "‖g‖ of each layer").locator("canvas")
    told = hover(page, canvas, 0.4, 0.5).split("\n")
    layer = next(layer for layer in layers if layer.name == told[0])
    assert read(told[1].removeprefix("‖g‖ ")) == pytest.approx(layer.grad_norm, rel=1e-3)
    canvas.focus()
    page.keyboard.press("Home")
    assert figure(page, "‖g‖ of each layer").locator(".tip").inner_text().startswith(layers[0].name)
    weights = slide.slide.weights
    assert weights is not None
    told = hover(page, figure(page, "All weights, before").locator("canvas"), 0.5, 0.5).split("\n")
    edge = read(told[0].split(" … ")[0])
    bin_ = min(range(len(weights.before.counts)), key=lambda i: abs(weights.before.edges[i] - edge))
    assert read(told[1].removeprefix("before ")) == weights.before.counts[bin_]


def test_curves_read_zoom_and_reset(show: Open, run_page: str) -> None:
    page = show(run_page)
    losses = {row[0]: row[1] for row in numbers(page, "Loss by step")}
    over = figure(page, "Loss by step").locator(".u-over")

    def at(x: float) -> tuple[str, float]:
        told = hover(page, over, x, 0.5).split("\n")
        return told[0].removeprefix("step "), read(told[1].removeprefix("training "))

    for x in (0.01, 0.5, 0.99):
        step, loss = at(x)
        assert loss == pytest.approx(float(losses[step]), rel=1e-3)
    first = at(0.01)
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 50, steps=4)
    page.mouse.up()
    assert 95 <= int(at(0.01)[0]) <= 105 and 155 <= int(at(0.99)[0]) <= 165
    over.dblclick()
    assert at(0.01) == first
    figure(page, "Loss by step").get_by_role("button", name="log scale").click()
    assert at(0.01) == first


def test_a_token_chooses_the_position_and_a_head_sorts(show: Open, slide: Opened) -> None:
    page = show(render([slide]))
    token = page.locator("#batch button.token").nth(1)
    token.hover()
    assert "−log p" in page.locator("#batch .tip:visible").inner_text()
    token.click()
    assert page.locator("#position").input_value() == "1"
    candidates = slide.slide.positions[1].candidates
    assert float(numbers(page, "Probability of the next token")[0][1]) == candidates[0].p_before
    page.locator("#position").select_option("2")
    assert page.locator("#batch .token.chosen").inner_text() == slide.slide.positions[2].target
    table = page.locator("#backward table.data")
    table.get_by_role("button", name="‖Δ‖/‖θ‖", exact=True).click()
    largest = max(slide.slide.tensors, key=lambda tensor: tensor.update_ratio or 0)
    assert table.locator("tbody tr").first.locator("td").first.inner_text() == largest.name


def test_the_position_that_the_slide_looks_at_comes_first(show: Open, slide: Opened) -> None:
    second = Opened(slide=slide.slide.model_copy(update={"looked_at": 1}), arrays=slide.arrays)
    page = show(render([second]))
    assert page.locator("#position").input_value() == "1"
    assert page.locator("#batch .token.chosen").inner_text() == slide.slide.positions[1].target
    candidates = slide.slide.positions[1].candidates
    assert float(numbers(page, "Probability of the next token")[0][1]) == candidates[0].p_before


def test_the_slides_of_a_run_can_be_chosen(show: Open, run_page: str) -> None:
    page = show(run_page)
    page.get_by_role("button", name="Next slide").click()
    assert page.locator("#which").input_value() == "120"
    page.get_by_role("button", name="Previous slide").click()
    assert "step 100" in page.locator("#headline .eyebrow").inner_text()
    page.locator("#which").select_option("120")
    assert "step 120" in page.locator("#headline .eyebrow").inner_text()
    heat = numbers(page, "Gradient norm, layer × step")
    assert [row[0] for row in heat][:2] == ["model.embed_tokens", "model.layers.0"]


def test_numbers_are_written_the_same_way_everywhere(show: Open, slide: Opened, run_page: str) -> None:
    weights = slide.slide.weights
    assert weights is not None
    tile = (
        show(render([slide]))
        .locator("#weights dl > div", has_text=re.compile("^Weights"))
        .locator("dd")
        .first
    )
    assert tile.inner_text() == f"{weights.count:,}"
    position = slide.slide.positions[0]
    tiny = position.model_copy(
        update={
            "candidates": [
                c.model_copy(update={"p_before": p, "p_after": 1.0})
                for c, p in zip(position.candidates, (0.99994, 0.25, 4.2e-7), strict=False)
            ]
        }
    )
    page = show(
        render([Opened(slide=slide.slide.model_copy(update={"positions": [tiny]}), arrays=slide.arrays)])
    )
    cells = page.locator("#prediction table.data tbody td:nth-child(3)").all_inner_texts()
    assert cells == ["> 99.99 %", "25 %", "4.2·10⁻⁵ %"]
    page = show(run_page)
    assert page.locator("#curves figcaption").all_inner_texts() == [
        "Loss by step, nats a token",
        "Token accuracy: how often the likeliest token was the right one",
    ]
    assert figure(page, "Token accuracy").locator(".legend button").all_inner_texts() == ["training", "eval"]
    assert page.locator("h1").count() == 1
    for text in page.locator("table.data th button, dl dt, .caption, .note").all_inner_texts():
        assert not re.match(r"[a-z]{2,}[ ,]", text), text


def test_a_click_on_an_opened_step_shows_its_slide(show: Open, run_page: str) -> None:
    page = show(run_page)
    over = figure(page, "Loss by step").locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * (120 - 1) / 199, box["y"] + 40)
    assert page.locator("#which").input_value() == "120"
    assert "step 120" in page.locator("#headline .eyebrow").inner_text()


def test_tables_of_numbers_are_made_when_asked_for(show: Open, slide: Opened) -> None:
    page = show(render([slide]))
    assert page.locator(".numbers td").count() == 0
    reveal = page.get_by_role("button", name="Numbers of: The hidden state h")
    reveal.focus()
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Numbers of: The hidden state h")
    assert table.locator("tbody tr").count() == len(slide.arrays[slide.slide.positions[0].hidden or ""])
    page.keyboard.press("Enter")
    assert page.locator(".numbers td").count() == 0


def test_what_pushed_a_prediction_follows_the_position(show: Open, slide: Opened) -> None:
    first = slide.slide.influence[0]
    other = first.model_copy(update={"position": 1, "examples": [("elsewhere.jsonl:7", 0.25)]})
    both = slide.slide.model_copy(update={"influence": [first, other]})
    page = show(render([Opened(slide=both, arrays=slide.arrays)]))
    label = "Which rows pushed"
    assert [row[0] for row in numbers(page, label)] == [where for where, _ in first.examples]
    page.locator("#position").select_option("1")
    assert numbers(page, label) == [["elsewhere.jsonl:7", "0.25"]]
    page.locator("#influenced").select_option("0")
    assert len(numbers(page, label)) == len(first.examples)
    assert page.locator("#noise figure").count() == 1


def test_no_text_of_a_row_runs(show: Open, tmp_path: Path) -> None:
    folder = samples.run_folder(tmp_path / "caps", steps=30, texts=" ".join(samples.HOSTILE))
    run = read_run(folder)
    bad = samples.hostile()
    page = show(render([bad], run))
    page.wait_for_timeout(300)
    assert page.evaluate("window.hurt") is None
    assert page.locator("#page :is(img, svg, iframe, script, b)").count() == 0
    page.locator("#batch .token").first.hover()
    assert page.locator("#headline h2").inner_text().startswith("</script><script>window.hurt=1</script>")


def test_the_notebook_frame_draws(show: Open, slide: Opened) -> None:
    from surefoot.report.notebook import SlideView

    page = show(f'<div id="page"><div class="panel">{SlideView(slide)._repr_html_()}</div></div>')
    frame = page.frame_locator("iframe")
    frame.locator("#after canvas").first.wait_for()
    assert frame.locator("canvas").count() > 15


def test_a_phone_and_a_printer_show_all(show: Open, run_page: str) -> None:
    page = show(run_page, width=390, scheme="dark")
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 390
    event = page.locator("#events tbody tr").first
    assert event.evaluate("row => row.scrollWidth") <= 390
    table = page.locator("#backward .scroll")
    table.evaluate("box => { box.scrollLeft = 400 }")
    name, around = table.locator("tbody td").first.bounding_box(), table.bounding_box()
    assert name is not None and around is not None and abs(name["x"] - around["x"]) < 2
    before = page.locator("canvas").evaluate_all(PIXELS)
    page.emulate_media(media="print")
    for _ in range(60):  # wait_for_function would need eval, which the page forbids
        if page.evaluate("document.documentElement.dataset.theme") == "light":
            break
        page.wait_for_timeout(50)
    assert page.locator("canvas").evaluate_all(PIXELS) != before
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5


def test_a_step_without_an_update_has_its_page(show: Open, slide: Opened) -> None:
    """As after a gradient that was not finite."""
    none = dict.fromkeys(("loss_after", "promised", "obtained", "weights", "mountain"))
    after: dict[str, None] = dict.fromkeys(("loss_after", "rank_after", "kl"))
    positions = [position.model_copy(update=after) for position in slide.slide.positions]
    half = slide.slide.model_copy(update={**none, "chosen": [], "positions": positions})
    page = show(render([Opened(slide=half, arrays=slide.arrays)]))
    assert page.locator("#weights, #mountain").count() == 0
    assert page.locator("#backward canvas").count() > 0
    said = page.locator("#optimizer").inner_text()
    assert slide.slide.optimizer.name in said and "the update was refused" in said
