"""surefoot explain: one step on one example through the command line, on tiny models in folders."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surefoot import SFTConfig, SFTTrainer
from surefoot.config import SFTConfig as Options
from surefoot.microscope.lesson import OF_ONE_STEP, lesson_options
from surefoot.model.adapters import adapt, lora_config
from tests import toys
from tests.conftest import QUESTIONS, Said, Surefoot, tiny_llama

ASK = ("--prompt", QUESTIONS[0][0], "--completion", QUESTIONS[0][1])
FLAT = ("--slide_mountain", "none")
"""Nine forwards fewer."""


def digest(folder: Path) -> str:
    """Of every file's name and bytes below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


def after(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def refused(said: Said, *words: str) -> None:
    """One clear message, and what to do about it."""
    assert (said.status, said.out) == (2, ""), said
    assert said.err.startswith("surefoot: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err


# What is asked -----------------------------------------------------------------------------------------------


def test_a_prompt_and_its_completion(tiny_folder: Path, surefoot: Surefoot) -> None:
    before = digest(tiny_folder)
    said = surefoot("explain", "--model", tiny_folder, *ASK, "--watch", "Rome, Italy", "--watch= Lyon")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"One update, opened: step 1 of {tiny_folder}"
    assert max(map(len, lines)) <= 100
    for text in ("Paris.", "Rome, Italy", "Lyon"):  # commas stay where they are
        assert f"The whole answer “{text}”: p " in said.out
    assert "○ are watched" in said.out
    assert "SGD, learning rate 0.1" in said.out
    assert "Types: weights float32, products float32" in said.out
    assert "9  The mountain" in said.out
    assert digest(tiny_folder) == before


def test_the_numbers(tiny_folder: Path, surefoot: Surefoot) -> None:
    found = surefoot("explain", "--model", tiny_folder, *ASK, "--watch", "Rome", "--json", *FLAT).json
    assert found["loss_after"] < found["loss_before"]
    assert found["obtained"] == pytest.approx(found["loss_after"] - found["loss_before"])
    assert found["promised"] < 0
    assert found["weights"]["lost_share"] == found["weights"]["lost"] / found["weights"]["asked"]
    assert found["mountain"] is None
    blocks = [layer["name"] for layer in found["layers"] if "layers." in layer["name"]]
    assert [name[-8:] for name in blocks] == ["layers.1", "layers.0"]
    assert sum(layer["grad_norm"] ** 2 for layer in found["layers"]) == pytest.approx(
        found["backward"]["grad_norm"] ** 2, rel=1e-4
    )
    losses = [position["loss_before"] for position in found["positions"]]
    assert found["loss_before"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert [p["index"] for p in found["positions"]] == list(range(len(losses)))
    for position in found["positions"]:
        column = position["candidates"]
        for one in column:
            assert (one["error"] < 0) == (one["token"] == position["target"]) == one["is_target"]
            assert one["error_raw"] == pytest.approx(one["p_before"] - one["is_target"], abs=1e-6)
            assert 0 <= one["p_after"] <= 1
        assert sum(one["error"] for one in column) + position["rest"]["error"] == pytest.approx(0, abs=1e-6)
        assert abs(position["error_sum"]) < 1e-6
        for row in position["head_rows"]:
            error = next(one["error"] for one in column if one["id"] == row["id"])
            assert row["norm"] == pytest.approx(abs(error) * position["hidden_norm"], rel=1e-4)
            assert row["max_abs_difference_from_autograd"] <= 1e-5
    assert len({row["token"] for row in found["positions"][0]["head_rows"]}) >= 2  # the target, the watched


@pytest.mark.parametrize("position", [0, 2])
def test_another_position(position: int, tiny_folder: Path, surefoot: Surefoot) -> None:
    argv = ("explain", "--model", tiny_folder, *ASK, "--position", position, *FLAT)
    found = surefoot(*argv, "--json").json
    assert found["looked_at"] == position
    assert [one["index"] for one in found["positions"]] == list(range(len(found["positions"])))
    target = found["positions"][position]
    assert {row["id"] for row in target["head_rows"]} == {target["target_id"]}
    said = surefoot(*argv).out
    assert f"learned token {position + 1})" in " ".join(said.split())
    assert ("The whole answer “Paris.”" in said) == (position == 0)


def test_a_row_of_a_file(tiny_folder: Path, rows_file: Path, surefoot: Surefoot) -> None:
    found = surefoot("explain", "--model", tiny_folder, "--data", rows_file, "--row", 3, "--json", *FLAT).json
    assert found["batch"]["examples"][0]["where"] == f"{rows_file}:3"
    own = ("--prompt", QUESTIONS[2][0], "--completion", QUESTIONS[2][1])
    same = surefoot("explain", "--model", tiny_folder, *own, "--json", *FLAT).json
    assert found["loss_before"] == same["loss_before"]
    assert found["loss_after"] == same["loss_after"]
    assert found["watched"][0]["text"] == QUESTIONS[2][1]


def test_a_row_of_several_turns_is_looked_at_in_its_last(
    tiny_folder: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    turns = []
    for asked, answered in QUESTIONS[:2]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    found = surefoot("explain", "--model", tiny_folder, "--data", "chat.jsonl", "--json", *FLAT).json
    assert found["watched"][0]["text"] == "Rome, of course."
    assert "of the 2 turns of chat.jsonl:1 that training learns, this is the last" in found["notes"]


def test_where_the_prompt_is_learned_too_it_is_not_called_the_answer(
    tiny_folder: Path, surefoot: Surefoot
) -> None:
    argv = ("explain", "--model", tiny_folder, *ASK, "--completion_only_loss", "false", "--json", *FLAT)
    found = surefoot(*argv).json
    assert found["positions"][0]["target"] == "user"
    assert found["watched"][0]["text"].startswith("user\nWhat is the capital of France?")
    losses = [position["loss_before"] for position in found["positions"]]
    assert found["watched"][0]["p_before"] == pytest.approx(math.exp(-sum(losses)), rel=1e-3)


def test_a_model_without_a_chat_template(surefoot: Surefoot, tmp_path: Path) -> None:
    tokenizer = toys.byte_level(template=None)
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    own = ("--prompt", "The capital of France is", "--completion", " Paris", "--watch", "Rome")
    found = surefoot("explain", "--model", "plain", *own, "--json", *FLAT).json
    texts = found["watched"]
    assert ["".join(one["tokens"]) for one in texts] == [" Paris", " Rome"]


# Where the model comes from ----------------------------------------------------------------------------------


def three_steps(folder: Path, tiny_folder: Path, rows_file: Path, **changed: Any) -> Path:
    """A run of three steps of a row each, with a checkpoint after every one; its learning rate falls."""
    args = SFTConfig(
        folder,
        model_name_or_path=tiny_folder,
        dataset_name=str(rows_file),
        learning_rate=1e-2,
        weight_decay=0.1,
        max_steps=3,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        precision="fp32",
        save_steps=1,
        use_cpu=True,
        **changed,
    )
    SFTTrainer(args=args).train()
    return folder


@pytest.fixture(scope="module")
def run(tiny_folder: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_steps(tmp_path_factory.mktemp("runs") / "adamw", tiny_folder, rows_file)


def test_a_checkpoint_goes_on_as_its_run_does(run: Path, rows_file: Path, surefoot: Surefoot) -> None:
    """The third row after two steps is the run's own third step, bit for bit: m, v, decay, learning rate."""
    before = digest(run)
    checkpoint = run / "checkpoints" / "step-00000002"
    said = surefoot(
        "explain", "--model", checkpoint, "--data", rows_file, "--row", 3, "--save", "out", "--json"
    )
    assert (said.status, said.err) == (0, "")
    found = said.json
    steps = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    third = next(event for event in steps if event["type"] == "step" and event["step"] == 3)
    assert (found["step"], found["loss_before"]) == (3, third["loss"])
    assert found["backward"]["grad_norm"] == third["grad_norm"]
    assert found["optimizer"]["name"] == "AdamW"
    assert found["optimizer"]["learning_rate"] == third["learning_rate"]
    assert found["optimizer"]["settings"]["weight_decay"] == 0.1
    assert found["optimizer"]["updates_before"] == 2
    assert {weight["would_state"] for weight in found["chosen"]} == {"the run's own"}
    assert [stage["name"] for stage in found["chosen"][0]["stages"]][2:4] == ["m", "v"]
    stored, result = after(run / "model"), after(Path("out"))
    assert stored.keys() == result.keys()
    assert all(torch.equal(stored[name], result[name]) for name in stored)
    assert digest(run) == before


def test_dropout_of_a_checkpoint_is_that_of_its_run(
    tiny_folder: Path, rows_file: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    lora = three_steps(tmp_path / "lora", tiny_folder, rows_file, use_peft=True, lora_dropout=0.3)
    steps = [json.loads(line) for line in (lora / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    third = next(event for event in steps if event["type"] == "step" and event["step"] == 3)
    argv = (
        "--model",
        lora / "checkpoints" / "step-00000002",
        "--data",
        rows_file,
        "--row",
        3,
        "--save",
        "out",
    )
    found = surefoot("explain", *argv, "--json", *FLAT).json
    assert found["loss_before"] == third["loss"]
    stored, result = (
        load_file(folder / "adapter_model.safetensors") for folder in (lora / "model", Path("out"))
    )
    assert all(torch.equal(stored[name], result[name]) for name in stored)


def test_what_is_given_stands_instead_of_the_runs_own(run: Path, surefoot: Surefoot) -> None:
    argv = ("explain", "--model", run / "checkpoints" / "step-00000002", *ASK, "--json", *FLAT)
    same = surefoot(*argv, "--optimizer", "adamw").json["optimizer"]  # it is the run's: its state goes on
    assert (same["name"], same["updates_before"]) == ("AdamW", 2)
    rate = surefoot(*argv, "--learning-rate", "0.005").json["optimizer"]
    assert (rate["learning_rate"], rate["updates_before"]) == (0.005, 2)
    other = surefoot(*argv, "--optimizer", "sgd").json
    assert (other["optimizer"]["name"], other["optimizer"]["learning_rate"]) == ("SGD", 0.1)
    assert (other["step"], other["optimizer"]["updates_before"]) == (3, 0)
    halved = surefoot(*argv, "--bf16", "true").json
    assert halved["precision"] == {"weights": "float32", "products": "bfloat16"}


def test_a_run_is_its_result(run: Path, surefoot: Surefoot) -> None:
    found = surefoot("explain", "--model", run, *ASK, "--json", *FLAT).json
    same = surefoot("explain", "--model", run / "model", *ASK, "--json", *FLAT).json
    assert (found["step"], found["loss_before"]) == (1, same["loss_before"])
    assert found["optimizer"]["name"] == "SGD"
    assert {weight["would_state"] for weight in found["chosen"]} == {"none, as in a first step"}


def test_an_unfinished_run_and_a_lost_checkpoint(run: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "run.json").write_text("{}", encoding="utf-8")
    said = surefoot("explain", "--model", "stopped", *ASK)
    refused(said, "stopped: this run has no result yet; it has no checkpoint either")
    checkpoint = tmp_path / "stopped" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    said = surefoot("explain", "--model", "stopped", *ASK)
    refused(said, "name its newest checkpoint: stopped/checkpoints/step-00000001")
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    refused(surefoot("explain", "--model", checkpoint, *ASK), "run.json does not tell of which run")
    shutil.copytree(run, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-00000002"
    content = bytearray((damaged / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "weights.safetensors").write_bytes(content)
    refused(surefoot("explain", "--model", damaged, *ASK), "weights.safetensors: is damaged: its sha256 is")


# LoRA --------------------------------------------------------------------------------------------------------


def test_an_adapter_new_and_again(tiny_folder: Path, surefoot: Surefoot) -> None:
    before = digest(tiny_folder)
    lora = ("--use_peft", "true", "--lora-r", 2, "--json", "--save", "adapter", *FLAT)
    said = surefoot("explain", "--model", tiny_folder, *ASK, *lora)
    assert (said.status, said.err) == (0, "")
    found = said.json
    assert not found["head"]["trained"]
    assert found["positions"][0]["head_rows"] == []
    assert found["positions"][0]["flows_back_norm"] > 0
    assert all("lora_" in tensor["name"] for tensor in found["tensors"])
    assert found["weights"]["asked"] < found["weights"]["count"]  # A has no gradient while B is 0
    assert Path("adapter/adapter_model.safetensors").is_file()
    again = surefoot("explain", "--model", "adapter", *ASK, "--json", *FLAT).json
    assert again["loss_before"] == pytest.approx(found["loss_after"], rel=1e-5)
    assert all("lora_" in tensor["name"] for tensor in again["tensors"])
    assert digest(tiny_folder) == before


def test_nothing_of_what_libraries_tell_each_other_is_heard(tiny_folder: Path, tmp_path: Path) -> None:
    """From Python too, where nobody has asked for warnings in a line each."""
    from surefoot.model.load import load
    from surefoot.model.save import save

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = adapt(load(str(tiny_folder)).model, lora_config(Options(tmp_path / "x", lora_r=2)))
        save(found, load(str(tiny_folder)).tokenizer, tmp_path / "adapter")
        load(str(tmp_path / "adapter"))


def test_a_frozen_head_in_words(tiny_folder: Path, surefoot: Surefoot) -> None:
    text = " ".join(surefoot("explain", "--model", tiny_folder, *ASK, "--use_peft", *FLAT).out.split())
    assert "The head is frozen" in text
    assert "pulls its token up" not in text


def test_warnings_of_libraries_stay_inside(
    tiny_folder: Path, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that says that a name will go away does not say it to the user; a note of ours is said."""
    from surefoot.microscope import explain

    real = explain.build

    def build(*args: Any) -> Any:
        warnings.warn("`old` is deprecated", FutureWarning, stacklevel=2)
        warnings.warn("mind the gap", stacklevel=2)
        return real(*args)

    monkeypatch.setattr(explain, "build", build)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = surefoot("explain", "--model", tiny_folder, *ASK, "--json", *FLAT)
    assert (said.status, said.err) == (0, "note: mind the gap\n")


# What is written ---------------------------------------------------------------------------------------------


def test_the_model_after_is_saved(tiny_folder: Path, surefoot: Surefoot) -> None:
    """It begins where the update ended, for every candidate of every position."""
    argv = ("explain", *ASK, "--optimizer", "adamw", "--learning-rate", "0.01", "--json", *FLAT)
    found = surefoot(*argv, "--model", tiny_folder, "--save", "new/after").json
    again = surefoot(*argv, "--model", "new/after").json
    assert again["loss_before"] == pytest.approx(found["loss_after"], rel=1e-6)
    for then, now in zip(found["positions"], again["positions"], strict=True):
        p_now = {one["id"]: one["p_before"] for one in now["candidates"]}
        both = [one for one in then["candidates"] if one["id"] in p_now]
        assert len(both) >= 10
        assert all(math.isclose(one["p_after"], p_now[one["id"]], rel_tol=1e-5) for one in both)


def test_a_page_that_needs_no_network(tiny_folder: Path, surefoot: Surefoot) -> None:
    said = surefoot("explain", "--model", tiny_folder, *ASK, "--html", "one.html", *FLAT)
    assert said.out.endswith("written: one.html\n")
    assert "○ are watched" not in said.out
    page = Path("one.html").read_text(encoding="utf-8")
    assert page.startswith("<!")
    assert "Paris" in page
    for outside in ("<link", 'src="http', "@import", "src=//"):
        assert outside not in page
    assert (
        surefoot("explain", "--model", tiny_folder, *ASK, "--html", "one.html", "--json", *FLAT).json["step"]
        == 1
    )


# What is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ("explain what? Give both prompt and completion, or data",)),
        (("--prompt", "x"), ("prompt alone is half of it: give both prompt and completion",)),
        (("--completion", "x"), ("completion alone is half of it",)),
        ((*ASK, "--row", 2), ("row 2 of what? Give data",)),
        ((*ASK, "--data", "rows"), ("prompt and completion or data: an example is either",)),
        (("--data", "rows", "--row", 5), ("rows.jsonl has no row 5; it has 4, counted from 1",)),
        (("--data", "rows", "--row", 0), ("row: Input should be greater than 0",)),
        (("--data", "none.jsonl"), ("none.jsonl: no such file",)),
        ((*ASK, "--optimizer", "adamm"), ("there is no 'adamm'. Did you mean 'adam", "Known: sgd, adam, adamw, ")),
        ((*ASK, "--optimizer", "sgd", "--optim", "sgd"), ("--optimizer and --optim are the same",)),
        ((*ASK, "--learning-rate", "-1"), ("learning_rate: Input should be greater than or equal to 0",)),
        ((*ASK, "--html", "no/such/x.html"), ("--html no/such/x.html: the folder no/such is not there; make it",)),
        ((*ASK, "--html", "."), ("--html .: this is a folder; name a file in it",)),
        ((*ASK, "--save", "full"), ("--save full: there are files in this folder; name a new or an empty one",)),
        ((*ASK, "--save", "full/file"), ("--save full/file: this is a file; name a folder",)),
        ((*ASK, "--save", "full/file/in"), ("--save full/file/in: no folder can be made in ",)),
        ((*ASK, "--save_strategy", "no"), ("save_strategy decides nothing: leave it out",)),
        (
            (*ASK, "--output_dir", "x", "--max_steps", 3, "--load_best_model_at_end"),
            ("where output_dir, max_steps, load_best_model_at_end decide nothing: leave them out", "(html, save)"),
        ),
        ((*ASK, "--resume_from_checkpoint"), ("to go on from a checkpoint, name its folder as the model",)),
        ((*ASK, "--wach", "x"), ("unknown option '--wach'. Did you mean 'watch'?",)),
        ((*ASK, "--deepspeed", "x"), ("deepspeed: sharding is PyTorch's own",)),
    ],
)  # fmt: skip
def test_said_before_any_work(
    argv: tuple[Any, ...], words: tuple[str, ...], surefoot: Surefoot, rows_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from surefoot.microscope import explain

    monkeypatch.setattr(explain, "prepare_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    given = [rows_file if word == "rows" else word for word in argv]
    refused(surefoot("explain", "--model", "anything", *given), *words)


def test_said_when_the_completion_is_known(tiny_folder: Path, surefoot: Surefoot) -> None:
    said = surefoot("explain", "--model", tiny_folder, *ASK, "--position", 99)
    refused(said, "position 99: of the completion ", " tokens are learned, from position 0 to ")
    refused(
        surefoot("explain", tiny_folder, *ASK), f"{tiny_folder}: name the model with --model {tiny_folder}"
    )
    refused(surefoot("explain", *ASK), "surefoot explain --model MODEL --prompt TEXT", "which model?")
    said = surefoot("explain", "--model", tiny_folder, *ASK, "--max_length", 2, "--overlength", "drop")
    refused(said, "your example: nothing of it can be learned: ")


# Options -----------------------------------------------------------------------------------------------------


def test_its_own_options_come_first(surefoot: Surefoot, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        surefoot("explain", "--help")
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert names[:7] == ["--json", "--model", "--prompt", "--completion", "--data", "--row", "--watch"]
    assert set(names[1:]) >= {f"--{name}" for name in OF_ONE_STEP}
    for idle in (
        "save_strategy",
        "output_dir",
        "logging_steps",
        "eval_steps",
        "slides",
        "watch_for",
        "optim",
    ):
        assert f"--{idle} " not in text
    assert len(set(names)) == len(names)


def test_every_option_of_training_is_one_or_the_other() -> None:
    """Those of one step are taken, the rest are refused by name."""
    known = {*OF_ONE_STEP, "model_name_or_path", "optim"}
    assert set(OF_ONE_STEP) < set(Options.model_fields)
    for name, field in Options.model_fields.items():
        value = "sgd" if name == "optim" else field.get_default(call_default_factory=True)
        if name in known:
            assert lesson_options({name: value})[name] == value
        else:
            with pytest.raises(ValueError, match=f"where {name} decides nothing: leave it out"):
                lesson_options({name: value})


def test_longer_names_of_training_are_understood(tiny_folder: Path, surefoot: Surefoot) -> None:
    argv = ("explain", *ASK, "--json", *FLAT)
    short = surefoot(*argv, "--model", tiny_folder, "--optimizer", "adamw").json
    long = surefoot(*argv, "--model_name_or_path", tiny_folder, "--optim", "adamw_torch").json
    assert {**short, "seconds": {}} == {**long, "seconds": {}}
    assert short["optimizer"]["learning_rate"] == 1e-4
