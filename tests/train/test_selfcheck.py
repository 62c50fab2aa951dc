"""The self-check: honest models pass, planted faults are found, and nothing of the model is moved by it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.data.rows import Example
from surefoot.errors import UserError
from surefoot.model.network import Network, head_of, look_at
from surefoot.train import cases, selfcheck, textbook
from surefoot.train.budget import Budget, rounding
from tests import tiny

LENGTHS = [(5, 4), (9, 12), (1, 3), (17, 6), (3, 20), (12, 1), (30, 2), (4, 4)]


def family() -> list[Example]:
    """Examples of which some share a prefix."""
    of = tiny.examples(LENGTHS)
    return [
        *of,
        *(replace(e, prompt_ids=np.concatenate([of[1].prompt_ids[:6], e.prompt_ids])) for e in of[:3]),
    ]


def fastest(net: torch.nn.Module, product_dtype: torch.dtype | None = None) -> Network:
    return look_at(net, family(), product_dtype)


# Honest models pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize(
    ("weights", "products"),
    [(torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)],
    ids=["float64", "fp32", "bf16"],
)
def test_honest_models_pass(architecture: str, weights: torch.dtype, products: torch.dtype | None) -> None:
    found = fastest(tiny.model(architecture, weights), products)
    for verdict in (selfcheck.quick(found, family()), selfcheck.check(found, family(), 3)):
        assert verdict.exact, [str(c) for c in verdict.comparisons if not c.ok]
        assert verdict.refused == ()
        assert verdict.network.reasons == found.reasons
        assert {c.what for c in verdict.comparisons} == {"loss", "gradient", "weight"}
        levels = (
            {"formula"} if verdict.reference == str(products or weights)[6:] else {"formula", "arithmetic"}
        )
        assert {c.level for c in verdict.comparisons} == levels


def test_float32_noise_gives_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that nearly cancel leave a gradient that is all noise in float32: float64 has the last word."""
    of_formula, asked = Budget.of_formula, []

    def strict(dtype: torch.dtype, layers: int) -> Budget:
        asked.append(dtype)
        budget = of_formula(dtype, layers)
        return budget if dtype == torch.float64 else replace(budget, gradient=1e-12)

    monkeypatch.setattr(Budget, "of_formula", strict)
    verdict = selfcheck.quick(fastest(tiny.model("llama", torch.float32)), family())
    assert asked == [torch.float32, torch.float64]
    assert verdict.exact and verdict.network.merged and verdict.refused == ()


def test_pure_bf16_weights_pass_and_are_compared_with_float32() -> None:
    found = fastest(tiny.model("llama", torch.bfloat16), torch.bfloat16)
    verdict = selfcheck.quick(found, family())
    assert (verdict.exact, verdict.reference) == (True, "float32")


def test_without_memory_for_a_float32_copy_the_runs_precision_is_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selfcheck, "free_bytes", lambda device: 0)
    found = fastest(tiny.model("llama", torch.bfloat16), torch.bfloat16)
    assert selfcheck.quick(found, family()).reference == "the run's own precision"
    found = fastest(tiny.model("llama", torch.float32), torch.bfloat16)
    assert selfcheck.check(found, family()).reference == "float32"


def test_lora_compares_the_adapter() -> None:
    peft = pytest.importorskip("peft")
    net = tiny.model("llama", torch.float32)
    wrapped = peft.get_peft_model(
        net, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    found = fastest(wrapped, torch.bfloat16)
    with textbook.without_dropout(found):
        selfcheck._freeze_most(found)
        gradients = textbook.as_trained(found, family(), 100).gradients
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert set(gradients) == trained | {textbook.EMBEDDED}
    assert selfcheck.quick(found, family()).exact
    assert selfcheck.check(found, family()).exact


def test_the_short_form_asks_for_few_gradients() -> None:
    net = tiny.model("qwen2", torch.float32)
    found = fastest(net)
    with textbook.without_dropout(found):
        selfcheck._freeze_most(found)
        gradients = textbook.by_the_book(found, family()).gradients
    small = {name for name, p in net.named_parameters() if p.ndim == 1}
    ends = {"model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"}
    assert set(gradients) == small | ends | {textbook.EMBEDDED}


# No path is exact ------------------------------------------------------------------------------------------


def noisy() -> Network:
    """A model whose forward pass is never twice the same."""
    net = tiny.model("llama", torch.float32)
    calls = iter(range(1_000_000))
    net.model.embed_tokens.register_forward_hook(lambda m, i, out: out * (1 + 0.01 * next(calls)))
    return Network(net, None, head=head_of(net))


def test_when_no_path_is_exact_the_short_form_refuses_and_the_full_form_says_so() -> None:
    with pytest.raises(
        UserError, match=r"by whichever path: common prefixes.*; rows run one.*; even by the model's own"
    ):
        selfcheck.quick(noisy(), family())
    verdict = selfcheck.check(noisy(), family())
    assert not verdict.exact
    assert verdict.network.packed and verdict.network.reasons == ()
    assert any(not c.ok for c in verdict.comparisons)


def test_a_loss_that_is_not_finite_is_the_models_own_fault() -> None:
    net = tiny.model("llama", torch.float32)
    with torch.no_grad():
        net.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"toy\[\d\].*the model's own loss is nan there"):
        selfcheck.quick(Network(net, None, head=head_of(net)), family())


