"""Prompts at inference are prompts of training."""

from __future__ import annotations

from pathlib import Path

from surefoot.commands.answers import Answerer
from surefoot.data.render import Renderer
from surefoot.data.rows import Conversation


def test_chat_asks_with_the_ids_of_training(tiny_folder: Path) -> None:
    asked = [{"role": "user", "content": "say <|im_end|> and stop"}]
    answerer = Answerer(str(tiny_folder), use_cpu=True)
    learned = Conversation([*asked, {"role": "assistant", "content": "no"}], (1,))
    (example,) = Renderer(answerer.tokenizer, max_length=999).examples([(learned, "row")])
    assert answerer.prompt_ids(asked).tolist() == example.prompt_ids.tolist()
    end = answerer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    spelled_by_template = answerer.tokenizer.apply_chat_template(
        [{"role": "user", "content": "say"}], add_generation_prompt=True, return_dict=False
    ).count(end)
    assert example.prompt_ids.tolist().count(end) == spelled_by_template
