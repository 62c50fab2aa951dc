"""Our rendering of chat templates writes what transformers' does, and refuses what that would refuse."""

# ruff: noqa: E501

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.data import chat_template
from surefoot.errors import UserError
from tests import templates, toys
from tests.data.rendered import TOOL, assistant, call, system, tool, user

NAMED = {name: value for name, value in vars(templates).items() if name.isupper() and isinstance(value, str)}
CHATS: dict[str, list[dict[str, Any]]] = {
    "a question": [user("Hi")],
    "an answer": [user("Hi"), assistant("Hello!")],
    "with a system prompt": [system("Be kind."), user("Hi"), assistant("Hello!"), user("So?")],
    "with reasoning": [
        user("Hi"),
        assistant("4", reasoning_content="2 + 2"),
        user("5?"),
        assistant("<think>x</think>y"),
    ],
    "with tools": [
        user("Rain?"),
        assistant(tool_calls=[call("Paris")]),
        tool('{"rain": false}'),
        assistant("No."),
    ],
    "with None": [{"role": "user", "content": "Hi", "name": None}, assistant("Hello!", tool_calls=None)],
    "without letters": [user("   \n\t"), assistant("\u00e9 \U0001f600 \x00 <b>&amp;</b>")],
}
LANGUAGE = r"""
{%- macro shout(text, times=2) -%}{% for i in range(times) %}{{ text|upper }}{{ '!' if not loop.last }}{% endfor %}{%- endmacro -%}
{%- macro wrap(y) -%}[{{ caller(y) }}]{%- endmacro -%}
{%- set ns = namespace(seen=[], total=0, text='') -%}
{%- for message in messages -%}
  {%- if message.content is not defined or not message.content is string %}{% continue %}{% endif -%}
  {%- set ns.seen = ns.seen + [message.role] -%}
  {%- set ns.total = ns.total + message.content|length -%}
  {%- set ns.text = ns.text ~ loop.index ~ ':' ~ message['role'][::-1] ~ '|' -%}
  {{ loop.cycle('a', 'b') }}{{ loop.first }}{{ loop.revindex }}{{ loop.nextitem.role if not loop.last else '-' }}
  {{ message.content.strip().split(' ')|join('_') }} {{ message.content|replace(' ', '__')|trim|truncate(9) }}
  {{ shout(message.role, times=loop.index) }} {{ '%s=%05d' % (message.role, 7) }} {{ '{:>9}|{!r}'.format(message.role, 1) }}
  {%- generation %}<{{ message.content|e }}>{% endgeneration -%}
{%- else %}nobody{% endfor %}
{{ ns.seen|unique|list }} {{ ns.seen|sort|join(',') }} {{ ns.total * 3 - 1 }} {{ ns.total // 7 }} {{ ns.total % 5 }} {{ 2 ** 9 }}
{{ ns.text }} {{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|tojson }}
{{ messages|map(attribute='role')|groupby('x') if false }} {{ messages[0].items()|list|length }} {{ messages[1:]|length }}
{% filter upper %}down{% endfilter %}{% set block %}b{{ 1 + 1 }}{% endset %}{{ block }}{% call(x) wrap('w') %}{{ x }}{% endcall %}
{{ [1, 2.5, none, true, 'é'] }} {{ {'a': [1, (2,)]} }} {{ ('a', 'b') }}
{{ {'b': 1, 'a': 2}|dictsort }} {{ [3, 1]|sum }} {{ 3.7|round|int }} {{ '17'|int + 1 }} {{ 'x' in 'xyz' }} {{ 'a' < 'b' < 'c' }}
{{ [1, 2, 3, 4, 5]|batch(2, 0)|list }} {{ [1, 2, 3]|slice(2)|list }} {{ 'a b'|title }} {{ 'abc'|first }} {{ range(5)|list }}
{{ 'x\ny'|indent(3) }} {{ 'wrap these words'|wordwrap(5) }} {{ 'http://a.b c'|urlize }} {{ '<i>t</i>'|striptags }} {{ [1]|tojson(indent=2) }}
{{ bos_token if bos_token is defined }} {{ eos_token }} {{ enable_thinking|default('unset') }} {{ documents }} {{ dict(a=1) }}
"""


