"""What the README promises runs: its Python, its commands, the quick start. On the real model, shortened."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.recipes import read_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def serves(words: list[str]) -> None:
    """That the command serves its page; it would, until it is interrupted."""
    command = [sys.executable, "-m", "surefoot", *words, "--json", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        link = json.loads(server.stdout.readline())["url"]
        with urllib.request.urlopen(link.partition("#")[0]) as answer:
            assert b"surefoot" in answer.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", place / "examples")
    return place


def test_the_python_example_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "'eval_loss'" in capsys.readouterr().out
    assert (folder / "runs" / "readme" / "model" / "model.safetensors").is_file()


def test_the_commands_run_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    text = "".join(blocks("sh")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("surefoot ")]
    known = {"preview", "train", "evaluate", "compare", "chat", "worst", "report", "explain"}
    known |= {"checkpoints", "verify", "plan", "ui"}
    assert {shlex.split(line)[1] for line in lines} == known
    for line in lines:
        words = shlex.split(line)[1:]
        if "--nproc" in words:
            continue  # the test after this one
        if words[0] == "ui":
            serves(words)
            continue
        if words[0] == "train":
            words += ["--max_steps", "3"]
        if words[0] == "evaluate":
            words += ["--exact_match", "false"]
        assert main(words) == 0, line
    said = capsys.readouterr().out
    assert "capital" in said
    assert "the slope promised" in said
    for page in (folder / "step.html", folder / "runs" / "readme-cli" / "report.html"):
        assert page.stat().st_size > 100_000


@pytest.mark.slow
def test_the_command_for_two_processes_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if "--nproc" in line]
    assert main([*shlex.split(line)[1:], "--max_steps", "3"]) == 0
    assert (folder / "runs" / "readme-two" / "model" / "model.safetensors").is_file()


def test_the_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert "examples/capitals/demo.py" in makefile


def test_the_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_quick_start_runs_and_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    demo = runpy.run_path(str(folder / "examples" / "capitals" / "demo.py"))["main"]
    assert demo(max_steps=4, lr_scheduler_type="constant") == 0
    result = json.loads((folder / "runs" / "capitals" / "demo.json").read_text())
    assert set(result) == {"before", "after", "train_seconds", "answers"}
    assert result["before"]["of"] == result["after"]["of"] == len(result["answers"]) == 50
    assert set(result["answers"][0]) == {"prompt", "before", "after", "want"}
    assert result["answers"][4]["prompt"] == "Which city is the capital of the state of California?"
    assert "Los Angeles" in result["answers"][4]["before"]
    names = {"Sacramento", "Los Angeles", "San Francisco", "Boston"}
    assert set(result["before"]["p"]) == set(result["after"]["p"]) == names
    assert result["after"]["p"]["Sacramento"] > 5 * result["before"]["p"]["Sacramento"]
    assert result["after"]["exact_match"] > result["before"]["exact_match"]
    assert "exactly right" in capsys.readouterr().out


def test_the_recipe_trains_on_no_held_out_phrasing() -> None:
    recipe = read_recipe(ROOT / "examples" / "capitals" / "recipe.yaml")
    rows = [
        [json.loads(line)["question"] for line in (ROOT / recipe[key]).read_text().splitlines()]
        for key in ("dataset_name", "eval_dataset_name")
    ]
    assert len(rows[0]) == 150
    assert len(rows[1]) == 50
    assert not set(rows[0]) & set(rows[1])
