"""Run folders that no trainer writes: every route answers JSON, both streams go on, the other runs are shown."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from surefoot.dashboard.library import Library
from surefoot.dashboard.server import make_app
from surefoot.report.records import FILE
from surefoot.runfolder import RunFolder
from tests.dashboard import real
from tests.dashboard.asking import PORT, Client, access, client
from tests.report import samples
from tests.security.hostile import NESTED

Spoil = Callable[[Path], object]
KINDS = ("start", "step", "eval", "watch", "sample", "tensors", "slide", "alert", "checkpoint", "end")
ODD = [None, 1, "text", [], {}, [[]], {"a": {"b": None}}, True, [None, "x", {}], -1, 1e308, "\ud83d"]
ENDLESS = [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 1.7e308, 5e-324, 0, -0.0]
FIELDS = (
    "time", "loss", "num_tokens", "learning_rate", "grad_norm", "weight_norm", "update_norm", "lost_share",
    "zero_share", "metrics", "p", "prompt", "notes", "message", "examples", "name", "reason", "total_steps",
    "resumed", "headline", "because", "path", "where", "answer", "want", "epoch", "memory_bytes",
)  # fmt: skip


def records(folder: Path, *found: Any) -> None:
    (folder / FILE).write_text("".join(json.dumps(record) + "\n" for record in found))


def config(folder: Path, **content: Any) -> None:
    (folder / "run.json").write_text(json.dumps(content))


def all_kinds(values: list[Any], fields: tuple[str, ...] = FIELDS) -> Spoil:
    def spoil(folder: Path) -> None:
        config(folder, tensors=["a.weight", "b.0.weight"])
        told = [
            {"type": kind, "step": step, **dict.fromkeys(fields, value)}
            for step, value in enumerate(values, 1)
            for kind in KINDS
        ]
        records(folder, *told)

    return spoil


def told_by_config(**content: Any) -> Spoil:
    """An ordinary run but for what its run.json says."""

    def spoil(folder: Path) -> None:
        real.run(folder, 12)
        config(folder, **{"tensors": real.TENSORS, "config": {}, **content})

    return spoil


def with_file(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        real.run(folder, 4, ended=None)
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return spoil


def instead(name: str, make: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        real.run(folder, 4, ended=None)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def lock(**owner: Any) -> Spoil:
    return with_file(".lock", json.dumps({"host": socket.gethostname(), **owner}).encode())


def slide_without_arrays(folder: Path) -> None:
    samples.with_slides(real.run(folder, 4).path, samples.full(2))
    (folder / "slides" / "step-00000002" / "arrays.safetensors").write_bytes(b"\xff" * 99)


def texts(folder: Path) -> None:
    samples.run_folder(folder, steps=20, texts=" ".join(samples.HOSTILE))
    samples.with_slides(folder, samples.hostile())


DEEP: Any = 1
for _ in range(900):
    DEEP = [DEEP]
OWN = {"data": {"train": {"fingerprint": "x"}}}
RESUMED = [{"step": 2, "type": kind} for kind in ("eval", 3, [], None, "tensors", "step", "end", {})]
RUNS: dict[str, Spoil] = {
    "texts": texts,
    "odd records": all_kinds(ODD),
    "no numbers": all_kinds(ENDLESS),
    "the greatest numbers": all_kinds([1.7e308] * 30),
    "infinite times": all_kinds([float("inf")] * 30),
    "only odd steps": lambda f: records(f, *({"type": "step", "step": s, "loss": None} for s in (0, 1, 2))),
    "deep records": all_kinds([DEEP], ("metrics", "message", "notes", "examples")),
    "nothing but ends": lambda f: records(f, *({"type": "end", "step": 0, "reason": r} for r in ODD)),
    "lists of the wrong length": lambda f: (
        config(f, tensors=["a.weight", "b.weight"]),
        records(f, *({"type": "tensors", "step": i, "grad_norm": [1.0] * i, "p": [0]} for i in range(5))),
    ),
    "tensors of a zero norm": lambda f: (
        config(f, tensors=["a", "b"]),
        records(f, *({"type": "tensors", "step": 1, k: [0.0, 1e308]} for k in ("weight_norm", "update_norm"))),
    ),
    "names of tensors": told_by_config(tensors=ODD),
    "names that are text": told_by_config(tensors="abc"),
    "tensors without a name": told_by_config(tensors=["", ".", "..", "a."]),
    "deep options": told_by_config(config={"a": DEEP, "tags": DEEP}, model={"name": DEEP}),
    "odd options": told_by_config(config={str(value): value for value in ODD}, model={"name": {}}, machine=3),
    "tags": told_by_config(config={"tags": ODD}),
    "went on": told_by_config(resumed=RESUMED, total_steps="x"),
    "went on oddly": told_by_config(resumed={"step": 1}, total_steps=-1),
    "steps without end": told_by_config(total_steps=float("inf"), config=[1]),
    "data": told_by_config(data={"train": {"fingerprint": DEEP}, "eval": 3, "x": {"fingerprint": None}}),
    "rows elsewhere": told_by_config(config={"dataset_name": "/dev/zero"}, **OWN),
    "rows nowhere": told_by_config(config={"dataset_name": "\0"}, **OWN),
    "rows of a number": told_by_config(config={"dataset_name": 3}, **OWN),
    "rows of a long name": told_by_config(config={"dataset_name": "x" * 9000}, **OWN),
    "half a pair": told_by_config(config={"a": "\ud83d", "\ud83d": "\udc00"}, model={"name": "\ud83d"}),
    **{
        f"run.json {name}": with_file("run.json", content)
        for name, content in {
            "empty": b"", "a list": b"[1]", "null": b"null", "cut": b'{"config": {', "nested": NESTED.encode(),
            "binary": b"\xff\xfe\x00", "a number": b"9" * 5000, "NaN": b'{"config": NaN, "total_steps": NaN}',
        }.items()
    },
    **{
        f"events {name}": with_file(FILE, content)
        for name, content in {
            "empty": b"", "binary": os.urandom(999), "nested": NESTED.encode() + b"\n", "no end": b'{"type": "st',
            "lines": b"\n" * 300, "a long number": b'{"type": "step", "step": ' + b"9" * 5000 + b"}\n",
            "nulls": b"\0" * 5000 + b"\n",
        }.items()
    },
    **{
        f"{what} {name}": instead(what, make)
        for what in (FILE, "run.json", ".lock", "slides")
        for name, make in {
            "a folder": Path.mkdir, "a pipe": os.mkfifo, "a device": lambda p: p.symlink_to("/dev/zero"),
            "a link to nowhere": lambda p: p.symlink_to("nowhere"), "a circle": lambda p: p.symlink_to(p.name),
        }.items()
    },
    "a lock of nobody": lock(),
    "a lock of all": lock(pid=-1),
    "a lock without end": lock(pid=float("inf")),
    "a lock of no number": lock(pid=float("nan")),
    "a lock of a long number": lock(pid=10**300),
    "a nested lock": with_file(".lock", b"[" * 4000),
    "a listed lock": with_file(".lock", b"[1]"),
    "a binary lock": with_file(".lock", b"\xff"),
    "a slide of nothing": with_file("slides/step-00000002/slide.json", b"{}"),
    "a nested slide": with_file("slides/step-00000002/slide.json", NESTED.encode()),
    "a slide without arrays": slide_without_arrays,
    "slides of odd steps": with_file("slides/step-x/slide.json", b"{}"),
    "slides of long steps": with_file("slides/step-" + "9" * 200 + "/slide.json", b"{}"),
}  # fmt: skip


def urls(browser: Client, run: str) -> list[str]:
    """Every address of this run that answers JSON."""
    found = [
        route.path.replace("{layer:int}", number).replace("{step:int}", number)
        for route in browser.app.routes
        if isinstance(route, Route) and "{run}" in route.path and "GET" in (route.methods or ())
        for number in ("0", "2", "340", "9" * 400)
        if route.path.startswith("/api") and not route.path.endswith(("/stream", "/report"))
    ]
    found += [f"/api/compare?runs={run}&axis={axis}" for axis in ("step", "tokens", "time")]
    windows = ["low=0&high=9", "low=nan&high=nan", "low=-inf&high=inf", "low=9&high=0&buckets=-1"]
    found += [f"/api/runs/{run}/curves?names=loss,step,nothing&{window}" for window in windows]
    found += [f"/api/runs/{run}/row?where={where}" for where in ("rows.jsonl:3", "%00", "%ed%a0%bd", "")]
    return [url.replace("{run}", run) for url in dict.fromkeys(found)]


def first_words(browser: Client, url: str, enough: Callable[[bytes], bool]) -> bytes:
    told = browser.ask(url, enough=enough)
    assert told.status == 200 and told.all("content-type") == ["text/event-stream; charset=utf-8"]
    for line in told.body.decode().split("\n"):
        if line.startswith("data: "):
            json.loads(line.removeprefix("data: "), parse_constant=str.upper)
    return told.body


@pytest.mark.parametrize("name", RUNS)
def test_a_hostile_run_is_answered_for(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    RUNS[name](folder)
    browser = client(tmp_path)
    found = browser.library.look()
    if not found:
        assert not any((folder / file).exists() for file in ("run.json", FILE))
        return
    [entry] = found
    for url in urls(browser, entry.id):
        told = browser.ask(url)
        assert told.status in (200, 400, 404, 422), url
        assert isinstance(told.json, dict) or (told.json is None and url.endswith("/heat")), url
    assert browser.ask(f"/api/runs/{entry.id}/report").status in (200, 422)
    identity = browser.library.whole(entry).identity
    came = first_words(
        browser,
        f"/api/runs/{entry.id}/stream?file={identity}&from=0",
        lambda came: b"event: state" in came or b"event: anew" in came,
    )
    assert b"event: " in came


def test_hostile_runs_do_not_hide_the_others(tmp_path: Path) -> None:
    for number, spoil in enumerate(RUNS.values()):
        (tmp_path / f"run-{number:03}").mkdir()
        spoil(tmp_path / f"run-{number:03}")
    real.run(tmp_path / "ordinary", 9)
    browser = client(tmp_path)
    shown = {entry.id for entry in browser.library.look()}
    came = first_words(browser, "/api/stream", lambda came: b"event: differs" in came)
    lines = [json.loads(line[6:]) for line in came.decode().split("\n") if line.startswith("data: [")]
    assert {line["id"] for [line] in lines} == shown
    [good] = [line for [line] in lines if line["name"] == "ordinary"]
    assert (good["state"]["name"], good["loss"]) == ("finished", 2.5 / 9)
    ids = ",".join(sorted(shown)[:64])
    for axis in ("step", "tokens", "time"):
        assert browser.ask(f"/api/compare?runs={ids}&axis={axis}").status in (200, 422)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"<b>", b"\xed\xa0\xbd", b"'\"&", b"%2e%2e", b" "])
def test_a_folder_of_any_name_is_shown(name: bytes, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(name)
    RunFolder(real.run(folder, 3).path)
    browser = client(tmp_path)
    [entry] = browser.library.look()
    assert browser.json(f"/api/runs/{entry.id}")["steps"] == 3
    assert browser.ask(f"/api/runs/{entry.id}/slides/2").json["error"]
    came = first_words(browser, "/api/stream", lambda came: b"event: runs" in came)
    assert entry.id.encode() in came


def test_folders_that_may_not_be_read_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who is not root."""
    (tmp_path / "locked").mkdir()
    real.run(tmp_path / "zzz", 2)
    true_stat = Path.stat

    def stat(self: Path, **how: Any) -> os.stat_result:
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return true_stat(self, **how)

    monkeypatch.setattr(Path, "stat", stat)
    library = Library([tmp_path], b"secret")
    assert [entry.name for entry in library.look()] == ["zzz"]


def test_numbers_without_end_in_addresses(browser: Client) -> None:
    """They may be refused in whatever way, but with the headers that every answer has, and in no time."""
    assert make_app(browser.library, access(PORT, "x" * 43))
    [entry] = browser.library.look()
    for url in (
        f"slides/{'9' * 4000}",
        "curves?names=loss&low=1e999&high=" + "9" * 4000,
        "layers/" + "9" * 4000,
    ):
        assert browser.ask(f"/api/runs/{entry.id}/{url}").status in (200, 422), url
