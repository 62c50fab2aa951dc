"""The benchmarks' own arithmetic: what is counted, what is compared, what is given to whom."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import contenders, environments, gpu, gpu_models, machine, measures, run, search, work
from benchmarks import losses as curves
from benchmarks.contenders import CONTENDERS, Contender, FailedError, Outcome
from benchmarks.tables import draw, median, span
from benchmarks.work import NOT_LEARNED, Shapes, Tokens, Work
from benchmarks.workloads import (
    WORKLOADS,
    Prepared,
    Workload,
    banking77,
    data_root,
    examples_of,
    one_row,
    prepare,
    read,
    read_rows,
    write,
)
from transformers import AutoTokenizer

SMOL = Shapes(30, 576, 1536, 9, 3, 64, 49152, True)


def row(prompt: list[int], completion: list[int]) -> Tokens:
    return Tokens(prompt + completion, [NOT_LEARNED] * len(prompt) + completion)


def outcome(name: str, ended: list[float], loss: list[float], peak: int = 10**9, **more: Any) -> Outcome:
    given: dict[str, Any] = {"settings": {}, "grad_norm": loss, "learning_rate": [1e-4] * len(loss)}
    given |= {"remarks": []}
    return Outcome(name, started=0.0, ended=ended, loss=loss, peak_bytes=peak, versions={}, **(given | more))


# Tables --------------------------------------------------------------------------------------------------


def test_columns_line_up() -> None:
    assert draw(["", "speed"], [["a", "1"], ["long", "1,000"]]) == (
        "      speed\n----  -----\na         1\nlong  1,000"
    )
    with pytest.raises(ValueError, match="as many cells"):
        draw(["a", "b"], [["1"]])


def test_span_has_the_median_and_the_ends() -> None:
    assert span([310.4]) == "310"
    assert span([1290.0, 1310.0, 1400.0]) == "1,310 (1,290-1,400)"
    assert span([1.0, 2.0], 2) == "1.50 (1.00-2.00)"
    with pytest.raises(ValueError, match="median"):
        median([])


# Work ----------------------------------------------------------------------------------------------------


def test_shapes_come_from_the_config(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Shapes.read(tmp_path) == SMOL
    assert SMOL.matrix_weights == 106_168_320
    assert SMOL.weights == 106_168_320 + 49152 * 576
    del config["intermediate_size"]
    with pytest.raises(ValueError, match="intermediate_size"):
        Shapes.of(config)


def test_shapes_count_the_weights_of_the_real_model() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**gpu_models.CONFIGS["toy"])
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    matrices = sum(p.numel() for p in net.parameters() if p.ndim == 2)  # embeddings tied: counted once
    assert gpu_models.shapes("toy").weights == matrices


def test_flops_of_one_token_are_those_of_the_textbook() -> None:
    one = Work(slots=1, pairs=1, targets=0)
    attention = 12 * 30 * 9 * 64
    assert work.flops(SMOL, one) - attention == pytest.approx(637e6, rel=1e-3)
    head = work.flops(SMOL, Work(1, 1, 1)) - work.flops(SMOL, one)
    assert head == pytest.approx(170e6, rel=1e-2)
    frozen = work.flops(SMOL, one, lora_r=16) - 6 * SMOL.adapter_weights(16) - attention
    assert frozen == pytest.approx(4 / 6 * 637e6, rel=1e-3)
    assert work.moved_bytes(SMOL) == 36 * SMOL.weights
    assert work.moved_bytes(SMOL, 16) == 36 * SMOL.adapter_weights(16)


def test_ideal_time_is_products_plus_traffic() -> None:
    step = Work(1000, 10_000, 300)
    rate, width = 7e11, 8e9
    want = work.flops(SMOL, step) / rate + work.moved_bytes(SMOL) / width
    assert work.ideal_seconds(SMOL, step, rate, width) == want


def test_work_apart_counts_every_row() -> None:
    assert work.apart([row([5, 6], [7]), row([5], [8, 9])]) == Work(6, 6 + 6, 3)


def test_work_shared_counts_a_common_beginning_once() -> None:
    rows = [row([5, 6, 7], [8]), row([5, 6, 7], [9]), row([5, 6], [3])]
    # slots 5 6 7 8, then 9, then 3; pairs 1+2+3+4, then 4, then 3
    assert work.shared(rows) == Work(6, 17, 3)
    assert work.shared(rows[:1]) == work.apart(rows[:1])


def test_work_shared_agrees_with_a_tree_of_prefixes() -> None:
    made = gpu.rows(gpu.Lengths(5, (1, 4), (2, 3), 8), 40, vocabulary=6, seed=3)
    prefixes = {tuple(one.input_ids[:end]) for one in made for end in range(1, len(one.input_ids) + 1)}
    found = work.shared(made)
    assert found.slots == len(prefixes)
    assert found.pairs == sum(map(len, prefixes))


# Workloads -----------------------------------------------------------------------------------------------


def test_banking77_has_every_label_in_every_prompt() -> None:
    given = [{"text": f"message {i}", "category": f"label_{i % 3}"} for i in range(30)]
    made = banking77(given)
    systems = {one["messages"][0]["content"] for one in made}
    assert len(systems) == 1
    assert systems.pop().splitlines()[1:] == ["label_0", "label_1", "label_2"]
    answers = {one["messages"][1]["content"]: one["messages"][2]["content"] for one in made}
    assert answers == {one["text"]: one["category"] for one in given}
    assert made == banking77(given), "the order is always the same"
    assert [one["messages"][1]["content"] for one in made] != [one["text"] for one in given]


def test_turns_of_a_conversation_become_one_row() -> None:
    made = one_row([([1, 2], [3, 4]), ([1, 2, 3, 4, 5], [6])])
    assert made == Tokens([1, 2, 3, 4, 5, 6], [-100, -100, 3, 4, -100, 6])
    assert made.learned == 3
    with pytest.raises(ValueError, match="rewrites"):
        one_row([([1, 2], [3, 4]), ([1, 2, 9, 5], [6])])


def test_rows_are_read_from_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n\n{"q": 2}\n')
    (tmp_path / "b.json").write_text('[{"q": 1}]')
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["a", "b"]])
    assert read_rows(Workload("a", "a.jsonl", 1, 1), tmp_path) == [{"q": 1}, {"q": 2}]
    assert read_rows(Workload("b", "b.json", 1, 1), tmp_path) == [{"q": 1}]
    assert read_rows(Workload("c", "c.csv", 1, 1), tmp_path) == [{"question": "a", "answer": "b"}]
    with pytest.raises(SystemExit, match="--data-root"):
        read_rows(WORKLOADS["gsm8k"], tmp_path)


def test_the_folder_of_data_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUREFOOT_DATA", "/data")
    assert data_root() == Path("/data")
    assert data_root(tmp_path) == tmp_path
    monkeypatch.delenv("SUREFOOT_DATA")
    assert data_root() == contenders.ROOT.parent / "shared" / "data"


@pytest.fixture
def chat(tiny_folder: Path) -> list[dict[str, Any]]:
    """Two rounds a conversation."""
    turns = [("Hello!", "Hello!"), ("How are you today?", "I am fine.")]
    pairs = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in turns]
    return [{"messages": [*pairs[0], *pairs[1]]}] * 8


def test_peers_get_the_tokens_that_surefoot_learns(
    chat: list[dict[str, Any]], tiny_folder: Path, tmp_path: Path
) -> None:
    workload = Workload("chat", "", 2, 3)
    prepare(workload, chat, str(tiny_folder), 3, tmp_path / "rows")
    done = read(tmp_path / "rows")
    assert (done.workload, done.model, done.steps) == (workload, tiny_folder, 3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    learned = [label for label in done.rows[0].labels if label != NOT_LEARNED]
    assert tokenizer.decode(learned) == "Hello!<|im_end|>I am fine.<|im_end|>"
    assert done.tokens_of_steps == [2 * len(done.rows[0].input_ids)] * 3
    assert len(done.rows_file.read_text().splitlines()) == 6
    with pytest.raises(SystemExit, match="--steps 4 fits"):
        prepare(workload, chat, str(tiny_folder), 5, tmp_path / "rows")


def test_tools_and_their_calls_are_learned(tiny_folder: Path, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "weather, please"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "21"},
                {"role": "assistant", "content": "fine"},
                {"role": "user", "content": "Hello!"},
                {"role": "assistant", "content": "Hello!"},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        }
    ]
    model = shutil.copytree(tiny_folder, tmp_path / "long")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    found = examples_of(WORKLOADS["zava-all"], rows, model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert [tokenizer.decode(completion) for _, completion in found[0]] == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
        "fine<|im_end|>",
        "Hello!<|im_end|>",
    ]
    whole = one_row(found[0])
    assert whole.learned == sum(len(completion) for _, completion in found[0])
    assert "<tool_response>\n21\n</tool_response>" in tokenizer.decode(whole.input_ids)


# Running -------------------------------------------------------------------------------------------------


def toy(folder: Path, model: Path, steps: int = 3) -> Prepared:
    made = [row([5, 6, 7 + index], [8, 9]) for index in range(2 * steps)]
    given = [{"input_ids": one.input_ids, "completion_mask": [0, 0, 0, 1, 1]} for one in made]
    write(Workload("toy", "", 2, steps), given, made, model, folder)
    return read(folder)


@pytest.mark.slow
def test_our_side_runs_in_turns(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = toy(tmp_path / "rows", tiny_folder)
    ours = replace(CONTENDERS["surefoot"], settings={"micro_batch_tokens": 64})
    broken = Contender("broken", "none")
    done = run.rounds([ours, broken], prepared, tmp_path, tmp_path / "runs", repeats=2, precision="fp32")
    assert [list(one) for one in done] == [["surefoot"], ["surefoot"]]
    first = done[0]["surefoot"]
    assert first.loss == done[1]["surefoot"].loss and len(first.loss) == 3
    assert first.started < first.ended[0] < first.ended[-1]
    assert first.remarks == []
    assert first.peak_bytes > 50e6, "a process with torch in it"
    assert "surefoot" in first.versions
    captured = capsys.readouterr()
    assert "broken" in captured.err and "round 2: surefoot" in captured.out


def test_other_tokens_are_told_of(tiny_folder: Path, tmp_path: Path) -> None:
    prepared = toy(tmp_path / "rows", tiny_folder)
    wrong = replace(prepared, rows=[row(one.input_ids[:2], one.input_ids[2:]) for one in prepared.rows])
    found = contenders.run(CONTENDERS["surefoot"], wrong, tmp_path, tmp_path / "run", precision="fp32")
    assert found.remarks == ["trained on other tokens than peers were given"]


def test_a_process_is_measured(tmp_path: Path) -> None:
    big = "x = bytearray(200_000_000); import os; print(os.environ['SAID'], os.environ['HF_HUB_OFFLINE'])"
    done = contenders.launch([sys.executable, "-c", big], tmp_path / "log", {"SAID": "yes"}, "cpu")
    assert done.problem is None and done.peak_bytes > 200_000_000
    assert (tmp_path / "log").read_text() == "yes 1\n"
    done = contenders.launch([sys.executable, "-c", "raise SystemExit('no')"], tmp_path / "log", {}, "cpu")
    assert done.problem == "ended with status 1:\nno\n"


def test_a_process_that_takes_all_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "available_bytes", lambda: 100_000_000)
    greedy = "x = bytearray(300_000_000); import time; time.sleep(60)"
    done = contenders.launch([sys.executable, "-c", greedy], tmp_path / "log", {}, "cpu")
    assert done.problem == "needs more than 0.1 GB"


def test_a_missing_peer_says_how_to_install_it(tmp_path: Path) -> None:
    said = contenders.missing(tmp_path, CONTENDERS["litgpt"], lora=False)
    assert said == f"not installed: python -m benchmarks.environments litgpt --environments {tmp_path}"
    assert contenders.missing(tmp_path, CONTENDERS["litgpt"], lora=True) == "does not train this adapter"
    assert contenders.missing(tmp_path, CONTENDERS["surefoot"], lora=True) is None
    assert {one.environment for one in CONTENDERS.values()} - {None} == set(environments.PEERS)


def test_torch_is_installed_first_and_stays(tmp_path: Path) -> None:
    for name in environments.PEERS:
        made = environments.commands(name, tmp_path, [])
        assert made[1][-1] == "torch==2.13.0"
        assert "torch==2.13.0" in made[2]


def test_settings_can_be_overridden(tmp_path: Path) -> None:
    given = ["surefoot.micro_batch_tokens=512", "surefoot.optim=sgd"]
    found = run.present(["surefoot", "litgpt"], tmp_path, False, given)
    assert [one.settings for one in found] == [{"micro_batch_tokens": 512, "optim": "sgd"}]
    with pytest.raises(SystemExit, match=r"NAME\.SETTING=VALUE"):
        run.present(["surefoot"], tmp_path, False, ["nobody.x=1"])


# Measuring -----------------------------------------------------------------------------------------------


def test_speed_is_measured_after_the_warm_up() -> None:
    one = outcome("a", [10.0, 15.0, 16.0, 18.0], [1.0] * 4)
    assert measures.speed(one, [100, 100, 200, 400]) == measures.Speed(600 / 3, 800 / 18, 10.0)
    with pytest.raises(ValueError, match="too few"):
        measures.speed(outcome("a", [1.0, 2.0], [1.0, 1.0]), [1, 1])


def test_ratios_are_taken_round_by_round() -> None:
    def one(ours: float, theirs: float) -> dict[str, Outcome]:
        return {
            "surefoot": outcome("surefoot", [0, 0.5, 0.5 + 1 / ours], [1.0, 2.0, 3.0], peak=2 * 10**9),
            "peer": outcome("peer", [0, 0.5, 0.5 + 1 / theirs], [1.0, 2.0, 4.0], remarks=["odd"]),
        }

    rounds = [one(400, 100), one(100, 50), one(900, 300)]
    ours, peer = measures.summarise(rounds, [1, 1, 1])
    assert peer.ratios == pytest.approx([4, 2, 3])
    assert ours.ratios == pytest.approx([1, 1, 1])
    assert (ours.remarks, peer.remarks) == ([], ["odd"])
    assert (ours.largest_loss_difference, peer.largest_loss_difference) == (None, 25.0)
    text = measures.table([ours, peer], {"apart": 1000.0, "shared": 2000.0})
    lines = text.splitlines()
    assert lines[2].split() == ["surefoot", "400", "(100-900)", *lines[2].split()[3:]]
    assert "3.00 (2.00-4.00) x" in lines[3] and "25.000 %" in lines[3] and "10%" in lines[3]
    assert measures.to_dict(peer)["surefoot_is_times_as_fast"] == [4.0, 2.0, 3.0]
    assert measures.loss_table(rounds[0]).splitlines()[-1].split() == ["3", "3.000000", "4.000000"]


def test_search_finds_the_fastest_and_survives_failures(tmp_path: Path) -> None:
    def measure(settings: dict[str, Any]) -> search.Tried:
        if settings["micro_batch"] == 8:
            return search.Tried(settings, None, "needs more memory\nthan there is")
        fast = {("eager", 2): 300.0, ("sdpa", 2): 250.0, ("eager", 4): 200.0, ("sdpa", 4): 310.0}
        return search.Tried(settings, fast[settings["attention"], settings["micro_batch"]])

    choices = {"attention": ("eager", "sdpa"), "micro_batch": (2, 4, 8)}
    tried = search.search({"attention": "sdpa", "micro_batch": 4}, choices, measure)
    assert search.best(tried) == {"attention": "sdpa", "micro_batch": 4}
    assert len({json.dumps(one.settings) for one in tried}) == len(tried), "nothing is run twice"
    file = tmp_path / "settings.json"
    assert search.stored(file, "gsm8k", "peer") == {}
    search.store(file, "gsm8k", "peer", tried, {"date": "today"})
    assert search.stored(file, "gsm8k", "peer") == {"attention": "sdpa", "micro_batch": 4}
    kept = json.loads(file.read_text())["gsm8k"]["peer"]
    assert {"needs more memory"} == {one["failed"] for one in kept["tried"] if "failed" in one}
    assert search.store(file, "rasbt", "peer", [search.Tried({}, None, "no")], {}) is None
    assert search.stored(file, "rasbt", "peer") == {}


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert found["cores"] >= 1 and found["system"]
    assert (machine.available_bytes() or 1) > 0


def test_roofline_is_measured(tiny_folder: Path, tmp_path: Path) -> None:
    import torch
    from benchmarks.roofline import measure

    found = measure(toy(tmp_path / "rows", tiny_folder), "fp32", torch.device("cpu"), passes=1)
    assert found["flops_per_second"]["bf16"] > 0 and found["bytes_per_second"] > 0
    assert found["slots"] == {"apart": 10, "shared": 8} and found["targets"] == 4
    ideal = found["ideal_tokens_per_second"]
    assert ideal["shared"] > ideal["apart"] > 0


def test_differing_tokens_are_put_into_words() -> None:
    mine = row([1], [2])
    longer = Tokens([1, 2, 3], [-100, 2, 3])
    assert curves.token_differences([mine], [mine], str) == {}
    assert curves.token_differences([mine], [longer], str) == {
        "TRL has '[3]' more at the end, 1 of it learned": 1
    }
    other = Tokens([1, 2], [-100, -100])
    assert list(curves.token_differences([mine], [other], str)) == [
        "the same tokens, but not the same ones learned"
    ]


def test_curves_are_compared_as_far_as_the_peer_goes() -> None:
    ours = outcome("surefoot", [1.0, 2.0, 3.0], [2.0, 1.0, 0.5])
    theirs = outcome("trl", [1.0, 2.0], [2.0, 0.8], learning_rate=[1e-4, 2e-4])
    found = curves.compare(ours, theirs)
    assert found["loss_difference_percent"] == pytest.approx([0.0, 25.0])
    assert found["largest_loss_difference_percent"] == pytest.approx(25.0)
    assert not found["same_learning_rates"]


# GPU -----------------------------------------------------------------------------------------------------


def test_synthetic_rows_share_what_they_should() -> None:
    lengths = gpu.LENGTHS["prefix"].scaled(16)
    made = gpu.rows(lengths, 12, 512)
    assert len({tuple(one.input_ids[: lengths.prefix]) for one in made}) == 1
    assert all(one.input_ids[-1] == gpu_models.END and one.learned >= 2 for one in made)
    assert made == gpu.rows(lengths, 12, 512)
    assert made != gpu.rows(lengths, 12, 512, seed=1)


def test_a_model_that_cannot_fit_is_known_before() -> None:
    eight = gpu_models.shapes("8b")
    assert 7.9e9 < eight.weights < 8.1e9
    assert gpu.needed(eight, 0) > 80e9 > gpu.needed(eight, 16)


def test_trl_is_tried_fastest_first() -> None:
    ways = gpu.trl_ways(Path(sys.executable), 8)
    assert ways[0]["micro_batch"] == 8 and not ways[0]["gradient_checkpointing"]
    assert ways[-1] == {**ways[-1], "micro_batch": 1, "gradient_checkpointing": True}


@pytest.mark.slow
def test_gpu_benchmark_runs_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    given = ["--toy", "--steps", "3", "--repeats", "1", "--modes", "full", "--workloads", "prefix"]
    more = ["--environments", str(tmp_path / "none"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu", *given, *more])
    assert gpu.main() == 0
    found = json.loads(out.read_text())["found"]["toy full prefix"]
    assert found["summary"]["surefoot"]["tokens_per_second"][0] > 0
    assert found["summary"]["surefoot"]["remarks"] == []
    assert "not installed" in capsys.readouterr().err


def test_a_failed_run_says_why(tiny_folder: Path, tmp_path: Path) -> None:
    prepared = toy(tmp_path / "rows", tiny_folder)
    wrong = replace(CONTENDERS["surefoot"], settings={"no_such_option": 1})
    with pytest.raises(FailedError, match="no_such_option"):
        contenders.run(wrong, prepared, tmp_path, tmp_path / "run", precision="fp32")
