"""The report as text: self-contained, safe with any row's text, tolerant of broken runs; the notebook's tables."""

from __future__ import annotations

import base64
import builtins
import hashlib
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surefoot.errors import UserError
from surefoot.microscope.slide import Opened
from surefoot.report import curves
from surefoot.report.curves import columns, layer_of
from surefoot.report.notebook import SlideView, open_slide
from surefoot.report.page import embedded, render
from surefoot.report.runs import load_slides, read_run
from tests.report import samples


class Elements(HTMLParser):
    """Every element and attribute of a page, and what stands in its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        name = "data" if attributes.get("id") == "data" else tag
        self.inside.setdefault(name, []).append(data)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return samples.full()


def data_of(page: str) -> dict[str, Any]:
    return json.loads("".join(Elements(page).inside["data"]))


def test_the_page_holds_everything_and_may_load_nothing(opened: Opened) -> None:
    found = Elements(page := render([opened]))
    assert {
        tag for tag, attributes in found.tags if {"src", "href", "action", "srcset"} & set(attributes)
    } == set()
    policy = (
        next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for kind in ("script", "style"):
        text = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "@import" not in page and "url(" not in page


def test_without_data_the_page_is_small(opened: Opened) -> None:
    page = render([])
    assert len(page.encode()) < 200_000
    assert len(render([opened]).encode()) > len(page.encode())


def test_the_data_in_the_page_are_the_slide(opened: Opened) -> None:
    [found] = data_of(render([opened]))["slides"]
    assert found["slide"] == json.loads(opened.slide.model_dump_json())
    wanted = {p.hidden for p in opened.slide.positions} | {p.flows_back for p in opened.slide.positions}
    assert set(found["arrays"]) == wanted | {"mountain.surface"}
    for name, packed in found["arrays"].items():
        values = np.frombuffer(base64.b64decode(packed["f4"]), "<f4").reshape(packed["shape"])
        assert np.array_equal(values, opened.arrays[name])


@pytest.mark.parametrize("text", [*samples.HOSTILE, "\ud83d", "</SCRIPT >", "<!DOCTYPE>", "]]>"])
def test_no_text_can_leave_the_data(text: str) -> None:
    block = embedded({"text": text, text: [text]})
    assert not re.search(r"[<>&\u2028\u2029]", block)
    block.encode("utf-8")
    assert json.loads(block) == {"text": text, text: [text]}


def test_hostile_texts_add_no_element() -> None:
    def tags(slide: Opened) -> list[str]:
        return [tag for tag, _ in Elements(render([slide])).tags]

    assert tags(samples.hostile()) == tags(samples.full())


def test_numbers_that_are_not_finite_stay_readable() -> None:
    assert json.loads(embedded([math.nan, math.inf, -math.inf, 1.5])) == ["NaN", "Infinity", "-Infinity", 1.5]


def test_a_run_becomes_columns(tmp_path: Path) -> None:
    run = read_run(samples.run_folder(tmp_path / "caps", steps=40))
    found = columns(run)
    steps = run.of("step")
    assert found["steps"] == 40
    assert found["curves"]["loss"] == {"x": list(range(1, 41)), "y": [event["loss"] for event in steps]}
    assert "mfu" not in found["curves"], "it was never a number"
    assert found["evals"][0]["step"] == [20, 40]
    assert found["watches"][0]["p"]["Sacramento"] == [event["p"]["Sacramento"] for event in run.of("watch")]
    assert {event["type"] for event in found["events"]} == {"start", "eval", "end"}
    assert found["last"]["step"] == 40 and found["last"]["loss"] == steps[-1]["loss"]
    assert found["problems"] == []


def test_tensors_add_up_to_layers(tmp_path: Path) -> None:
    run = read_run(samples.run_folder(tmp_path / "caps", steps=20))
    heat = columns(run)["heat"]
    assert heat["layers"] == ["model.embed_tokens", *(f"model.layers.{n}" for n in range(12)), "model.norm"]
    names = run.config["tensors"]
    for column, record in enumerate(run.of("tensors")):
        for row, layer in enumerate(heat["layers"]):
            mine = [i for i, name in enumerate(names) if name.startswith(f"{layer}.")]
            grad, weight, update = (
                math.sqrt(sum(record[key][i] ** 2 for i in mine))
                for key in ("grad_norm", "weight_norm", "update_norm")
            )
            assert heat["grad_norm"][row][column] == pytest.approx(grad)
            assert heat["update_ratio"][row][column] == pytest.approx(update / weight)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", "model.layers.11"),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.0"),
        (
            "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight",
            "base_model.model.model.layers.3",
        ),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
    ],
)
def test_layers_of_tensors(tensor: str, layer: str) -> None:
    assert layer_of(tensor) == layer


def test_long_runs_keep_their_spikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BUCKETS", 20)
    run = read_run(samples.run_folder(tmp_path / "caps", steps=200))
    found = columns(run)
    assert found["steps"] == 200
    for name in ("loss", "grad_norm"):
        drawn, whole = found["curves"][name], [event[name] for event in run.of("step")]
        assert len(drawn["x"]) <= 2 * 20 + 2 and drawn["x"] == sorted(set(drawn["x"]))
        assert (drawn["x"][0], drawn["x"][-1]) == (1, 200)
        assert max(drawn["y"]) == max(whole) and min(drawn["y"]) == min(whole)
        assert drawn["y"] == [whole[int(step) - 1] for step in drawn["x"]]
    marked = {event["step"]: event["loss"] for event in found["events"] if event["type"] == "alert"}
    assert marked == {120: run.of("step")[119]["loss"]}, "where it is marked on the curve"


def test_a_long_run_can_be_smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BUCKETS", 20)
    run = read_run(samples.run_folder(tmp_path / "r", steps=900))
    losses = [event["loss"] for event in run.of("step")]
    run.of("step")[500]["loss"] = losses[500] = math.nan
    means = columns(run)["means"]["loss"]
    assert sum(means["n"]) == 899, "what is no number is in no mean"
    size = 900 // len(means["x"]) + 1
    for i, (x, y, n) in enumerate(zip(means["x"], means["y"], means["n"], strict=True)):
        part = [loss for loss in losses[i * size : (i + 1) * size] if not math.isnan(loss)]
        assert n == len(part) and y == pytest.approx(sum(part) / n, rel=1e-9)
        assert i * size < x <= (i + 1) * size


def test_events_are_told_in_lines(tmp_path: Path) -> None:
    folder = samples.run_folder(tmp_path / "r", steps=10)
    start = {"type": "start", "step": 0, "resumed": True, "notes": ["checked on 3 rows", "memory fits"]}
    slide = {"type": "slide", "step": 3, "headline": "Step 3: loss", "because": "asked for"}
    lines = "".join(json.dumps(event) + "\n" for event in (start, slide))
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    told = [event["text"] for event in columns(read_run(folder))["events"]]
    assert told == ["resumed\nchecked on 3 rows\nmemory fits", "Step 3: loss\nOpened because: asked for"]


def test_a_crashed_run_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = samples.with_slides(
        samples.run_folder(tmp_path / "caps", steps=30), samples.full(10), samples.full(20)
    )
    with (folder / "events.jsonl").open("a", encoding="utf-8") as out:
        out.write('not a record\n[1, 2]\n{"type": "step", "step": true}\n{"type": "step", "st')
    (folder / "run.json").write_text('{"config": {', encoding="utf-8")
    (folder / "slides" / "step-00000020" / "slide.json").write_text("{}", encoding="utf-8")
    (folder / "slides" / ".step-00000030.partial").mkdir()
    run = read_run(folder)
    slides, problems = load_slides(run)
    assert len(run.of("step")) == 30 and run.config == {}
    assert [found.slide.step for found in slides] == [10]
    assert len(problems) == 1 and "step-00000020" in problems[0]
    page = render(slides, run)
    told = data_of(page)["run"]["problems"]
    assert [len([p for p in told if word in p]) for word in ("run.json", "left out", "1 of 2 slides")] == [
        1,
        4,
        1,
    ]


def test_records_of_the_wrong_shape_do_not_stop_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = [None, 1, "text", [], {}, [[]], {"a": {"b": None}}, True]
    names = ("loss", "metrics", "p", "prompt", "notes", "message", "examples", "grad_norm", "time", "name")
    records = [
        {"type": kind, "step": step, **dict.fromkeys(names, value)}
        for step, value in enumerate(odd)
        for kind in (
            "start",
            "step",
            "eval",
            "watch",
            "sample",
            "tensors",
            "slide",
            "alert",
            "checkpoint",
            "end",
        )
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (folder / "run.json").write_text(
        json.dumps({"tensors": ["a.weight", "b.weight"], "data": 3}), encoding="utf-8"
    )
    found = data_of(render([], read_run(folder)))["run"]
    assert found["steps"] == len(odd)
    assert any("worst rows" in problem for problem in found["problems"])


def test_where_a_run_went_on_is_told_by_run_json(tmp_path: Path) -> None:
    records = [("start", 0), ("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("end", 3)]
    lines = [json.dumps({"type": kind, "step": step}) for kind, step in records]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    odd = [{"step": "x"}, {"step": -1}, 7]
    resumed = {"resumed": [{"step": 2, "time": 1.0, "notes": ["goes on after step 2"]}, *odd]}
    (tmp_path / "run.json").write_text(json.dumps(resumed), encoding="utf-8")
    run = read_run(tmp_path)
    assert [(event["type"], event["step"]) for event in run.events] == [
        *records[:4],
        ("start", 2),
        *records[4:],
    ]
    assert run.of("start")[1]["notes"] == ["goes on after step 2"]
    ticks = data_of(render([], run))["run"]["events"]
    assert "resumed\ngoes on after step 2" in [tick["text"] for tick in ticks]
    (tmp_path / "run.json").write_text('{"resumed": 3}', encoding="utf-8")
    assert len(read_run(tmp_path).events) == len(records)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        read_run(tmp_path)


def test_the_notebook_gets_a_frame_of_its_own(opened: Opened) -> None:
    [frame] = [
        attributes for tag, attributes in Elements(SlideView(opened)._repr_html_()).tags if tag == "iframe"
    ]
    assert frame["srcdoc"] == render([opened])
    assert frame["sandbox"] == "allow-scripts allow-modals"


def test_the_notebook_gets_tables(opened: Opened, tmp_path: Path) -> None:
    view = open_slide(opened.save(tmp_path / "step-00000340"))
    slide = opened.slide
    candidates = view.to_dataframe("candidates")
    assert len(candidates) == sum(len(position.candidates) for position in slide.positions)
    target = candidates[(candidates.position == 0) & candidates.is_target]
    assert target.p_before.item() == pytest.approx(math.exp(-slide.positions[0].loss_before))
    assert view.to_dataframe("layers").grad_norm.tolist() == [layer.grad_norm for layer in slide.layers]
    assert view.to_dataframe("tensors")["rms g"].tolist() == [tensor.rms["g"] for tensor in slide.tensors]
    batch = view.to_dataframe("batch")
    assert batch.loss.sum() == pytest.approx(sum(example.loss for example in slide.batch.examples))
    assert batch.learned.sum() == slide.batch.supervised
    chosen = view.to_dataframe("chosen")
    assert chosen[chosen.stage == "after"].value.tolist() == [weight.after for weight in slide.chosen]
    assert view.to_dataframe("head_rows").position.isna().sum() == len(slide.head.rows)
    assert view.to_dict()["loss_before"] == slide.loss_before
    assert view.save_html(tmp_path / "out.html").read_text(encoding="utf-8") == render([opened])
    assert html.unescape(repr(view)).startswith("SlideView(step 340")


def test_the_notebook_says_what_is_wrong(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = SlideView(opened)
    with pytest.raises(UserError, match="Did you mean 'layers'"):
        view.to_dataframe("layer")
    with pytest.raises(UserError, match="cannot be written"):
        view.save_html(tmp_path / "nowhere" / "out.html")
    real = builtins.__import__

    def without_pandas(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(UserError, match="pip install pandas"):
        view.to_dataframe("layers")
