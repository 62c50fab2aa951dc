"""Whatever is opened, nothing is unpickled, no process starts, no socket opens, and no code of a folder runs.

Python itself tells of each of these (`sys.addaudithook`); what is done is in audited.py, in a process of its own
since a hook cannot be taken off again. The hub is not switched off there: that nothing is fetched is the point.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("audited")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.audited", str(place)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_ordinary_load_and_a_short_training_start_no_process_and_open_no_socket(
    found: dict[str, Any],
) -> None:
    """Also of fault 18: there is no loader's worker that could be killed, since none is started."""
    assert set(found["first"]) == set(found["ordinary"]) == {0}
    assert "ordinary" not in found["told"]


def test_nothing_hostile_starts_a_process_opens_a_socket_unpickles_or_runs(found: dict[str, Any]) -> None:
    assert found["told"] == {}
    assert not found["ran"]


def test_all_of_it_was_refused(found: dict[str, Any]) -> None:
    """Or, where a good thing lies beside the hostile one, was read without it (2 is added to the status)."""
    assert {name: status for name, status in found["statuses"].items() if status != 2} == {}
    assert len(found["statuses"]) > 130


def test_the_hook_hears(found: dict[str, Any]) -> None:
    assert found["heard"] == ["compile", "os.system", "pickle.find_class"]
    assert found["seen"] > 10_000
    assert not found["offline"]
