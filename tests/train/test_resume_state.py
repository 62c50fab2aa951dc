"""The state that a bit-exact resume needs: of any optimizer and scheduler, of callbacks, of buffers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from surefoot import SFTConfig, SFTTrainer, UserError
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 2), (4, 4)]
HELD_OUT = tiny.rows(tiny.examples([(4, 6), (8, 3)], seed=9))
STEPS = 9


class PowerCutError(Exception):
    pass


class Stop(TrainerCallback):
    """Ends the process' part in the run after a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, *_: Any, **__: Any) -> None: ...

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == self.step + 1:
            raise PowerCutError


Own = Callable[[torch.nn.Module], tuple[Any, Any]]


def trainer(
    folder: Path, *, own: Own = lambda net: (None, None), net: Any = None, callbacks: Any = (), **options: Any
) -> SFTTrainer:
    net = net or tiny.model("llama", torch.float32)
    given = {
        "learning_rate": 0.02,
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "save_steps": 1,
        "use_cpu": True,
        "precision": "fp32",
        "logging_steps": 2,
        "disable_tqdm": True,
    }
    args, rows = SFTConfig(folder, **given | options), tiny.rows(tiny.examples(LENGTHS))
    return SFTTrainer(
        net, args, rows, HELD_OUT, tiny.tokenizer(), optimizers=own(net), callbacks=[*callbacks]
    )


def same(tmp_path: Path, make: Callable[..., SFTTrainer], at: int = 4) -> tuple[SFTTrainer, SFTTrainer]:
    """The run that was stopped after `at` steps and went on is, bit for bit, the one that was not."""
    whole = make(tmp_path / "whole")
    whole.train()
    with pytest.raises(PowerCutError):
        one = make(tmp_path / "run")
        one.add_callback(Stop(at))
        one.train()
    again = make(tmp_path / "run")
    again.train()
    resumed = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["resumed"]
    assert resumed[0]["step"] >= at
    for (name, a), (_, b) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    name = f"checkpoints/step-{STEPS:08d}/optimizer.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    return whole, again


@pytest.mark.parametrize(
    ("optim", "more"),
    [
        ("adamw_torch_fused", None),
        ("adamw_torch", "amsgrad=true"),
        ("adam", None),
        ("sgd", "momentum=0.9,nesterov=true"),
        ("adafactor", None),
        ("adafactor", "beta1=0.9,scale_parameter=true"),
        ("muon", None),
    ],
)
def test_optimizers_by_name(optim: str, more: str | None, tmp_path: Path) -> None:
    same(tmp_path, lambda folder: trainer(folder, optim=optim, optim_args=more, weight_decay=0.1))


