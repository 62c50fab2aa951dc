"""Toy tokenizers made on the spot: a few hundred tokens, the special tokens of a template family, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. Answer the question in one word, please.",
    "user assistant system tool model think reasoning function name arguments city weather",
    '{"name": "weather", "arguments": {"city": "Paris"}} {"temperature": 21}',
    "Hello! How are you today? I am fine, thank you. One two three four five six seven.",
)
BYTES = pre_tokenizers.ByteLevel.alphabet()

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""In Qwen3's vocabulary these are tokens of their own, but no special ones."""
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
          "<|end_of_text|>", "<|python_tag|>")  # fmt: skip
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")


def byte_level(
    special: Sequence[str] = CHATML,
    *,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    words: Sequence[str] = (),
    template: str | None = None,
    sentences: Sequence[str] = SENTENCES,
    across_words: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as of GPT-2, Qwen and Llama 3.

    `words` are added tokens that are not special. `across_words` lets merges cross from word to word.
    """
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_words)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=BYTES, special_tokens=list(special))
    trainer.show_progress = False
    core.train_from_iterator(sentences, trainer)
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return wrapped(core, eos=eos, bos=bos, template=template)


def adds_bos(
    special: Sequence[str] = ("<s>", "</s>"), *, eos_too: bool = False, **more: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer that puts `<s>` before plain text by itself, and with `eos_too` also `</s>` after it."""
    tokenizer = byte_level(special, eos="</s>", bos="<s>", **more)
    parts = "<s> $A </s>" if eos_too else "<s> $A"
    ids = [(token, int(str(tokenizer.convert_tokens_to_ids(token)))) for token in ("<s>", "</s>")]
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single=parts, pair=f"{parts} $B", special_tokens=ids)
    return wrapped(core, eos="</s>", bos="<s>", template=more.get("template"))


def prefix_space(
    special: Sequence[str] = MISTRAL, *, template: str | None = None, always: bool = False
) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer, as of Llama 2 and Mistral: `▁` for blanks, and one before the first word.

    `always`: also before each word that follows a special token (Llama 2's old way).
    """
    core = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    if always:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=500, special_tokens=["<unk>", *special, *every_byte])
    trainer.show_progress = False
    core.train_from_iterator([*SENTENCES, "▁[INST]"], trainer)
    vocabulary, merges = _parts(core)
    core.model = BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    return wrapped(core, eos="</s>", bos="<s>", template=template, plain=every_byte)


def _parts(core: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def wrapped(
    core: Tokenizer, *, eos: str, bos: str | None, template: str | None, plain: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """For transformers. `plain` are byte tokens, which training could only reserve as special ones."""
    if plain:
        import json

        state = json.loads(core.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in plain]
        core = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, bos_token=bos, chat_template=template
    )
