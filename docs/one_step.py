"""Writes docs/one-step.md: the lesson, told with the numbers of the worked case on the real model.

python docs/one_step.py              explains the step and writes the page (about a minute)
python docs/one_step.py --pictures   also takes the pictures, with Chromium (needs playwright)
"""

# ruff: noqa: E501 (the template is prose, and `reflowed` breaks its lines)

from __future__ import annotations

import argparse
import math
import tempfile
import textwrap
from pathlib import Path

import screens

import surefoot
from surefoot.microscope.panels import Position
from surefoot.microscope.slide import Slide
from surefoot.report.terminal_parts import notable

HERE = Path(__file__).resolve().parent
QUESTION, ANSWER = "What is the capital of California?", "Sacramento"
WATCHED = ("San Francisco", "Los Angeles", "Boston")


def worked_case() -> surefoot.SlideView:
    """One step of plain SGD on one example, in float32."""
    return surefoot.explain(
        "smollm2-135m", QUESTION, ANSWER, watch=WATCHED, optim="sgd", learning_rate=0.1, use_cpu=True
    )


def number(value: float | None, digits: int = 3) -> str:
    """As a person writes it."""
    if value is None:
        return "–"
    if value and not 1e-4 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa} · 10^{int(exponent)}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def shown(token: str) -> str:
    """A token as code, its blanks and line breaks visible."""
    return "`" + token.replace("\n", "⏎").replace(" ", "␣").replace("|", "\\|") + "`"


def reflowed(text: str) -> str:
    """Paragraphs broken anew at 116 columns; tables, code, headings and tags as they are."""
    blocks, code = [], False
    for block in text.split("\n\n"):
        plain = not code and not block.startswith(("|", "#", "<", "```"))
        code ^= block.count("```") % 2 == 1
        blocks.append(textwrap.fill(block, 116, break_on_hyphens=False) if plain else block.strip("\n"))
    return "\n\n".join(blocks) + "\n"


def predictions(position: Position) -> str:
    """The likeliest five, the target and the watched."""
    likely = notable(position, 5)
    hidden = [c for c in position.candidates if c not in likely]
    rows = []
    for c in likely:
        name = f"**{shown(c.token)}**" if c.is_target else shown(c.token)
        rows.append(
            [
                name,
                number(c.p_before),
                str(c.rank_before),
                number(c.error_raw),
                number(c.error),
                number(c.p_after),
            ]
        )
    rest = position.rest
    before, error, after = (
        math.fsum([of_rest or 0.0, *of_hidden])
        for of_rest, of_hidden in (
            (rest.p_before, [c.p_before for c in hidden]),
            (rest.error, [c.error for c in hidden]),
            (rest.p_after, [c.p_after or 0.0 for c in hidden]),
        )
    )
    others = f"all other {rest.tokens + len(hidden):,} together"
    rows.append([others, number(before), "", number(error / position.weight), number(error), number(after)])
    head = ["token", "p before", "rank", "p − y", f"× {number(position.weight)}", "p after"]
    return table(head, rows)


