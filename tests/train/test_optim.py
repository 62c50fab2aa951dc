"""Optimizers and schedules against torch's and Hugging Face's own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from surefoot import SFTConfig, UserError
from surefoot.train.optim import build, schedule
from tests import tiny


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_hugging_faces(kind: str, warmup: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = get_scheduler(
        kind if warmup or kind != "constant_with_warmup" else "constant", optimizer, warmup, 10
    )
    args = SFTConfig(lr_scheduler_type=kind, warmup_steps=warmup)
    for step in range(10):
        want = optimizer.param_groups[0]["lr"]
        if kind == "constant" and warmup:
            want = min(1.0, step / warmup)  # theirs has no warm-up under this name; ours does what was asked
        assert schedule(args, 10, step) == pytest.approx(want)
        optimizer.step()
        theirs.step()


def test_warm_up_as_a_share_of_all_steps() -> None:
    for args in (SFTConfig(warmup_ratio=0.25), SFTConfig(warmup_steps=0.25)):
        assert [schedule(args, 8, step) for step in range(3)] == [0.0, 0.5, 1.0]


CLASSES = {
    "sgd": [torch.optim.SGD],
    "adam": [torch.optim.Adam],
    "adamw_torch": [torch.optim.AdamW],
    "adamw_torch_fused": [torch.optim.AdamW],
    "muon": [torch.optim.Muon, torch.optim.AdamW],
}


@pytest.mark.parametrize("name", CLASSES)
def test_names_build_torchs_own_and_every_weight_is_in_one_group(name: str) -> None:
    net = tiny.model("llama", torch.float32)
    optimizers = build(net, SFTConfig(optim=name, learning_rate=0.1))
    assert [type(part) for part in optimizers.parts] == CLASSES[name]
    held = [id(p) for group in optimizers.groups() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert bool(optimizers.parts[0].defaults.get("fused")) == (name == "adamw_torch_fused")


def test_muon_takes_hidden_matrices_only() -> None:
    net = tiny.model("llama", torch.float32)
    muon, adamw = build(net, SFTConfig(optim="muon")).parts
    outer = {id(net.lm_head.weight), id(net.model.embed_tokens.weight)}
    assert all(p.ndim == 2 and id(p) not in outer for g in muon.param_groups for p in g["params"])
    assert outer <= {id(p) for g in adamw.param_groups for p in g["params"]}


def test_adafactor_is_hugging_faces_with_a_fixed_rate() -> None:
    part = build(tiny.model("llama", torch.float32), SFTConfig(optim="adafactor", learning_rate=0.1)).parts[0]
    assert type(part).__name__ == "Adafactor"
    assert part.defaults["relative_step"] is False
    assert part.defaults["scale_parameter"] is False


def test_decay_spares_biases_and_norms() -> None:
    net = tiny.model("gpt2", torch.float32)
    for group in build(net, SFTConfig(weight_decay=0.1)).groups():
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)


def test_optim_args_reach_the_optimizer_and_are_checked() -> None:
    net = tiny.model("llama", torch.float32)
    part = build(net, SFTConfig(optim="sgd", optim_args="momentum=0.9, nesterov=true")).parts[0]
    assert part.defaults["momentum"] == 0.9
    assert part.defaults["nesterov"] is True
    with pytest.raises(UserError, match=r"optim_args: .*momentun"):
        build(net, SFTConfig(optim="sgd", optim_args="momentun=0.9"))
    with pytest.raises(UserError, match="name=value"):
        build(net, SFTConfig(optim="sgd", optim_args="momentum"))


@pytest.mark.parametrize("name", [*CLASSES, "adafactor"])
def test_state_survives_a_round_trip_by_name(name: str) -> None:
    extra = "momentum=0.9" if name == "sgd" else None
    args = SFTConfig(optim=name, optim_args=extra, learning_rate=0.01)
    nets = [tiny.model("llama", torch.float32) for _ in range(2)]
    one, other = (build(net, args) for net in nets)

    def step(net: torch.nn.Module, optimizers: object, seed: int) -> None:
        torch.manual_seed(seed)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizers.step()  # type: ignore[attr-defined]

    step(nets[0], one, 1)
    tensors, plain = one.state()
    groups = one.groups_state(tensors)
    other.load_state(tensors, plain, groups)
    nets[1].load_state_dict(nets[0].state_dict())
    for net, optimizers in zip(nets, (one, other), strict=True):
        step(net, optimizers, 2)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused() -> None:
    optimizers = build(tiny.model("llama", torch.float32), SFTConfig())
    with pytest.raises(ValueError, match="nobody"):
        optimizers.load_state({}, {"nobody.weight": {"step": 1}}, [])
