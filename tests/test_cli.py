"""The command line itself: commands, help, how options are read, what wrong ones get; start-up time."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

import surefoot as package
from surefoot import SFTConfig, UserError
from surefoot.cli import COMMANDS, main
from surefoot.commands.options import Parsed, parse
from tests.conftest import Surefoot, write_rows

COMMAND_OPTIONS = {
    "train": list(SFTConfig.model_fields),
    "preview": [
        "data", "columns", "limit", "max_length", "completion_only_loss", "last_turn_only", "chat_template_path",
        "on_bad_row", "trust_remote_code",
    ],
    "evaluate": [
        "data", "columns", "max_new_tokens", "exact_match", "precision", "max_length", "on_bad_row", "use_cpu",
        "trust_remote_code",
    ],
    "chat": ["prompt", "system", "max_new_tokens", "temperature", "use_cpu", "trust_remote_code"],
    "check": ["model", "data", "rows"],  # and those of train
    "explain": [
        "model", "prompt", "completion", "data", "row", "watch", "position", "optimizer", "learning_rate", "html",
        "save", "precision",
    ],  # and some of train
    "compare": [
        "data", "columns", "prompt", "limit", "max_new_tokens", "on_bad_row", "use_cpu", "trust_remote_code",
    ],
    "report": ["output", "terminal", "position"],
    "plan": [
        "model", "data", "gpu", "gpus", "nodes", "gpu_memory", "gpu_flops", "network", "lengths",
    ],  # and those of train
    "checkpoints": [],
    "verify": [],
    "ui": ["port", "browser", "host", "expose", "names"],
    "worst": ["limit"],
}  # fmt: skip
"""Every command and its options. Adding one is a promise to keep it: change this table on purpose."""


def options_of(command: str) -> type[BaseModel]:
    name = "SFTConfig" if command == "train" else f"{command.capitalize()}Options"
    return getattr(import_module(f"surefoot.commands.{command}"), name)


def python(*argv: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=120, check=False, **more
    )


# Help ------------------------------------------------------------------------------------------------------


def test_the_commands_and_their_options_are_these() -> None:
    assert {name: list(options_of(name).model_fields) for name in COMMANDS} == COMMAND_OPTIONS


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(argv: tuple[str, ...], surefoot: Surefoot) -> None:
    said = surefoot(*argv)
    assert (said.status, said.err) == (0, "")
    for name, about in COMMANDS.items():
        assert f"  {name:<11}  {about}\n" in said.out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, surefoot: Surefoot) -> None:
    assert surefoot(flag).out == f"surefoot {package.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_tells_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"])
    assert leave.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"usage: surefoot {command} [" in words
    assert "--json print the result as JSON" in words
    for name, field in options_of(command).model_fields.items():
        assert f" --{name} " in words
        assert " ".join((field.description or "?").split()) in words, name


def test_reading_the_options_of_train_does_not_wait_for_torch() -> None:
    code = "import sys, surefoot.commands.train; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from surefoot.cli import main; main(['--help']); "
        "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'rich', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    assert python("-c", code).stderr == ""

    def best_of_five(*argv: str) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            assert python(*argv).returncode == 0
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    assert best_of_five("-m", "surefoot", "--help") < best_of_five("-c", "pass") + 0.3


# Wrong words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'? Commands: train, preview, "),
        (["--train"], "unknown command '--train'. Did you mean 'train'?"),
        (["train", "--learnin-rate", "1"], "unknown option '--learnin_rate'. Did you mean 'learning_rate'?"),
        (["chat", "--promt", "x"], "unknown option '--promt'. Did you mean 'prompt'?"),
        (["train", "--learning_rate"], "--learning_rate needs a value"),
        (["train", "--run_name", "--use_cpu"], "--run_name needs a value"),
        (["train", "--learning_rate", "fast"], "learning_rate: Input should be a valid number"),
        (["train", "a.yaml", "b.yaml"], "unrecognized arguments: b.yaml (surefoot train --help"),
        (["train", "none.yaml"], "none.yaml: no such recipe"),
        (["train", "-x"], "unrecognized arguments: -x"),
        (["train", "--columns", "prompt"], "--columns: this cannot be read; write it as a=b,c=d, or as JSON"),
        (["train", "--watch", "[{"], "--watch: this cannot be read; write it as"),
        (["train"], "no rows: pass train_dataset=..., or dataset_name"),
        (["train", "--load_in_4bit"], "load_in_4bit: quantised base weights are not supported yet"),
        (["evaluate", "model"], "surefoot evaluate MODEL --data FILE: both are needed"),
        (["evaluate", "model", "--data", "x", "--max_new_tokens", "0"], "max_new_tokens: Input should be great"),
        (["evaluate", "model", "--data", "x", "--exact_match=maybe"], "exact_match: Input should be a valid boo"),
        (["preview", "model"], "surefoot preview MODEL --data FILE: both are needed"),
        (["preview", "model", "--data", "x", "--limit", "-1"], "limit: Input should be greater than or equal"),
        (["chat"], "surefoot chat MODEL: which model?"),
        (["chat", "model", "--json"], "--json needs --prompt"),
        (["chat", "model", "--temperature", "-1"], "temperature: Input should be greater than or equal to 0"),
        (["compare"], "surefoot compare RUN, or surefoot compare BEFORE AFTER"),
        (["compare", "a", "b", "c"], "surefoot compare RUN, or surefoot compare BEFORE AFTER"),
        (["compare", "a", "b"], "ask something, with either --prompt TEXT or --data FILE"),
        (["compare", "a", "b", "--prompt", "x", "--data", "y"], "ask something, with either --prompt TEXT"),
        (["compare", "a", "--prompt", "x"], "a is no run folder (no run.json); name two models instead"),
    ],
)  # fmt: skip
def test_wrong_words_are_two_and_one_message(argv: list[str], said: str, surefoot: Surefoot) -> None:
    found = surefoot(*argv)
    assert found.status == 2
    assert found.out == ""
    assert found.err.startswith(f"surefoot: {said}"), found.err


def test_the_exit_status_is_the_processes(tiny_folder: Path, tmp_path: Path) -> None:
    wrong = python("-m", "surefoot", "preview", str(tiny_folder), "--data", "rows.jsonl", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("surefoot: rows.jsonl: no such file")
    assert "Traceback" not in wrong.stderr
    row = {"prompt": "How are you today?", "completion": "I am fine."}
    rows = write_rows(tmp_path / "rows.jsonl", [row])
    right = python("-m", "surefoot", "preview", str(tiny_folder), "--data", str(rows))
    assert right.returncode == 0
    assert "I am fine.<|im_end|>" in right.stdout


def test_our_own_mistakes_keep_their_traceback(surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise RuntimeError("ours")

    monkeypatch.setattr("surefoot.commands.train.run", broken)
    with pytest.raises(RuntimeError, match="ours"):
        surefoot("train")


def test_ctrl_c_is_no_traceback(surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("surefoot.commands.train.run", interrupted)
    said = surefoot("train")
    assert (said.status, said.err) == (130, "surefoot: interrupted\n")


# Reading options -------------------------------------------------------------------------------------------


class Options(BaseModel):
    """One of each kind."""

    number: float = 0.0
    count: int | None = None
    switch: bool = False
    perhaps: bool | None = None
    resume: bool | str = False
    text: str = ""
    names: list[str] = Field(default_factory=list)
    texts: list[str] = Field(default_factory=list)
    table: dict[str, str] = Field(default_factory=dict)
    things: list[dict[str, int]] = Field(default_factory=list)


def read(*argv: str) -> Parsed:
    return parse(
        Options, argv, prog="x", about="", positional={"file": ("?", "a file")}, also_known=["old"], whole=["texts"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        ("--number 1e-4", {"number": 1e-4}),
        ("--number=-2", {"number": -2.0}),
        ("--number -2", {"number": -2.0}),
        ("--number 1 --number 2", {"number": 2.0}),
        ("--switch", {"switch": True}),
        ("--switch --count 3", {"switch": True, "count": 3}),
        ("--switch false", {"switch": False}),
        ("--switch=no", {"switch": False}),
        ("--perhaps", {"perhaps": True}),
        ("--perhaps false", {"perhaps": False}),
        ("--resume some/path", {"resume": "some/path"}),
        ("--text", None),
        ("--text a=b,c", {"text": "a=b,c"}),
        ("--text=--x", {"text": "--x"}),
        ("--text [1]", {"text": "[1]"}),
        ("--names a,b", {"names": ["a", "b"]}),
        ("--names a --names b", {"names": ["a", "b"]}),
        ('--names ["a","b"]', {"names": ["a", "b"]}),
        ("--texts a,b --texts [c", {"texts": ["a,b", "[c"]}),
        ("--table prompt=ask,completion=say", {"table": {"prompt": "ask", "completion": "say"}}),
        ("--table prompt=ask --table completion=say", {"table": {"prompt": "ask", "completion": "say"}}),
        ('--table {"prompt":"a,b"}', {"table": {"prompt": "a,b"}}),
        ("--table a=b=c", {"table": {"a": "b=c"}}),
        ('--things [{"a":1},{"b":2}]', {"things": [{"a": 1}, {"b": 2}]}),
        ("", {}),
    ],
)  # fmt: skip
def test_a_flag_becomes_its_value(argv: str, meant: dict[str, object] | None) -> None:
    if meant is None:
        with pytest.raises(UserError, match="needs a value"):
            read(*argv.split())
        return
    found = read(*argv.split()).options
    assert Options(**found).model_dump(exclude_unset=True) == meant
    assert found.keys() == meant.keys()


def test_hyphens_in_a_flag_are_underscores() -> None:
    argv = ["--learning-rate", "1e-4", "--lr-scheduler-type=cosine"]
    found = parse(SFTConfig, argv, prog="x", about="").options
    assert found == {"learning_rate": "1e-4", "lr_scheduler_type": "cosine"}


def test_a_switch_leaves_the_argument_after_it_alone() -> None:
    found = read("--switch", "file.yaml")
    assert (found.options, found.positional) == ({"switch": "true"}, {"file": "file.yaml"})


def test_names_that_are_no_fields_are_passed_on() -> None:
    assert read("--old", "--json") == Parsed({"old": "true"}, {"file": None}, json=True)
    assert read("--old", "x").options == {"old": "x"}


def test_options_that_are_not_given_are_not_there() -> None:
    assert read() == Parsed({}, {"file": None}, json=False)
