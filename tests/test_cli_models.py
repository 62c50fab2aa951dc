"""surefoot evaluate, chat, compare and preview: what they print is what plain transformers would find."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as tf

from surefoot.model.save import save
from tests import toys
from tests.conftest import QUESTIONS, Surefoot, tiny_llama, write_rows

CPU = "--use_cpu"


def naive(folder: Path) -> tuple[float, float]:
    """Loss and token accuracy over the questions: one at a time, float64, full logits."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(folder)
    total, right, count = 0.0, 0, 0
    for asked, said in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
        )
        before = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([before + tokenizer(said + "<|im_end|>")["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(before) - 1 : -1]
        labels = ids[0, len(before) :]
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return total / count, right / count


# evaluate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "result"])
def test_evaluate_agrees_with_the_naive_computation(
    which: str, tiny_folder: Path, tiny_run: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    model, folder = (tiny_folder, tiny_folder) if which == "base" else (tiny_run, tiny_run / "model")
    said = surefoot("evaluate", model, "--data", rows_file, "--json", CPU, "--precision", "fp32")
    assert (said.status, said.err) == (0, "")
    found = said.json
    assert list(found) == ["loss", "perplexity", "token_accuracy", "exact_match", "of"]
    loss, accuracy = naive(folder)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["token_accuracy"] == accuracy
    assert found["exact_match"] == {"base": 0.0, "result": 1.0}[which]
    assert found["of"] == len(QUESTIONS)
    assert list(tmp_path.iterdir()) == []  # no run folder is made


def test_evaluate_prints_a_line_each(tiny_run: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("evaluate", tiny_run, "--data", rows_file, CPU, "--exact_match", "false")
    assert [line.split()[0] for line in said.out.splitlines()] == [
        "loss",
        "perplexity",
        "token_accuracy",
        "of",
    ]
    assert said.out.endswith(f"of              {len(QUESTIONS)}\n")


def test_evaluate_takes_columns(tiny_run: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    rows = [
        {"asked": [{"role": "user", "content": p}], "said": [{"role": "assistant", "content": c}]}
        for p, c in QUESTIONS
    ]
    write_rows(tmp_path / "asked.jsonl", rows)
    columns = ("--columns", "prompt=asked,completion=said")
    said = surefoot("evaluate", tiny_run, "--data", "asked.jsonl", *columns, CPU, "--json")
    assert said.json["exact_match"] == 1.0


@pytest.mark.parametrize("command", ["evaluate", "preview"])
def test_what_is_missing_is_two(
    command: str, tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    for argv, said in (
        ((tiny_folder, "--data", "gone.jsonl"), "gone.jsonl: no such file"),
        (("./gone", "--data", rows_file), "./gone: no such file or folder"),
    ):
        found = surefoot(command, *argv)
        assert (found.status, found.out) == (2, "")
        assert said in found.err


# chat ------------------------------------------------------------------------------------------------------


def test_chat_answers_a_prompt(tiny_run: Path, surefoot: Surefoot) -> None:
    for asked, answer in QUESTIONS:
        said = surefoot("chat", tiny_run, "--prompt", asked, CPU)
        assert (said.status, said.out, said.err) == (0, answer + "\n", "")
    said = surefoot("chat", tiny_run, "--prompt", asked, "--json", CPU)
    assert said.json == {"prompt": asked, "answer": answer}


def test_chat_cuts_at_max_new_tokens_and_samples(tiny_run: Path, surefoot: Surefoot) -> None:
    asked = ("--prompt", QUESTIONS[1][0], "--json", CPU)
    whole = surefoot("chat", tiny_run, *asked).json["answer"]
    cut = surefoot("chat", tiny_run, *asked, "--max_new_tokens", 2).json["answer"]
    assert whole.startswith(cut) and 0 < len(cut) < len(whole)
    torch.manual_seed(0)
    hot = surefoot("chat", tiny_run, *asked, "--max_new_tokens", 8, "--temperature", 50).json["answer"]
    assert hot != whole


def test_chat_goes_on_until_an_empty_line(
    tiny_run: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[dict[str, str]]] = []
    from surefoot.commands.answers import Answerer

    prompt_ids = Answerer.prompt_ids
    monkeypatch.setattr(
        Answerer, "prompt_ids", lambda self, messages: seen.append([*messages]) or prompt_ids(self, messages)
    )
    first, second = QUESTIONS[0], QUESTIONS[2]
    lines = [first[0], second[0], "/new", second[0], "", "not read"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    said = surefoot("chat", tiny_run, "--system", "Be brief.", "--max_new_tokens", 8, CPU)
    assert (said.status, said.err) == (0, "")
    roles = [[message["role"] for message in messages] for messages in seen]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert seen[1][1]["content"] == first[0]
    assert said.out.startswith(seen[1][2]["content"] + "\n")
    assert seen[2][1]["content"] == second[0]


def test_chat_ends_with_its_input(
    tiny_run: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTIONS[0][0]))
    assert surefoot("chat", tiny_run, CPU).out == QUESTIONS[0][1] + "\n"


def test_chat_with_a_model_without_template_goes_on_with_text(surefoot: Surefoot, tmp_path: Path) -> None:
    tokenizer = toys.byte_level()
    save(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "base")
    said = surefoot("chat", "base", "--prompt", "One two", "--max_new_tokens", 3, "--json", CPU)
    assert said.status == 0
    said = surefoot("chat", "base", "--prompt", "One two", "--system", "x", CPU)
    assert said.status == 2
    assert "base: the model has no chat template" in said.err


# compare ---------------------------------------------------------------------------------------------------


def test_compare_a_run_with_its_base(
    tiny_folder: Path, tiny_run: Path, rows_file: Path, surefoot: Surefoot
) -> None:
    said = surefoot("compare", tiny_run, "--data", rows_file, "--json", "--max_new_tokens", 12, CPU)
    assert (said.status, said.err) == (0, "")
    found = said.json
    assert list(found) == ["answers", "before", "after", "of"]
    assert (found["before"], found["after"], found["of"]) == ({"exact_match": 0}, {"exact_match": 4}, 4)
    for row, (asked, want) in zip(found["answers"], QUESTIONS, strict=True):
        assert (row["prompt"], row["after"], row["want"]) == (asked, want, want)
        alone = surefoot("chat", tiny_folder, "--prompt", asked, "--json", "--max_new_tokens", 12, CPU)
        assert row["before"] == alone.json["answer"]


def test_compare_two_models_on_prompts(tiny_folder: Path, tiny_run: Path, surefoot: Surefoot) -> None:
    prompts = [asked for asked, _ in QUESTIONS]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert any("," in prompt for prompt in prompts)
    said = surefoot("compare", tiny_run, tiny_folder, *flags, "--json", "--max_new_tokens", 12, CPU)
    assert list(said.json) == ["answers"]
    assert [row["prompt"] for row in said.json["answers"]] == prompts
    assert [row["before"] for row in said.json["answers"]] == [answer for _, answer in QUESTIONS]


def test_compare_prints_a_table(tiny_run: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("compare", tiny_run, "--data", rows_file, "--limit", 2, "--max_new_tokens", 12, CPU)
    assert said.status == 0
    assert "Paris." in said.out and "wanted" in said.out
    assert QUESTIONS[3][1] not in said.out
    assert "exactly right: 0 before, 2 after, of 2" in said.out


def test_compare_prints_names_as_they_are(tiny_folder: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    for name in ("[bold]a", ":cat:"):
        (tmp_path / name).symlink_to(tiny_folder)
    said = surefoot("compare", "[bold]a", ":cat:", "--prompt", "x", "--max_new_tokens", 2, CPU)
    assert said.status == 0, said.err
    assert "before: [bold]a" in said.out and "after: :cat:" in said.out


def test_compare_needs_something_to_ask(tiny_folder: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "alone"}]}])
    said = surefoot("compare", tiny_folder, tiny_folder, "--data", "rows.jsonl", CPU)
    assert said.status == 2
    assert "rows.jsonl: no assistant turn in its first 10 rows" in said.err


def test_compare_cannot_without_a_base(surefoot: Surefoot, tmp_path: Path) -> None:
    for content in ("{", "{}", '{"model": 1}'):
        (tmp_path / "run.json").write_text(content)
        said = surefoot("compare", tmp_path, "--prompt", "x")
        assert (said.status, said.out) == (2, "")
        assert "run.json: this does not name the run's base model" in said.err


# preview ---------------------------------------------------------------------------------------------------


def test_preview_shows_what_is_learned(tiny_folder: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("preview", tiny_folder, "--data", rows_file, "--limit", 2)
    assert (said.status, said.err) == (0, "")
    text = said.out.replace("\n", "")
    assert (
        "<|im_start|>userWhat is the capital of France?<|im_end|><|im_start|>assistantParis.<|im_end|>"
        in text
    )
    assert QUESTIONS[2][1] not in text
    assert "4 rows" in text


def test_preview_prints_names_as_they_are(tiny_folder: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "[red] :cat:.jsonl", [{"prompt": "1", "completion": "2"}])
    said = surefoot("preview", tiny_folder, "--data", rows.name)
    assert said.status == 0, said.err
    example, ledger = said.out.split("ledger")
    assert "[red] :cat:.jsonl:1: " in example and "[red] :cat:.jsonl: 1 row" in ledger


def test_preview_json_is_what_training_sees(tiny_folder: Path, rows_file: Path, surefoot: Surefoot) -> None:
    said = surefoot("preview", tiny_folder, "--data", rows_file, "--json")
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(tiny_folder)
    examples = said.json["examples"]
    assert len(examples) == 3
    for example, (asked, answer), line in zip(examples, QUESTIONS, (1, 2, 3), strict=False):
        assert example["where"] == f"{rows_file}:{line}"
        assert tokenizer.decode(example["completion_ids"]) == f"{answer}<|im_end|>"
        assert tokenizer.decode(example["prompt_ids"]) == (
            f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        )
    assert said.json["ledger"]["rows"] == 4


def test_preview_drops_what_training_would(tiny_folder: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    """The model has 128 positions; with fewer asked for, fewer."""
    rows = [{"prompt": p, "completion": c} for p, c in QUESTIONS]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "one two three " * 60, "completion": "four"}])
    preview = ("preview", tiny_folder, "--data", "rows.jsonl", "--limit", 9, "--json")
    assert len(surefoot(*preview).json["examples"]) == 4
    short = surefoot(*preview, "--max_length", 16).json
    assert 0 < len(short["examples"]) < 4
    assert all(len(e["prompt_ids"]) + len(e["completion_ids"]) <= 16 for e in short["examples"])


def test_preview_with_another_template_and_all_tokens(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    )
    preview = ("preview", tiny_folder, "--data", rows_file, "--json")
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(tiny_folder)
    example = surefoot(*preview, "--chat_template_path", "own.jinja").json["examples"][0]
    assert tokenizer.decode(example["prompt_ids"]).endswith("<|im_end|><|im_start|>assistant: ")
    example = surefoot(*preview, "--completion_only_loss", "false").json["examples"][0]
    assert len(example["prompt_ids"]) <= 1
    assert "capital of France" in tokenizer.decode(example["completion_ids"])


def test_preview_last_turn_only(tiny_folder: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": text} for text, _ in QUESTIONS]
    said = [{"role": "assistant", "content": text} for _, text in QUESTIONS]
    write_rows(tmp_path / "rows.jsonl", [{"messages": [asked[0], said[0], asked[1], said[1]]}])
    preview = ("preview", tiny_folder, "--data", "rows.jsonl", "--json")
    assert len(surefoot(*preview).json["examples"]) == 2
    (only,) = surefoot(*preview, "--last_turn_only").json["examples"]
    assert json.dumps(only) == json.dumps(surefoot(*preview).json["examples"][1])
