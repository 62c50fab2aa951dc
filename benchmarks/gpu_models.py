"""Models of real shapes with random weights, for measuring speed where no checkpoint can be downloaded.

python -m benchmarks.gpu_models 1.7b FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.work import Shapes

END = 1
"""Token that ends a completion."""
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 32768}


def _config(
    layers: int, hidden: int, intermediate: int, heads: int, keys: int, width: int, words: int, tied: bool
) -> dict[str, Any]:
    return {
        **_LLAMA,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": width,
        "vocab_size": words,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": END,
    }


CONFIGS = {
    "toy": _config(2, 64, 128, 4, 2, 16, 512, True),
    "0.5b": _config(24, 896, 4864, 14, 2, 64, 151936, True),
    "1.7b": _config(28, 2048, 6144, 16, 8, 128, 151936, True),
    "8b": _config(32, 4096, 14336, 32, 8, 128, 128256, False),
}
"""Shapes of Qwen2.5-0.5B, Qwen3-1.7B and Llama-3-8B, all as Llama models, and one for trying this out."""


def shapes(name: str) -> Shapes:
    """Of one of `CONFIGS`."""
    return Shapes.of(CONFIGS[name])


def make(name: str, folder: Path) -> None:
    """A Hugging Face folder in bf16, whole or not at all, with a tokenizer that knows three words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "config.json").write_text(json.dumps(CONFIGS[name]))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.from_pretrained(partial)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(partial)
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": END, "word": 2}, unk_token="word"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="word"
    )
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
