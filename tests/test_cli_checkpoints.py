"""`surefoot checkpoints` and `surefoot verify`: what is saved, why, whether it is sound, and what happens next."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot import SFTConfig, SFTTrainer
from surefoot.train.manifest import MANIFEST, STATE, WEIGHTS, digest
from tests.conftest import QUESTIONS, Surefoot

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, a checkpoint after each; evaluated and got worse after the second; three are to be kept."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    rows = [{"prompt": asked, "completion": said} for asked, said in QUESTIONS]
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "save_steps": 1,
        "save_total_limit": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 3.0,  # it diverges: the first evaluation stays the best
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "precision": "fp32",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    SFTTrainer(str(tiny_folder), SFTConfig(**options), rows, rows).train()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def rewrite(folder: Path, **changes: Any) -> None:
    """A manifest that says other things, with the digest that belongs to it."""
    content = json.loads((folder / MANIFEST).read_text()) | changes
    content["digest"] = digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def unfinished(run: Path) -> None:
    """Take the last record, that the run ended, away."""
    file = run / "events.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


# checkpoints -----------------------------------------------------------------------------------------------


def test_why_each_is_kept(run: Path, surefoot: Surefoot) -> None:
    found = {one["step"]: one for one in surefoot("checkpoints", "run", "--json").json}
    assert {step: one["kept"] for step, one in found.items()} == {
        2: "the best evaluation",
        4: "every 1 steps, among the newest 3",
        5: "every 1 steps, in case the newest is damaged",
        6: "the last step, the newest",
    }
    records = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["type"] == "step"]
    for step, one in found.items():
        names = [file for file in checkpoint(run, step).iterdir() if file.name != MANIFEST]
        assert one["path"] == f"step-{step:08d}" and one["usable"]
        assert one["bytes"] == sum(file.stat().st_size for file in names)
        assert one["loss"] == losses[step - 1]


def test_the_table(run: Path, surefoot: Surefoot) -> None:
    said = surefoot("checkpoints", "run")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].split() == ["step", "loss", "size", "kept", "because"]
    assert lines[1].split()[0] == "2" and lines[1].endswith("kB  the best evaluation")
    assert lines[4].endswith("the last step, the newest")
    assert (
        lines[5] == "" and lines[6].startswith("4 checkpoints, ") and lines[6].endswith("in run/checkpoints")
    )
    assert len(lines) == 7


def test_other_reasons(run: Path, surefoot: Surefoot) -> None:
    """Saved because of a signal; kept because all are."""
    rewrite(checkpoint(run, 6), because="the run was asked to stop")
    rewrite(checkpoint(run, 5), because="the best so far")
    config = json.loads((run / "run.json").read_text())
    config["config"]["save_total_limit"] = None
    (run / "run.json").write_text(json.dumps(config))
    kept = {one["step"]: one["kept"] for one in surefoot("checkpoints", "run", "--json").json}
    assert kept[6] == "the run was asked to stop, the newest"
    assert kept[5] == "the best until then, in case the newest is damaged"
    assert kept[4] == "every 1 steps, all are kept"
    (run / "run.json").unlink()  # why, is then not known in full; what there is, is
    assert [one["step"] for one in surefoot("checkpoints", "run", "--json").json] == [2, 4, 5, 6]


def test_damaged_ones_are_listed_with_what_is_wrong(run: Path, surefoot: Surefoot) -> None:
    (checkpoint(run, 4) / MANIFEST).unlink()
    (checkpoint(run, 5) / MANIFEST).write_text("{}")
    aside = run / "checkpoints" / "quarantine"
    aside.mkdir()
    checkpoint(run, 2).rename(aside / "step-00000002")
    found = surefoot("checkpoints", "run", "--json").json
    assert [(one["step"], one["usable"]) for one in found] == [(4, False), (5, False), (6, True), (2, False)]
    assert "there is no manifest.json" in found[0]["kept"] and "cannot be read" in found[1]["kept"]
    assert found[3]["path"] == "quarantine/step-00000002" and found[3]["bytes"] > 10_000
    said = surefoot("checkpoints", "run")
    assert said.status == 0
    assert "damaged: put aside in quarantine/" in said.out
    assert said.out.endswith("What cannot be used is told in full by: surefoot verify RUN\n")


# verify ----------------------------------------------------------------------------------------------------


def test_all_are_sound(run: Path, surefoot: Surefoot) -> None:
    said = surefoot("verify", "run")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [["step", str(n), "sound,"] for n in (2, 4, 5, 6)]
    assert lines[4:] == ["", "The run finished; its last sound checkpoint is of step 6."]
    found = surefoot("verify", "run", "--json").json
    assert found["resume_from"] == 6 and found["put_aside"] == []
    assert [one["fault"] for one in found["checkpoints"]] == [None] * 4
    unfinished(run)
    said = surefoot("verify", "run")
    assert said.status == 0
    assert said.out.endswith("\nThe run goes on from step 6: give its command again.\n")


def test_damage_is_told_and_is_in_the_status(run: Path, surefoot: Surefoot) -> None:
    unfinished(run)
    path = checkpoint(run, 6) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = surefoot("verify", "run")
    assert (said.status, said.err) == (1, "")
    (line,) = [line for line in said.out.splitlines() if "DAMAGED" in line]
    where = f"run/checkpoints/step-00000006/{WEIGHTS}"
    assert line.startswith(f"step 6  DAMAGED: {where}: is damaged: its sha256 is ")
    assert said.out.endswith("\nThe run goes on from step 5: give its command again.\n")
    said = surefoot("verify", "run", "--json")
    assert said.status == 1 and said.json["resume_from"] == 5
    assert [one["damaged"] for one in said.json["checkpoints"]] == [False, False, False, True]
    assert path.exists()  # looking moves nothing


def test_what_stops_a_run_is_told_apart_from_damage(run: Path, surefoot: Surefoot) -> None:
    """A manifest that is missing is the user's to mend: the run does not pass over it."""
    unfinished(run)
    (checkpoint(run, 6) / MANIFEST).unlink()
    said = surefoot("verify", "run")
    assert said.status == 1
    assert "step 6  NOT USABLE: run/checkpoints/step-00000006: there is no manifest.json" in said.out
    assert said.out.endswith(
        "\nThe run does not go on until that is mended; the newest sound one is of step 5.\n"
    )


