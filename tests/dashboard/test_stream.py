"""What open pages are told while a run goes on, through the application."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot.dashboard import pages, stream
from surefoot.report.records import FILE
from surefoot.runfolder import RunFolder
from tests.dashboard import real
from tests.dashboard.asking import client
from tests.dashboard.listening import Listener, run

pytestmark = pytest.mark.usefixtures("quick")


def size(folder: Path) -> int:
    return (folder / FILE).stat().st_size


class Page:
    """A run and its page, read."""

    def __init__(self, folder: Path) -> None:
        self.browser = client(folder)
        [entry] = self.browser.library.look()
        self.api = f"/api/runs/{entry.id}"
        self.page = self.browser.json(self.api)

    def listen(self, offset: int | None = None, last: str | None = None) -> Listener:
        """From where the page is, or from this byte; `last`: what a browser says that lost the line."""
        start = self.page["offset"] if offset is None else offset
        more = [("Last-Event-ID", last)] if last is not None else []
        return Listener(self.browser, f"{self.api}/stream?file={self.page['file']}&from={start}", *more)


def steps(listener: Listener) -> list[int]:
    return [int(step) for more in listener.of("more") for step in more["rows"]["step"]]


# One run -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # at its usual pace
    made = real.run(tmp_path, 3, total=9, ended=None)
    page = Page(tmp_path)

    async def test() -> None:
        async with page.listen() as listener:
            await listener.until(lambda: listener.of("state"))
            assert listener.came.startswith(b"retry: 1000\n\n") and listener.of("more") == []
            took = []
            for number in range(4, 7):
                began = time.monotonic()
                made.append(real.step(number))
                for event in real.others(number):
                    made.append(event)
                await listener.until(lambda number=number: steps(listener)[-1:] == [number])
                took.append(time.monotonic() - began)
            assert min(took) < 1.0
            assert steps(listener) == [4, 5, 6]
            assert [number for event, number, _ in listener.told if event == "more"][-1] == size(tmp_path)

    run(test())


def test_half_a_line_is_not_told_of(tmp_path: Path) -> None:
    made = real.run(tmp_path, 3, total=9, ended=None)
    page = Page(tmp_path)

    async def test() -> None:
        async with page.listen() as listener:
            await listener.until(lambda: listener.of("state"))
            line = (json.dumps(real.step(4).to_dict()) + "\n").encode()
            with (tmp_path / FILE).open("ab", buffering=0) as file:
                file.write(line[:50])
                await asyncio.sleep(0.15)
                assert listener.of("more") == []
                file.write(line[50:])
            await listener.until(lambda: steps(listener) == [4])
            made.append(real.step(5))
            await listener.until(lambda: steps(listener) == [4, 5])

    run(test())


def test_a_line_that_was_lost_is_taken_up_where_it_was(tmp_path: Path) -> None:
    """From every id that can have been told last: nothing twice, nothing lost."""
    made = real.run(tmp_path, 4, total=99, ended=None)
    page = Page(tmp_path)
    ids = [page.page["offset"]]
    for number in range(5, 13):
        made.append(real.step(number))
        ids.append(size(tmp_path))

    async def test() -> None:
        for told, last in enumerate(ids):
            async with page.listen(offset=0, last=str(last)) as listener:
                expected = list(range(5 + told, 13))
                await listener.until(lambda expected=expected, listener=listener: steps(listener) == expected)
                await listener.until(lambda listener=listener: listener.of("state"))
                assert steps(listener) == expected
                assert all(number == ids[-1] for event, number, _ in listener.told if event == "more")

    run(test())


@pytest.mark.parametrize("last", ["x", "-1", "", "1.5", "9" * 30, "²"])
def test_an_id_that_is_none_begins_at_the_beginning(last: str, tmp_path: Path) -> None:
    real.run(tmp_path, 3, total=9, ended=None)
    page = Page(tmp_path)

    async def test() -> None:
        async with page.listen(offset=0, last=last) as listener:
            await listener.until(lambda: steps(listener) == [1, 2, 3])

    run(test())


def test_the_state_is_told_when_it_changes(tmp_path: Path) -> None:
    made = real.run(tmp_path, 3, total=9, ended=None)
    page = Page(tmp_path)

    async def test() -> None:
        async with page.listen() as listener:
            await listener.until(lambda: listener.of("state"))
            with made.locked():
                await listener.until(lambda: listener.of("state")[-1]["name"] == "training")
                made.append(real.step(4))
                await listener.until(lambda: listener.of("state")[-1]["step"] == 4)
                await asyncio.sleep(0.2)
                before = len(listener.told)
                await asyncio.sleep(0.2)
                assert len(listener.told) == before, "nothing new, nothing told"
                made.append(real.end(4, "interrupted"))
            await listener.until(lambda: listener.of("state")[-1]["name"] == "interrupted")
            assert [event["text"] for more in listener.of("more") for event in more["events"]] == [
                "interrupted"
            ]

    run(test())


def test_a_step_that_was_opened_comes_with_the_list_of_slides(tmp_path: Path) -> None:
    made = real.run(tmp_path, 6, total=9, ended=None)
    page = Page(tmp_path)
    (tmp_path / "slides" / "step-00000007").mkdir(parents=True)
    (tmp_path / "slides" / "step-00000007" / "slide.json").touch()

    async def test() -> None:
        async with page.listen() as listener:
            for event in (real.step(7), *real.others(7)):
                made.append(event)
            await listener.until(lambda: any("slides" in more for more in listener.of("more")))
            assert [more["slides"] for more in listener.of("more") if "slides" in more] == [[7]]

    run(test())


def truncate(folder: Path) -> None:
    whole = (folder / FILE).read_bytes()
    RunFolder(folder).go_back(2, whole.rfind(b"\n", 0, len(whole) // 2) + 1)


def begin_anew(folder: Path) -> None:
    RunFolder(folder).clear()
    real.run(folder, 1, total=5, ended=None)


def go_on(folder: Path) -> None:
    real.config(RunFolder(folder), 9, resumed=[{"step": 3, "time": 1.0, "notes": []}])


def sleep_through_much(folder: Path) -> None:
    lines = (json.dumps(real.step(number).to_dict()) + "\n" for number in range(10, pages.MOST_DELTA + 11))
    with (folder / FILE).open("a") as file:
        file.write("".join(lines))


@pytest.mark.parametrize("happens", [truncate, begin_anew, go_on, shutil.rmtree, sleep_through_much])
@pytest.mark.parametrize("listening", [True, False])
def test_a_page_begins_anew(happens: Callable[[Path], None], listening: bool, tmp_path: Path) -> None:
    """When the run went back, went on, was begun anew, was deleted, or went on by too much; once, and no more."""
    folder = tmp_path / "run"
    real.run(folder, 9, total=9, ended=None)
    page = Page(folder)
    browser = page.browser

    async def test() -> None:
        if not listening:
            happens(folder)
        async with page.listen() as listener:
            if listening:
                await listener.until(lambda: listener.of("state"))
                happens(folder)
            await listener.until(lambda: listener.of("anew"))
            await listener.ended()
            assert listener.of("more") == [] and len(listener.of("anew")) == 1

    run(test())
    if happens is not shutil.rmtree:
        again = Page(folder)
        assert again.page["problems"] == []
        assert browser.json(again.api)["offset"] == size(folder)


def test_what_cannot_be_told_is_told_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = real.run(tmp_path, 3, total=9, ended=None)
    page = Page(tmp_path)

    def delta(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(stream, "delta", delta)

    async def test() -> None:
        async with page.listen() as listener:
            made.append(real.step(4))
            await listener.until(lambda: listener.of("anew"))
            await listener.ended()

    run(test())


def test_a_page_of_a_file_that_another_page_has_found_to_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the telling."""
    made = real.run(tmp_path, 9, total=9, ended=None)
    page = Page(tmp_path)
    true_delta = stream.delta

    def delta(index: Any, offset: int) -> Any:
        begin_anew(tmp_path)
        index.grow()
        return true_delta(index, offset)

    monkeypatch.setattr(stream, "delta", delta)

    async def test() -> None:
        async with page.listen() as listener:
            made.append(real.step(10))
            await listener.until(lambda: listener.of("anew"))
            await listener.ended()
            assert listener.of("more") == []

    run(test())


def test_a_quiet_line_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "QUIET_SECONDS", 0.1)
    real.run(tmp_path, 3)
    page = Page(tmp_path)

    async def test() -> None:
        for listener in (page.listen(), Listener(page.browser, "/api/stream")):
            async with listener:
                await listener.until(lambda listener=listener: listener.came.count(b": still here\n\n") > 2)

    run(test())
