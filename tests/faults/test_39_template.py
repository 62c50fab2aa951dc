"""Fault 39: a chat template that raises, loops for ever, makes too much or reaches for the system is refused.

The template is the model publisher's, and runs in this process. Each is refused by an error that names the row, after
2 s of computing at most, and nothing it asked for is done.
"""

# ruff: noqa: E501

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surefoot.data import chat_template
from surefoot.errors import UserError
from tests import templates, toys
from tests.conftest import Surefoot, write_rows

FOR_EVER = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops over lists, without a call": "{% set l = [1,2,3,4,5,6,7,8,9] %}"
    + "".join(f"{{% for a{i} in l %}}" for i in range(12))
    + "{% endfor %}" * 12,
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "in a generation tag": "{% generation %}{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}"
    "{% endfor %}{% endgeneration %}",
    "slow filters, without a loop": "{% set a='xy'*400000 %}" + "{{ a | unique | list | length }}" * 1000,
}
WITHOUT_END = {
    "a macro that calls itself": "{% macro m(n) %}{{ m(n+1) }}{% endmacro %}{{ m(0) }}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block within itself": "{% block a %}{{ self.a() }}{% endblock %}",
}
NESTED = {
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
}


def grown(expression: str, start: str = "'x'") -> str:
    """`ns.a` made anew of itself, a hundred times."""
    loop = "{% for i in range(100) %}{% set ns.a = " + expression + " %}{% endfor %}"
    return "{% set ns = namespace(a=" + start + ") %}" + loop + "{{ ns.a }}"


BIG = "{% set a = 'x' * 10000000 %}"
TOO_MUCH = {
    "*": "{{ 'x' * 1000000000000 }}",
    "* of a list": "{{ [0] * 10000000000 }}",
    "* in a loop": grown("ns.a * 10"),
    "~ in a loop": grown("ns.a ~ ns.a"),
    "+ in a loop": grown("ns.a + ns.a"),
    "lists in a loop": grown("ns.a + ns.a", "[1]"),
    "numbers in a loop": grown("ns.a * ns.a", "12345"),
    "a list of one list twice": grown("[ns.a, ns.a]", "[1]"),
    "tuples": grown("(ns.a, ns.a)", "(1,)"),
    "dicts": grown("{'a': ns.a, 'b': ns.a}", "{}"),
    "dicts by name": grown("dict(a=ns.a, b=ns.a)", "{}"),
    "views of dicts": grown("{'a': ns.a.items(), 'b': ns.a.items()}", "{'x': 1}"),
    "arguments of a macro": "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% else %}{{ varargs }}"
    "{% endif %}{% endmacro %}{{ m(40) }}",
    "**": "{{ 10 ** 100000000 }}",
    "replace": "{% set a = 'x' * 100000 %}{{ a.replace('x', a) }}",
    "replace, the filter": "{% set a = 'x' * 100000 %}{{ a | replace('x', a) }}",
    "center": "{{ 'x'.center(100000000000) }}",
    "center, the filter": "{{ 'x' | center(100000000000) }}",
    "ljust": "{{ 'x'.ljust(100000000000) }}",
    "zfill": "{{ 'x'.zfill(100000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(100000000000) }}",
    "format": "{{ '{:>100000000000}'.format(1) }}",
    "format, nested": "{{ '{:>{}}'.format(1, 10000000000) }}",
    "format, often": BIG + "{{ ('{0}' * 1000).format(a) }}",
    "format_map": "{{ '{a:>100000000000}'.format_map({'a': 1}) }}",
    "%": "{{ '%1000000000d' % 5 }}",
    "% *": "{{ '%*d' % (1000000000, 5) }}",
    "% by name": BIG + "{{ ('%(a)s' * 1000) % {'a': a} }}",
    "format, the filter": "{{ '%1000000000d' | format(5) }}",
    "join": BIG + "{{ range(100000) | join(a) }}",
    "join, the method": BIG + "{{ a.join(range(100000) | map('string')) }}",
    "join of a default": BIG + "{{ range(100000) | map(attribute='q', default=a) | join }}",
    "list of a default": BIG + "{{ range(100000) | map(attribute='q', default=a) | list }}",
    "batch of a default": BIG + "{{ range(100000) | map(attribute='q', default=a) | batch(100000) | first }}",
    "indent": "{{ 'x\ny' | indent(10000000000) }}",
    "tojson": "{{ [1] | tojson(indent=10000000000) }}",
    "wordwrap": "{{ ('x ' * 5000000) | wordwrap(2) }}",
    "urlize": "{{ ('http://a.b ' * 500000) | urlize }}",
    "striptags": "{{ ('<!-- -->' * 500000) | striptags }}",
    "lipsum": "{{ lipsum(100000000) }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "slice": "{{ [1] | slice(10000000000, 0) | list }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "split": "{{ ('x ' * 8000000).split() | length }}",
    "splitlines": "{{ ('x\n' * 8000000).splitlines() | length }}",
    "strip": "{% set a = 'x' * 16000000 %}{{ a.strip('y' * 16000 ~ 'x') }}",
    "sort of equal texts": "{% set a = 'x' * 1000000 %}{% set b = 'x' * 999999 ~ 'x' %}{{ ([a, b] * 500000) | sort }}",
    "sum of lists": "{{ ([[1] * 10] * 90000) | sum(start=[]) }}",
    "a block's output": BIG + "{% set b %}{% for i in range(100000) %}{{ a }}{% endfor %}{% endset %}",
    "a macro's output": BIG
    + "{% macro m() %}{% for i in range(100000) %}{{ a }}{% endfor %}{% endmacro %}{{ m() }}",
    "output": BIG + "{% for i in range(100000) %}{{ a }}{% endfor %}",
    "what is kept": "{% macro m(n) %}{% set a = 'x' * (16000000 - n) %}{% if n %}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(150) }}",
    "what a loop's length keeps": "{% for x in range(100000) | map('center', 10000000) %}{{ loop.length }}{% endfor %}",
    "escaped": "{% autoescape true %}{% set a = '<' * 2000000 %}{% macro m() %}"
    + "{{ a }}" * 9000
    + "{% endmacro %}"
    "{{ m() }}{% endautoescape %}",
    "a date": "{{ strftime_now('%Y' * 100000) }}",
    "a literal": "{{ 0x" + "f" * 100000 + " }}",
    "the template itself": "x" * 200_000,
}
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{{ lipsum.__globals__['os'].system('touch pwned') }}",
    "{{ lipsum.__globals__.os.popen('touch pwned').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__['sys'].modules }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(**{'__init__': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{{ (5).to_bytes(10000000000, 'big') }}",
    "{{ 'x'.translate({120: 'y'}) }}",
)
ROWS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}]