def test_nothing_sound_is_left(run: Path, surefoot: Surefoot) -> None:
    aside = run / "checkpoints" / "quarantine"
    aside.mkdir()
    for step in (2, 4, 5, 6):
        checkpoint(run, step).rename(aside / checkpoint(run, step).name)
    said = surefoot("verify", "run")
    assert said.status == 1
    assert "put aside earlier, damaged: step-00000002\n" in said.out
    assert said.out.endswith("\nThere is nothing to go on from.\n")
    assert surefoot("verify", "run", "--json").json["resume_from"] is None
    assert [one["step"] for one in surefoot("checkpoints", "run", "--json").json] == [2, 4, 5, 6]


# Both ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["checkpoints", "verify"])
def test_what_is_no_run(command: str, surefoot: Surefoot, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "events.jsonl").touch()
    for argv, said in (
        ([], f"surefoot {command} RUN: which run folder?"),
        (["nowhere"], "nowhere is no run folder (no events.jsonl)"),
        (["empty"], "empty is no run folder (no events.jsonl)"),
        (["begun"], "begun: the run has saved no checkpoint yet"),
        (["begun", "--what"], "unknown option '--what'"),
    ):
        found = surefoot(command, *argv)
        assert found.status == 2 and said in found.err, found.err


@pytest.mark.parametrize("command", ["checkpoints", "verify"])
@pytest.mark.parametrize("in_json", [True, False])
def test_a_hostile_folder(command: str, in_json: bool, run: Path, surefoot: Surefoot) -> None:
    """Pipes, devices, links, strange names, and a manifest full of what a terminal would obey: none of it is
    waited for, followed, or shown raw."""
    place = run / "checkpoints"
    os.mkfifo(place / "step-00000007")
    (place / "step-00000008").mkdir()
    os.mkfifo(place / "step-00000008" / MANIFEST)
    (place / "step-00000009").symlink_to("/nowhere")
    (place / "step-00000010").write_text("a file")
    (place / "step-00000011").mkdir()
    (place / "step-00000011" / MANIFEST).symlink_to("/dev/zero")
    (place / f"step-{'9' * 200}").mkdir()
    for name in ("step-x", "step-", "step--1", "step-\u0663", "step-1 2"):
        (place / name).mkdir()
        (place / "quarantine" / name).mkdir(parents=True)
    rewrite(checkpoint(run, 6), because="\x1b[31mred\x07 \u202e" + "x" * 5000)
    (checkpoint(run, 5) / STATE).unlink()
    os.mkfifo(checkpoint(run, 5) / STATE)
    said = surefoot(command, "run", *(["--json"] if in_json else []))
    assert said.status == (1 if command == "verify" else 0), said.err
    assert said.err == ""
    if in_json:
        assert json.loads(said.out)
    else:
        assert not set(said.out) & {"\x1b", "\x07", "\u202e"}
        assert "step 6" in said.out or command == "checkpoints"
        assert "apipe(FIFO),notanordinaryfile" in "".join(said.out.split())  # however it was folded


@pytest.mark.parametrize("name", ["events.jsonl", "run.json"])
def test_pipes_for_the_runs_own_files(name: str, run: Path, surefoot: Surefoot) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    for command in ("checkpoints", "verify"):
        assert surefoot(command, "run").status in (0, 2)  # and at once


def test_a_live_run_takes_one_away(run: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of names and the look at each."""
    for module in ("checkpoints", "verify"):
        target = f"surefoot.commands.{module}"
        __import__(target)
        plain = sys.modules[target].numbered

        def going(folder: Path, plain: Any = plain) -> Iterator[tuple[int, Path]]:
            found = list(plain(folder))
            if (oldest := found[0][1]).name == "step-00000002" and len(found) > 3:
                shutil.rmtree(oldest)
            yield from found

        monkeypatch.setattr(sys.modules[target], "numbered", going)
    kept = shutil.copytree(run, run.parent / "kept")
    assert [one["step"] for one in surefoot("checkpoints", "kept", "--json").json] == [4, 5, 6]
    said = surefoot("verify", run, "--json")
    assert said.status in (0, 1) and [one["step"] for one in said.json["checkpoints"]] == [4, 5, 6]
    assert kept.is_dir() and said.status == 0


@pytest.mark.parametrize("command", ["checkpoints", "verify"])
def test_they_start_fast(command: str, run: Path) -> None:
    """Nothing of torch, transformers or datasets is imported to look at files."""
    argv = [sys.executable, "-X", "importtime", "-m", "surefoot", command, str(run)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "surefoot" in names and not names & {"torch", "transformers", "datasets", "numpy"}
