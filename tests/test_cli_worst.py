"""surefoot worst: the rows that cost a run most, with their text from where it was."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from surefoot.events import StepEvent
from surefoot.runfolder import RunFolder
from tests.conftest import QUESTIONS, Surefoot, write_rows

KINDS = ("cost_most", "rose", "never_learned")


def test_a_real_run_is_listed_with_its_text(tiny_run: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("worst", tiny_run, "--json")
    assert (said.status, said.err) == (0, "")
    found = said.json
    cost: dict[str, float] = defaultdict(float)
    for event in RunFolder(tiny_run).events():
        if event["type"] == "step":
            for where, loss, _ in event["examples"]:
                cost[where] += loss
    assert [row["where"] for row in found["cost_most"]] == sorted(cost, key=lambda w: -cost[w])
    assert found["note"] is None
    for row in found["cost_most"]:
        asked, answered = QUESTIONS[int(row["where"].rpartition(":")[2]) - 1]
        assert row["text"] == f"user: {asked}\nassistant: {answered}"
        assert row["share"] == pytest.approx(cost[row["where"]] / sum(cost.values()))


def test_on_a_terminal_every_row_is_a_line(tiny_run: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("worst", tiny_run, "--limit", 2)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "Cost most" in lines
    head = lines.index("Cost most")
    rows = [line for line in lines[head:] if " :" in line][:2]
    assert len(rows) == 2
    assert any(asked[:10] in rows[0] for asked, _ in QUESTIONS)
    assert f"of{rows_file}" in "".join(said.out.split())  # wherever the lines break


def write_run(
    folder: Path, data: Any, fingerprint: str, examples: list[list[tuple[str, float, int]]], **config: Any
) -> Path:
    """A run folder as the trainer leaves it, without training."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    run.events_file.touch()
    dataset = None if data is None else str(data)
    settings = {"dataset_name": dataset, "dataset_train_split": "train", "columns": {}, **config}
    run.write_config({"config": settings, "data": {"train": {"fingerprint": fingerprint}}})
    for number, step in enumerate(examples, 1):
        numbers = dict.fromkeys(
            ("epoch", "loss", "learning_rate", "grad_norm", "clip_factor", "token_accuracy", "entropy"), 1.0
        )
        counts = dict.fromkeys(
            ("tokens", "supervised", "num_tokens", "slots", "micro_batches", "memory_bytes"), 1
        )
        event: Any = {**numbers, **counts, "step_seconds": 1.0, "tokens_per_second": 1.0, "examples": step}
        run.append(StepEvent(step=number, **event))
    return folder


def fingerprint(path: Path) -> str:
    from surefoot.data.sources import open_source

    return open_source(path).fingerprint


