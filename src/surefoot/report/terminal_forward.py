"""The first panels as text: what the model was asked, what it said, what was off, the head's part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from surefoot.microscope.panels import (
    Batch,
    BatchExample,
    Candidate,
    Position,
    Token,
)
from surefoot.microscope.slide import Opened
from surefoot.report.glyphs import (
    bar,
    fixed,
    height,
    number,
    printable,
    probability,
    share,
    signed,
    visible,
)
from surefoot.report.terminal_parts import (
    BLUE,
    BROWN,
    ORANGE,
    TOKEN,
    grid,
    heading,
    indented,
    line,
    marked,
    notable,
)

HIGHEST = 8.0
"""−log p that fills a block of the heat strip."""
BLOCKS_LEGEND = "▁ expected, █ at 7 or more"
PROMPT_LINES, LEARNED_LINES = 3, 6


def heat(loss: float) -> str:
    """The colour of a supervised token: blue when expected, brown, orange when it came as a surprise."""
    return BLUE if loss < 0.7 else BROWN if loss < 3 else f"bold {ORANGE}"


# 1: the batch ----------------------------------------------------------------------------------------------


def batch(opened: Opened, position: Position | None, width: int) -> list[RenderableType]:
    """Panel 1: the tokens of the example that is looked at, and the other examples of the step."""
    recorded = opened.slide.batch
    found = heading(
        "1  The batch",
        "The model reads all of it, but learns only the tokens with a bar below. The bar is the token's loss "
        f"−ln p, how much it came as a surprise, in nats: {BLOCKS_LEGEND}.",
    )
    ordered = sorted(recorded.examples, key=lambda e: position is None or e.where != position.where)
    alone = len(ordered) + recorded.examples_left_out == 1
    for example in ordered[:1]:
        found += [line(_said_of(example, alone), "bold"), *_tokens(example, width - 4)]
    others = ordered[1:]
    for example in others[:5]:
        found.append(line(_said_of(example, alone)))
    left = max(0, len(others) - 5) + recorded.examples_left_out
    if left:
        found.append(line(f"and {left:,} more"))
    parts = "" if recorded.micro_batches == 1 else f" in {recorded.micro_batches} micro-batches"
    sizes = f"{recorded.tokens:,} tokens, {recorded.supervised:,} of them learned"
    found.append(
        line(f"The step: {sizes}; {recorded.slots:,} went through the model{parts}{_why(recorded)}.")
    )
    return found


def _why(recorded: Batch) -> str:
    """Why fewer tokens than there are went through the model, where it is this alone."""
    examples = len(recorded.examples) + recorded.examples_left_out
    if recorded.slots != recorded.tokens - examples:
        return ""
    return f", for {'the last' if examples == 1 else 'the last of each example'} predicts nothing"


def _said_of(example: BatchExample, alone: bool) -> str:
    after = "" if example.loss_after is None else f" → {fixed(example.loss_after, 3)}"
    tokens = f"{example.supervised} learned token{'s' * (example.supervised != 1)}"
    weight = "" if example.weight == 1 else f", weight {number(example.weight)}"
    part = "" if alone else f", {share(example.share)} of the step's loss"
    added = ", added up:" if example.supervised > 1 else ""
    return f"{example.where}: −ln p of {tokens}{added} {fixed(example.loss, 3)}{after}{part}{weight}"


def _tokens(example: BatchExample, width: int) -> list[RenderableType]:
    """The example's tokens as a heat strip; of a long prompt the end, which the first learned token follows."""
    learned = [token for token in example.tokens if token.loss is not None]
    first = example.tokens.index(learned[0]) if learned else len(example.tokens)
    start, room = first, PROMPT_LINES * width
    while start > 0 and (room := room - cell_len(visible(example.tokens[start - 1].text, width))) > 0:
        start -= 1
    cut = start > 0 or example.left_out > 0
    begun = [Token(text="…", id=-1)] if cut else []
    rows = [*_flow([*begun, *example.tokens[start:first]], width), *_flow(example.tokens[first:], width)]
    before = sum(not bars.plain.strip() for _, bars in rows)
    found: list[RenderableType] = [
        part for row in rows[: before + LEARNED_LINES] for part in row if part.plain.strip()
    ]
    if len(rows) > before + LEARNED_LINES:
        found.append(line(f"  … {len(rows) - before - LEARNED_LINES} more lines of learned tokens"))
    if not learned:
        return [*found, line("No token of it is learned.")]
    costliest = sorted(learned, key=lambda token: -_size(token))[:5]
    said = ", ".join(f"“{visible(t.text, TOKEN)}” {_change(t)}" for t in costliest)
    return [*found, line(f"costliest: {said}")]


def _size(token: Token) -> float:
    return math.inf if token.loss is None or math.isnan(token.loss) else token.loss


def _change(token: Token) -> str:
    after = "" if token.loss_after is None else f" → {fixed(token.loss_after, 3)}"
    return f"{fixed(token.loss or 0.0, 3)}{after}"


def _flow(tokens: Iterable[Token], width: int) -> list[tuple[Text, Text]]:
    """Tokens and, under each learned one, its loss as a bar; broken into lines between tokens."""
    rows: list[tuple[Text, Text]] = []
    for token in tokens:
        shown = visible(token.text, width)
        cells = cell_len(shown)
        if not rows or rows[-1][0].cell_len + cells > width + 4:
            rows.append((Text("    "), Text("    ")))
        texts, bars = rows[-1]
        if token.loss is None:
            texts.append(shown, "dim")
            bars.append(" " * cells)
        else:  # blanks in front are seen as dots, so that a space can set tokens apart
            texts.append(f"{shown} ", heat(token.loss))
            bars.append(f"{height(token.loss, HIGHEST) * cells} ", heat(token.loss))
    return rows


