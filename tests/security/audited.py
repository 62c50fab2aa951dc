"""Run as a program: everything hostile at once, with Python telling of every process, socket, pickle and import.

The hook is armed after one good turn of each command. Starting up imports and compiles, and that is Python's own
files; what comes after must do neither with anything of the folders. What is told is printed as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants  # before tests.conftest, which switches the hub off for all others

# isort: split
from surefoot.cli import main
from tests import templates, toys
from tests.conftest import QUESTIONS, tiny_llama, write_rows
from tests.faults.test_39_template import ESCAPES
from tests.security import hostile

FORBIDDEN = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
    "pty.spawn",
    "webbrowser.open",
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
)
"""Events that must not happen at all: https://docs.python.org/3/library/audit_events.html"""
OF_FILES = ("exec", "compile", "import", "ctypes.dlopen", "marshal.loads")
"""Events that must not be about anything in a hostile folder."""
MODULES = ("theirs", "modeling_theirs", "sitecustomize", "antigravity", "this")


class Watch:
    """Python's audit events while armed."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)
        self.armed = False
        self.told: list[list[str]] = []
        self.seen = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        self.seen += 1
        if event in FORBIDDEN:
            self.told.append([event, repr(arguments)[:200]])
        elif event in OF_FILES:
            if event == "exec":
                said = arguments[0].co_filename
            elif event == "import":
                said = f"{arguments[0]} {arguments[1]}"
            else:
                said = " ".join(str(argument) for argument in arguments)
            module = str(arguments[0]).partition(".")[0] if event == "import" else ""
            if self._place in said or module in MODULES:
                self.told.append([event, said[:200]])

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


def quietly(*words: object) -> int:
    """One command; returns its status. What it prints is of no concern here."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main([str(word) for word in words])


def good_model(folder: Path) -> Path:
    tokenizer = toys.byte_level(template=templates.CHATML)
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def good_rows(path: Path) -> Path:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in QUESTIONS]
    return write_rows(path, [{"messages": turn} for turn in turns])


def train(model: Path, rows: Path, run: Path, *more: object) -> int:
    options = ("--max_steps", 2, "--save_steps", 1, "--slides", 1, "--tensors_every", 1, "--use_cpu")
    given = ("--model_name_or_path", model, "--dataset_name", rows, "--output_dir", run)
    return quietly("train", *given, *options, *more)


def one_of_each(model: Path, rows: Path, run: Path) -> list[int]:
    """Every command on what is good."""
    statuses = [
        train(model, rows, run),
        quietly("evaluate", run, "--data", rows, "--use_cpu", "--max_new_tokens", 2),
        quietly("chat", run, "--prompt", "Hi", "--use_cpu", "--max_new_tokens", 2),
        quietly("preview", model, "--data", rows),
        quietly("report", run),
        quietly("report", run, "--terminal"),
        quietly("worst", run),
        quietly("checkpoints", run),
        quietly("verify", run),
        quietly("compare", run, "--prompt", "Hi", "--use_cpu", "--max_new_tokens", 2),
        quietly("explain", "--model", model, "--prompt", "Hi", "--completion", "Ho", "--use_cpu"),
    ]
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[-1:]:
        given = ("--prompt", "Hi", "--completion", "Ho", "--use_cpu")
        statuses.append(quietly("explain", "--model", checkpoint, *given))
    return statuses


