"""Tiny models of many architectures and toy data, made on the spot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.overrides import TorchFunctionMode

from surefoot.data.rows import Example
from surefoot.model.network import Network
from surefoot.train.step import losses

VOCABULARY = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OPT: dict[str, Any] = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}

CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_COMMON),
    "llama_tied": lambda: tf.LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**_COMMON),
    "qwen3": lambda: tf.Qwen3Config(**_COMMON),
    "gemma2": lambda: tf.Gemma2Config(**_COMMON, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**_COMMON, sliding_window=8, query_pre_attn_scalar=8),
    "mistral": lambda: tf.MistralConfig(**_COMMON, sliding_window=8),
    "phi3": lambda: tf.Phi3Config(**_COMMON),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, **_GPT2, **_IDS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCABULARY,
        **_OPT,
        **_IDS,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        dropout=0.0,
    ),
    "olmo2": lambda: tf.Olmo2Config(**_COMMON),
    "cohere2": lambda: tf.Cohere2Config(**_COMMON),
    "granite": lambda: tf.GraniteConfig(**_COMMON, logits_scaling=3.0),
    "bloom": lambda: tf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_IDS, hidden_dropout=0.0
    ),
    "falcon": lambda: tf.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_IDS
    ),
    "lfm2": lambda: tf.Lfm2Config(
        **{**_COMMON, "num_hidden_layers": 2}, layer_types=["conv", "full_attention"]
    ),
}


_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
_ROPE = {"rope_theta": 10_000.0}

FURTHER: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "mixtral": lambda: tf.MixtralConfig(**_COMMON, **_EXPERTS, num_local_experts=4),
    "qwen2_moe_window": lambda: tf.Qwen2MoeConfig(
        **_COMMON,
        **_EXPERTS,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    ),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**_COMMON, **_EXPERTS, num_experts=4, moe_intermediate_size=16),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_COMMON,
        **_EXPERTS,
        num_local_experts=4,
        sliding_window=8,
        rope_parameters={**_ROPE, "rope_type": "default"},
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        **_IDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "phi": lambda: tf.PhiConfig(**_COMMON),
    "smollm3": lambda: tf.SmolLM3Config(**_COMMON, no_rope_layers=[1, 0, 1]),
    "exaone4": lambda: tf.Exaone4Config(**_COMMON, sliding_window=8, sliding_window_pattern=3),
    "olmo3": lambda: tf.Olmo3Config(**_COMMON, sliding_window=8),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=VOCABULARY, **_IDS, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "gptj": lambda: tf.GPTJConfig(
        vocab_size=VOCABULARY,
        **_IDS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "stablelm": lambda: tf.StableLmConfig(**_COMMON),
}
"""Of these, only the step is tested: that it is exact, and by which way."""


def model(
    architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changed: Any
) -> tf.PreTrainedModel:
    """A tiny model with random weights large enough that every path through it matters.

    `changed`: what the config says otherwise.
    """
    torch.manual_seed(seed)
    config = {**CONFIGS, **FURTHER}[architecture]()
    for name, value in changed.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    # The other ways to compute experts know no float64.
    made = tf.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
            elif parameter.ndim >= 2:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    made.generation_config.eos_token_id = 2
    return made.to(dtype)


class InDouble(TorchFunctionMode):
    """While open, whoever asks for float32 by name gets float64: norms, softmax and rotary embeddings inside
    Hugging Face's models are as exact as the rest, and what differs by more than 1e-12 is another computation."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def doubled(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(doubled, args), **{name: doubled(value) for name, value in (kwargs or {}).items()})


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """Words w3 ... w96 and three control tokens, ids as in the tiny models."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def examples(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[Example]:
    """Random examples of the given (prompt, completion) lengths."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, count).astype(np.int32)

    return [Example(draw(p), draw(c), i, f"toy[{i}]") for i, (p, c) in enumerate(lengths)]


