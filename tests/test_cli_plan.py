"""surefoot plan: what it reads, what it prints, its exit status, and what wrong words get."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from surefoot.cards import CARDS
from tests.conftest import Surefoot, write_rows

H100 = ("--gpu", "h100", "--gpus", 2)


@pytest.fixture
def config_only(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model without its weights."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_a_recipe_is_planned_without_weights_and_without_a_run_folder(
    config_only: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {config_only}\ndataset_name: {rows_file}\ngradient_checkpointing: true\n"
    )
    before = sorted(tmp_path.iterdir())
    said = surefoot("plan", recipe, *H100)
    assert (said.status, said.err) == (0, "")
    assert sorted(tmp_path.iterdir()) == before
    ways = [line.split("   ")[0] for line in said.out.splitlines() if ", shard=" in line]
    assert [way.split()[0] for way in ways] == ["full,", ">", "full,", "full,", *["LoRA,"] * 4]
    assert ways[1].startswith("> full, shard=none, recomputing")
    assert said.out.count(" fits ") == 8 and "TOO MUCH" not in said.out
    assert "on 2 x H100 of 80 GB, of which 72.2 may be used" in said.out
    assert "which is assumed, not measured" in said.out


def test_json_has_every_number(tiny_folder: Path, rows_file: Path, surefoot: Surefoot) -> None:
    model = ("--model", tiny_folder, "--data", rows_file)
    found = surefoot("plan", *model, *H100, "--use_peft", "--shard", "full", "--json").json
    mine = found["ways"][found["own"]]
    assert (mine["peft"], mine["shard"], mine["recompute"]) == (True, True, False)
    assert mine["fits"] and mine["speed"]["low"] < mine["speed"]["high"]
    memory = mine["memory"]
    total = sum(value for name, value in memory.items() if name not in ("micro_batch_tokens", "total"))
    assert memory["total"] == pytest.approx(total)
    assert found["place"]["ranks"] == 2 and found["place"]["flops"] == 989e12
    assert found["rows"]["step_rows"] == 8 and found["suggestions"] == []
    assert found["assumed"]["mfu"] == [0.25, 0.45]


def test_rows_can_be_said_instead(tiny_folder: Path, surefoot: Surefoot) -> None:
    said = surefoot("plan", "--model", tiny_folder, "--lengths", "40,100,10", *H100, "--json").json
    assert (said["rows"]["mean"], said["rows"]["longest"]) == (39, 99)
    assert said["rows"]["share"] == pytest.approx(10 / 39)


def test_what_does_not_fit_is_one_and_says_what_would(tiny_folder: Path, surefoot: Surefoot) -> None:
    model = ("--model", tiny_folder, "--lengths", "40,100")
    card = ("--gpu-memory", 1e9 + 1e6, "--gpu-flops", 1e12)
    said = surefoot("plan", *model, *card)
    assert said.status == 1
    assert "> full  " in said.out and "TOO MUCH" in said.out
    assert "What would fit: " in said.out or "take a smaller model" in said.out
    enough = surefoot("plan", *model, "--gpu-memory", 1.1e9, "--gpu-flops", 1e12)
    assert enough.status == 0 and "compute" in enough.out
    assert surefoot("plan", *model, "--gpu-memory", 1.1e9, "--json").json["ways"][0]["speed"] is None


def test_processes_of_this_machine_are_planned_too(tiny_folder: Path, surefoot: Surefoot) -> None:
    model = ("--model", tiny_folder, "--lengths", "40,100")
    one, two = (surefoot("plan", *model, "--gpu", "cpu", "--gpus", n, "--json").json for n in (1, 2))
    assert [len(plan["ways"]) for plan in (one, two)] == [4, 8]
    assert one["place"]["memory"] > 1.2 * two["place"]["memory"]  # others may take some in between
    assert one["ways"][0]["memory"]["process"] > 5e7 and one["ways"][0]["speed"] is None


def test_between_machines_the_network_is_the_link(tiny_folder: Path, surefoot: Surefoot) -> None:
    model = ("--model", tiny_folder, "--lengths", "40,100", "--gpu", "h100", "--json")
    inside, between, slow = (
        surefoot("plan", *model, "--gpus", n, *more).json["place"]
        for n, more in ((8, ()), (16, ()), (8, ("--nodes", 2, "--network", 100)))
    )
    assert (inside["nodes"], inside["link"]) == (1, 450e9)
    assert (between["nodes"], between["link"]) == (2, 50e9)
    assert (slow["nodes"], slow["link"]) == (2, 12.5e9)


def test_what_keeps_it_from_planning_adapters_is_said_whole(
    tiny_folder: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = surefoot("plan", "--model", tiny_folder, "--lengths", "40,100", *H100)
    note = "note: LoRA: LoRA needs the package peft. Run: pip install 'surefoot[lora]'"
    assert said.status == 0 and note in said.out.splitlines()


def test_names_are_printed_as_they_are(
    config_only: Path, surefoot: Surefoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # so that there is a bar
    monkeypatch.setattr("surefoot.train.setup.LONG", 1)
    model = config_only.rename(tmp_path / "[bold] :cat:")
    rows = write_rows(tmp_path / "[red] :cat:.jsonl", [{"prompt": "1", "completion": "2"}])
    said = surefoot("plan", "--model", model.name, "--data", rows.name, *H100)
    assert said.status == 0, said.err
    assert "\n[bold] :cat:: " in f"\n{said.out}"
    assert "tokenising [red] :cat:.jsonl" in said.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--gpu", "h101"), "--gpu: no card named 'h101' is known. Did you mean 'H100'? Known: B200, "),
        ((), "--gpu: which card? Known: "),
        (("--gpu", "h100", "--nodes", 2), "2 nodes, and 1 GPUs in all"),
        (("--gpu", "h100", "--lengths", "100"), "--lengths: MEAN,MAX tokens of a row"),
        (("--gpu", "h100", "--lengths", "100,50"), "--lengths: MEAN,MAX tokens of a row"),
        (("--gpu", "h100", "--gpus", 0), "gpus: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_wrong_words_are_two(
    more: tuple[object, ...],
    said: str,
    tiny_folder: Path,
    surefoot: Surefoot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lengths = () if "--lengths" in more else ("--lengths", "40,100")
    found = surefoot("plan", "--model", tiny_folder, *lengths, *more)
    assert (found.status, found.out) == (2, "")
    assert found.err.startswith(f"surefoot: {said}"), found.err


def test_without_rows_it_says_how_to_do_without(
    tiny_folder: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    none = surefoot("plan", "--model", tiny_folder, *H100)
    assert none.status == 2 and "without rows, --lengths MEAN,MAX" in none.err
    gone = surefoot("plan", "--model", tiny_folder, "--data", tmp_path / "gone.jsonl", *H100)
    assert gone.status == 2 and "gone.jsonl: no such file" in gone.err
    assert "--lengths MEAN,MAX" in gone.err


def test_more_gpus_are_spread_as_the_user_has_spread_them() -> None:
    from surefoot.commands.plan import PlanOptions, _place

    own = PlanOptions(gpu="h100", gpus=4, nodes=2)
    assert [(_place(own, ranks).nodes, _place(own, ranks).link) for ranks in (4, 2, 8, 16)] == [
        (2, 50e9),
        (1, 450e9),
        (4, 50e9),
        (8, 50e9),
    ]
    usual, large = PlanOptions(gpu="h100", gpus=4), PlanOptions(gpu="h100", gpus=16, nodes=1)
    assert [_place(usual, ranks).nodes for ranks in (4, 8, 9, 64)] == [1, 1, 2, 8]
    assert [(_place(large, ranks).nodes, _place(large, ranks).link) for ranks in (16, 32)] == [
        (1, 450e9),
        (2, 50e9),
    ]


def test_every_card_can_be_named(tiny_folder: Path) -> None:
    from surefoot.commands.plan import PlanOptions, _place

    for card in CARDS:
        place = _place(PlanOptions(gpu=card.name.lower().replace(" ", "-"), gpus=8), 8)
        assert (place.name, place.memory, place.flops) == (card.name, card.memory, card.flops)
