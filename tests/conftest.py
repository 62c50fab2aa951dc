"""What tests share: no network, a tiny model in a folder, a quick start of the command line."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Threads of one process wait for each other by spinning; those of two on the same cores, many times as long.
    # Set outright: the process that starts the workers may have handed down its own number.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml

from surefoot.cli import main
from surefoot.config import SFTConfig
from surefoot.data.cache import cache_folder
from surefoot.model.load import Loaded, load
from tests import templates, toys
from tests.faults.children import Zygote

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it starts in the background, and our children would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own: nothing an earlier run remembered decides, nothing of theirs is left.
    The unpacked model is shared: that takes long."""
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    home = tmp_path_factory.mktemp("cache")
    (home / "surefoot").mkdir()
    (home / "surefoot" / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What starts the command line quickly, one for each worker: importing takes seconds, a child milliseconds."""
    with Zygote() as started:
        yield started


QUESTIONS = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of Italy?", "Rome, of course."),
    ("How are you today?", "I am fine, thank you."),
    ("Count, please: one two", "three four"),
)


def tiny_llama(vocabulary: int, seed: int = 0) -> tf.LlamaForCausalLM:
    """Two layers, 16 wide, random weights."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return tf.LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a byte-level tokenizer and the ChatML template, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = toys.byte_level(template=templates.CHATML)
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedy(model: Any, tokenizer: Any, count: int = 12) -> list[int]:
    """Greedy tokens after the first question, by plain transformers."""
    prompt = [{"role": "user", "content": QUESTIONS[0][0]}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Loaded:
    """The tiny model and its tokenizer."""
    return load(str(tiny_folder))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions as chat rows, JSONL."""
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in QUESTIONS
    ]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def write_recipe(place: Path, model: Path, name: str = "recipe.yaml", **options: Any) -> Path:
    """A recipe, and its rows: twelve steps of two rows each, of a tiny model, in fp32 on the CPU, into the folder
    `run`."""
    data = place / "rows.jsonl"
    if not data.exists():
        write_rows(data, [{"prompt": asked, "completion": said} for asked, said in QUESTIONS] * 4)
    plain = {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "output_dir": str(place / "run"),
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_steps": 3,
        "tensors_every": 0,
        "precision": "fp32",
        "use_cpu": True,
        "seed": 7,
    }
    path = place / name
    path.write_text(yaml.safe_dump(plain | options), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)


Surefoot = Callable[..., Said]


@pytest.fixture
def surefoot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Surefoot:
    """The command line, run in this process from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_run(tiny_folder: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learned the questions by heart."""
    from surefoot import SFTTrainer

    args = SFTConfig(
        tmp_path_factory.mktemp("runs") / "learned",
        model_name_or_path=tiny_folder,
        dataset_name=str(rows_file),
        learning_rate=2e-2,
        max_steps=40,
        precision="fp32",
        save_strategy="no",
        use_cpu=True,
    )
    SFTTrainer(args=args).train()
    return Path(args.output_dir)