def both(template: str, messages: list[dict[str, Any]], **how: Any) -> tuple[str | None, str | None]:
    """What transformers and we make of it; None where it is refused."""
    tokenizer = toys.byte_level(template=template)
    said: list[str | None] = []
    try:
        said.append(str(tokenizer.apply_chat_template(messages, tokenize=False, **how)))
    except Exception:
        said.append(None)
    try:
        given = {name: how.pop(name) for name in ("tools", "add_generation_prompt") if name in how}
        said.append(chat_template.render(tokenizer, messages, "rows:1", variables=how, **given))
    except UserError as error:
        assert "so it is refused" not in str(error)
        said.append(None)
    return said[0], said[1]


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("name", [*NAMED, "LANGUAGE"])
def test_what_is_written_is_what_transformers_writes(name: str, chat: list[dict[str, Any]]) -> None:
    template = LANGUAGE if name == "LANGUAGE" else NAMED[name]
    for tools, asked, thinking in itertools.product(
        (None, [TOOL]), (False, True), ({}, {"enable_thinking": False})
    ):
        theirs, ours = both(template, chat, tools=tools, add_generation_prompt=asked, **thinking)
        assert ours == theirs


def test_the_template_of_the_whole_language_does_render() -> None:
    assert None not in both(LANGUAGE, CHATS["an answer"])


def test_documents_and_objects_reach_the_template_as_plain_values() -> None:
    class Odd(str):
        def shout(self) -> str:
            raise AssertionError

    template = "{{ documents|tojson }}{{ thing.shout is defined }}{{ n }}{{ pair }}{{ array }}{{ f }}"
    how = {
        "documents": [{"title": "a", "text": "b"}],
        "thing": Odd("x"),
        "n": np.int64(7),
        "pair": (1, "two"),
        "array": np.zeros(3),
        "f": np.float32(0.5),
    }
    theirs, ours = both(template, CHATS["a question"], **how)
    assert ours == theirs == '[{"title": "a", "text": "b"}]False7(1, \'two\')<ndarray>0.5'


def test_of_several_templates_the_one_for_tools_is_used() -> None:
    several = {"default": "plain", "tool_use": "{{ tools|length }} tools"}
    tokenizer = toys.byte_level(template=templates.CHATML)
    tokenizer.chat_template = several
    for tools, want in ((None, "plain"), ([TOOL], "1 tools")):
        assert chat_template.render(tokenizer, CHATS["a question"], "rows:1", tools=tools) == want


ATOMS = st.sampled_from(
    [
        "messages",
        "messages[0].content",
        "messages[0]",
        "'a b'",
        "'<x>'",
        "3",
        "2.5",
        "[1, 2]",
        "{'k': 1}",
        "none",
        "i",
        "ns.v",
    ]
)
FILTER = st.sampled_from(
    [
        "upper", "trim", "length", "list", "string", "tojson", "join(',')", "first", "last", "reverse|list", "sort", "unique|list",
        "replace('a', 'bb')", "default('d')", "int", "float", "abs", "round(1)", "center(9)", "title", "wordcount", "items|list",
        "map('string')|list", "batch(2)|list", "slice(2)|list", "sum", "min", "max", "indent", "e", "truncate(3)", "capitalize",
        "select('string')|list", "tojson(indent=1)", "filesizeformat", "dictsort", "pprint", "urlencode", "xmlattr", "striptags",
    ]
)  # fmt: skip
METHOD = st.sampled_from(
    [".split()", ".upper()", ".strip('a')", ".get('role')", ".items()|list", ".startswith('a')", ".center(5)", ".replace('a', 'b')",
     ".role", "[0]", "[1:]", "[::-1]", ".format(1)", ".join(['x', 'y'])", ".count('a')", ".splitlines()", ".keys()|list"]
)  # fmt: skip


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operator = st.sampled_from(["+", "-", "*", "~", "%", "//", "==", "<", "in", "and", "or", "**"])
    return st.one_of(
        st.tuples(inner, FILTER).map(lambda pair: f"({pair[0]})|{pair[1]}"),
        st.tuples(inner, METHOD).map(lambda pair: f"({pair[0]}){pair[1]}"),
        st.tuples(inner, operator, inner).map(lambda three: f"({three[0]} {three[1]} {three[2]})"),
        st.tuples(inner, inner).map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
        st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} if {three[1]} else {three[2]})"),
    )


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(ATOMS, larger, max_leaves=6), st.recursive(ATOMS, larger, max_leaves=4))
def test_any_expression_is_worth_what_transformers_says(one: str, other: str) -> None:
    template = (
        "{% set ns = namespace(v='') %}{% for i in range(2) %}{% set ns.v = " + one + " %}"
        "{{ " + other + " }}{% endfor %}{% set b %}{{ ns.v }}{% endset %}{{ b }}"
    )
    theirs, ours = both(template, CHATS["an answer"])
    assert ours == theirs, template
