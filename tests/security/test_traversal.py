"""A name in a file leads to a file beside it, or nowhere: what lies elsewhere is not read, though it would fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from surefoot import UserError
from surefoot.model.load import load, load_tokenizer, locate
from tests.conftest import Surefoot
from tests.report.sample_slide import sample
from tests.report.samples import run_folder, with_slides
from tests.security import hostile

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model in shards, whose weights lie outside its folder, whole and fitting."""
    folder = hostile.copy(tiny_folder, tmp_path / "model")
    hostile.as_shards(folder)
    assert load(str(folder)).name == str(folder)
    shutil.move(folder / SHARD, tmp_path / SHARD)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        f"../{SHARD}",
        f"./../{SHARD}",
        f"../model/../{SHARD}",
        f"x/../../{SHARD}",
        "ABSOLUTE",
        f"..\\{SHARD}",
        "..",
        ".",
    ],
)
def test_an_index_names_files_beside_it(name: str, folder: Path, tmp_path: Path) -> None:
    index = folder / "model.safetensors.index.json"
    named = str(tmp_path / SHARD) if name == "ABSOLUTE" else name
    hostile.edit(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], named))
    with pytest.raises(UserError) as caught:
        load(str(folder))
    assert str(caught.value) == f"{index}: {named[:80]!r} is not the name of a file in this folder"


@pytest.mark.parametrize("target", [f"../{SHARD}", "ABSOLUTE"])
def test_a_link_does_not_lead_out(target: str, folder: Path, tmp_path: Path) -> None:
    hostile.as_link(folder / SHARD, tmp_path / SHARD if target == "ABSOLUTE" else Path(target))
    with pytest.raises(UserError, match=f"{SHARD} is a link that leads out of the folder"):
        load(str(folder))


def test_nor_does_a_chain_of_links_or_one_through_a_folder(folder: Path, tmp_path: Path) -> None:
    hostile.as_link(folder / "one", Path("two"))
    hostile.as_link(folder / "two", tmp_path / SHARD)
    hostile.as_link(folder / SHARD, Path("one"))
    with pytest.raises(UserError, match="is a link that leads out of the folder"):
        load(str(folder))
    for name in ("one", "two", SHARD):
        (folder / name).unlink()
    hostile.as_link(folder / "away", tmp_path)
    with pytest.raises(UserError, match="away is a link that leads out of the folder"):
        load(str(folder))


def test_a_folder_beside_that_begins_alike_is_outside(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "model-other"
    other.mkdir()
    shutil.move(tmp_path / SHARD, other / SHARD)
    hostile.as_link(folder / SHARD, Path("../model-other") / SHARD)
    with pytest.raises(UserError, match="is a link that leads out of the folder"):
        load(str(folder))


def test_a_config_names_weights_beside_it(folder: Path, tmp_path: Path) -> None:
    hostile.edit(folder / "config.json", transformers_weights=f"../{SHARD}")
    with pytest.raises(UserError, match="is not the name of a file in this folder"):
        load(str(folder))


def test_a_tokenizer_names_files_beside_it(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "tokenizer.json", tmp_path / "tokenizer.1.0.json")
    hostile.edit(folder / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.1.0.json"])
    with pytest.raises(UserError, match="is not the name of a file in this folder"):
        load_tokenizer(folder)
    hostile.edit(folder / "tokenizer_config.json", fast_tokenizer_files=None)
    for option in ("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"):
        hostile.edit(folder / "tokenizer_config.json", **{option: str(tmp_path / "tokenizer.1.0.json")})
    with pytest.raises(UserError, match="no tokenizer to be had there"):
        load_tokenizer(folder)


def test_a_run_folders_model_is_the_one_in_it(tiny_folder: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", steps=2)
    hostile.edit(run / "run.json", model={"name": "../../elsewhere"})
    shutil.copytree(tiny_folder, run / "model")
    assert locate(str(run)) == run / "model"


@pytest.mark.parametrize("name", ["../../slide", "/etc", "..", "step-../../x"])
def test_a_slide_is_where_the_runs_folder_has_it(name: str, surefoot: Surefoot, tmp_path: Path) -> None:
    """What an event says of a slide's place is told, and not followed."""
    run = with_slides(run_folder(tmp_path / "run", steps=2), sample())
    sample(step=2).save(tmp_path / "slide")
    event = {
        "type": "slide",
        "step": 2,
        "path": name,
        "because": "x",
        "headline": "</script>",
        "open_seconds": 0.1,
    }
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    said = surefoot("report", run, "--json")
    assert (said.status, said.json["slides"]) == (0, 1)


def test_a_name_of_a_model_is_no_way_up(surefoot: Surefoot, rows_file: Path) -> None:
    for name in (
        "../../../etc",
        "org/../../etc",
        "..",
        "a/b/c",
        "org/name/../../x",
        "%2e%2e/etc",
        "a\\..\\b",
    ):
        said = surefoot("preview", name, "--data", rows_file)
        assert said.status == 2 and "Traceback" not in said.err
