"""What is fed with anything at all: bytes → a UserError or a good value, in seconds, and no other exception.

Each target takes good files with a part of them changed, as the bytes say, or the bytes as they are.
"""

# ruff: noqa: E501

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path

from surefoot.data import chat_template
from surefoot.data.dataset import read
from surefoot.data.render import Renderer
from surefoot.data.sources import open_source
from surefoot.data.template_meter import SECONDS, resident
from surefoot.errors import UserError
from surefoot.model.adapter_folder import check_adapter
from surefoot.model.folder import ADAPTER, ADAPTER_WEIGHTS, check_model, check_tokenizer
from surefoot.model.gguf_header import check_gguf
from surefoot.recipes import read_recipe
from tests import templates, toys

LONGEST = SECONDS + 6.0
"""Of computing, for anything: a template's time, and what its compiler takes."""
MEMORY = 2 << 30


@cache
def place() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix="surefoot-fuzz-"))


@cache
def tokenizer():
    return toys.byte_level(template=templates.CHATML)


def bounded(work: Callable[[], object]) -> bool:
    """Do it; whether it was done, not refused. AssertionError when it took too long or too much."""
    began, held = time.process_time(), resident()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            work()
    except UserError:
        return False
    finally:
        took = time.process_time() - began
        assert took < LONGEST, f"{took:.1f} s"
        assert resident() - held < MEMORY
    return True


# Rows ------------------------------------------------------------------------------------------------------


def rows(data: bytes) -> bool:
    """The first byte chooses the kind of file."""
    kinds = (".jsonl", ".json", ".csv", ".jsonl.gz", ".txt", ".tsv")
    path = place() / f"rows{kinds[data[0] % len(kinds) if data else 0]}"
    path.write_bytes(data[1:])

    def work() -> None:
        renderer = Renderer(tokenizer(), max_length=512)
        read(
            open_source(str(path)), renderer, columns={}, on_bad_row="skip" if data[:1] > b"\x80" else "stop"
        )

    return bounded(work)


# GGUF ------------------------------------------------------------------------------------------------------


def gguf(data: bytes) -> bool:
    """Bytes of a file. What passes is given to a reader that trusts it, which must end too, well or not."""
    path = place() / "model.gguf"
    path.write_bytes(data)

    def work() -> None:
        check_gguf(path)
        with suppress(Exception):
            from gguf import GGUFReader

            GGUFReader(path)

    return bounded(work)


# Model folders ---------------------------------------------------------------------------------------------