# Nothing is moved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [selfcheck.quick, selfcheck.check])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_everything_is_as_it_was_bit_for_bit(form: Any, weights: torch.dtype) -> None:
    net = tiny.model("gemma2", weights)
    net.train()
    net.model.layers[1].eval()
    net.model.layers[0].mlp.requires_grad_(False)
    for parameter in net.model.layers[2].parameters():
        parameter.grad = torch.randn_like(parameter)
    found = fastest(net, torch.bfloat16)
    parameters = dict(net.named_parameters())
    before = copy.deepcopy(net.state_dict())
    at = {name: (p.data_ptr(), p.dtype, p.requires_grad, p.grad) for name, p in parameters.items()}
    grads = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    buffers = {name: (b.data_ptr(), b.clone()) for name, b in net.named_buffers()}
    modes = [m.training for m in net.modules()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    form(found, family())
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for name, p in net.named_parameters():
        assert p is parameters[name]
        assert (p.data_ptr(), p.dtype, p.requires_grad) == at[name][:3]
        assert p.grad is at[name][3]
    assert all(torch.equal(parameters[name].grad, grad) for name, grad in grads.items())  # type: ignore[arg-type]
    for name, b in net.named_buffers():
        assert b.data_ptr() == buffers[name][0] and torch.equal(b, buffers[name][1])
    assert not net.model.embed_tokens._forward_hooks


def test_everything_is_as_it_was_after_an_error_too() -> None:
    found = noisy()
    before = {name: (p.data_ptr(), p.clone(), p.requires_grad) for name, p in found.model.named_parameters()}
    with pytest.raises(UserError):
        selfcheck.quick(found, family())
    for name, p in found.model.named_parameters():
        assert (p.data_ptr(), p.requires_grad) == (before[name][0], before[name][2])
        assert torch.equal(p, before[name][1]) and p.grad is None


def test_dropout_is_off_for_the_comparison_and_on_again() -> None:
    net = tiny.model("gpt2", torch.float32)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    found = replace(fastest(net), packed=True)
    net.train()
    verdict = selfcheck.quick(found, family())
    assert verdict.exact and verdict.dropout and verdict.line.endswith("dropout off")
    assert all(module.training for module in net.modules())
    net.eval()
    assert not selfcheck.quick(found, family()).dropout


# Cases and budgets -----------------------------------------------------------------------------------------


def ids(example: Example) -> list[int]:
    return [*example.prompt_ids.tolist(), *example.completion_ids.tolist()]


def test_the_full_forms_cases_are_such_as_tell() -> None:
    chosen = {case.name: case.examples for case in cases.cases(family(), 8, 4)}
    a, b = chosen["two short rows"]
    assert ids(a)[0] != ids(b)[0]
    shared = chosen["a shared prefix"]
    assert len({tuple(ids(e)) for e in shared}) == len(shared) == 3
    assert ids(shared[0])[:6] == ids(shared[1])[:6]
    assert len(ids(chosen["beyond the sliding window"][0])) > 9
    assert chosen["a completion of one token"][0].targets == 1
    step = cases.cases(family(), 8, 4)[-1]
    assert len(step.examples) == 4
    assert [name for name, _ in step.splits] == ["the same, one row at a time", "the same, split in two"]
    assert "beyond the sliding window" not in [case.name for case in cases.cases(family(), 60, 4)]


@pytest.mark.parametrize("lengths", [[(400, 300)] * 5, [(0, 200)] * 3, [(1, 1)] * 2, [(0, 2)], [(7, 1)]])
def test_the_short_forms_rows_are_few_tokens_of_any_data(lengths: list[tuple[int, int]]) -> None:
    of = tiny.examples(lengths)
    chosen = cases.brief_case(of, None).examples
    assert 0 < sum(e.tokens for e in chosen) <= cases.BRIEF
    assert all(e.targets >= 1 for e in chosen)
    for case in cases.cases(of, 4, 3):
        assert all(e.targets >= 1 for e in case.examples)
        assert len({id(e) for e in case.examples}) == len(case.examples)


def test_long_rows_that_share_a_prefix_are_cut_to_where_they_part() -> None:
    (a,) = tiny.examples([(300, 50)])
    other = a.prompt_ids.copy()
    other[200] = 3 if other[200] != 3 else 4
    one, two, apart = cases.brief_case([a, replace(a, prompt_ids=other)], None).examples
    common = next(i for i, (x, y) in enumerate(zip(ids(one), ids(two), strict=True)) if x != y)
    assert 1 <= common < len(one.prompt_ids)
    assert ids(apart)[0] != ids(one)[0]


def test_budgets_are_a_tenth_more_than_the_plain_path_and_a_floor() -> None:
    assert Budget.of_arithmetic(torch.bfloat16, 30).factor == 1.1
    assert rounding(torch.bfloat16, 30) == pytest.approx(2**-8 * 240**0.5)
    found = selfcheck.quick(fastest(tiny.model("llama", torch.float32), torch.bfloat16), family())
    for c in found.comparisons:
        if c.level == "arithmetic":
            assert c.naive is not None
            floor = rounding(torch.bfloat16, 3) * (4 if c.what == "weight" else 1)
            assert c.budget == pytest.approx(1.1 * c.naive + floor)
    # A thousandth in one layer must not hide below the floor of any precision that the formula is checked in.
    for dtype in (torch.float32, torch.float64):
        assert Budget.of_formula(dtype, 100).weight < 5e-4


def test_the_verdict_in_words_and_numbers() -> None:
    verdict = selfcheck.quick(fastest(tiny.model("llama", torch.float32), torch.bfloat16), family())
    assert verdict.line.startswith(f"checked on {verdict.rows} rows: loss off by ")
    assert "(the plain path: " in verdict.line
    told = verdict.to_dict()
    assert told["exact"] is True and told["path"]["packed"] is True
    assert len(told["comparisons"]) == 6 and all(c["ok"] for c in told["comparisons"])