def family(seed: int, count: int = 12) -> list[Example]:
    """Examples that grow out of one another in every way a forest can have: deep chains, wide fans, duplicates,
    one a prefix of another, the same prompt with other completions, single tokens, other weights, strangers."""
    rng = np.random.default_rng(seed)
    stems: list[np.ndarray] = [np.zeros(0, np.int64)]
    made: list[Example] = []
    while len(made) < count:
        stem = stems[rng.integers(len(stems))]
        stem = stem[: rng.integers(len(stem) + 1)] if rng.random() < 0.5 else stem
        grown = rng.integers(3, VOCABULARY, rng.choice([0, 1, 2, 5, 17]))
        whole = np.concatenate([stem, grown])[:90]
        if len(whole) < 2:
            stems.append(rng.integers(3, VOCABULARY, 4))
            continue
        prompt = int(rng.integers(0, len(whole)))
        stems.append(whole)
        if len(whole) - (prompt == 0) < 1:
            continue
        ids, weight = whole.astype(np.int32), float(rng.choice([1.0, 1.0, 0.5, 2.0]))
        made.append(Example(ids[:prompt], ids[prompt:], len(made), f"family[{len(made)}]", weight))
        if rng.random() < 0.1:
            made.append(Example(ids[:prompt], ids[prompt:], len(made), f"family[{len(made)}]"))
    return made[:count]


def rows(of: Sequence[Example]) -> list[dict[str, list[int]]]:
    """The examples as rows of token ids, the way a user would bring them."""
    return [
        {
            "input_ids": [*e.prompt_ids.tolist(), *e.completion_ids.tolist()],
            "completion_mask": [0] * len(e.prompt_ids) + [1] * len(e.completion_ids),
        }
        for e in of
    ]


def naive_loss(net: torch.nn.Module, of: Sequence[Example]) -> torch.Tensor:
    """The definition: each example alone, the model's own forward, full logits, cross-entropy; then one
    division by the sum of the supervised tokens' weights. Adds the gradient example by example."""
    divisor = sum(e.weight * e.targets for e in of)
    total = torch.zeros((), dtype=torch.float64)
    for e in of:
        ids = torch.tensor([[*e.prompt_ids.tolist(), *e.completion_ids.tolist()]])
        logits = net(input_ids=ids).logits[0, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(logits[-e.targets :], ids[0, -e.targets :], reduction="sum")
        loss = loss * (e.weight / divisor)
        loss.backward()
        total += loss.detach()
    return total


def gradient(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What has been added up for each weight, taken off the model."""
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    for parameter in net.parameters():
        parameter.grad = None
    return found


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    """The relative error of each tensor is at most `tolerance`, and there is one for the same weights."""
    assert got.keys() == want.keys()
    whole = torch.stack([tensor.norm() for tensor in want.values()]).norm()
    for name, tensor in want.items():
        # A tensor whose true gradient is zero (a key's bias under softmax) is measured against the whole.
        scale = tensor.norm() if tensor.norm() > 1e-6 * whole else whole
        error = ((got[name] - tensor).norm() / scale).item()
        assert error <= tolerance, f"{name}: {error:.1e}"


def assert_exact(network: Network, of: Sequence[Example], budgets: Sequence[int]) -> None:
    """Split by any of `budgets`, loss, each example's loss and every weight's gradient are those of the examples
    alone, but for float64's rounding."""
    total = sum(e.weight * e.targets for e in of)
    with InDouble():
        loss = naive_loss(network.model, of).item()
        want = gradient(network.model)
        for budget in budgets:
            found = losses(network, of, budget, backprop=True)
            assert_same(gradient(network.model), want, 1e-10)
            assert math.isclose(found.loss, loss, rel_tol=1e-12)
            parts = [e.weight * part.loss for e, part in zip(of, found.examples, strict=True)]
            assert math.isclose(sum(parts), loss * total, rel_tol=1e-12)
            assert [part.tokens for part in found.examples] == [e.targets for e in of]