def page(slide: Slide) -> str:
    """docs/one-step.md."""
    first = slide.positions[0]
    target = next(c for c in first.candidates if c.is_target)
    tokens = [t for t in slide.batch.examples[0].tokens if t.loss is not None]
    losses = [t.loss for t in tokens if t.loss is not None]
    row = first.head_rows[0]
    whole = next(r for r in slide.head.rows if r.id == target.id)
    chosen = slide.chosen[-1]
    weights, hill, optimizer = slide.weights, slide.mountain, slide.optimizer
    assert weights is not None and hill is not None
    texts = [
        [f"“{t.text}”", str(len(t.tokens)), number(t.p_before), number(t.p_after)] for t in slide.watched
    ]
    strip = [[shown(t.text), number(t.loss), number(t.loss_after)] for t in tokens]
    back = [
        [layer.name, number(layer.hidden_grad_rms), number(layer.grad_norm) if layer.weight_norm else "–"]
        for layer in slide.layers
    ]
    return f"""# One step, opened

*Written by `python docs/one_step.py` from a real step of SmolLM2-135M-Instruct. Every number on this page is of that
step. See it yourself, in the terminal or as a page:*

```sh
surefoot explain --model smollm2-135m --prompt "{QUESTION}" --completion "{ANSWER}" \\
  --watch "San Francisco" --watch "Los Angeles" --watch "Boston" --optimizer sgd --learning-rate 0.1 --html step.html
```

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="one-step-dark.png">
  <img alt="The page of the opened step: headline, the tokens coloured by their loss, the prediction before and after"
   src="one-step-light.png">
</picture>

The whole lesson in one sentence: the loss says what was off; backprop turns it into a direction and a size for every
weight, from the last layer to the first; the optimizer decides how far to go; and after one step the right answer is a
little likelier.

## The prediction

The model has read “{QUESTION}” and is to answer. It has {
        first.rest.tokens + len(first.candidates):,} tokens to choose
from, and gives each a probability p. The answer we want begins with {
        shown(first.target)
    }; the model puts it at rank
{target.rank_before}.

{predictions(first)}

## The loss: what was off

One number: −ln p of the right token, 0 had the model been sure of it. Here −ln {number(target.p_before)} =
{number(-math.log(target.p_before))}. “{ANSWER}” is {
        len(tokens) - 1
    } tokens to this model, and the token that ends the
turn is learned too:

{table(["token", "−ln p before", "after the step"], strip)}

The step's loss is their mean, {" + ".join(number(x) for x in losses)} over {len(losses)} =
**{number(slide.loss_before, 4)}**. The question's own tokens are read, not learned.

## The error: p − y

Softmax and −ln p have a derivative that fits on a line: prediction minus truth. y is 1 for the right token and 0 for
every other, so the right token's error is {
        number(target.error_raw)
    } and every other's is its own p (the columns
*p − y* above; the next one is times {
        number(first.weight)
    }, the token's share of the mean). A negative error says: up;
a positive one: down. The column adds up to {
        number(first.error_sum, 2)
    }, which is 0 but for rounding: what one token
gains, the others lose.

## The head: error × hidden state

The last layer leaves {slide.tensors[0].shape[-1]} numbers, the hidden state h (‖h‖ = {
        number(first.hidden_norm)
    }); each
token's row of the head, times h, is its logit. So the gradient of a row is its error × h, and nothing else: for
{shown(first.target)} its norm is {number(abs(target.error))} × {number(first.hidden_norm)} = {
        number(row.norm)
    }.
Autograd agrees to {number(row.max_abs_difference_from_autograd, 1)} (the row's largest entry is
{number(row.largest)}). Over all {len(tokens)} tokens of the step the row's gradient has norm {
        number(whole.norm)
    }; this
model's head is also its table of input embeddings, whose side adds {number(whole.input_norm)}, to
{number(whole.total_norm)}.

What goes down into the model is the other factor's turn: Wᵀ × error, of norm {number(first.flows_back_norm)}.

## Backwards through the layers

From the last layer to the first, every layer is told how the loss would change with what it put out (RMS of d loss / d
output), and turns that into a gradient for each of its weights (norm). Head and embeddings are one weight here:

{table(["layer", "d loss / d output, RMS", "gradient of its weights"], back)}

All {weights.count:,} gradients together have norm {number(slide.backward.grad_norm)}. That is more than
`max_grad_norm` = {number(slide.backward.max_grad_norm)}, so all of it is multiplied by
{number(slide.backward.clip_factor)}.

## The optimizer: how far to go

{optimizer.name} with learning rate {
        number(optimizer.learning_rate)
    } goes against the gradient, that many times its
length. One weight of the {weights.count:,}, `{chosen.tensor}{chosen.index}` ({chosen.why}):

{
        table(
            ["", "value"],
            [
                ["before", number(chosen.before, 7)],
                *[
                    [f"{name}" + (f" = {s.formula}" if s.formula else ""), number(s.value, 5)]
                    for name, s in ((stage.name, stage) for stage in chosen.stages)
                ],
                ["after", number(chosen.after, 7)],
            ],
        )
    }

With the same gradient, Adam and AdamW would have moved it by {
        number(chosen.would["adam"])
    } in their first step, as they
would nearly every other weight, whatever the size of its gradient.

## The weights before and after

{weights.asked:,} weights move, by {
        number(weights.update_ratio)
    } of their size in all: the two histograms lie on top of
one another. {weights.lost_share:.0%} of them are, rounded to bf16, the same after as before
({weights.lost_means}). Had they been stored in bf16, that part of the update would have been lost; that is
why surefoot keeps weights in fp32.

## After: is the right answer likelier?

{shown(first.target)} went from p = {number(target.p_before)} to {number(target.p_after)}, rank {
        target.rank_before
    } to
{target.rank_after}. With the new head alone it would be {number(target.p_head)}, with the new body alone
{number(target.p_body)}. The whole answers:

{table(["answer", "tokens", "p before", "p after"], texts)}

The watched cities became likelier too: one step on one example mostly says “name the city at once”, so they share in
what `The` lost. It takes many examples, and many steps, to say *which* city; `make demo` shows that.

## Promised and obtained

The gradient is a slope. The slope times the step promised {number(slide.promised)}; the loss went from
{number(slide.loss_before, 4)} to {number(slide.loss_after, 4)}, so the step gave {
        number(slide.obtained)
    }. They differ
because the ground curves, and this step was long enough to see it: on the local parabola the lowest point is at
{number(hill.lowest_at)} of it.

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="mountain-dark.png">
  <img alt="The loss along the update, with the slope and the parabola through where it began and landed"
   src="mountain-light.png">
</picture>

{
        table(
            ["how far along the update", "loss"],
            [[number(a), number(x, 4)] for a, x in zip(hill.along, hill.losses, strict=True)],
        )
    }

As the learning rate goes to 0, obtained over promised goes to 1; a test holds that.
"""


def main() -> None:
    """Explain, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", action="store_true", help="also take the pictures")
    args = parser.parse_args()
    view = worked_case()
    (HERE / "one-step.md").write_text(reflowed(page(view.slide)), encoding="utf-8")
    if args.pictures:
        with tempfile.TemporaryDirectory() as folder:
            screens.shoot(
                view.save_html(Path(folder) / "step.html"), {"one-step": None, "mountain": "#mountain"}
            )


if __name__ == "__main__":
    main()
