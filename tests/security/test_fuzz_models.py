"""Whatever a GGUF header, a model's folder, a chat template or a recipe holds: a UserError or a value, in seconds.

The targets are those of tests/fuzz, which goes on for as long as it is given; here each is fed for a few seconds.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets


def few(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def of_seed(draw: st.DrawFn, target: str) -> bytes:
    """A good or a hostile file with a few bytes changed, gone or new."""
    found = bytearray(draw(st.sampled_from(targets.seeds(target))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(found)))
        found[at : at + draw(st.sampled_from([0, 1, 1, 8]))] = draw(st.binary(max_size=9))
    return bytes(found)


@few(400)
@given(of_seed("gguf"))
def test_a_gguf_header(data: bytes) -> None:
    targets.gguf(data)


@few(150)
@given(st.lists(st.binary(min_size=5, max_size=20), max_size=4).map(b"".join))
def test_a_model_folder(data: bytes) -> None:
    targets.model_folder(data)


@few(200)
@given(st.binary(min_size=1, max_size=60))
def test_a_template_of_any_words(data: bytes) -> None:
    targets.template(data)


@few(150)
@given(st.binary(min_size=1, max_size=60))
def test_a_template_of_any_expressions(data: bytes) -> None:
    targets.expression(data)


@few(100)
@given(of_seed("template"))
def test_a_template_with_a_few_letters_changed(data: bytes) -> None:
    targets.template(b"\xff" + data)


YAML = [
    "&a ",
    "*a",
    "<<: ",
    "? ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "!!",
    "!!set ",
    "!!python/name:",
    "'",
    '"',
    "|\n",
    "\n",
    "  ",
    "a",
    "1",
    "~",
    "---",
    "#",
    "%",
    ",",
]


@few(300)
@given(st.lists(st.sampled_from(YAML), max_size=30).map("".join))
def test_a_recipe(text: str) -> None:
    targets.recipe(text.encode())


@few(100)
@given(of_seed("recipe"))
def test_a_recipe_with_a_few_letters_changed(data: bytes) -> None:
    targets.recipe(data)


def test_the_seeds_are_what_they_should_be() -> None:
    """Some are good: else nothing behind the first check would ever be reached."""
    assert targets.gguf(targets.seeds("gguf")[0])
    assert targets.model_folder(b"")
    assert all(targets.template(seed) for seed in targets.seeds("template")[1:3])
    assert targets.recipe(b"learning_rate: 0.5\n")
