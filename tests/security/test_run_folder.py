"""A hostile run folder, slide or recipe is refused in one line, in seconds, in bounded memory."""

# ruff: noqa: E501

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot import UserError
from surefoot.microscope.slide import Opened
from surefoot.recipes import read_recipe
from surefoot.report.runs import read_run
from tests.conftest import Surefoot
from tests.report.sample_slide import sample
from tests.report.samples import run_folder, with_slides
from tests.security.hostile import NESTED, as_link, as_pipe, as_socket, header

Spoil = Callable[[Path], object]
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
RECIPES: dict[str, tuple[Spoil, str]] = {
    "a pipe": (as_pipe, "is a pipe (FIFO), not an ordinary file"),
    "a socket": (as_socket, "cannot be read"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "is a device, not an ordinary file"),
    "a folder": (lambda p: p.mkdir(), "is a folder, not an ordinary file"),
    "huge": (lambda p: (p.touch(), os.truncate(p, 1 << 33)), "is larger than 131,072 bytes"),
    "binary": (lambda p: p.write_bytes(b"\xff\xfe"), "not UTF-8 at byte offset 0"),
    "laughs": (lambda p: p.write_text(LAUGHS), "its anchors unfold to more than 20,000 values"),
    "merges": (lambda p: p.write_text(MERGES), "its anchors unfold to more than 20,000 values"),
    "a circle": (lambda p: p.write_text("a: &a [*a]\n"), "an anchor holds itself"),
    "nested": (lambda p: p.write_text("a: " + "[" * 50_000), "nested too deeply"),
    "an object": (lambda p: p.write_text("a: !!python/object/apply:os.system ['true']\n"), "not valid YAML"),
    "a module": (lambda p: p.write_text("a: !!python/module:antigravity\n"), "not valid YAML"),
    "a long number": (lambda p: p.write_text("seed: " + "9" * 5000), "a value cannot be read"),
    "no day": (lambda p: p.write_text("seed: 2001-99-99"), "a value cannot be read"),
    "a list as key": (lambda p: p.write_text("? [a]\n: 1"), "not valid YAML"),
    "two documents": (lambda p: p.write_text("seed: 1\n---\nseed: 2\n"), "not valid YAML"),
    "a list": (lambda p: p.write_text("[1]"), "a recipe is a list of `option: value` lines"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused(name: str, surefoot: Surefoot, tmp_path: Path) -> None:
    spoil, said = RECIPES[name]
    recipe = tmp_path / "recipe.yaml"
    spoil(recipe)
    began = time.process_time()
    found = surefoot("train", recipe)
    assert time.process_time() - began < 10
    assert (found.status, found.out) == (2, "")
    assert said in found.err and len(found.err.splitlines()) == 1


def test_a_recipe_may_use_anchors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: &rate 0.5\nweight_decay: *rate\ncolumns: &c {prompt: q}\n")
    assert read_recipe(path) == {"learning_rate": 0.5, "weight_decay": 0.5, "columns": {"prompt": "q"}}


# Runs ------------------------------------------------------------------------------------------------------

EVENTS: dict[str, bytes] = {
    "nested": NESTED.encode() + b"\n",
    "a long number": b'{"type": "step", "step": ' + b"9" * 5000 + b"}\n",
    "a large step": b'{"type": "step", "step": 1' + b"0" * 400 + b"}\n",
    "a negative step": b'{"type": "step", "step": -1}\n',
    "a list": b"[1]\n",
    "a step of words": b'{"type": "step", "step": "1"}\n',
    "a type of numbers": b'{"type": 1, "step": 1}\n',
    "binary": b"\xff\xfe\x00\n" * 3,
    "surrogates": b'{"type": "alert", "step": 1, "message": "\\ud800", "kind": "\\udfff"}\n',
    "not finite": b'{"type": "step", "step": 1, "loss": NaN, "examples": [["a:1", Infinity, 3]], "step_seconds": -Infinity}\n',
    "examples of words": b'{"type": "step", "step": 1, "examples": "abc"}\n',
    "examples of numbers": b'{"type": "step", "step": 1, "examples": [1, 2]}\n',
    "examples of lists": b'{"type": "step", "step": 1, "examples": [[[1], 2, 3]]}\n',
    "examples of giants": b'{"type": "step", "step": 1, "examples": [["a", 1' + b"0" * 400 + b", 3]]}\n",
    "tensors of words": b'{"type": "tensors", "step": 1, "grad_norm": "abc", "zero_share": [[]], "weight_norm": {}}\n',
    "watch of words": b'{"type": "watch", "step": 1, "prompt": [], "p": "x"}\n{"type": "eval", "step": 1, "metrics": 7}\n',
    "control characters": b'{"type": "alert", "step": 1, "kind": "\\u001b[2J", "message": "</script><script>alert(1)"}\n',
    "slides above": b'{"type": "slide", "step": 1, "path": "../../../../etc/passwd", "headline": "x"}\n',
    "a thousand bad lines": b"{\n" * 1000,
}
FILES: dict[str, Spoil] = {
    "a pipe": as_pipe,
    "a socket": as_socket,
    "a device": lambda p: as_link(p, Path("/dev/zero")),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "nested": lambda p: p.write_text(NESTED),
    "binary": lambda p: p.write_bytes(bytes(range(256)) * 10),
    "a list": lambda p: p.write_text("[]"),
    "empty": lambda p: p.write_bytes(b""),
    "huge": lambda p: (p.write_bytes(b""), os.truncate(p, 1 << 40)),
    "a link to nothing": lambda p: as_link(p, Path("nothing")),
    "words": lambda p: p.write_text(
        '{"config": "x", "model": [], "data": 7, "tensors": {}, "total_steps": "many"}'
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = run_folder(tmp_path / "run", steps=30)
    return with_slides(folder, sample())


def commands(run: Path) -> list[tuple[object, ...]]:
    return [
        ("report", run),
        ("report", run, "--terminal"),
        ("worst", run),
        ("worst", run, "--json"),
        ("compare", run, "--prompt", "Hi", "--use_cpu"),
        ("chat", run, "--prompt", "Hi", "--use_cpu"),
        ("checkpoints", run),
        ("verify", run),
    ]


def each_is_fine_or_refused(surefoot: Surefoot, run: Path, *only: str) -> None:
    """No command shows a traceback (it would be raised here), waits, or takes long."""
    for words in commands(run):
        if only and words[0] not in only:
            continue
        began = time.process_time()
        said = surefoot(*words)
        assert time.process_time() - began < 20, words
        assert said.status in (0, 1, 2), (words, said)
        assert said.status != 2 or said.err.startswith(("surefoot: ", "note: ")), (words, said)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("file", ["run.json", "events.jsonl"])
def test_a_hostile_file_of_a_run(file: str, name: str, run: Path, surefoot: Surefoot) -> None:
    FILES[name](run / file)
    each_is_fine_or_refused(surefoot, run)


@pytest.mark.parametrize("name", EVENTS)
def test_hostile_events(name: str, run: Path, surefoot: Surefoot) -> None:
    (run / "events.jsonl").write_bytes(EVENTS[name])
    each_is_fine_or_refused(surefoot, run, "report", "worst")


def test_a_record_without_end_is_not_read_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.report.records.MOST_RECORD", 1000)
    good = (run / "events.jsonl").read_bytes().splitlines(keepends=True)[0]
    (run / "events.jsonl").write_bytes(good + b"x" * 2000 + b"\n" + good)
    found = read_run(run)
    assert len(found.events) == 1
    assert found.problems == ["events.jsonl is larger than a run's can be; the rest is left out"]


def test_of_what_is_no_run_not_every_line_is_told(run: Path) -> None:
    (run / "events.jsonl").write_bytes(b"{\n" * 100_000)
    found = read_run(run)
    assert (found.events, len(found.problems)) == ([], 102)
    assert found.problems[-1] == "events.jsonl: the rest is not read, for it is no run's"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("file", ["slide.json", "arrays.safetensors"])
def test_a_hostile_file_of_a_slide(file: str, name: str, run: Path, surefoot: Surefoot) -> None:
    (slide,) = list((run / "slides").iterdir())[:1]
    FILES[name](slide / file)
    with pytest.raises(UserError) as caught:
        Opened.load(slide)
    assert str(slide) in str(caught.value)
    said = surefoot("report", slide)
    assert (said.status, said.out) == (2, "")
    each_is_fine_or_refused(surefoot, run, "report")


def test_a_slides_arrays_fit_their_file(run: Path) -> None:
    (slide,) = list((run / "slides").iterdir())[:1]
    header(slide / "arrays.safetensors", 1 << 60)
    with pytest.raises(UserError, match=r"arrays\.safetensors is cut off"):
        Opened.load(slide)


def test_a_slide_is_not_read_through_a_link(run: Path, tmp_path: Path) -> None:
    (slide,) = list((run / "slides").iterdir())[:1]
    for file in ("slide.json", "arrays.safetensors"):
        shutil.copy(slide / file, tmp_path / file)
        as_link(slide / file, tmp_path / file)
        with pytest.raises(UserError, match=f"{file} is a link; put the file itself there"):
            Opened.load(slide)
        shutil.copy(tmp_path / file, tmp_path / "whole")
        (slide / file).unlink()
        shutil.copy(tmp_path / "whole", slide / file)
    Opened.load(slide)


def test_a_report_does_not_write_through_a_link(run: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    """A run folder may have been given to us with a link where the report goes."""
    (tmp_path / "precious").write_text("mine")
    (run / "report.html").symlink_to(tmp_path / "precious")
    assert surefoot("report", run).status == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (run / "report.html").is_symlink() and "<html" in (run / "report.html").read_text()
    as_pipe(run / "report.html")
    assert surefoot("report", run).status == 0
    assert (run / "report.html").is_file()


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in leaves(part, (*at, key)))]


def test_a_slide_whose_numbers_do_not_fit_together_is_refused_or_drawn(
    surefoot: Surefoot, tmp_path: Path
) -> None:
    slide = sample().save(tmp_path / "slide")
    content = json.loads((slide / "slide.json").read_text())
    places = leaves(content)
    choose = random.Random(0)
    drawn = 0
    for _ in range(20):
        changed = json.loads(json.dumps(content))
        for place in choose.sample(places[1:], 3):
            above = changed
            try:
                for key in place[:-1]:
                    above = above[key]
                above[place[-1]] = choose.choice(
                    [None, -1, 10**6, 1e308, "\u001b[2J</script>", [], {}, True, 0]
                )
            except (KeyError, IndexError, TypeError):
                continue  # gone with what it stood in
        (slide / "slide.json").write_text(json.dumps(changed))
        for words in (("report", slide, "-o", tmp_path / "out.html"), ("report", slide, "--terminal")):
            said = surefoot(*words)
            assert said.status in (0, 2)
            assert "\u001b[2J" not in said.out
            drawn += said.status == 0
    assert drawn


def test_explain_does_not_take_trust_from_a_run_folder(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    """A checkpoint's run says which options it had. That it trusted a model's code is not for it to say."""
    from tests.security.hostile import copy, own_code

    run = tmp_path / "run"
    options = (
        "--dataset_name",
        rows_file,
        "--max_steps",
        2,
        "--save_steps",
        1,
        "--output_dir",
        run,
        "--use_cpu",
    )
    assert surefoot("train", "--model_name_or_path", tiny_folder, *options).status == 0
    model = copy(tiny_folder, tmp_path / "model")
    own_code(model, tmp_path / "ran")
    content = json.loads((run / "run.json").read_text())
    content["config"].update(trust_remote_code=True, model_name_or_path=str(model))
    content["model"]["name"] = str(model)
    (run / "run.json").write_text(json.dumps(content))
    (checkpoint,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    said = surefoot("explain", "--model", checkpoint, "--prompt", "Hi", "--completion", "Ho")
    assert said.status == 2 and "code that ships with it" in said.err
    assert not (tmp_path / "ran").exists()