class Estimating(torch.optim.Optimizer):
    """Counts in Python, estimates its rate in its groups as Prodigy does, keeps lists of tensors as SOAP does."""

    def __init__(self, parameters: Any) -> None:
        defaults = {
            "lr": 0.01,
            "d": 1e-3,
            "seen": torch.zeros(()),
            "history": (),
            "best": None,
            "act": math.tanh,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["d"] *= 1.01 + 1e-3 * math.sin(float(group["seen"]))
            group["seen"] = group["seen"] + 1.1
            group["history"] = (*group["history"][-2:], group["d"])
            group["best"] = max(group["history"])
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(
                        k=0, scale=1.0, both=[torch.zeros_like(weight), torch.zeros(3)], named={}, at=None
                    )
                state["k"] += 1
                state["scale"] = 0.9 * state["scale"] + float(weight.grad.norm())
                state["both"][0].mul_(0.9).add_(weight.grad)
                state["both"][1].add_(state["k"])
                state["named"][state["k"] % 2] = torch.full((2,), state["scale"])
                state["at"] = (state["k"], "x")
                rate = (
                    group["lr"] * group["d"] * group["best"] * (1 + float(state["named"][state["k"] % 2][0]))
                )
                weight.sub_(state["both"][0], alpha=rate / state["scale"] * 1e4)


def test_an_optimizer_of_the_users_own(tmp_path: Path) -> None:
    """Of each weight scalars, lists, tuples, dicts; of its groups numbers, tensors, tuples; and frozen weights."""

    def own(net: torch.nn.Module) -> tuple[Any, Any]:
        return Estimating(net.parameters()), None

    def make(folder: Path) -> SFTTrainer:
        net = tiny.model("llama", torch.float32)
        net.model.embed_tokens.weight.requires_grad_(False)
        return trainer(folder, net=net, own=own)

    whole, again = same(tmp_path, make)
    a, b = (
        {k: v for k, v in t._own_optimizer.param_groups[0].items() if k != "params"} for t in (whole, again)
    )
    assert a.pop("seen") == b.pop("seen")
    assert a == b and a["d"] > 1.01e-3
    kept, back = (list(t._own_optimizer.state.values())[-1] for t in (whole, again))
    assert (kept["k"], kept["scale"], kept["at"]) == (back["k"], back["scale"], back["at"])
    assert list(kept["named"]) == list(back["named"])


class Odd(torch.optim.SGD):
    """Keeps what JSON and safetensors cannot say."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["seen"] = {1, 2}


class Global(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        state: Any = self.state
        state["all"]["k"] = 1


@pytest.mark.parametrize(
    ("kind", "said"), [(Odd, r"weight/seen' is a set, which a checkpoint"), (Global, "no trained weight")]
)
def test_what_cannot_be_kept_is_said_after_the_first_step(kind: Any, said: str, tmp_path: Path) -> None:
    one = trainer(tmp_path / "run", own=lambda net: (kind(net.parameters(), lr=0.1), None), save_steps=100)
    with pytest.raises(UserError, match=said):
        one.train()
    assert one.progress.step == 1


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step) ** 0.7),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=4, eta_min=1e-4),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=STEPS),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_the_users_own(name: str, tmp_path: Path) -> None:
    def own(net: torch.nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
        return optimizer, SCHEDULERS[name](optimizer)

    whole, again = same(tmp_path, lambda folder: trainer(folder, own=own))
    rates = [
        [event["learning_rate"] for event in one.run.events() if event["type"] == "step"]
        for one in (whole, again)
    ]
    assert rates[0] == rates[1] and len(set(rates[0])) > 3


def test_a_scheduler_that_has_to_be_told_is_refused(tmp_path: Path) -> None:
    def own(net: torch.nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
        return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    with pytest.raises(UserError, match=r"ReduceLROnPlateau.step\(\) wants metrics"):
        trainer(tmp_path / "run", own=own)


class Counting(TrainerCallback, ExportableState):
    """Two of a class have each their own."""

    def __init__(self, by: int = 1) -> None:
        self.by, self.count, self.seen = by, 0, ()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.count += self.by
        self.seen = (*self.seen, state.global_step)

    def state(self) -> dict[str, Any]:
        return {"args": {"by": self.by}, "attributes": {"count": self.count, "seen": self.seen}}


def test_callbacks_and_the_trainers_state(tmp_path: Path) -> None:
    counters: list[list[Counting]] = []

    def make(folder: Path) -> SFTTrainer:
        patience = EarlyStoppingCallback(early_stopping_patience=50, early_stopping_threshold=100.0)
        counters.append([Counting(1), Counting(10)])
        return trainer(
            folder, callbacks=[patience, *counters[-1]], eval_strategy="steps", eval_steps=1,
            load_best_model_at_end=True,
        )  # fmt: skip

    whole, again = same(tmp_path, make)
    assert [one.count for one in counters[-1]] == [STEPS, 10 * STEPS]
    assert counters[-1][0].seen == tuple(range(1, STEPS + 1))
    patience = [
        next(c for c in one.callbacks.handler.callbacks if isinstance(c, EarlyStoppingCallback))
        for one in (whole, again)
    ]
    assert patience[0].early_stopping_patience_counter == patience[1].early_stopping_patience_counter > 5

    def plain(one: SFTTrainer) -> dict[str, Any]:
        *logs, end = one.state.log_history
        kept = ("global_step", "epoch", "max_steps", "best_metric", "best_global_step")
        closing = {key: end[key] for key in ("train_loss", "epoch", "step")}
        return {"logs": logs, "end": closing} | {key: getattr(one.state, key) for key in kept}

    assert plain(whole) == plain(again)
    assert again.state.epoch == round(STEPS / 4, 6)


def test_a_callback_whose_state_cannot_be_kept_is_said_before_the_first_step(tmp_path: Path) -> None:
    odd = Counting()
    odd.count = {1, 2}  # type: ignore[assignment]
    with pytest.raises(UserError, match="Counting/count' is a set"):
        trainer(tmp_path / "run", callbacks=[odd]).train()


@pytest.mark.parametrize("at", [4, STEPS])
def test_a_run_that_had_enough_has_enough_after_a_crash(at: int, tmp_path: Path) -> None:
    """Killed before model/ is there, the same command saves it, and takes no step more."""

    class Killed(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == at:
                raise PowerCutError

    def make(folder: Path, *callbacks: Any) -> SFTTrainer:
        patience: dict[str, Any] = {"early_stopping_patience": 3} if at < STEPS else {}
        return trainer(
            folder, callbacks=callbacks, eval_strategy="steps", eval_steps=1, greater_is_better=True,
            metric_for_best_model="eval_loss", learning_rate=0.0 if at < STEPS else 0.02, **patience,
        )  # fmt: skip

    whole = make(tmp_path / "whole")
    whole.train()
    stopped = whole.progress.step
    assert stopped == at  # early: the first evaluation is the best, and three more are not
    with pytest.raises(PowerCutError):
        make(tmp_path / "run", Killed()).train()
    assert not (tmp_path / "run" / "model").exists()
    again = make(tmp_path / "run")
    again.train()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    ends = [list(one.run.events())[-1] for one in (whole, again)]
    assert ends[0]["reason"] == ends[1]["reason"] == ("stopped early" if at < STEPS else "finished")
    assert ends[0]["step"] == ends[1]["step"] == at
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert again.state.epoch == whole.state.epoch


class Drifting(torch.nn.Module):
    """A norm that keeps a running mean of what goes through it."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.mean: torch.Tensor
        self.count: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * hidden.float().mean())
                self.count.add_(1)
        return self.norm(hidden)


def test_buffers_that_change_in_training(tmp_path: Path) -> None:
    def make(folder: Path) -> SFTTrainer:
        net = tiny.model("llama", torch.float32)
        net.model.norm = Drifting(net.model.norm)
        return trainer(folder, net=net, tensors_every=0)

    whole, _ = same(tmp_path, make)
    assert whole.model.model.norm.count >= STEPS  # type: ignore[union-attr]