# 2, 3, 4: prediction, loss, error ----------------------------------------------------------------------------


def size(position: Position) -> int:
    """How many tokens the model knows."""
    return len(position.candidates) + position.rest.tokens


def prediction(opened: Opened, position: Position, width: int) -> list[RenderableType]:
    """Panel 2: what the model expected."""
    which = f"{position.where}, learned token {position.index + 1}"
    found = heading(
        "2  The prediction",
        f"After “{visible(position.token, TOKEN)}” ({printable(which)}) the model gives each of its "
        f"{size(position):,} tokens a probability p. The right one is ▶ {visible(position.target, TOKEN)}, at "
        f"rank {position.rank_before:,}{_and_watched(position)}.",
    )
    table = grid("  token", ">p", ">rank", ">logit", "")
    room = width - TOKEN - 36
    for one in notable(position, 5):
        table.add_row(
            marked(one),
            probability(one.p_before),
            f"{one.rank_before:,}",
            fixed(one.logit_before, 4),
            Text(bar(one.p_before, 1.0, room), ORANGE if one.is_target else BLUE),
        )
    sure = f"entropy {fixed(position.entropy_before, 3)} nats: as unsure as between "
    return [
        *found,
        indented(table),
        line(f"{sure}{math.exp(position.entropy_before):,.1f} equally likely tokens"),
    ]


def _and_watched(position: Position) -> str:
    return "; ○ are watched" if any(c.is_watched and not c.is_target for c in position.candidates) else ""


def loss(opened: Opened, position: Position, width: int) -> list[RenderableType]:
    """Panel 3: the arithmetic of the loss."""
    slide = opened.slide
    found = heading(
        "3  The loss",
        "What was off, in one number: 0 had the model been sure of the right token, more the less likely.",
    )
    p = math.exp(-position.loss_before)
    text = f"−ln {probability(p)} = {fixed(position.loss_before, 3)}"
    found.append(line(f"{text}   for {visible(position.target, TOKEN)}", "bold"))
    supervised, divisor = slide.batch.supervised, slide.batch.divisor
    terms = [t.loss for e in slide.batch.examples for t in e.tokens if t.loss is not None and e.weight == 1]
    if 1 < len(terms) == supervised <= 6:
        total = " + ".join(fixed(term, 3) for term in terms)
        mean = f"({total}) / {number(divisor)} = {fixed(slide.loss_before, 3)}"
        found.append(line(f"The step's loss is the mean over its {supervised} learned tokens: {mean}"))
    elif supervised > 1:
        found.append(
            line(
                f"The step's loss adds up {supervised:,} learned tokens and divides once, by "
                f"{number(divisor)}: {fixed(slide.loss_before, 4)}"
            )
        )
    return found


def error(opened: Opened, position: Position, width: int) -> list[RenderableType]:
    """Panel 4: the error column, with its sum."""
    softcap = opened.slide.head.softcap
    weighted = position.weight != 1
    found = heading(
        "4  The error column",
        "Backprop starts here. A token's error is what the model said minus what was right, p − y: y is 1 for "
        "the right token and 0 for every other. Below 0, its logit is to rise; above 0, to fall.",
    )
    table = grid("  token", ">p − y", *([f">× weight {number(position.weight, 3)}"] if weighted else []), "")
    room = max(6, (width - 66) // 2)
    shown = sorted(notable(position, 2), key=lambda c: not c.is_target)
    hidden = [c for c in position.candidates if c not in shown]
    largest = max(abs(c.error_raw) for c in shown)

    def add(name: Text, raw: float, weighed: float, style: str = "") -> None:
        drawn = bar(abs(raw), largest, room)
        left = f"{'█' * (cell_len(drawn)):>{room}}" if raw < 0 else " " * room
        table.add_row(
            name,
            signed(raw),
            *([signed(weighed)] if weighted else []),
            Text.assemble((left, ORANGE), "│", (drawn if raw > 0 else "", BLUE)),
            style=style,
        )

    for one in shown:
        add(marked(one), one.error_raw, one.error)
    rest = math.fsum([position.rest.error, *(c.error for c in hidden)])
    others = position.rest.tokens + len(hidden)
    unit = position.weight or 1.0
    add(Text(f"  all other {others:,} tokens together"), rest / unit, rest)
    found.append(indented(table))
    off = abs(position.error_sum) > 1e-3 * max(abs(c.error) for c in shown)
    said = "but it should be 0" if off else "0, up to rounding: what is pulled up is pushed down elsewhere"
    found.append(line(f"sum of the column: {signed(position.error_sum, 2)}  ({said})", ORANGE if off else ""))
    if softcap or opened.slide.head.scale != 1:
        how = f"capped at ±{number(softcap)}" if softcap else f"scaled by {number(opened.slide.head.scale)}"
        found.append(line(f"Logits are {how}, so the head gets {_through(shown)} for the target instead."))
    return found


def _through(shown: Sequence[Candidate]) -> str:
    return next((signed(c.error_product) for c in shown if c.is_target), "another error")
