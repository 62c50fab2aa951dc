"""surefoot check: exit status, table, JSON; and that a fault in the fast path is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surefoot.model import network
from surefoot.train import selfcheck
from tests.conftest import Surefoot
from tests.train.test_selfcheck_faults import Stretched

CPU = "--use_cpu"


def test_an_honest_model_is_exact(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    said = surefoot("check", "--model", tiny_folder, "--data", rows_file, CPU, "--precision", "bf16")
    assert (said.status, said.err) == (0, "")
    for case in ("two short rows", "a shared prefix", "a completion of one token", "a step of 4 rows"):
        assert f"\n{case}" in said.out
    assert "OFF" not in said.out
    last = said.out.rstrip().splitlines()[-1]
    assert last.startswith("exact: training (") and "logits of targets only" in last
    assert list(tmp_path.iterdir()) == []  # no run folder is made


def test_json_has_every_number(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tiny_folder}\ndataset_name: {rows_file}\nprecision: bf16\n")
    said = surefoot("check", recipe, "--rows", 2, CPU, "--json")
    assert (said.status, said.err) == (0, "")
    found = said.json
    assert found["exact"] is True and found["reference"] == "float64"
    assert found["model"] == str(tiny_folder)
    assert {c["case"] for c in found["comparisons"]} >= {"a step of 2 rows", "the same, one row at a time"}
    for comparison in found["comparisons"]:
        assert comparison["ok"] and comparison["error"] <= comparison["budget"]
        assert (comparison["naive"] is None) == (comparison["level"] == "formula")


def test_what_only_the_full_form_sees_is_not_exact(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    target_loss = network.target_loss

    def scaled(hidden: Any, head: Any, *rest: Any) -> Any:
        return target_loss(hidden, replace(head, weight_VD=Stretched.apply(head.weight_VD)), *rest)

    monkeypatch.setattr(network, "target_loss", scaled)
    check = ("check", "--model", tiny_folder, "--data", rows_file, CPU, "--precision", "fp32")
    said = surefoot(*check)
    assert said.status == 1
    last = said.out.rstrip().splitlines()[-1]
    assert last.startswith("not exact: ")
    assert "; the model computes its own logits, as by the head's formula the gradient of " in last
    assert "only this path is exact: rows one at a time, logits by the model itself" in last
    found = surefoot(*check, "--json").json
    assert found["exact"] is False and len(found["refused"]) >= 1


def test_a_fault_that_training_sees_too_is_exact_by_a_slower_path(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at = network.look_at

    def lying(*args: Any, **kwargs: Any) -> Any:
        found = look_at(*args, **kwargs)
        return replace(found, head=replace(found.head, scale=1.01))

    monkeypatch.setattr("surefoot.train.loading.look_at", lying)
    said = surefoot("check", "--model", tiny_folder, "--data", rows_file, CPU)
    assert said.status == 0
    last = said.out.rstrip().splitlines()[-1]
    assert last.startswith("exact: training (rows one at a time, logits by the model itself)")
    assert (
        "the model computes its own logits, as by the head's formula the loss on a few short rows is off"
        in last
    )


def test_a_model_that_training_refuses_is_one(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no such kernel: [bold] :cat:")

    monkeypatch.setattr(selfcheck, "as_trained", broken)
    said = surefoot("check", "--model", tiny_folder, "--data", rows_file, CPU)
    assert said.status == 1
    assert "not exact, and training refuses: the loss and gradient of this model are not those" in said.out
    assert "no such kernel: [bold] :cat:" in said.out


def test_what_is_missing_is_two(tiny_folder: Path, rows_file: Path, surefoot: Surefoot) -> None:
    for argv, words in (
        (("--model", tiny_folder), "surefoot check --model MODEL --data FILE"),
        (("--model", tiny_folder, "--data", "gone.jsonl"), "gone.jsonl"),
        (("--model", tiny_folder, "--data", rows_file, "--rows", 0), "rows"),
        (
            ("--model", tiny_folder, "--data", rows_file, "--row", 3),
            "unknown option '--row'. Did you mean 'rows'?",
        ),
    ):
        said = surefoot("check", *argv)
        assert (said.status, said.out) == (2, "")
        assert words in said.err