@cache
def good_files() -> dict[str, bytes]:
    """A whole model's files, and an adapter's, as small as they are."""
    from tests.conftest import tiny_llama
    from tests.security import hostile

    folder = place() / "good"
    tiny_llama(len(tokenizer())).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    hostile.as_shards(folder)
    base = {"base_model_name_or_path": "/x", "peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    (folder / ADAPTER).write_text(json.dumps({**base, "rank_pattern": {"q": 2}, "init_lora_weights": True}))
    hostile.tensor(folder / ADAPTER_WEIGHTS)
    weights = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    weights.pop("tokenizer.json")  # the library's own parser reads it
    return weights


def changed(files: dict[str, bytes], data: bytes) -> dict[str, bytes]:
    """Each five bytes and what follows them: a file, a place in it, how much of it goes, what comes instead."""
    files, names = dict(files), sorted(files)
    while len(data) >= 5:
        name = names[data[0] % len(names)]
        content = files[name]
        at = int.from_bytes(data[1:3], "little") % (len(content) + 1)
        gone, new = data[3], data[4] % 32
        files[name] = content[:at] + data[5 : 5 + new] + content[at + gone :]
        data = data[5 + new :]
    return files


def model_folder(data: bytes) -> bool:
    """Changes of a good folder."""
    folder = place() / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in changed(good_files(), data).items():
        (folder / name).write_bytes(content)

    def work() -> None:
        for look in (check_model, check_tokenizer, check_adapter):
            with suppress(UserError):
                look(folder)
        check_model(folder)

    return bounded(work)


# Templates -------------------------------------------------------------------------------------------------

WORDS = [
    "{{ ", " }}", "{% ", " %}", "{%- ", "for x in ", "endfor", "if ", "else", "endif", "set a = ", "set ns.a = ",
    "macro m(n)", "endmacro", "m(n)", "call(x) m(1)", "endcall", "filter upper", "endfilter", "set b", "endset",
    "generation", "endgeneration", "autoescape true", "endautoescape", "break", "continue", "recursive", "loop(x)",
    "messages", "messages[0].content", "a", "b", "x", "n", "ns", "ns.a", "loop", "loop.length", "loop.cycle", "varargs",
    "namespace(a=a)", "range(9)", "range(99999)", "dict(a=a)", "cycler(a, a)", "joiner(a)", "lipsum(9)", "self", "caller()",
    "'x'", "'%s%9d'", "'{0:>99}'", "1", "999999999999", "0.5", "none", "true", "[a, a]", "(a, a)", "{'a': a}", "[", "]", "(", ")",
    " + ", " * ", " ** ", " ~ ", " % ", " - ", " // ", " == ", " < ", " in ", " and ", " is ", " not ", ", ", "=", ":", ".",
    "|list", "|join(a)", "|tojson", "|replace('x', a)", "|center(9999999)", "|batch(9, a)", "|map('list')", "|sort", "|sum(start=a)",
    "|indent(a)", "|wordwrap(2)", "|format(a)", "|unique|list", "|map(attribute='a', default=a)", "|groupby('a')", "|xmlattr", "|pprint",
    ".split()", ".join(a)", ".format(a)", ".center(9999999)", ".items()", ".keys()", ".upper()", ".replace('x', a)", ".zfill(99)",
    ".__class__", ".__init__", "|attr('__class__')", "['__globals__']", "._x", "raise_exception(a)", "strftime_now(a)", "\n",
]  # fmt: skip
assert len(WORDS) < 256


def template(data: bytes) -> bool:
    """Words of Jinja in any order after a beginning that sets the names, or the bytes as they are."""
    if data[:1] == b"\xff":
        source = data[1:].decode("utf-8", "replace")
    else:
        words = "".join(WORDS[byte % len(WORDS)] for byte in data[:400])
        source = "{% set a = 'x' * 9 %}{% set ns = namespace(a=a) %}" + words
    chat_template.compiled.cache_clear()
    tokenizer().chat_template = source or " "
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    return bounded(lambda: chat_template.render(tokenizer(), messages, "rows:1"))


def expression(data: bytes) -> bool:
    """As `template`, but always well-formed: each byte takes what there is and makes more of it."""
    stack = ["a", "messages"]
    for byte in data[:200]:
        one = stack.pop() if len(stack) > 1 else stack[0]
        if len(one) + len(stack[-1] if stack else "") > 2_000:
            continue
        word = WORDS[byte % len(WORDS)]
        if word.startswith(("|", ".", "[")) and word not in ("[", "."):
            stack.append(f"({one}){word}")
        elif word.startswith(" ") and word.strip() in (
            "+",
            "*",
            "**",
            "~",
            "%",
            "-",
            "//",
            "==",
            "<",
            "in",
            "and",
        ):
            stack.append(f"({one}{word}{stack[-1] if stack else 'a'})")
        elif word[0] in "'019n({" or word[:2] in ("[a", "ra", "di", "na", "cy", "li"):
            stack += [one, word]
        else:
            stack += [f"[{one}, {one}]"]
    body = "".join(f"{{% set a = {part} %}}{{{{ a }}}}" for part in stack[-4:] if len(part) < 20_000)
    source = "{% for x in range(3) %}{% set ns = namespace(a='x') %}" + body + "{% endfor %}"
    chat_template.compiled.cache_clear()
    tokenizer().chat_template = "{% set a = 'x' * 9 %}" + source
    messages = [{"role": "user", "content": "Hi"}]
    return bounded(lambda: chat_template.render(tokenizer(), messages, "rows:1"))


# Recipes ---------------------------------------------------------------------------------------------------


def recipe(data: bytes) -> bool:
    """Bytes of a YAML file."""
    path = place() / "recipe.yaml"
    path.write_bytes(data)
    return bounded(lambda: read_recipe(path))


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "rows": rows,
    "gguf": gguf,
    "model_folder": model_folder,
    "template": template,
    "expression": expression,
    "recipe": recipe,
}


def seeds(target: str) -> list[bytes]:
    """What to begin with."""
    from tests.security import hostile

    if target == "gguf":
        fitting = hostile.start(tensors=1, keys=1) + hostile.text("a") + (8).to_bytes(4, "little")
        fitting += hostile.text("b") + hostile.info((2,)) + bytes(64)
        return [fitting, *(content for content, _ in hostile.GGUFS.values())]
    if target == "rows":
        turn = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
        line = json.dumps(turn).encode()
        return [b"\0" + line + b"\n" + line, b"\1[" + line + b"]", b"\2prompt,completion\na,b\n", b"\4a b\n"]
    if target == "recipe":
        return [b"a: &a [x]\nlearning_rate: 1e-4\ncolumns: {prompt: *a}\n<<: {seed: 1}\n", b"!!set {? a}\n"]
    if target == "template":
        named = [value for name, value in vars(templates).items() if name.isupper()]
        return [b"\xff" + value.encode() for value in named]
    return [bytes(range(0, 200, 7)), b"\0" * 5]