def refusal(template: str, seconds: float = 2.0) -> str:
    """What the template is refused with. It may compute so long, and a little more for what is being done then."""
    tokenizer = toys.byte_level(template=template)
    chat_template.compiled.cache_clear()
    began = time.thread_time()
    with pytest.raises(UserError) as caught:
        chat_template.render(tokenizer, ROWS[0]["messages"], "rows:1")
    assert time.thread_time() - began < seconds + 1.5
    where = "" if isinstance(caught.value, chat_template.TemplateFault) else "rows:1: "
    assert str(caught.value).startswith(f"{where}the model's chat template ")
    return str(caught.value).removeprefix(f"{where}the model's chat template ")


@pytest.mark.parametrize("template", FOR_EVER.values(), ids=FOR_EVER)
def test_a_template_that_computes_for_ever_is_stopped(template: str) -> None:
    assert refusal(template) == "took more than 2 s, so it is refused; chat_template_path takes another"


@pytest.mark.parametrize("template", WITHOUT_END.values(), ids=WITHOUT_END)
def test_a_template_that_calls_itself_without_end_is_refused(template: str) -> None:
    assert refusal(template, 0) == "calls itself without end; chat_template_path takes another"


@pytest.mark.parametrize("template", NESTED.values(), ids=NESTED)
def test_a_template_that_is_nested_too_deeply_is_refused(template: str) -> None:
    assert refusal(template, 0) == "is nested too deeply; chat_template_path takes another"


