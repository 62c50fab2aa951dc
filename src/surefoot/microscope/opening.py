"""A real step, opened: the same update, with everything about it recorded.

1. `losses`: forward and backward passes, watched (capture); predictions and errors at some targets (predict); the
   head's gradient against its formula (head).
2. `update`: clip and step, one tensor at a time, each tensor's arithmetic kept (weights).
3. `slide`: the same examples once more, with the new weights; what the slope promised against what was obtained;
   the mountain. Then everything but the weights is as a step that was not opened leaves it, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from surefoot.data.rows import Example
from surefoot.microscope import mountain
from surefoot.microscope.batch import batch, layer_names, layers
from surefoot.microscope.capture import Capture
from surefoot.microscope.extras import influence, noise_scales
from surefoot.microscope.ground import Ground, NoMountain
from surefoot.microscope.head import head_panel, shown_rows
from surefoot.microscope.headline import alerts, headline
from surefoot.microscope.panels import Backward, Mountain, WatchedText
from surefoot.microscope.predict import Place, look, positions
from surefoot.microscope.records import Recorder
from surefoot.microscope.slide import Opened, Slide
from surefoot.microscope.spell import Speller
from surefoot.microscope.weights import WeightsWatch
from surefoot.model.network import Network, noise
from surefoot.train.evaluate import Watched, probabilities
from surefoot.train.optim import Optimizers
from surefoot.train.restored import restored
from surefoot.train.step import Change, Losses, divisor_of, update

Told = Callable[[int, int], None]
"""Is told, as opening a step goes on, how many passes over its examples are done and how many it takes in all."""
MOST_PLACES = 64
"""Targets whose predictions are kept whole, at most."""


@dataclass(frozen=True)
class Wish:
    """What to look at."""

    because: str
    places: tuple[Place, ...] | None = None
    """Targets to look at. Default: the first of the first example, and the three costliest."""
    watched: tuple[int, ...] = ()
    """Tokens that are always among the candidates."""
    texts: tuple[Watched, ...] = ()
    """Texts whose whole probability is taken before and after."""
    mountain: Literal["none", "cut", "surface"] = "cut"
    extras: bool = False
    """Noise scale and influence."""


class Opening:
    """One step under the microscope. Call `losses`, `update` and `slide` in this order; without `update` (it was
    refused), the slide ends before it."""

    def __init__(
        self,
        network: Network,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        budget: int,
        *,
        step: int,
        seed: int | None,
        wish: Wish,
        model_name: str,
        scratch: Path,
        told: Told = lambda done, total: None,
    ) -> None:
        self.network, self.examples, self.budget = network, examples, budget
        self.step, self.seed, self.wish, self.model_name = step, seed, wish, model_name
        self.divisor = divisor_of(examples)
        self.notes: list[str] = []
        self._speller = Speller(tokenizer)
        self._scratch = scratch
        self._stack = ExitStack()
        self._change: Change | None = None
        self._watch: WeightsWatch | None = None
        self.seconds = 0.0
        """What looking at the step took so far, besides the step."""
        self._told, self._passes = told, 0

    # Before ------------------------------------------------------------------------------------------------

    def losses(self) -> Losses:
        """The step's forward and backward passes, as `step.losses` makes them."""
        rows_shown = shown_rows(self.examples, self.wish.watched)
        trained_head = self.network.head is not None and self.network.head.weight_VD.requires_grad
        ids_R = torch.tensor(rows_shown, device=self.network.device) if trained_head else None
        self._capture = Capture(self.examples, ids_R)
        self._found = found = self._capture.losses(
            self.network, self.budget, backprop=True, seed=self.seed, noise=self.wish.extras
        )
        started = time.perf_counter()
        with torch.no_grad():
            self._before_update(found, rows_shown)
        self.seconds += time.perf_counter() - started
        self._advance()
        return found

    def _before_update(self, found: Losses, rows_shown: list[int]) -> None:
        network = self.network
        self._targets = targets = self._capture.targets()
        self._places = list(self.wish.places or self._telling_places(found))[:MOST_PLACES]
        at = [targets.place(place.example, place.target) for place in self._places]
        gradients = [(p, p.grad) for p in network.model.parameters()]
        hidden_KD = targets.hidden_ND[at] if targets.hidden_ND is not None else None
        with restored(network):
            self._look = look(network, self.examples, self._places, hidden_KD, self.divisor)
            self._texts = probabilities(network, self.wish.texts, self.budget)
        assert all(p.grad is g for p, g in gradients)
        self._head_panel = head_panel(
            network, targets, self.divisor, rows_shown, self._capture.head_rows_RD, self._speller
        )
        if self._head_panel.unknown:
            self.notes.append(self._head_panel.unknown)
        elif not self._head_panel.trained:
            self.notes.append(
                "the head is frozen: its rows get no gradient; Wᵀe is what flows back into the model"
            )

    def _telling_places(self, found: Losses) -> list[Place]:
        """The first target of the first example, and the three that cost most."""
        targets = self._targets
        cost_N = targets.nll_N.double() * targets.weight_N
        best = [int(i) for i in cost_N.topk(min(4, len(cost_N))).indices]
        chosen = list(dict.fromkeys([0, *best]))[:4]
        bounds = [*targets.first_E, len(cost_N)]
        example_of = [
            next(e for e in range(len(self.examples)) if bounds[e] <= n < bounds[e + 1]) for n in chosen
        ]
        return [Place(e, n - bounds[e]) for e, n in zip(example_of, chosen, strict=True)]

    # The update --------------------------------------------------------------------------------------------

    def update(self, optimizers: Optimizers, max_grad_norm: float) -> Change:
        """Clip and step, as `step.update` does. Raises NotFinite before anything is changed."""
        self.look_at_gradient(optimizers)
        watch = self._watch
        assert watch is not None
        self._change = update(optimizers, max_grad_norm, watch if watch.refused is None else None)
        self.seconds += watch.seconds
        return self._change

    def look_at_gradient(self, optimizers: Optimizers, recorder: Recorder | None = None) -> None:
        """What there is to say of the gradient before any update; all that there is, where none may follow.

        `recorder` is shown every tensor too, as in a step that is recorded but not opened.
        """
        if self._watch is not None:
            return
        started = time.perf_counter()
        ground = None
        if self.wish.mountain != "none":
            ground = self._stack.enter_context(Ground(self._scratch))
            if self.network.model.training and (drawn := noise(self.network.model)):
                self.notes.append(
                    f"the mountain is without {drawn}; the step's own losses and slope are with it"
                )
        self._watch = WeightsWatch(
            self.network, optimizers, layer_names(self.network), self._look, ground, recorder, self._speller
        )
        self.seconds += time.perf_counter() - started

    # After -------------------------------------------------------------------------------------------------

    def slide(self, max_grad_norm: float) -> Opened:
        """Everything recorded. Weights, gradients, modes and random state are as `update` left them."""
        started = time.perf_counter()
        with self._stack, restored(self.network), torch.no_grad():
            if self.failed is not None:
                raise self.failed
            slide, arrays = self._developed(max_grad_norm)
        self.seconds += time.perf_counter() - started
        seconds = {"opening": self.seconds}
        return Opened(slide=slide.model_copy(update={"seconds": seconds}), arrays=arrays)

    @property
    def failed(self) -> Exception | None:
        """What went wrong while the update was watched, which went on without being watched."""
        return self._watch.failed if self._watch is not None else None

    def close(self) -> None:
        """Give the disk its room back, where no slide is made."""
        self._stack.close()

    def _developed(self, max_grad_norm: float) -> tuple[Slide, dict[str, np.ndarray]]:
        network, found, change, watch = self.network, self._found, self._change, self._watch
        assert watch is not None, "look at the gradient first"
        later, after, parts, texts = None, None, None, None
        targets_after = None
        old_head = network.head
        if change is not None:
            capture = Capture(self.examples)
            later = capture.losses(network, self.budget, backprop=False, seed=self.seed)
            self._advance()
            targets_after = capture.targets()
            at = [targets_after.place(place.example, place.target) for place in self._places]
            hidden_KD = targets_after.hidden_ND[at] if targets_after.hidden_ND is not None else None
            after = look(network, self.examples, self._places, hidden_KD, self.divisor)
            old_head = watch.old_head(network.head)
            if old_head is not None and hidden_KD is not None:
                parts = (
                    look(network, self.examples, self._places, self._look.hidden_KD, self.divisor),
                    look(network, self.examples, self._places, hidden_KD, self.divisor, old_head),
                )
            texts = probabilities(network, self.wish.texts, self.budget)
        shown, arrays = positions(
            self.examples,
            self._places,
            self._look,
            after,
            parts,
            network,
            old_head,
            self.wish.watched,
            self._speller,
        )
        tensors = watch.tensors()
        weights, counts = watch.weights() if change is not None else (None, {})
        promised = watch.slope if change is not None and watch.refused is None else None
        hill, surface = self._mountain(promised)
        grad_norm = change.grad_norm if change is not None else float("nan")
        slide = Slide(
            step=self.step,
            model=self.model_name,
            opened_because=self.wish.because,
            precision=self._precision(),
            headline="",
            notes=[*self.notes, *watch.notes],
            alerts=[],
            loss_before=found.loss,
            loss_after=later.loss if later is not None else None,
            promised=promised,
            obtained=later.loss - found.loss if later is not None else None,
            batch=batch(self.examples, found, self.divisor, self._targets, targets_after, self._speller),
            positions=shown,
            watched=self._watched(texts),
            head=self._head_panel,
            backward=Backward(
                grad_norm=grad_norm,
                max_grad_norm=max_grad_norm,
                clip_factor=change.clip_factor if change is not None else 1.0,
            ),
            layers=layers(tensors, self._capture.rms()),
            tensors=tensors,
            optimizer=watch.optimizer(),
            chosen=watch.chosen,
            weights=weights,
            mountain=hill,
            noise=noise_scales(self._capture.norms),
            influence=influence(
                replace(network, head=old_head), self._look, self._targets, self.divisor, self.examples
            )
            if self.wish.extras
            else [],
        )
        slide = slide.model_copy(update={"headline": headline(slide), "alerts": alerts(slide)})
        return slide, {**arrays, **counts, **surface}

    def _mountain(self, slope: float | None) -> tuple[Mountain | None, dict[str, np.ndarray]]:
        ground = self._watch.ground if self._watch is not None else None
        if ground is None or slope is None:
            return None, {}
        try:
            probe = f"the step's own {len(self.examples):,} example{'s' * (len(self.examples) > 1)}"
            of = (ground, self.network, self.examples, self.budget)
            if self.wish.mountain == "surface":
                hill, heights = mountain.surface(*of, slope=slope, probe=probe, advance=self._advance)
                return hill, {mountain.SURFACE: heights}
            return mountain.cut(*of, slope=slope, probe=probe, advance=self._advance), {}
        except NoMountain as error:
            self.notes.append(f"no mountain: {error}")
            return None, {}

    def _advance(self) -> None:
        """Of the passes over the examples: the step's own, the one after it, and the points of the mountain."""
        self._passes += 1
        points = {"none": 0, "cut": len(mountain.ALONG), "surface": mountain.STEPS**2}[self.wish.mountain]
        self._told(self._passes, 2 + points)

    def _watched(self, after: list[dict[str, float]] | None) -> list[WatchedText]:
        found = []
        for number, one in enumerate(self.wish.texts):
            for text, example in zip(one.texts, one.examples, strict=True):
                found.append(
                    WatchedText(
                        text=text,
                        tokens=[self._speller.one(int(token)) for token in example.completion_ids],
                        p_before=self._texts[number][text],
                        p_after=after[number][text] if after is not None else None,
                    )
                )
        return found

    def _precision(self) -> dict[str, str]:
        types = sorted({str(p.dtype).removeprefix("torch.") for p in self.network.model.parameters()})
        products = self.network.product_dtype
        name = str(products).removeprefix("torch.") if products is not None else " and ".join(types)
        return {"weights": " and ".join(types), "products": name}
