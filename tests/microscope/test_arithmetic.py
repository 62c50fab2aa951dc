"""The ledger of a step against each optimizer's formulas, written down once more, entry for entry in float64."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import Optimizer

from surefoot.microscope import arithmetic
from surefoot.microscope.arithmetic import TensorStep
from surefoot.microscope.histogram import Counts
from surefoot.microscope.replay import Moments, Replay, Sums, would
from tests.microscope.formulas import CASES, IDS, SHAPES, Mode, Oracle, steps


@pytest.mark.parametrize(("cls", "oracle", "options", "mode"), CASES, ids=IDS)
def test_every_line_is_that_of_the_formulas(
    cls: type[Optimizer], oracle: Oracle, options: Mode, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(arithmetic, "PIECE", 50)
    for shape in SHAPES.get(cls, [(9, 13), (3, 4, 11), (130,)]):
        theta, grads, made = steps(cls, {**options, **mode}, shape, torch.float64)
        known = {"adjust": mode["adjust_lr_fn"]} if "adjust_lr_fn" in mode else {}
        for want, step in zip(oracle(theta, grads, **options, **known), made, strict=True):
            replay, sums = Replay(step), Sums()
            chunks = list(replay.chunks())
            assert len(chunks) == math.ceil(math.prod(shape) / 50)
            for chunk in chunks:
                sums.add(chunk)
            assert [line.name for line in chunks[0].lines] == list(want)
            for index, (name, expected) in enumerate(want.items()):
                got = torch.cat([chunk.lines[index].value for chunk in chunks]).numpy()
                assert got.dtype == np.float64
                # Muon's matrix is made of bf16 products.
                rounding = 6e-2 if cls is torch.optim.Muon and index >= list(want).index("O") else 1e-11
                scale = np.abs(expected).max()
                np.testing.assert_allclose(
                    got, expected.reshape(-1), rtol=0, atol=rounding * scale, err_msg=name
                )
                assert sums.rms()[name] == pytest.approx(
                    np.sqrt((expected**2).mean()), rel=max(rounding, 1e-9)
                )
            assert sums.count == math.prod(shape)
            zero = step.weight.grad == 0  # type: ignore[operator]
            if not (mode.get("foreach") and options.get("nesterov")):
                assert sums.zero_share == pytest.approx(zero.double().mean().item())
            errors = [abs(entry.replay_error or 0.0) for entry in replay.at(range(math.prod(shape)))]
            assert max(errors) < 1e-13


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 4), (torch.bfloat16, 8)], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("cls", "oracle", "options", "mode"), CASES, ids=IDS)
def test_the_replay_lands_where_the_optimizer_did_but_for_rounding(
    cls: type[Optimizer], oracle: Oracle, options: Mode, mode: Mode, dtype: torch.dtype, ulps: int
) -> None:  # fmt: skip
    if mode.get("fused") and "momentum" in options and dtype == torch.bfloat16:
        return  # torch's own is wrong there: it is refused
    shape = SHAPES.get(cls, [(9, 13)])[0]
    *_, made = steps(cls, {**options, **mode}, shape, dtype)
    for step in made:
        entries = Replay(step).at(range(math.prod(shape)))
        for entry, old, new in zip(entries, step.old.view(-1), step.weight.detach().view(-1), strict=True):
            assert (entry.before, entry.after) == (old.item(), new.item())
            delta = entry.stages[-1]
            assert delta.name == "Δ"
            assert entry.replay_error == entry.before + delta.value - entry.after
            assert entry.replay_error is not None
            size = max(abs(entry.before), abs(entry.after)) + abs(delta.value)
            assert abs(entry.replay_error) <= ulps * torch.finfo(dtype).eps * size


def test_lost_updates_of_bf16_weights_are_found_by_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "PIECE", 1000)
    *_, made = steps(torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0}, (50, 61), torch.bfloat16)
    for number, step in enumerate(made):
        if number == 0:  # an entry that nothing moves: no gradient, m stays 0
            step.part.state[step.weight]["exp_avg"].view(-1)[7] = 0
        state = step.part.state[step.weight]
        m, v, t = state["exp_avg"].double(), state["exp_avg_sq"].double(), number + 1
        delta = -1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        asked = lost = 0
        for d, a, b in zip(
            delta.view(-1).tolist(), step.old.view(-1).tolist(), step.weight.view(-1).tolist(), strict=True
        ):
            asked += d != 0
            lost += d != 0 and a == b
        counts = Counts()
        for chunk in Replay(step).chunks():
            counts.add(chunk.old, chunk.new, chunk.asked)
        panel, _ = counts.weights()
        assert (panel.asked, panel.lost, panel.stored_lost) == (asked, lost, lost)
        assert 0.1 < panel.lost_share < 0.99
        assert asked == delta.numel() - (number == 0)


def test_an_optimizer_without_a_replay_shows_what_was_stored() -> None:
    *_, made = steps(torch.optim.RMSprop, {"lr": 1e-5}, (9, 13), torch.bfloat16)
    for step in made:
        replay = Replay(step)
        assert not replay.known
        (chunk,) = replay.chunks()
        change = (step.weight.detach().double() - step.old.double()).view(-1)
        assert step.weight.grad is not None
        grad = step.weight.grad.view(-1)
        assert [line.name for line in chunk.lines] == ["g", "clipped g", "Δ"]
        assert torch.equal(chunk.lines[2].value, change)
        assert torch.equal(chunk.asked, (change != 0) | (grad != 0))
        (entry,) = replay.at([5])
        assert entry.replay_error is None
        assert entry.would_state == "none, as in a first step"


def test_formulas_have_their_numbers() -> None:
    *_, made = steps(torch.optim.AdamW, {"lr": 2e-5, "weight_decay": 0.01}, (4, 5), torch.float32)
    next(made)
    (entry,) = Replay(next(made)).at([11])
    assert [(stage.name, stage.formula) for stage in entry.stages] == [
        ("g", "∂ loss / ∂ θ"),
        ("clipped g", "0.37 · g"),
        ("m", "0.9 · m + 0.1 · clipped g"),
        ("v", "0.999 · v + 0.001 · (clipped g)²"),
        ("m̂", "m / (1 − 0.9^2)"),
        ("v̂", "v / (1 − 0.999^2)"),
        ("−η·m̂/(√v̂+ε)", "−2e-05 · m̂ / (√v̂ + 1e-08)"),
        ("−ηλθ", "−2e-05 · 0.01 · θ"),
        ("Δ", "−η·m̂/(√v̂+ε) − ηλθ"),
    ]
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
    *_, made = steps(torch.optim.SGD, options, (4, 5), torch.float32)
    (entry,) = Replay(next(made)).at([11])
    assert [(stage.name, stage.formula) for stage in entry.stages][2:] == [
        ("λθ", "0.3 · θ"),
        ("g + λθ", "clipped g + λθ"),
        ("b", "0.9 · b + g + λθ"),
        ("g + μb", "g + λθ + 0.9 · b"),
        ("Δ", "−0.1 · (g + μb)"),
    ]


def test_a_maximizing_optimizer_turns_the_gradient() -> None:
    *_, made = steps(
        torch.optim.AdamW, {"lr": 0.1, "maximize": True, "weight_decay": 0.0}, (4, 5), torch.float64
    )
    (entry,) = Replay(next(made)).at([3])
    names = {stage.name: stage.value for stage in entry.stages}
    assert names["−g"] == -names["clipped g"]
    assert abs(entry.replay_error or 0.0) < 1e-15
    assert entry.would["sgd"] == pytest.approx(0.1 * names["clipped g"])


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-4}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.3}),
    ],
)
def test_what_others_would_have_done_is_what_they_do(
    name: str, cls: type[Optimizer], options: dict[str, Any]
) -> None:
    weight = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    weight.grad = torch.tensor([-3e-4], dtype=torch.float64)
    cls([weight], **{"lr": 0.02, **options}).step()
    settings = {"betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.3}
    found, sentence = would(-3e-4, 0.7, 0.02, settings, None)
    assert found[name] == pytest.approx(weight.item() - 0.7, abs=1e-14)
    assert sentence == "none, as in a first step"


def test_adam_is_asked_with_the_runs_own_state() -> None:
    *_, made = steps(torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}, (4, 5), torch.float64)
    for count, step in enumerate(made, 1):
        (entry,) = Replay(step).at([7])
        stages = {stage.name: stage.value for stage in entry.stages}
        assert entry.would["adamw"] == pytest.approx(stages["Δ"], abs=1e-16)
        assert entry.would["adam"] == pytest.approx(stages["−η·m̂/(√v̂+ε)"], abs=1e-16)
        assert entry.would["sgd"] == pytest.approx(-0.01 * stages["clipped g"], abs=1e-16)
        assert entry.would_state == ("none, as in a first step" if count == 1 else "the run's own")
    *_, made = steps(torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.3}, (4, 5), torch.float64)
    first, second = (Replay(step).at([7])[0] for step in islice(made, 2))
    assert second.would["adam"] == pytest.approx(second.stages[-1].value, abs=1e-16)
    assert first.would_state == "none, as in a first step, with weight decay in m and v"
    assert second.would_state == "the run's own, with weight decay in m and v"


@pytest.mark.parametrize("cls", [torch.optim.Muon, torch.optim.Adafactor])
def test_an_eps_that_is_not_adams_is_not_taken_for_it(cls: Any) -> None:
    group = cls([torch.nn.Parameter(torch.ones(2, 2))]).param_groups[0]
    assert (
        would(1e-7, 0.0, 0.1, {**group, "weight_decay": 0.0}, None)[0] == would(1e-7, 0.0, 0.1, {}, None)[0]
    )


def test_a_weight_that_nothing_moves_would_not_move() -> None:
    settings = {"betas": (0.9, 0.999), "eps": 0.0}
    assert would(0.0, 0.0, 0.1, settings, None)[0] == {
        "sgd": 0.0,
        "adam": 0.0,
        "adamw": 0.0,
    }
    assert would(0.0, 2.0, 0.1, {"weight_decay": 0.5}, Moments(0.0, 0.0, 3))[0]["adamw"] == -0.1


def test_looking_changes_nothing() -> None:
    for cls, _, options, mode in CASES:
        shape = SHAPES.get(cls, [(9, 13)])[0]
        *_, made = steps(cls, {**options, **mode}, shape, torch.float32)
        step = next(made)
        next(made)

        def everything(step: TensorStep = step) -> list[Any]:
            state = step.part.state
            flat = [(k, torch.as_tensor(v).clone()) for entry in state.values() for k, v in entry.items()]
            assert step.weight.grad is not None
            tensors = [x.detach().clone() for x in (step.weight, step.old, step.weight.grad)]
            return [len(state), *[k for k, _ in flat], *[v for _, v in flat], *tensors]

        before = everything()
        list(Replay(step).chunks())
        Replay(step).at([0, 5])
        for a, b in zip(before, everything(), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_shards_sums_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "PIECE", 40)
    *_, made = steps(torch.optim.AdamW, {"lr": 0.01}, (9, 13), torch.float32)
    whole, left, right = Sums(), Sums(), Sums()
    for index, chunk in enumerate(Replay(next(made)).chunks()):
        whole.add(chunk)
        (left if index == 0 else right).add(chunk)
    left.vector = left.vector + right.vector
    assert left.count == whole.count == 117
    assert left.rms() == pytest.approx(whole.rms(), rel=1e-13)
    assert whole.norm("Δ") == pytest.approx(whole.rms()["Δ"] * math.sqrt(117), rel=1e-13)


def test_an_empty_shard_has_the_same_lines() -> None:
    weight = torch.nn.Parameter(torch.zeros(0, 5))
    weight.grad = torch.zeros(0, 5)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    optimizer.step()
    sums = Sums()
    for chunk in Replay(
        TensorStep(optimizer, optimizer.param_groups[0], weight, weight.detach().clone())
    ).chunks():
        sums.add(chunk)
    assert (sums.count, sums.zero_share) == (0, 0.0)
    assert list(sums.rms())[-1] == "Δ"
    assert len(sums.vector) == 2 + len(sums.names)
