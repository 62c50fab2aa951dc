"""Whatever a manifest says, it is read, or refused as damaged or as the user's to mend; no more comes of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.errors import UserError
from surefoot.train.manifest import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST,
    OPTIMIZER,
    STATE,
    VERSION,
    WEIGHTS,
    Damaged,
    digest,
    manifest_of,
    verify,
)

FILES = (WEIGHTS, OPTIMIZER, STATE)
BODY = b"what was written"
FILE = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
SOUND = {
    "version": VERSION,
    "step": 7,
    "loss": 1.5,
    "because": "every 7 steps",
    "files": dict.fromkeys(FILES, FILE),
}
NAMES = st.sampled_from(
    [
        "../weights.safetensors",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a/b",
        "\0",
        "weights.safetensors\n",
        "\ud800",
        *FILES,
    ]
) | st.text(max_size=9)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 10**400, -1, 0])
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PLACES = st.sampled_from(
    [
        *[(key,) for key in SOUND],
        ("digest",),
        *[("files", name) for name in FILES],
        ("files", WEIGHTS, "size"),
        ("files", STATE, "sha256"),
        ("files", OPTIMIZER, "more"),
    ]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "step-00000007"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(BODY)
    return folder


def judge(folder: Path, raw: bytes) -> str:
    """What comes of a manifest: "sound", "damaged" or "mend"."""
    (folder / MANIFEST).write_bytes(raw)
    try:
        found = verify(folder)
    except Damaged as error:
        assert str(folder) in str(error) and len(str(error)) < 2000
        return "damaged"
    except UserError as error:
        assert str(folder) in str(error) and len(str(error)) < 2000
        return "mend"
    assert (found.step, found.bytes) == (7, 3 * len(BODY))
    assert isinstance(found.because, str) and found.files.keys() == set(FILES)
    return "sound"


def signed(content: dict[str, Any]) -> bytes:
    """With the digest that belongs to it, as somebody who means harm would write it."""
    return json.dumps({**content, "digest": digest(content)}).encode()


def test_the_sound_one_is_sound(checkpoint: Path) -> None:
    assert judge(checkpoint, signed(SOUND)) == "sound"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(PLACES, VALUES | st.just(...)), min_size=1, max_size=3), sign=st.booleans())
def test_changed_values(checkpoint: Path, changes: list[tuple[Any, Any]], sign: bool) -> None:
    """Some value, at some places, is another or is gone; with a digest that agrees, or the one from before."""
    content = json.loads(signed(SOUND))
    for place, value in changes:
        inner = content
        for key in place[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            continue
        if value is ...:
            inner.pop(place[-1], None)
        else:
            inner[place[-1]] = value
    raw = json.dumps(content).encode()
    if sign:
        content.pop("digest", None)
        raw = signed(content)
    found = judge(checkpoint, raw)
    if not sign:  # whatever was changed, the digest tells it; without one, only "newer" is believed
        assert (found == "sound") == (digest(content) == digest(SOUND) == content.get("digest"))
        assert found != "mend" or "digest" not in content


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=st.binary(max_size=64) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all(checkpoint: Path, raw: bytes) -> None:
    assert judge(checkpoint, raw) in ("damaged", "mend")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_every_bit_counts(checkpoint: Path, at: int, bit: int) -> None:
    """A flipped bit is damage, wherever it is: never a newer version, a missing file, or another checkpoint."""
    raw = bytearray(signed(SOUND))
    raw[at % len(raw)] ^= 1 << bit
    assert judge(checkpoint, bytes(raw)) == "damaged"


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"version": 1, "step": ' + b"9" * 5000 + b"}",
        b" " * (LARGEST_MANIFEST_BYTES + 1),
        b"\xff\xfe" + b"{}",
        b"null",
        signed({**SOUND, "because": "x" * 10_000, "step": 8}),
    ],
    ids=["deep list", "deep object", "deep version", "long number", "large", "utf-16", "null", "other step"],
)
def test_bounded(checkpoint: Path, raw: bytes) -> None:
    assert judge(checkpoint, raw) == "damaged"


def test_huge_sizes_are_not_read(checkpoint: Path) -> None:
    """A file of many bytes that are not there is compared by its size alone."""
    with (checkpoint / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 42)
    try:
        assert judge(checkpoint, signed(SOUND)) == "damaged"
    finally:
        (checkpoint / WEIGHTS).write_bytes(BODY)
    huge = {**SOUND, "files": {**SOUND["files"], WEIGHTS: {**FILE, "size": 1 << 70}}}
    assert judge(checkpoint, signed(huge)) == "damaged"
    assert manifest_of(checkpoint).bytes == (1 << 70) + 2 * len(BODY)