def hostile_things(
    place: Path, model: Path, rows: Path, run: Path
) -> Iterator[tuple[str, Callable[[], int]]]:
    """Name → a command on something hostile."""
    marker = place / "ran"
    for name, (spoil, _) in hostile.FOLDERS.items():
        folder = hostile.copy(model, place / f"folder {name}")
        spoil(folder)
        yield f"folder: {name}", lambda folder=folder: quietly("chat", folder, "--prompt", "Hi", "--use_cpu")
    for suffix in ("pytorch_model.bin", "model.pt", "model.pth"):
        folder = hostile.copy(model, place / f"pickle {suffix}")
        hostile.pickled(folder, suffix, marker)
        yield f"pickle: {suffix}", lambda folder=folder: train(folder, rows, place / "never")
    folder = hostile.copy(model, place / "code")
    hostile.own_code(folder, marker)
    for command in ("chat", "preview", "evaluate"):
        given = ("--prompt", "Hi") if command == "chat" else ("--data", rows)
        yield f"code: {command}", lambda c=command, g=given, f=folder: quietly(c, f, *g)
    known = hostile.copy(folder, place / "known")
    hostile.edit(known / "config.json", model_type="llama")
    hostile.edit(known / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    yield "code beside a known model", lambda: quietly("chat", known, "--prompt", "Hi", "--use_cpu") + 2
    for name, (content, _) in hostile.GGUFS.items():
        path = place / f"{name.replace('/', ' ')}.gguf"
        path.write_bytes(content)
        yield f"gguf: {name}", lambda path=path: quietly("chat", path, "--prompt", "Hi", "--use_cpu")
    for number, template in enumerate(ESCAPES):
        path = place / f"{number}.jinja"
        path.write_text(template)
        given = ("--data", rows, "--chat_template_path", path)
        yield f"template: {template}", lambda given=given: quietly("preview", model, *given)
    for name, changed in {name: changed for name, (changed, _) in hostile.ADAPTERS.items()}.items():
        folder = place / f"adapter {name}"
        folder.mkdir()
        base = {"base_model_name_or_path": str(model), "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}
        hostile.edit(folder / "adapter_config.json", **{**base, "target_modules": ["q_proj"], **changed})
        hostile.tensor(folder / "adapter_model.safetensors")
        yield f"adapter: {name}", lambda folder=folder: quietly("chat", folder, "--prompt", "Hi", "--use_cpu")
    for name, text in {
        "an object": "learning_rate: !!python/object/apply:os.system ['touch ran']\n",
        "a module": "learning_rate: !!python/module:antigravity\n",
        "a name": "learning_rate: !!python/name:os.system\n",
    }.items():
        path = place / f"{name}.yaml"
        path.write_text(text)
        yield f"recipe: {name}", lambda path=path: quietly("train", path)
    for name, text in {
        "a pickle's beginning": "\x80\x04\x95",
        "nested": hostile.NESTED,
        "own template": json.dumps({"messages": [{"role": "user", "content": "{{ cycler }}"}]}),
    }.items():
        path = place / f"{name}.jsonl"
        path.write_text(text + "\n")
        yield f"rows: {name}", lambda path=path: quietly("preview", model, "--data", path)
    for name in ("run.json", "events.jsonl"):
        spoiled = hostile.copy(run, place / f"run {name}")
        (spoiled / name).write_bytes(b"\x80\x04\x95" + bytes(64))
        for command in ("report", "worst", "checkpoints"):
            yield f"run: {name}, {command}", lambda c=command, s=spoiled: max(2, quietly(c, s))
    spoiled = hostile.copy(run, place / "run elsewhere")
    content = json.loads((spoiled / "run.json").read_text())
    content["config"].update(
        trust_remote_code=True, dataset_name="someone/rows", chat_template_path="someone/model"
    )
    content["model"]["name"] = str(place / "code")
    (spoiled / "run.json").write_text(json.dumps(content))
    for words in (("report", spoiled), ("worst", spoiled)):
        yield f"run that names others: {words[0]}", lambda words=words: quietly(*words) + 2
    for checkpoint in sorted((spoiled / "checkpoints").glob("step-*"))[-1:]:
        words = ("explain", "--model", checkpoint, "--prompt", "Hi", "--completion", "Ho")
        yield "checkpoint that names others", lambda w=words: quietly(*w, "--chat_template_path", model)


def run_all(place: Path) -> dict[str, Any]:
    model, rows = good_model(place / "good"), good_rows(place / "rows.jsonl")
    first = one_of_each(model, rows, place / "first")
    watch = Watch(place)
    with watch.over():
        ordinary = one_of_each(model, rows, place / "second")
    told = {"ordinary": watch.told}
    seen = watch.seen
    statuses = {}
    for name, attempt in hostile_things(place, model, rows, place / "first"):
        watch.told = []
        with watch.over():
            statuses[name] = attempt()
        if watch.told:
            told[name] = watch.told
    with watch.over():  # that the hook does hear: else all of the above says nothing
        watch.told = []
        import os
        import pickle

        os.system("true")
        pickle.loads(pickle.dumps(Path("x")))
        compile("1", str(place / "theirs.py"), "eval")
        heard = sorted({event for event, _ in watch.told})
    return {
        "first": first,
        "ordinary": ordinary,
        "told": {name: events for name, events in told.items() if events},
        "statuses": statuses,
        "seen": seen,
        "heard": heard,
        "ran": (place / "ran").exists(),
        "offline": constants.HF_HUB_OFFLINE,
    }


if __name__ == "__main__":
    print(json.dumps(run_all(Path(sys.argv[1]))))
