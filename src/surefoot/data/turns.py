"""What a chat template has written of a turn, and what it has left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surefoot.data.rows import Conversation

NO_TOOL_CALLS = "the chat template does not write tool calls (chat_template_path takes one that does)"
NO_TURN = "no assistant turn to learn"
NO_QUESTION = "the conversation begins with the answer: nothing asks for it"
NO_TOKEN = "no token to learn"


def turn_kind(message: dict[str, Any]) -> str:
    """What the tokens of an assistant message count as in the ledger."""
    if message.get("tool_calls"):
        return "tool calls"
    return "reasoning and answers" if message.get("reasoning_content") else "answers"


def left_out(
    record: Conversation, answers: Sequence[dict[str, Any]], prompt: str, completion: str
) -> list[str]:
    """What the row says and its template does not write."""
    names = [str((tool.get("function") or tool).get("name", "")) for tool in record.tools or ()]
    out = []
    if not all(name in prompt for name in names):
        out.append("the chat template does not write tools, so they are not seen")
    for message in answers:
        called = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        if not all(name in completion for name in called):
            out.append(NO_TOOL_CALLS)
        elif called and (message.get("content") or "").strip() not in completion:
            out.append("the chat template does not write the text beside a tool call")
        if (message.get("reasoning_content") or "").strip() not in completion:
            out.append("the chat template does not write reasoning, so it is not learned")
    return list(dict.fromkeys(out))


def thought(prompt: str, whole: str, message: dict[str, Any]) -> str | None:
    """The completion for a generation prompt that opens the reasoning (`<think>`), where the template writes
    turns without it: the reasoning (perhaps none), its end, and what the template writes of the turn.
    """
    begun = prompt.rstrip()
    start = begun.removesuffix("<think>")
    if start == begun or not whole.startswith(start):
        return None
    written = whole[len(start) :].lstrip().removeprefix("</think>").lstrip()
    if "</think>" in written:  # reasoning is written after all, in a way that the prompt does not open
        return None
    content = message.get("content") or ""
    inside = content.partition("<think>")[2] if "<think>" in content else content
    reasoning = message.get("reasoning_content") or inside.rpartition("</think>")[0]
    line = "" if prompt != begun else "\n"
    return f"{line}{reasoning.strip()}\n</think>\n\n{written}"


def cannot_learn(prompt: str, whole: str, index: int) -> str:
    """Why message `index` has no completion: what is asked and what is written part before the turn."""
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return (
        f"message {index} cannot be learned as it will be asked for: at inference the prompt goes on "
        f"{prompt[same:][:60]!r}, but the chat template writes {whole[same:][:60]!r} there. Pass "
        'chat_template_kwargs with the row (such as {"enable_thinking": false}), or a chat_template_path whose '
        "generation prompt is how it writes an assistant's turn"
    )
