"""All bad rows are said at once; with on_bad_row=skip they are left out, and the ledger says which and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from surefoot.data import render
from surefoot.data.badrows import LISTED, BadRows, OnBadRow, RowError
from surefoot.data.dataset import LOOKED_AT, Dataset, read
from surefoot.data.ledger import Ledger
from surefoot.data.render import Renderer
from surefoot.data.sources import open_source
from surefoot.errors import UserError
from tests import templates, toys
from tests.conftest import Surefoot
from tests.faults.refused import GOOD, LINE, refusal, says, write

USER, ASSISTANT = GOOD["messages"]
ROBOT = json.dumps({"messages": [{"role": "robot", "content": "q"}]}).encode() + b"\n"
LONG = json.dumps({"messages": [USER, {"role": "assistant", "content": "word " * 99}]}).encode() + b"\n"
OTHER = b'{"text": "x"}\n'
FAULTS = {
    b"{\n": "not usable JSON",
    b"caf\xe9\n": "not UTF-8",
    b"\0\n": "NUL byte",
    b'{"a": "\\ud800"}\n': "lone surrogate",
    b"[]\n": "not an object",
    ROBOT: "unknown role",
    b'{"messages": []}\n': "no messages",
    b'{"messages": [3]}\n': "wrong type",
    OTHER: "another shape",
}
"""A bad line → its kind."""


def data(rows: Any, max_length: int = 128, **options: Any) -> Dataset:
    renderer = Renderer(toys.byte_level(template=templates.CHATML), max_length=max_length)
    return read(open_source(rows), renderer, columns={}, **options)


def error_of(rows: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        data(rows, **options)
    return str(caught.value)


def test_every_kind_of_bad_row_is_said_in_one_run(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path
) -> None:
    """Those that the reader finds, the format, the template's renderer and the check of the ids."""
    path = write(tmp_path / "r.jsonl", LINE + b"".join(line + LINE for line in FAULTS) + LONG)
    said = refusal(surefoot, tiny_folder, path, "--max_length", 100, "--overlength", "error").splitlines()
    places = [line.removeprefix(f"{path}:").split(":")[0] for line in said[:-1]]
    # What only the tokens tell comes a batch later than what the row itself tells.
    assert sorted(map(int, places)) == [*range(2, 2 * len(FAULTS) + 1, 2), 2 * len(FAULTS) + 2]
    assert all(" begins: " in line for line in said[:-1])
    bad = len(FAULTS) + 1
    assert said[-1] == (
        f"{bad} bad rows; {bad} of {2 * bad} rows are fine. on_bad_row=skip (--on-bad-row skip) leaves bad rows "
        "out and lists them in the ledger."
    )


