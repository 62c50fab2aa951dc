"""The parts of a slide, panel by panel, with what each number means.

Losses are in nats. Gradients are those of the step's loss, normalised once by the step's targets, and not clipped
unless the name says so. "Before" and "after" are before and after the one update.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of a slide: checked when it is read, never changed."""

    # Numbers that are not finite are written as the words NaN and Infinity, which JSON can hold.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class Histogram(Part):
    """Counts between edges; `outside` lie below the first or above the last."""

    edges: list[float]
    counts: list[int]
    zeros: int = 0
    """Values that are exactly 0, where the axis is logarithmic."""
    outside: int = 0


class Token(Part):
    """A token of an example as the batch panel shows it."""

    text: str
    id: int
    loss: float | None = None
    """−log p before the update; None for tokens that are not learned."""
    loss_after: float | None = None


class BatchExample(Part):
    """An example of the step."""

    where: str
    """Its row: `file:line` or `dataset[index]`."""
    weight: float
    loss: float
    """Sum of −log p over its targets, before the update."""
    loss_after: float | None
    share: float
    """Its part of the step's loss, weights included; the parts of all examples add up to 1."""
    supervised: int
    left_out: int
    """Tokens at its beginning that are not in `tokens`: the end of a long prompt is enough."""
    tokens: list[Token]


class Batch(Part):
    """Panel 1: what the step was made of."""

    tokens: int
    """Of the examples as the user brought them, prompts included."""
    supervised: int
    slots: int
    """Tokens that went through the model: fewer where prefixes are shared."""
    micro_batches: int
    divisor: float
    """Sum of the targets' weights: what the loss is divided by, once."""
    examples: list[BatchExample]
    examples_left_out: int
    """Examples of the step that are not in `examples`."""


class Candidate(Part):
    """A token that might have come next: a row of the prediction table and of the error column."""

    token: str
    id: int
    is_target: bool
    is_watched: bool
    p_before: float
    rank_before: int
    """1 is the likeliest."""
    logit_before: float
    error: float
    """d loss / d logit = w · (p − y), w the target's weight over the step's divisor. Negative for the target."""
    error_raw: float
    """p − y."""
    error_product: float
    """d loss / d (W h): `error` unless the head scales or soft-caps its logits."""
    p_after: float | None = None
    rank_after: int | None = None
    p_head: float | None = None
    """p with the new head on the old hidden state: the head's part of the change."""
    p_body: float | None = None
    """p with the old head on the new hidden state: the body's part of the change."""


class Rest(Part):
    """All tokens that are no candidates, added up."""

    tokens: int
    p_before: float
    error: float
    p_after: float | None = None


class HeadRow(Part):
    """Gradient of one row of the head."""

    token: str
    id: int
    norm: float
    """Of the formula, error × hidden state (for a whole step: Σ over its targets)."""
    max_abs_difference_from_autograd: float | None
    """Largest difference of an entry of the formula from what autograd computed; None: not compared."""
    largest: float
    """Largest entry of the row, in size: what that difference is to be compared with."""
    input_norm: float | None = None
    """Tied embeddings: norm of what the input side adds to the same weight's row."""
    total_norm: float | None = None
    """Norm of the row's whole gradient, as the optimizer gets it."""


class Position(Part):
    """Panels 2, 3, 4 and 9 for one target."""

    where: str
    """The example's row."""
    index: int
    """Which of the example's targets, from 0."""
    token: str
    """The token that predicts: the last one seen."""
    target: str
    target_id: int
    weight: float
    """Normalised: the target's weight over the step's divisor."""
    loss_before: float
    rank_before: int
    entropy_before: float
    loss_after: float | None = None
    rank_after: int | None = None
    entropy_after: float | None = None
    kl: float | None = None
    """KL(before ‖ after) of the whole prediction, in nats."""
    candidates: list[Candidate]
    """By p_before, falling: the likeliest 20, the likeliest 10 after the update, the target, the watched."""
    rest: Rest
    error_sum: float
    """The sum of the whole column of errors: 0 but for rounding."""
    hidden_norm: float | None
    """‖h‖ of the hidden state that predicts; None where the head's formula is not known."""
    hidden: str | None
    """Name of the array of h [D]."""
    flows_back: str | None
    """Name of the array Wᵀe [D], the gradient that goes down into the model from here."""
    flows_back_norm: float | None
    head_rows: list[HeadRow]
    """The rows of target and watched tokens, for this position alone: e · h, rank one."""


class WatchedText(Part):
    """The probability of a whole text as the answer: the product over its tokens."""

    text: str
    tokens: list[str]
    p_before: float
    p_after: float | None = None


class Head(Part):
    """Panel 4 for the whole step: gradient of row v = Σ_t e_t[v] · h_t."""

    trained: bool
    tied: bool
    """The head's weight is the embeddings' weight too, so gradients of both sides add up."""
    scale: float
    softcap: float | None
    bias: bool
    unknown: str | None = None
    """Why the formula is not known, so that rows cannot be shown."""
    rows: list[HeadRow]
    top_rows: list[HeadRow]
    """The ten rows of the largest gradient."""
    norms: Histogram | None
    """log10 of the norms of all rows that are not zero."""


