"""Every number of an opened step against a slow oracle: each example alone, autograd, a plain optimizer step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import Optimizer

from surefoot import SFTConfig
from surefoot.data.rows import Example
from surefoot.microscope.opening import Opening, Wish
from surefoot.microscope.panels import Position
from surefoot.microscope.slide import Opened
from surefoot.model.network import look_at
from surefoot.train.optim import Optimizers, build
from surefoot.train.recompute import checkpoint_layers
from surefoot.train.step import losses, update
from tests import tiny
from tests.microscope import oracle

WATCHED = (5, 6)
STEPS_BEFORE = 2
APART = [(5, 4), (9, 12), (1, 3), (17, 6), (0, 5)]


class OwnHead(torch.nn.Linear):
    """A head of which nothing is known."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(input)


class OwnSGD(torch.optim.SGD):
    """An optimizer of which nothing is known."""


def own_head(net: Any) -> Any:
    head = OwnHead(net.lm_head.in_features, net.lm_head.out_features, bias=False, dtype=torch.float64)
    head.weight = net.lm_head.weight
    net.lm_head = head
    return net


def lora(net: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights="gaussian", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(net, config).double()


def recomputed(net: Any) -> Any:
    checkpoint_layers(net, 2)
    return net


@dataclass(frozen=True)
class Case:
    architecture: str
    optim: str = "sgd"
    options: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    of: Callable[[], list[Example]] = lambda: tiny.family(0, 6)
    budget: int = 10_000
    prepare: Callable[[Any], Any] = lambda net: net
    own: Callable[[list], Optimizer] | None = None


CASES = {
    "untied, SGD": Case("llama"),
    "tied, AdamW": Case("llama_tied", "adamw_torch_fused", {"weight_decay": 0.1, "max_grad_norm": 0.05}),
    "examples apart": Case("qwen2", "adamw_torch", of=lambda: tiny.examples(APART)),
    "soft-capped, Adam": Case("gemma2", "adam", changed={"final_logit_softcapping": 2.0}),
    "scaled and tied": Case("cohere2", options={"max_grad_norm": 0.0}),
    "scaled, momentum": Case("granite", options={"optim_args": "momentum=0.9,nesterov=true"}),
    "a bias, Muon": Case("phi", "muon", {"weight_decay": 0.1}),
    "LoRA, AdamW": Case("llama", "adamw_torch", {"weight_decay": 0.1}, prepare=lora),
    "LoRA, tied": Case("llama_tied", prepare=lora),
    "micro-batches, Adafactor": Case("gpt2", "adafactor", budget=25, of=lambda: tiny.family(1, 9)),
    "micro-batches": Case("llama", of=lambda: tiny.family(2, 10), budget=30),
    "micro-batches, examples apart": Case("llama_tied", budget=20, of=lambda: tiny.examples(APART)),
    "a head of its own": Case("llama", "adamw_torch", prepare=own_head),
    "recomputed": Case("llama_tied", prepare=recomputed, of=lambda: tiny.family(3, 8)),
    "refused": Case("llama", own=lambda weights: OwnSGD(weights, lr=1e-2)),
    "refused, tied": Case("llama_tied", own=lambda weights: OwnSGD(weights, lr=1e-2)),
}


@dataclass(frozen=True)
class Truth:
    """What the slide is held to."""

    of: list[Example]
    slots: int
    tied: bool
    batches: list[list[Example]]
    shared: bool
    divisor: float
    old: Any
    new: Any
    """The model after a plain step of the optimizer with the step's own gradients."""
    parts: list[Any]
    """The optimizers after it."""
    before: list[oracle.Seen]
    after: list[oracle.Seen]
    of_head: list[oracle.Seen]
    """Under the new head, by the old body."""
    of_body: list[oracle.Seen]
    """Under the old head, by the new body."""
    gradients: oracle.Gradients
    norm: float
    factor: float
    tolerance: float

    def near(self, value: Any) -> Any:
        return pytest.approx(value, rel=self.tolerance, abs=1e-4 * self.tolerance)

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A weight before and after."""
        return self.old.get_parameter(name).detach(), self.new.get_parameter(name).detach()

    @property
    def trained(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {name: self.pair(name) for name in self.gradients.whole}


@cache
def run(name: str) -> tuple[Opened, Truth]:
    case = CASES[name]
    exactly = nullcontext if name == "recomputed" else tiny.InDouble  # recomputing leaves torch's modes
    net = case.prepare(tiny.model(case.architecture, **case.changed))
    net.train()
    of = case.of()
    with exactly():
        network = look_at(net, of, None)
    args = SFTConfig(**{"learning_rate": 1e-2, "optim": case.optim, **case.options})
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    optimizers = build(net, args)
    if case.own is not None:
        optimizers = Optimizers([case.own([p for _, p in named])], named)
    for number in range(STEPS_BEFORE):
        with exactly():
            losses(network, of, case.budget, backprop=True, seed=number)
        update(optimizers, args.max_grad_norm)

    old, parts = copy.deepcopy((net, optimizers.parts))
    with tempfile.TemporaryDirectory() as scratch:
        opening = Opening(
            network, tiny.tokenizer(), of, case.budget, step=STEPS_BEFORE + 1, seed=7,
            wish=Wish("asked for", watched=WATCHED, extras=True), model_name="tiny", scratch=Path(scratch),
        )  # fmt: skip
        with exactly():
            opening.losses()
        own = {n: p.grad.clone() for n, p in named if p.grad is not None}
        change = opening.update(optimizers, args.max_grad_norm)
        with exactly():
            opened = opening.slide(args.max_grad_norm)
    new, parts = oracle.updated(old, parts, own, change.clip_factor)
    for a, b in zip(net.parameters(), new.parameters(), strict=True):
        assert torch.equal(a, b), "the opened step is not the plain one"
        assert a.grad is None
    divisor = sum(e.weight * e.targets for e in of)
    with exactly():
        before, gradients = oracle.step(old, of, divisor)
        after, of_head, of_body = (
            oracle.step(made, of, divisor)[0]
            for made in (new, oracle.with_head_of(old, new), oracle.with_head_of(new, old))
        )
    tolerance = 1e-9 if exactly is tiny.InDouble else 1e-4
    tiny.assert_same(own, gradients.whole, tolerance)
    norm = torch.cat([g.flatten() for g in gradients.whole.values()]).norm().item()
    inner = oracle.core(old)
    return opened, Truth(
        of=of,
        slots=sum(network.plant(batch).slots for batch in network.plan(of, case.budget)),
        tied=inner.get_input_embeddings().weight is inner.get_output_embeddings().weight,
        batches=network.plan(of, case.budget),
        shared=network.merged,
        divisor=divisor,
        old=old,
        new=new,
        parts=parts,
        before=before,
        after=after,
        of_head=of_head,
        of_body=of_body,
        gradients=gradients,
        norm=norm,
        factor=args.max_grad_norm / norm if 0 < args.max_grad_norm < norm else 1.0,
        tolerance=tolerance,
    )


every = pytest.mark.parametrize("name", CASES)


@every
def test_the_batch_and_the_loss(name: str) -> None:
    opened, truth = run(name)
    slide, near = opened.slide, truth.near
    loss_before, loss_after = (sum(one.loss for one in seen) for seen in (truth.before, truth.after))
    assert (slide.loss_before, slide.loss_after) == (near(loss_before), near(loss_after))
    assert slide.obtained == near(loss_after - loss_before)
    assert (slide.step, slide.opened_because) == (STEPS_BEFORE + 1, "asked for")
    batch = slide.batch
    assert batch.tokens == sum(len(one.ids) for one in truth.before)
    assert batch.supervised == sum(len(one.label_N) for one in truth.before)
    assert batch.divisor == near(truth.divisor)
    assert (batch.micro_batches, batch.slots) == (len(truth.batches), truth.slots)
    assert sum(example.share for example in batch.examples) == near(1.0)
    for shown, before, after in zip(batch.examples, truth.before, truth.after, strict=True):
        assert shown.where == before.example.where
        assert shown.weight == before.example.weight
        assert shown.loss == near(before.nll_N.sum().item())
        assert shown.loss_after == near(after.nll_N.sum().item())
        assert shown.share == near(before.loss / loss_before)
        assert [token.id for token in shown.tokens] == list(before.ids)
        learned = shown.tokens[-len(before.label_N) :]
        assert [token.loss for token in learned] == near(before.nll_N.tolist())
        assert [token.loss_after for token in learned] == near(after.nll_N.tolist())
        assert all(token.loss is None for token in shown.tokens[: -len(before.label_N)])


def place(truth: Truth, position: Position) -> tuple[int, int]:
    found = [e for e, one in enumerate(truth.of) if one.where == position.where]
    assert len(found) == 1
    return found[0], position.index


@every
def test_predictions_and_errors(name: str) -> None:
    opened, truth = run(name)
    near = truth.near
    costs = {
        (e, n): one.example.weight * float(nll)
        for e, one in enumerate(truth.before)
        for n, nll in enumerate(one.nll_N)
    }
    costliest = sorted(costs, key=lambda at: -costs[at])[:4]
    shown = [place(truth, position) for position in opened.slide.positions]
    assert shown == list(dict.fromkeys([(0, 0), *costliest]))[:4]
    for position in opened.slide.positions:
        e, n = place(truth, position)
        before, after = truth.before[e], truth.after[e]
        label = int(before.label_N[n])
        weight = before.example.weight / truth.divisor
        p, q = before.log_p_NV[n], after.log_p_NV[n]
        assert (position.target_id, position.weight) == (label, near(weight))
        assert position.loss_before == near(-p[label].item())
        assert position.loss_after == near(-q[label].item())
        assert (position.rank_before, position.rank_after) == (before.rank(n, label), after.rank(n, label))
        assert position.entropy_before == near(before.entropy_N[n].item())
        assert position.entropy_after == near(after.entropy_N[n].item())
        assert position.kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5, abs=1e-12)
        assert abs(position.error_sum) < 1e-14

        ids = [candidate.id for candidate in position.candidates]
        want = {*p.topk(20).indices.tolist(), *q.topk(10).indices.tolist(), label, *WATCHED}
        assert ids == sorted(want, key=lambda v: -float(p[v]))
        head_knows = opened.slide.head.unknown is None
        for candidate in position.candidates:
            v = candidate.id
            y = float(v == label)
            assert candidate.is_target == (v == label)
            assert candidate.is_watched == (v in WATCHED)
            assert candidate.p_before == near(p[v].exp().item())
            assert candidate.p_after == near(q[v].exp().item())
            assert candidate.rank_before == before.rank(n, v)
            assert candidate.rank_after == after.rank(n, v)
            assert candidate.logit_before == near(before.logits_NV[n, v].item())
            assert candidate.error == near(before.error_NV[n, v].item())
            assert candidate.error_raw == near(p[v].exp().item() - y)
            if head_knows:
                assert candidate.error_product == near(before.product_error_NV[n, v].item())
                assert candidate.p_head == near(truth.of_head[e].log_p_NV[n, v].exp().item())
                assert candidate.p_body == near(truth.of_body[e].log_p_NV[n, v].exp().item())
        rest = sorted(set(range(tiny.VOCABULARY)) - want)
        assert position.rest.tokens == len(rest)
        assert position.rest.p_before == near(p[rest].exp().sum().item())
        assert position.rest.p_after == near(q[rest].exp().sum().item())
        assert position.rest.error == near(before.error_NV[n, rest].sum().item())


@every
def test_the_head_at_a_position(name: str) -> None:
    opened, truth = run(name)
    near = truth.near
    for position in opened.slide.positions:
        e, n = place(truth, position)
        one = truth.before[e]
        if opened.slide.head.unknown is not None:
            assert (position.hidden, position.flows_back, position.head_rows) == (None, None, [])
            continue
        h_D, back_D = one.hidden_ND[n].numpy(), one.back_ND[n].numpy()
        assert position.hidden is not None and position.flows_back is not None
        np.testing.assert_allclose(opened.arrays[position.hidden], h_D, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(opened.arrays[position.flows_back], back_D, rtol=1e-4, atol=1e-7)
        assert position.hidden_norm == near(np.linalg.norm(h_D))
        assert position.flows_back_norm == near(np.linalg.norm(back_D))
        if truth.gradients.head_VD is None:
            assert position.head_rows == []
            continue
        assert [row.id for row in position.head_rows] == list(dict.fromkeys([position.target_id, *WATCHED]))
        for row in position.head_rows:
            naive_D = float(one.product_error_NV[n, row.id]) * h_D
            assert row.norm == near(np.linalg.norm(naive_D))
            assert row.largest == near(np.abs(naive_D).max())
            assert row.max_abs_difference_from_autograd is not None
            assert row.max_abs_difference_from_autograd < 1e-12 * row.largest


@every
def test_the_heads_rows_of_the_whole_step(name: str) -> None:
    opened, truth = run(name)
    head, near = opened.slide.head, truth.near
    if head.unknown is not None:
        assert (head.rows, head.top_rows, head.norms) == ([], [], None)
        return
    of_head, of_input = truth.gradients.head_VD, truth.gradients.input_VD
    assert head.tied == truth.tied
    assert head.trained == (of_head is not None)
    if of_head is None:
        assert (head.rows, head.top_rows, head.norms) == ([], [], None)
        return
    begin = list(dict.fromkeys([*WATCHED, *(int(one.label_N[0]) for one in truth.before)]))
    assert [row.id for row in head.rows[: len(begin)]] == begin
    assert {row.id for row in head.rows} == {int(v) for one in truth.before for v in one.label_N} | {*WATCHED}
    for row in [*head.rows, *head.top_rows]:
        assert row.norm == near(of_head[row.id].norm().item())
        assert row.largest == near(of_head[row.id].abs().max().item())
        if row in head.top_rows and head.tied:  # the head's part was not kept apart
            assert row.max_abs_difference_from_autograd is None or row in head.rows
        else:
            assert row.max_abs_difference_from_autograd is not None
            assert row.max_abs_difference_from_autograd < max(1e-12, truth.tolerance / 100) * row.largest
        whole_D = of_head[row.id]
        if head.tied:
            assert of_input is not None
            whole_D = whole_D + of_input[row.id]
            if row.max_abs_difference_from_autograd is not None:
                assert row.input_norm == near(of_input[row.id].norm().item())
        else:
            assert row.input_norm is None
        assert row.total_norm == near(whole_D.norm().item())
    norms = of_head.norm(dim=1)
    best = norms.topk(10)
    assert [row.id for row in head.top_rows] == best.indices.tolist()
    assert [row.norm for row in head.top_rows] == near(best.values.tolist())
    assert head.norms is not None
    known = norms[norms > 0].log10().numpy()
    assert head.norms.counts == np.histogram(known, head.norms.edges)[0].tolist()
    assert sum(head.norms.counts) + head.norms.zeros == tiny.VOCABULARY
    assert head.norms.outside == 0


def layer_of(name: str, tied: bool) -> str:
    """By the names of the tiny models' tensors."""
    name = name.removeprefix("base_model.model.")
    if (block := oracle.BLOCK_OF.match(name)) is not None:
        return block[0]
    if name.startswith("lm_head"):
        return "head"
    if "embed_tokens" in name or "wte" in name:
        return "head and embeddings" if tied else "embeddings"
    return name.rpartition(".")[0]


@every
def test_the_way_back(name: str) -> None:
    opened, truth = run(name)
    slide, near = opened.slide, truth.near
    assert slide.backward.grad_norm == near(truth.norm)
    assert slide.backward.clip_factor == near(truth.factor)
    rms = oracle.hidden_rms(truth.before, truth.batches, truth.shared)
    tied = truth.tied
    found = {layer.name: layer for layer in slide.layers}
    blocks = sorted((name for name in rms if name != "embeddings"), reverse=True)
    assert [layer.name for layer in slide.layers if layer.name in blocks] == blocks
    ends = [name for name in found if name not in blocks]
    trained = truth.trained
    assert {*found} == {*rms, *(layer_of(n, tied) for n in trained)}
    assert sorted(ends, key=list(found).index) == ends
    for layer_name, layer in found.items():
        names = [n for n in trained if layer_of(n, tied) == layer_name]
        squares = sum(float(truth.gradients.whole[n].square().sum()) for n in names)
        assert layer.grad_norm == near(squares**0.5)
        assert layer.share == near(squares / truth.norm**2)
        shown = rms.get(layer_name)
        assert layer.hidden_grad_rms == (near(shown) if shown is not None else None), layer_name
        weight = sum(float(trained[n][0].square().sum()) for n in names) ** 0.5
        moved = sum(float((trained[n][1] - trained[n][0]).square().sum()) for n in names) ** 0.5
        assert layer.weight_norm == near(weight)
        if slide.optimizer.refused is None and names:
            assert layer.update_norm == near(moved)
            assert layer.update_ratio == near(moved / weight)
    assert sum(layer.share for layer in slide.layers) == near(1.0)


@every
def test_every_tensor_and_all_weights(name: str) -> None:
    opened, truth = run(name)
    slide, near = opened.slide, truth.near
    refused = slide.optimizer.refused is not None
    assert refused == (CASES[name].own is not None)
    assert {tensor.name for tensor in slide.tensors} == set(truth.trained)
    for tensor in slide.tensors:
        g = truth.gradients.whole[tensor.name]
        old, new = truth.trained[tensor.name]
        assert (tensor.shape, tensor.dtype) == (list(g.shape), "float64")
        assert tensor.layer == layer_of(tensor.name, truth.tied)
        assert tensor.grad_norm == near(g.norm().item())
        assert tensor.share == near(float(g.square().sum()) / truth.norm**2)
        assert tensor.zero_share == near(float((g == 0).double().mean()))
        assert tensor.weight_norm == near(old.norm().item())
        if refused:
            assert (tensor.update_norm, tensor.update_ratio, tensor.lost_share) == (None, None, None)
            assert tensor.rms == {}
            continue
        delta = new - old
        asked, lost = lost_of(old, new)
        assert tensor.update_norm == near(delta.norm().item())
        assert tensor.update_ratio == near((delta.norm() / old.norm()).item())
        assert tensor.lost_share == near(lost / max(1, asked))
        assert [*tensor.rms][:2] == ["g", "clipped g"] and [*tensor.rms][-1] == "Δ"
        assert tensor.rms["g"] == near(g.square().mean().sqrt().item())
        assert tensor.rms["clipped g"] == near(g.square().mean().sqrt().item() * truth.factor)
        assert tensor.rms["Δ"] == near(delta.square().mean().sqrt().item())
    if refused:
        assert (slide.weights, slide.promised, slide.mountain, slide.chosen) == (None, None, None, [])
        refusal = str(slide.optimizer.refused)
        assert "OwnSGD" in refusal and refusal in " ".join(slide.notes)
        return
    assert slide.weights is not None
    old, new = (torch.cat([pair[i].flatten() for pair in truth.trained.values()]) for i in (0, 1))
    asked, lost = lost_of(old, new)
    weights = slide.weights
    assert (weights.count, weights.asked, weights.lost) == (len(old), asked, lost)
    assert (weights.lost_share, weights.stored_lost) == (near(lost / asked), 0)
    assert weights.weight_norm == near(old.norm().item())
    assert weights.update_norm == near((new - old).norm().item())
    for values, counts, shown in (
        (old, weights.counts_before, weights.before),
        (new, weights.counts_after, weights.after),
    ):
        top = values.float().numpy().view(np.uint32) >> 16
        assert opened.arrays[counts].tolist() == np.bincount(top, minlength=1 << 16).tolist()
        assert sum(shown.counts) + shown.outside == len(values)
    assert sum(weights.change.counts) + weights.change.outside + weights.change.zeros == len(old)
    assert weights.change.zeros == int((old == new).sum())


def lost_of(old: torch.Tensor, new: torch.Tensor) -> tuple[int, int]:
    """Entries that moved, and those of them that are the same in bf16."""
    moved = old != new
    return int(moved.sum()), int((moved & (old.bfloat16() == new.bfloat16())).sum())


KEEPS = {"b": "momentum_buffer", "m": "exp_avg", "v": "exp_avg_sq"}
"""Lines of the arithmetic that are the optimizer's state after the step."""


@every
def test_what_the_slope_promised_and_the_arithmetic_of_chosen_weights(name: str) -> None:
    opened, truth = run(name)
    slide, near = opened.slide, truth.near
    if slide.optimizer.refused is not None:
        return
    whole = truth.gradients.whole
    promised = sum(float((whole[n] * (new - old)).sum()) for n, (old, new) in truth.trained.items())
    assert slide.promised == near(promised)
    assert slide.mountain is not None
    assert slide.mountain.slope == slide.promised
    heights = dict(zip(slide.mountain.along, slide.mountain.losses, strict=True))
    assert heights[0.0] == near(sum(one.loss for one in truth.before))
    assert heights[1.0] == near(sum(one.loss for one in truth.after))
    group = truth.parts[0].param_groups[0]
    assert slide.optimizer.learning_rate == group["lr"]
    counts = any("step" in state for part in truth.parts for state in part.state.values())
    assert slide.optimizer.updates_before == (STEPS_BEFORE if counts else 0)
    assert 2 <= len(slide.chosen) <= 4
    assert len({one.tensor for one in slide.chosen}) == len(slide.chosen)
    owner = {
        id(p): (part, group) for part in truth.parts for group in part.param_groups for p in group["params"]
    }
    for one in slide.chosen:
        at = tuple(one.index)
        old, new = truth.trained[one.tensor]
        stages = {stage.name: stage.value for stage in one.stages}
        g = float(whole[one.tensor][at])
        assert (one.before, one.after) == (float(old[at]), float(new[at]))
        assert stages["g"] == near(g)
        assert stages["clipped g"] == near(g * truth.factor)
        assert stages["Δ"] == pytest.approx(float(new[at] - old[at]), rel=1e-6)
        assert one.replay_error == pytest.approx(0, abs=1e-9)
        assert one.would["sgd"] == near(-group["lr"] * g * truth.factor)
        part, group = owner[id(truth.new.get_parameter(one.tensor))]
        state = part.state[truth.new.get_parameter(one.tensor)]
        for line, key in KEEPS.items():
            if line in stages:
                assert stages[line] == near(float(state[key][at]))
        if {"m", "v"} <= stages.keys():
            beta1, beta2 = group["betas"]
            m, v = stages["m"] / (1 - beta1**3), stages["v"] / (1 - beta2**3)
            adam = -group["lr"] * m / (v**0.5 + group["eps"])
            assert one.would["adam"] == near(adam)
            assert one.would_state == "the run's own"
        if "the head's row" in one.why and slide.positions:
            e, n = place(truth, slide.positions[0])
            h_D = truth.before[e].hidden_ND[n]
            assert at == (slide.positions[0].target_id, int(h_D.abs().argmax()))
        if "layer's largest gradient" in one.why:
            assert abs(g) == near(whole[one.tensor].abs().max().item())
    names = [one.tensor for one in slide.chosen]
    assert bool(slide.head.trained) == any("lm_head" in n or "embed_tokens" in n or "wte" in n for n in names)


@every
def test_noise_and_influence(name: str) -> None:
    opened, truth = run(name)
    near, noise = truth.near, opened.slide.noise
    exactly = nullcontext if name == "recomputed" else tiny.InDouble
    assert len(noise) == len(truth.batches) - 1
    whole = truth.norm**2
    for number, scale in enumerate(noise, start=1):
        of = [example for batch in truth.batches[:number] for example in batch]
        part = sum(e.weight * e.targets for e in of)
        with exactly():
            _, gradients = oracle.step(truth.old, of, part)
        square = sum(float(g.square().sum()) for g in gradients.whole.values())
        signal = (truth.divisor * whole - part * square) / (truth.divisor - part)
        trace = (square - whole) / (1 / part - 1 / truth.divisor)
        assert (scale.batch, scale.part) == (near(truth.divisor), near(part))
        assert scale.grad_norm_squared == pytest.approx(signal, rel=1e-6, abs=1e-9 * whole)
        assert scale.trace == pytest.approx(trace, rel=1e-6)
        positive = signal > 0 and trace > 0
        assert scale.noise_scale == (pytest.approx(trace / signal, rel=1e-6) if positive else None)
    if opened.slide.head.unknown is not None:
        assert opened.slide.influence == []
        return
    assert [one.position for one in opened.slide.influence] == list(range(len(opened.slide.positions)))
    for one in opened.slide.influence:
        e, n = place(truth, opened.slide.positions[one.position])
        naive = oracle.influence(truth.before, e, n, truth.divisor)
        want = {example.where: value for example, value in zip(truth.of, naive, strict=True)}
        assert dict(one.examples) == near(want)
        assert all(a[1] <= b[1] for a, b in pairwise(one.examples))
