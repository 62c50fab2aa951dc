"""Token ids as text, each on its own."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerBase


class Speller:
    """Spells one token at a time, so that blanks in front and broken characters stay visible."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.one = cache(self._one)

    def _one(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if text and "\ufffd" not in text:
            return text
        # A part of a character, or a row of the embeddings that is no token.
        name = str(self._tokenizer.convert_ids_to_tokens(token) or f"<{token}>")
        letters = _bytes_of_letters()
        if text and letters.keys() >= set(name):
            raw = bytes(letters[letter] for letter in name)
            if raw.decode("utf-8", "replace") == text:
                return raw.decode("utf-8", "backslashreplace")
        return name


@cache
def _bytes_of_letters() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
