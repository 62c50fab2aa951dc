"""Secrets of the environment, and those in an address, reach no file of a run: config, log, slides or reports."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from surefoot.credentials import without_credentials
from tests.faults.children import Zygote

SECRETS = {
    "HF_TOKEN": "hf_canaryAAAAtoken",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryBBBBtoken",
    "WANDB_API_KEY": "canaryCCCCkey",
    "AWS_SECRET_ACCESS_KEY": "canaryDDDD/secret+key",
    "SOMETHING_OF_MINE": "canaryEEEEvalue",
    "https_proxy": "http://me:canaryFFFF@127.0.0.1:9",
}
IN_URL = "canaryGGGG"
URL = f"https://user:{IN_URL}@127.0.0.1:9/rows.jsonl?token={IN_URL}"


OWN = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def surefoot(*words: object, place: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which finds the secrets when it starts."""
    return subprocess.run(
        [sys.executable, "-m", "surefoot", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **OWN, "XDG_CACHE_HOME": str(place / "cache"), **SECRETS},
        cwd=place,
        timeout=100,
        check=False,
    )


def canaries(place: Path) -> list[str]:
    """Files below `place` that hold a secret, plain or in base64."""
    secrets = [value.encode() for value in (*SECRETS.values(), IN_URL)]
    needles = [*secrets, b"canary", *(base64.b64encode(secret)[:-3] for secret in secrets)]
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(needle in path.read_bytes() for needle in needles)]


@pytest.fixture
def options(tiny_folder: Path, rows_file: Path) -> tuple[object, ...]:
    """A run with everything that is ever written."""
    return (
        *("--model_name_or_path", tiny_folder, "--dataset_name", rows_file, "--eval_dataset_name", rows_file),
        *(
            "--max_steps",
            4,
            "--save_steps",
            2,
            "--eval_strategy",
            "steps",
            "--eval_steps",
            2,
            "--eval_samples",
            2,
        ),
        *("--slides", "1,3", "--slide_extras", "--tensors_every", 1, "--logging_steps", 1, "--use_cpu"),
        *("--eval_exact_match", "true", "--max_new_tokens", 4),
        *("--watch", '[{"prompt": "Hi", "completion": "Ho", "alternatives": ["Ha"]}]'),
    )


def test_secrets_of_the_environment_are_in_no_file(options: tuple[object, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = surefoot("train", *options, "--output_dir", run, place=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (("report", run), ("worst", run)):
        said = surefoot(*words, place=tmp_path)
        assert said.returncode == 0, said.stderr
        assert "canary" not in said.stdout + said.stderr
    explained = ("--prompt", "Hi", "--completion", "Ho", "--html", tmp_path / "explained.html", "--use_cpu")
    assert surefoot("explain", "--model", run, *explained, place=tmp_path).returncode == 0
    assert {"run.json", "events.jsonl", "report.html"} <= {path.name for path in run.iterdir()}
    assert len(list(run.glob("slides/*/slide.json"))) == 2 and list(run.glob("checkpoints/step-*"))
    assert (tmp_path / "explained.html").is_file()
    assert canaries(tmp_path) == []
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "option",
    ["--dataset_name", "--eval_dataset_name", "--model_name_or_path", "--chat_template_path", "--run_name"],
)
def test_a_secret_in_a_url_is_in_no_file_of_the_run(
    option: str, options: tuple[object, ...], zygote: Zygote, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    env = {**OWN, "XDG_CACHE_HOME": str(tmp_path / "cache"), **SECRETS}
    zygote.run(["train", *options, option, URL, "--output_dir", run], tmp_path, env=env).wait()
    assert canaries(run) == []


def test_what_is_given_in_python_is_written_without_its_secrets(tiny_folder: Path, tmp_path: Path) -> None:
    from surefoot import SFTConfig, SFTTrainer
    from surefoot.runfolder import RunFolder

    names = {"dataset_name": URL, "run_name": URL, "project": f"s3://key:{IN_URL}@bucket"}
    args = SFTConfig(tmp_path / "run", max_steps=2, save_steps=1, use_cpu=True, **names)
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    SFTTrainer(str(tiny_folder), args, train_dataset=[{"messages": turn}]).train()
    assert canaries(tmp_path) == []
    told = RunFolder(tmp_path / "run").config()["config"]
    assert told["dataset_name"] == "https://***@127.0.0.1:9/rows.jsonl?token=***"
    # What was written then, and what a run that goes on would compare it with, agree.
    assert told == args.to_dict()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("https://user:pass@host/a?b=c", "https://***@host/a?b=c"),
        ("https://token@host", "https://***@host"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host/a?X-Amz-Signature=abc&x=1#access_token=q", "https://host/a?X-Amz-Signature=***&x=1#access_token=***"),
        ("see https://a:b@c and ftp://d:e@f.", "see https://***@c and ftp://***@f."),
        ("someone@example.org: token=x", "someone@example.org: token=x"),
        ({"a": ["x://u:p@h", 1, None]}, {"a": ["x://***@h", 1, None]}),
    ],
)  # fmt: skip
def test_what_counts_as_a_secret(given: object, written: object) -> None:
    assert without_credentials(given) == written