@pytest.mark.parametrize("bad", [1, 2, LISTED, LISTED + 1, 1000])
def test_twenty_are_listed_and_the_rest_is_counted(bad: int, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", LINE + b"{\n" * bad + LINE * 1500)
    said = error_of(path).splitlines()
    listed = min(bad, LISTED)
    assert [line.startswith(f"{path}:{n}:2: not usable") for n, line in enumerate(said[:listed], 2)] == [
        True
    ] * listed
    if bad == 1:
        assert len(said) == 1
    else:
        first = f"{bad} bad rows" if bad <= LISTED else f"... and {bad - LISTED} more bad rows"
        assert said[listed].startswith(f"{first}; 1,501 of {bad + 1501:,} rows are fine. ")
        assert len(said) == listed + 1


def test_memory_is_for_the_listed_only() -> None:
    bad = BadRows(Ledger())
    for number in range(10_000):
        bad.add(RowError(f"r:{number}", "odd", f"r:{number}: odd"))
        bad.add(RowError(f"r:{number}", "odd", f"r:{number}: odd in another way"))
    assert bad.count == 10_000 and len(bad._messages) == LISTED
    with pytest.raises(
        UserError, match=r"^r:0: odd\nr:1: odd\n(.*\n)+\.\.\. and 9,980 more bad rows; 5 of 10,005"
    ):
        bad.check(10_005)


def test_lists_datasets_streams_and_tables_too(tmp_path: Path) -> None:
    robot = json.loads(ROBOT)
    rows = [GOOD, robot, GOOD, robot]
    for source, name in (
        (rows, "dataset"),
        (write(tmp_path / "r.json", json.dumps(rows).encode()), tmp_path / "r.json"),
    ):
        said = error_of(source).splitlines()
        assert [line.split(":")[0] for line in said[:2]] == [f"{name}[1]", f"{name}[3]"]
        assert said[2].startswith("2 bad rows; 2 of 4 rows are fine.")
    said = error_of([GOOD, 3, {1: 2}, GOOD, {"text": "\ud800"}]).splitlines()
    says(said[0], "dataset[1]: a row is a mapping of columns to values, this is a int: 3")
    says(
        said[1],
        "dataset[2]: a row is a mapping of columns to values, this is one with other keys than strings",
    )
    says(said[2], "dataset[4]: a string holds", 'begins: {"text": "\\ud800"}')
    says(said[3], "3 bad rows; 2 of 5 rows are fine.")
    path = write(tmp_path / "r.csv", b'prompt,completion\na,b\nc\n"d\nd",e\nf,g,h\n\ni,\xff\nj,k\n')
    said = error_of(path).splitlines()
    assert [line.split(":")[1] for line in said[:3]] == ["3", "6", "8"]
    says(said[3], "3 bad rows; 3 of 6 rows are fine.")
    datasets = pytest.importorskip("datasets")
    said = error_of(datasets.Dataset.from_list(rows)).splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["dataset[1]", "dataset[3]"]


def test_a_stream_without_end_is_read_no_further_than_the_run_would() -> None:
    datasets = pytest.importorskip("datasets")
    taken = []

    def rows() -> Iterator[Any]:
        for number in count():
            taken.append(number)
            yield GOOD if number == 0 else {"messages": []}

    said = error_of(datasets.IterableDataset.from_generator(rows), at_most=30).splitlines()
    assert len(taken) <= 31  # one more, where the library looks at the first row for its columns
    assert said[-1].startswith("... and 9 more bad rows; 1 of 30 rows are fine.")


def test_a_bad_first_row_does_not_decide_the_shape(tmp_path: Path) -> None:
    """Neither one that is no row nor one that has the columns of a shape and not their content."""
    for first in (b"{\n", OTHER.replace(b'"x"', b"3"), b'{"prompt": 1, "completion": 2}\n', b'{"a": 1}\n'):
        path = write(tmp_path / "r.jsonl", first + LINE * 2)
        found = data(path, on_bad_row="skip")
        assert found.ledger.shape == "messages (messages)"
        assert [example.where for example in found.examples] == [f"{path}:2", f"{path}:3"]
        assert error_of(path).startswith(f"{path}:1")


def test_a_shape_that_no_row_has_is_said_once() -> None:
    said = error_of([{"state": "Ohio"}] * 50)
    says(
        said,
        "dataset[0]: unknown shape: the row has the columns state.",
        "None of the 50 rows that can be read has",
    )
    said = error_of([{"state": "Ohio"}] * 5 * LOOKED_AT, on_bad_row="skip")
    says(
        said, "dataset[0]: unknown shape", "None of the first 1,000 rows that can be read has a known shape."
    )
    assert said.count("\n") == 0


def test_a_chat_template_that_is_missing_is_said_once() -> None:
    with pytest.raises(UserError) as caught:
        read(
            open_source([GOOD] * 3), Renderer(toys.byte_level(), max_length=99), columns={}, on_bad_row="skip"
        )
    says(
        str(caught.value),
        "dataset[0]: the row is a conversation, and the model's tokenizer has no chat template",
    )


def test_skip_trains_on_the_others_and_lists_what_it_left_out(
    surefoot: Surefoot, tiny_folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.jsonl", LINE + b"".join(line + LINE for line in FAULTS) + b"{\n")
    said = surefoot(
        *("train", "--model_name_or_path", tiny_folder, "--dataset_name", path, "--output_dir", "run"),
        *("--use_cpu", "--disable_tqdm", "--max_steps", 1, "--save_strategy", "no", "--precision", "fp32"),
        *("--on-bad-row", "skip"),
    )
    assert said.status == 0, said.err
    says(said.err, f"dropped: 2 × not usable JSON ({path}:2, {path}:20)")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["config"]["on_bad_row"] == "skip"
    ledger = content["data"]["train"]["ledger"]
    assert (ledger["rows"], ledger["examples"]) == (20, 10)
    places = {kind: [f"{path}:{2 * n + 2}"] for n, kind in enumerate(FAULTS.values())}
    places["not usable JSON"].append(f"{path}:20")
    assert ledger["dropped"] == places
    assert ledger["counts"] == {kind: len(where) for kind, where in places.items()}


def test_preview_and_evaluate_skip_too(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ROBOT + LINE + b"{\n" + LONG)
    clean = write(tmp_path / "clean.jsonl", LINE)
    flags = ("--on-bad-row", "skip", "--max_length", 100, "--json")
    said = surefoot("preview", tiny_folder, "--data", path, *flags).json
    dropped = {"unknown role": [f"{path}:1"], "not usable JSON": [f"{path}:3"]}
    assert said["ledger"]["dropped"] == {**dropped, "longer than max_length 100": [f"{path}:4"]}
    (example,) = said["examples"]
    (wanted,) = surefoot("preview", tiny_folder, "--data", clean, "--json").json["examples"]
    assert {**wanted, "where": f"{path}:2"} == example
    assert surefoot("preview", tiny_folder, "--data", path, "--json").status == 2
    flags = ("--use_cpu", "--precision", "fp32", "--max_new_tokens", 3, "--json")
    said = surefoot(
        "evaluate", tiny_folder, "--data", path, "--max_length", 100, "--on-bad-row", "skip", *flags
    ).json
    assert said == surefoot("evaluate", tiny_folder, "--data", clean, *flags).json
    assert surefoot("evaluate", tiny_folder, "--data", path, *flags).status == 2


def test_compare_skips_too(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ROBOT + LINE + b"{\n" + LINE)
    flags = (
        "compare",
        tiny_folder,
        tiny_folder,
        "--data",
        path,
        "--max_new_tokens",
        2,
        "--use_cpu",
        "--json",
    )
    said = surefoot(*flags)
    assert said.status == 2
    says(said.err, f"surefoot: {path}:1: ", f"{path}:3:2: ", "2 bad rows; 2 of 4 rows are fine.")
    said = surefoot(*flags, "--on_bad_row", "skip")
    assert said.status == 0, said.err
    assert json.dumps(said.json).count("Hello!") == 2


def test_stop_and_skip_are_kept_apart(tmp_path: Path) -> None:
    """What skip has kept in the cache is not an answer to stop."""
    path = write(tmp_path / "r.jsonl", LINE + b"{\n")
    cache = tmp_path / "cache"
    first = data(path, on_bad_row="skip", cache=cache, worth_seconds=0)
    again = data(path, on_bad_row="skip", cache=cache, worth_seconds=0)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert again.ledger.dropped == {"not usable JSON": [f"{path}:2"]}
    says(error_of(path, cache=cache, worth_seconds=0), f"{path}:2:2: not usable JSON")


def test_the_docs_show_what_is_said(surefoot: Surefoot, tiny_folder: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rows.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)
    stopped, skipped = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    (tmp_path / "rows.jsonl").write_text(rows)
    assert surefoot("preview", tiny_folder, "--data", "rows.jsonl").err == stopped
    said = surefoot("preview", tiny_folder, "--data", "rows.jsonl", "--on-bad-row", "skip").out
    assert [line for line in said.splitlines() if "dropped" in line] == skipped.splitlines()


def test_a_template_that_is_slow_to_refuse_is_not_tried_on_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = toys.byte_level(template="{{ raise_exception('Not this one') }}")

    def said(on_bad_row: OnBadRow) -> str:
        with pytest.raises(UserError) as caught:
            read(open_source([GOOD] * 3), Renderer(refuses, max_length=9), columns={}, on_bad_row=on_bad_row)
        return str(caught.value)

    assert said("stop").count("Not this one") == 3
    assert said("skip").startswith(
        "dataset: nothing to learn in any of 3 rows: 3 × refused by the chat template"
    )
    monkeypatch.setattr(render, "SLOW_SECONDS", 0.0)
    for on_bad_row in ("stop", "skip"):
        assert said(on_bad_row).startswith("dataset[0]: ") and said(on_bad_row).count("Not this one") == 1


def test_reasons_are_bounded_in_number(tmp_path: Path) -> None:
    """However many roles are unknown, the ledger has one reason for them."""
    rows = [GOOD, *({"messages": [{"role": f"r{n}", "content": "q"}]} for n in range(300))]
    ledger = data(rows, on_bad_row="skip").ledger
    assert ledger.counts == {"unknown role": 300}
    assert ledger.dropped == {"unknown role": [f"dataset[{n}]" for n in range(1, LISTED + 1)]}