ROWS = [
    {"prompt": "Say \x1b[2J:", "completion": " one [bold]two\nthree"},
    {"prompt": "Long: ", "completion": "word " * 200},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rows, visited twice: the first rises, the second stays high."""
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    one, two = f"{data}:1", f"{data}:2"
    return write_run(
        tmp_path / "run",
        data,
        fingerprint(data),
        [[(one, 2.0, 2), (two, 8.0, 2)], [(one, 3.0, 2), (two, 7.0, 2)]],
    )


def test_the_three_kinds_and_whole_texts(run: Path, surefoot: Surefoot) -> None:
    found = surefoot("worst", run, "--json").json
    one, two = f"{run.parent}/rows.jsonl:1", f"{run.parent}/rows.jsonl:2"
    assert [[row["where"] for row in found[kind]] for kind in KINDS] == [[two, one], [one], [two]]
    assert {key: found[key] for key in ("steps", "rows", "revisited", "high", "rose_count")} == {
        "steps": 2, "rows": 2, "revisited": 2, "high": 2.5, "rose_count": 1,
    }  # fmt: skip
    assert found["rose"][0]["text"] == "Say \x1b[2J: one [bold]two\nthree"
    assert found["never_learned"][0]["text"] == "Long: " + "word " * 200


def test_texts_are_cut_to_a_line_and_harmless(run: Path, surefoot: Surefoot) -> None:
    said = surefoot("worst", run)
    assert (said.status, said.err) == (0, "")
    assert not [c for c in said.out if c != "\n" and not c.isprintable()]
    assert r"Say \x1b[2J: → one [bold]t" in said.out
    assert "…" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    for title in ("Cost most", "Rose (1)", "Never learned (1)"):
        assert f"\n{title}\n" in said.out
    assert "still cost more than 2.5 nats" in said.out


def test_changed_and_lost_data_are_said(run: Path, surefoot: Surefoot) -> None:
    data = run.parent / "rows.jsonl"
    write_rows(data, ROWS[::-1])
    said = surefoot("worst", run, "--json").json
    assert said["note"] == f"{data} has changed since the run, so its rows' text is not shown"
    assert [row["text"] for row in said["cost_most"]] == [None, None]
    data.unlink()
    found = surefoot("worst", run)
    assert found.status == 0
    note = "rows.jsonl is not here, so its rows' text is not shown"
    assert note.replace(" ", "") in "".join(found.out.split())  # a long path is folded anywhere
    assert ":2" in found.out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"dataset_name": None}, "the run's rows were passed from Python"),
        ({"dataset_streaming": True}, "was read as a stream"),
    ],
)
def test_rows_that_cannot_be_read_again(config: Any, said: str, tmp_path: Path, surefoot: Surefoot) -> None:
    run = write_run(tmp_path / "run", "rows.jsonl", "x", [[("dataset[0]", 2.0, 2)]], **config)
    found = surefoot("worst", run, "--json")
    assert found.status == 0
    assert said in found.json["note"]


def test_half_a_run_json_is_no_obstacle(run: Path, surefoot: Surefoot) -> None:
    (run / "run.json").write_text("{", encoding="utf-8")
    found = surefoot("worst", run, "--json").json
    assert found["note"] == f"{run}/run.json does not tell which data the run had, so no row's text is known"


def test_chats_conversations_and_columns(tmp_path: Path, surefoot: Surefoot) -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}, call]}
    ]
    data = write_rows(tmp_path / "chat.jsonl", rows)
    run = write_run(tmp_path / "chat", data, fingerprint(data), [[(f"{data}:1", 1.0, 1)]])
    text = surefoot("worst", run, "--json").json["cost_most"][0]["text"]
    assert text.startswith("system: Be brief.\nuser: Hi?\nassistant: {")
    assert '"name": "f"' in text
    assert "Hi? → {" in surefoot("worst", run).out
    data = write_rows(tmp_path / "named.jsonl", [{"ask": "Q", "say": "A"}])
    run = write_run(
        tmp_path / "named",
        data,
        fingerprint(data),
        [[(f"{data}:1", 1.0, 1)]],
        columns={"prompt": "ask", "completion": "say"},
    )
    assert "Q" in surefoot("worst", run, "--json").json["cost_most"][0]["text"]
    data = write_rows(tmp_path / "odd.jsonl", [{"x": 1, "y": "what a function made sense of"}])
    run = write_run(tmp_path / "odd", data, fingerprint(data), [[(f"{data}:1", 1.0, 1)]])
    text = surefoot("worst", run, "--json").json["cost_most"][0]["text"]
    assert json.loads(text) == {"x": 1, "y": "what a function made sense of"}


def test_one_visit_each_says_nothing_of_learning(tmp_path: Path, surefoot: Surefoot) -> None:
    run = write_run(tmp_path / "run", None, "", [[("dataset[0]", 2.0, 2)], [("dataset[1]", 1.0, 1)]])
    said = surefoot("worst", run)
    assert "Each was visited once, so none can have risen or be called learned." in said.out.replace(
        "\n", " "
    )
    assert "Never learned" not in said.out


def test_what_is_no_run_or_has_no_steps(tmp_path: Path, surefoot: Surefoot) -> None:
    for argv, words in (
        (["worst"], "surefoot worst RUN: which run folder?"),
        (["worst", "nowhere"], "nowhere is no run folder (no events.jsonl)"),
        (
            ["worst", write_run(tmp_path / "run", None, "", [])],
            "the run has no steps yet; ask again when it has",
        ),
        (["worst", "x", "--limit", "0"], "limit: Input should be greater than 0"),
    ):
        said = surefoot(*argv)
        assert (said.status, said.out) == (2, "")
        assert words in said.err
