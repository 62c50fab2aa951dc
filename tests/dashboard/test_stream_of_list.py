"""What an open list of runs is told, through the application."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from surefoot.dashboard import stream
from surefoot.dashboard.library import summary
from surefoot.runfolder import RunFolder
from tests.dashboard import real
from tests.dashboard.asking import client
from tests.dashboard.listening import Listener, run

pytestmark = pytest.mark.usefixtures("quick")


def names(listener: Listener) -> list[str]:
    return [line["name"] for lines in listener.of("runs") for line in lines]


def test_the_list_is_told_and_what_changes_in_it(tmp_path: Path) -> None:
    first = real.run(tmp_path / "first", 3, total=9, ended=None)
    real.run(tmp_path / "second", 5)
    browser = client(tmp_path)

    async def test() -> None:
        async with Listener(browser, "/api/stream") as listener:
            await listener.until(lambda: listener.of("differs"))
            assert names(listener) == ["second", "first"], "the one that was written last first"
            assert listener.of("found") == [2]
            await asyncio.sleep(0.2)
            assert len(names(listener)) == 2 and len(listener.of("differs")) == 1, "nothing new, nothing told"
            first.append(real.step(4))
            await listener.until(lambda: names(listener)[2:] == ["first"])
            assert listener.of("runs")[-1][0]["loss"] == 2.5 / 4
            real.run(tmp_path / "third", 2)
            real.config(RunFolder(tmp_path / "third"), 2, model={"name": "another"})
            await listener.until(lambda: names(listener)[3:4] == ["third"])
            await listener.until(lambda: "name" in listener.of("differs")[-1])
            ids = {line["name"]: line["id"] for lines in listener.of("runs") for line in lines}
            assert listener.of("differs")[-1]["name"][ids["third"]] == "another"
            shutil.rmtree(tmp_path / "second")
            await listener.until(lambda: listener.of("gone"))
            assert listener.of("gone") == [[ids["second"]]]

    run(test())


def test_a_folder_without_runs_waits_for_one(tmp_path: Path) -> None:
    browser = client(tmp_path)

    async def test() -> None:
        async with Listener(browser, "/api/stream") as listener:
            await listener.until(lambda: listener.of("found"))
            assert listener.of("found")[0] == 0 and names(listener) == []
            real.run(tmp_path / "one", 2)
            await listener.until(lambda: names(listener)[:1] == ["one"])

    run(test())


def test_a_run_that_cannot_be_told_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bad", "good"):
        real.run(tmp_path / name, 3)

    def odd(entry: Any, index: Any) -> Any:
        if entry.name == "bad" and index.steps.count:
            raise ZeroDivisionError
        return summary(entry, index)

    monkeypatch.setattr(stream, "summary", odd)

    async def test() -> None:
        async with Listener(client(tmp_path), "/api/stream") as listener:
            await listener.until(lambda: listener.of("differs"))
            assert sorted(names(listener)) == ["bad", "good"]

    run(test())