@pytest.mark.parametrize("template", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_template_that_makes_too_much_is_refused(template: str) -> None:
    said = refusal(template)
    assert any(word in said for word in ("more than", "longer than"))
    assert said.endswith("so it is refused; chat_template_path takes another")


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_for_the_system_gets_nothing(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(template, 0).startswith("refuses this conversation: ")
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_is_no_jinja_says_the_line() -> None:
    said = refusal("{{ 1 }}\n{% for %}", 0)
    assert said.startswith("is not valid Jinja: line 2: Expected an expression")
    assert "too many statically nested blocks" in refusal("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, 0)


def test_a_template_may_say_why_but_not_at_any_length() -> None:
    assert refusal("{{ raise_exception('no tools here') }}", 0) == "refuses this conversation: no tools here"
    said = refusal("{{ raise_exception('x' * 10000000) }}", 0)
    assert said == "refuses this conversation: " + "x" * chat_template.SAID + "…"


def test_after_a_refusal_the_same_template_still_renders() -> None:
    source = (
        "{% for i in range(100000 if messages[0].content == 'loop' else 1) %}{% for j in range(100000 * i) %}"
    )
    tokenizer = toys.byte_level(template=source + "{% endfor %}{% endfor %}done")
    for content, fine in (("Hi", True), ("loop", False), ("Hi", True)):
        if fine:
            assert chat_template.render(tokenizer, [{"role": "user", "content": content}], "rows:1") == "done"
        else:
            with pytest.raises(UserError):
                chat_template.render(tokenizer, [{"role": "user", "content": content}], "rows:1")


def test_a_process_that_was_stopped_in_a_rendering_is_not_blamed_on_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = iter((0.0, 100.0))
    monkeypatch.setattr("surefoot.data.template_meter.monotonic", lambda: next(late, 100.0))
    tokenizer = toys.byte_level(template=templates.CHATML)
    assert chat_template.render(tokenizer, ROWS[0]["messages"], "rows:1").startswith("<|im_start|>user\nHi")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_row_cannot_set_what_is_not_its_to_set(name: str) -> None:
    tokenizer = toys.byte_level(template=templates.CHATML)
    with pytest.raises(UserError, match=rf"rows:1: chat_template_kwargs: '{name}'"):
        chat_template.render(tokenizer, ROWS[0]["messages"], "rows:1", variables={name: []})


def test_a_row_cannot_bring_its_own_template() -> None:
    tokenizer = toys.byte_level(template=templates.CHATML)
    for variables in (
        {"chat_template": "{{ 'mine' }}"},
        {"tokenize": True},
        {"continue_final_message": True},
    ):
        said = chat_template.render(tokenizer, ROWS[0]["messages"], "rows:1", variables=variables)
        assert said == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"


def test_memory_is_bounded() -> None:
    """All that makes too much, in a process that may hold 1.5 GB more than it starts with."""
    code = (
        "import resource\n"
        "from tests.faults import test_39_template as t\n"
        "from surefoot.data.template_meter import resident\n"
        "t.refusal('{{ 1 // 0 }}')\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 29), size + (3 << 29)))\n"
        "for name, template in t.TOO_MUCH.items():\n"
        "    said = t.refusal(template)\n"
        "    assert 'than there is' not in said, (name, said)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print('peak', int(peak))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("command", ["preview", "train"])
def test_the_command_line_names_the_row(
    command: str, tiny_folder: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "bad.jinja").write_text(FOR_EVER["nested loops"], encoding="utf-8")
    template = ("--chat_template_path", "bad.jinja")
    if command == "train":
        argv = ("--model_name_or_path", tiny_folder, "--dataset_name", "rows.jsonl", "--use_cpu", *template)
    else:
        argv = (tiny_folder, "--data", "rows.jsonl", *template)
    said = surefoot(command, *argv)
    assert (said.status, said.out) == (2, "")
    assert said.err == (
        "surefoot: rows.jsonl:1: the model's chat template took more than 2 s, so it is refused; chat_template_path "
        "takes another\n"
    )


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{{ 1 }}\n{% for %}",
            "is not valid Jinja: line 2: Expected an expression, got 'end of statement block'",
        ),
        (NESTED["lists"], "is nested too deeply"),
        (TOO_MUCH["a literal"], "has a number of more than 8192 bits, so it is refused"),
    ],
    ids=["syntax", "nested", "too much"],
)
def test_a_template_that_is_no_good_is_no_rows_error(
    template: str, said: str, on_bad_row: str, tiny_folder: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    """It is said once, with where it came from; no row is blamed, and none is skipped."""
    write_rows(tmp_path / "rows.jsonl", ROWS * 30)
    (tmp_path / "bad.jinja").write_text(template, encoding="utf-8")
    argv = ("--data", "rows.jsonl", "--on_bad_row", on_bad_row)
    named = surefoot("preview", tiny_folder, *argv, "--chat_template_path", "bad.jinja")
    assert (named.status, named.out) == (2, "")
    fix = "mend it, or name another"
    assert named.err == f"surefoot: chat_template_path: bad.jinja: the template {said}; {fix}\n"

    model = shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.copy("bad.jinja", model / "chat_template.jinja")
    own = surefoot("preview", "model", *argv)
    assert (own.status, own.out) == (2, "")
    fix = "chat_template_path takes another"
    assert own.err == f"surefoot: model: the model's chat template {said}; {fix}\n"
    (tmp_path / "good.jinja").write_text(templates.CHATML, encoding="utf-8")
    assert surefoot("preview", "model", *argv, "--chat_template_path", "good.jinja").status == 0