class Layer(Part):
    """A block of the model on the way back, from the head to the embeddings."""

    name: str
    grad_norm: float
    """Of all its trained weights; 0 where it has none of its own, such as embeddings that are the head too."""
    share: float
    """Of the squared norm of the whole gradient."""
    hidden_grad_rms: float | None
    """Root mean square of d loss / d (its output), over all slots of the step."""
    weight_norm: float
    update_norm: float | None
    update_ratio: float | None
    """‖Δ‖ / ‖θ‖."""


class TensorRecord(Part):
    """A trained weight tensor: from the gradient to the stored value. Lists go from the head to the embeddings."""

    name: str
    shape: list[int]
    dtype: str
    layer: str
    """Name of the layer it belongs to."""
    grad_norm: float
    share: float
    zero_share: float
    """Share of its gradient's entries that are exactly 0."""
    weight_norm: float
    """Before the update."""
    update_norm: float | None
    update_ratio: float | None
    lost_share: float | None
    """Of the entries that the update would move, those that rounding to bf16 leaves where they were."""
    rms: dict[str, float]
    """Root mean square at each stage of the optimizer's arithmetic, in its order: g, clipped g, ..., Δ."""


class Backward(Part):
    """Panel 5: the gradient as a whole."""

    grad_norm: float
    max_grad_norm: float
    """0: not clipped."""
    clip_factor: float


class Stage(Part):
    """One line of the optimizer's arithmetic for one weight."""

    name: str
    """g, clipped g, m, v, m̂, v̂, −η·m̂/(√v̂+ε), −ηλθ, Δ, ..."""
    value: float
    formula: str = ""
    """The line with its numbers or symbols, such as "0.9 · m + 0.1 · g"."""


class ChosenWeight(Part):
    """Panel 6 for one weight: every line from the gradient to the stored value."""

    tensor: str
    index: list[int]
    why: str
    """Why this one: "Sacramento's row of the head, where |h| is largest"."""
    before: float
    stages: list[Stage]
    after: float
    """As stored."""
    replay_error: float | None
    """before + Δ as computed here, minus what the optimizer stored."""
    would: dict[str, float]
    """Δ that `sgd`, `adam` and `adamw` would have made of the same gradient, at the same learning rate."""
    would_state: str
    """The optimizer state that they are given: "the run's own" or "none, as in a first step"."""


class OptimizerRecord(Part):
    """Which arithmetic it was."""

    name: str
    learning_rate: float
    settings: dict[str, Any]
    updates_before: int
    """Updates that its state had seen before this one."""
    refused: str | None = None
    """Why its arithmetic and the change of the weights were not recorded."""


class Weights(Part):
    """Panel 7: all trained weights before and after."""

    count: int
    dtype: str
    asked: int
    """Weights that the update moves: Δ ≠ 0."""
    lost: int
    """Of these, the ones that are the same in bf16 after as before."""
    lost_share: float
    lost_means: str
    """"lost: the weights are bf16" or "kept: the weights are float32; only their bf16 copies are unchanged"."""
    stored_lost: int
    """Of the asked, the ones whose stored value did not change."""
    weight_norm: float
    update_norm: float
    update_ratio: float
    before: Histogram
    after: Histogram
    """Over the same edges as `before`."""
    change: Histogram
    """log10 |Δ|."""
    counts_before: str
    counts_after: str
    """Names of the arrays int64 [65536] of exact counts by the top 16 bits of each float32 weight."""


class Mountain(Part):
    """Panel 8: altitude = loss on the probe batch, along this update and, on request, across it."""

    probe: str
    """Which rows the loss is of."""
    caption: str
    along: list[float]
    """1 is this update, 0 where the weights stood."""
    losses: list[float]
    """At `along`, nothing across."""
    slope: float
    """d loss / d along at 0: g·Δ."""
    curvature: float
    """Of the parabola through the two ends of the update with that slope."""
    lowest_at: float | None
    """Where on that parabola the lowest point is; None if it has none."""
    across: list[float] = Field(default_factory=list)
    across_is: str = ""
    """What the other axis is."""
    surface: str | None = None
    """Name of the array [across, along] of losses."""


class NoiseScale(Part):
    """Panel 10: how noisy the gradient is, from the micro-batches (McCandlish et al. 2018, appendix A)."""

    batch: float
    """B and b: weights of the targets of the step and of its part."""
    part: float
    grad_norm_squared: float
    """|G|², estimated."""
    trace: float
    """S, the trace of the covariance of one target's gradient, estimated."""
    noise_scale: float | None
    """S / |G|², in targets; None where |G|² came out negative: too few targets to tell."""


class Influence(Part):
    """Panel 10: which examples pushed a target's loss which way, through the head alone."""

    position: int
    """Index in `positions`."""
    examples: list[tuple[str, float]]
    """(row, −Σ_s ⟨e_s, e_t⟩⟨h_s, h_t⟩): change of the loss per unit of a plain gradient step on the head.
    Negative: it helped."""
