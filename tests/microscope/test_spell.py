"""How single tokens are spelled: blanks and parts of characters stay visible."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from surefoot.microscope.spell import Speller
from tests import tiny


def test_a_part_of_a_character_is_spelled_as_its_bytes() -> None:
    letters = bytes_to_unicode()
    words = [*letters.values(), "Ġhi", "Ġ" + letters[0xE5], letters[0xE6] + letters[0x97] + letters[0xA5]]
    plain = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    speller = Speller(PreTrainedTokenizerFast(tokenizer_object=plain))
    ids = {word: i for i, word in enumerate(words)}
    assert speller.one(ids["Ġhi"]) == " hi"
    assert speller.one(ids[letters[0xE5]]) == "\\xe5"
    assert speller.one(ids["Ġ" + letters[0xE5]]) == " \\xe5"
    assert speller.one(ids[letters[0xE6] + letters[0x97] + letters[0xA5]]) == "日"
    assert speller.one(len(words)) == f"<{len(words)}>"


def test_a_tokenizer_of_words_is_left_as_it_is() -> None:
    assert Speller(tiny.tokenizer()).one(7) == "w7"
