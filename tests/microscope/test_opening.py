"""A step under the microscope by itself: what the slope promises of short steps, targets and texts that are asked
for, examples that weigh nothing, updates that do not come, and what it adds in memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from surefoot import SFTConfig
from surefoot.config import Watch
from surefoot.data.rows import Example
from surefoot.microscope.opening import Opening, Wish
from surefoot.microscope.predict import Place
from surefoot.microscope.slide import Opened, Slide
from surefoot.model.loss import CHUNK_ELEMENTS
from surefoot.model.network import Network, look_at
from surefoot.train.evaluate import Watched
from surefoot.train.hardware import peak_bytes
from surefoot.train.memory import Live
from surefoot.train.optim import Optimizers, build
from surefoot.train.step import NotFinite, losses, update
from tests import tiny
from tests.microscope import oracle


def prepared(
    of: list[Example], architecture: str = "llama", optim: str = "sgd", rate: float = 1e-2
) -> tuple[Any, Network, Optimizers]:
    net = tiny.model(architecture)
    with tiny.InDouble():
        network = look_at(net, of, None)
    args: dict[str, Any] = {"optim": optim, "learning_rate": rate, "weight_decay": 0.1}
    return net, network, build(net, SFTConfig(**args))


def opening(network: Network, of: list[Example], wish: Wish, scratch: Path, **more: Any) -> Opening:
    return Opening(
        network,
        tiny.tokenizer(),
        of,
        10_000,
        step=1,
        seed=None,
        wish=wish,
        model_name="tiny",
        scratch=scratch,
        **more,
    )


def opened(network: Network, optimizers: Optimizers, of: list[Example], wish: Wish, scratch: Path) -> Slide:
    one = opening(network, of, wish, scratch)
    with tiny.InDouble():
        one.losses()
    one.update(optimizers, 0.0)
    with tiny.InDouble():
        return one.slide(0.0).slide


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_short_step_gives_what_the_slope_promises(optim: str, tmp_path: Path) -> None:
    off = []
    for exponent in range(2, 7):
        of = tiny.family(0, 6)
        _, network, optimizers = prepared(of, "llama_tied", optim, 10.0**-exponent)
        slide = opened(network, optimizers, of, Wish("asked for", mountain="none"), tmp_path)
        assert slide.promised is not None and slide.obtained is not None
        assert slide.promised < 0
        off.append(abs(slide.obtained / slide.promised - 1))
    assert all(later < sooner / 5 for sooner, later in pairwise(off[1:])), off
    assert off[1] < off[0] and off[-1] < 1e-3, off


def test_the_targets_asked_for_are_shown(tmp_path: Path) -> None:
    of = tiny.examples([(5, 4), (9, 12), (0, 3)])
    net, network, optimizers = prepared(of)
    with tiny.InDouble():
        seen, _ = oracle.step(net, of, sum(e.targets for e in of))
    places = (Place(2, 1), Place(0, 3), Place(1, 11), Place(1, 0))
    slide = opened(network, optimizers, of, Wish("asked for", places=places), tmp_path)
    assert [(p.where, p.index) for p in slide.positions] == [(of[p.example].where, p.target) for p in places]
    for position, at in zip(slide.positions, places, strict=True):
        one = seen[at.example]
        assert position.target_id == one.label_N[at.target]
        assert position.loss_before == pytest.approx(one.nll_N[at.target].item(), rel=1e-9)
        last = one.ids[len(one.ids) - of[at.example].targets + at.target - 1]
        assert position.token == f"w{last}"


def test_watched_texts_before_and_after(tmp_path: Path) -> None:
    of = tiny.examples([(5, 4), (9, 12)])
    net, network, optimizers = prepared(of)
    prompt = np.array([5, 6], np.int32)
    texts = {"w7": [7], "w8 w9": [8, 9]}
    watched = Watched(
        Watch(prompt="w5 w6", completion="w7", alternatives=["w8 w9"]),
        tuple(Example(prompt, np.array(ids, np.int32), 0, text) for text, ids in texts.items()),
    )

    def naive() -> list[float]:
        with tiny.InDouble(), torch.no_grad():
            found = []
            for ids in texts.values():
                log_p = net(torch.tensor([[5, 6, *ids]])).logits[0].log_softmax(-1)
                found.append(math.exp(sum(float(log_p[1 + i, token]) for i, token in enumerate(ids))))
        return found

    before = naive()
    slide = opened(network, optimizers, of, Wish("asked for", texts=(watched,)), tmp_path)
    assert [one.text for one in slide.watched] == list(texts)
    assert [one.tokens for one in slide.watched] == [["w7"], ["w8", "w9"]]
    assert [one.p_before for one in slide.watched] == pytest.approx(before, rel=1e-9)
    assert [one.p_after for one in slide.watched] == pytest.approx(naive(), rel=1e-9)


@pytest.mark.parametrize(("mountain", "total"), [("none", 2), ("cut", 11)])
def test_every_pass_is_told_of(mountain: Any, total: int, tmp_path: Path) -> None:
    of, told = tiny.examples([(5, 4)]), []
    _, network, optimizers = prepared(of)
    wish = Wish("asked for", mountain=mountain)
    one = opening(network, of, wish, tmp_path, told=lambda done, total: told.append((done, total)))
    one.losses()
    one.update(optimizers, 0.0)
    one.slide(0.0)
    assert told == [(done, total) for done in range(1, total + 1)]


def test_an_example_that_weighs_nothing(tmp_path: Path) -> None:
    of = tiny.examples([(5, 4), (9, 12), (1, 3)])
    of[0] = replace(of[0], weight=0.0)
    _, network, optimizers = prepared(of)
    slide = opened(network, optimizers, of, Wish("asked for", extras=True), tmp_path)
    assert slide.batch.examples[0].share == 0
    assert slide.positions[0].weight == 0
    assert all(candidate.error == 0 for candidate in slide.positions[0].candidates)
    assert slide.positions[0].loss_before > 0
    assert slide.alerts == []
    assert [one.position for one in slide.influence] == list(range(1, len(slide.positions)))
    text = slide.model_dump_json()
    assert "NaN" not in text and "Infinity" not in text


def test_an_update_that_does_not_come(tmp_path: Path) -> None:
    of = tiny.examples([(5, 4), (9, 12)])
    net, network, optimizers = prepared(of)
    before = [p.detach().clone() for p in net.parameters()]
    one = opening(network, of, Wish("asked for", extras=True), tmp_path)
    one.losses()
    assert net.lm_head.weight.grad is not None
    net.lm_head.weight.grad[3, 4] = float("inf")
    with pytest.raises(NotFinite):
        one.update(optimizers, 1.0)
    found = one.slide(1.0)
    assert all(torch.equal(p, kept) for p, kept in zip(net.parameters(), before, strict=True))
    slide = found.slide
    assert (slide.loss_after, slide.promised, slide.obtained, slide.mountain) == (None, None, None, None)
    assert slide.weights is None
    assert all(position.loss_after is None and position.kl is None for position in slide.positions)
    assert slide.headline.endswith("there was no update")
    path = found.save(tmp_path / "slide")
    assert Opened.load(path).slide.model_dump_json() == slide.model_dump_json()
    assert list(tmp_path.iterdir()) == [path], "nothing of the mountain is left"


VOCABULARY, WIDTH = 150_000, 256


def measure(tied: bool, optim: str, scratch: Path) -> dict[str, int]:
    """Bytes at most in a plain step, and in one that is opened with all there is to see."""
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, bos_token_id=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    net = tf.AutoModelForCausalLM.from_config(config)
    rng = np.random.default_rng(0)
    parts = rng.integers(3, tiny.VOCABULARY, (4, 2, 8)).astype(np.int32)
    of = [Example(prompt, completion, i, f"row[{i}]") for i, (prompt, completion) in enumerate(parts)]
    network = look_at(net, of, None)
    args: dict[str, Any] = {"optim": optim, "learning_rate": 1e-3, "weight_decay": 0.1}
    optimizers = build(net, SFTConfig(**args))

    def plain() -> None:
        losses(network, of, 4096, backprop=True)
        update(optimizers, 1.0)

    def with_eyes() -> None:
        one = opening(network, of, Wish("asked for", watched=(5, 6), extras=True), scratch)
        one.losses()
        one.update(optimizers, 1.0)
        slide = one.slide(1.0).slide
        assert slide.mountain is not None and slide.weights is not None and slide.influence

    plain()  # the optimizer's state is made
    found = {}
    for name, go in (("plain", plain), ("opened", with_eyes)):
        with Live() as live:
            go()
        found[name] = live.most
        found[f"process {name}"] = peak_bytes(torch.device("cpu"))
    return found


@pytest.mark.parametrize(("tied", "optim"), [(False, "sgd")])
def test_opening_adds_less_than_the_largest_tensor_and_a_chunk_of_logits(
    tied: bool, optim: str, tmp_path: Path
) -> None:
    # In a process of its own, whose most is that of these steps.
    code = (
        "import json, sys; from pathlib import Path; from tests.microscope.test_opening import measure; "
        f"print(json.dumps(measure({tied}, {optim!r}, Path({str(tmp_path)!r}))))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    allowed = 4 * VOCABULARY * WIDTH + 4 * CHUNK_ELEMENTS
    assert 0 < found["opened"] - found["plain"] < allowed
    assert found["process opened"] - found["process plain"] < allowed
