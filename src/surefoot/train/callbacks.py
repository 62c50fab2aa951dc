"""Hugging Face's own callbacks and reporters, driven by their own handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState

from surefoot.config import SFTConfig
from surefoot.errors import UserError
from surefoot.train.plain import pack, unpack


class Callbacks:
    """The callbacks of a run, and the state and control that they share."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        args: SFTConfig,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
    ) -> None:
        self.args = args
        self.state = TrainerState()
        self.control = TrainerControl()
        reporters = _reporters(args.report_to)
        # The handler wants the flow callback to be there; when to log and save is decided here, not by it.
        self.handler: Any = CallbackHandler(
            [DefaultFlowCallback, *reporters, *callbacks], model, tokenizer, None, None
        )
        self.handler.remove_callback(DefaultFlowCallback)
        self.tell("on_init_end")

    def tell(self, event: str, **what: Any) -> None:
        """Call `event` on every callback."""
        self.control = (
            self.handler.call_event(event, self.args, self.state, self.control, **what) or self.control
        )

    def listen(self, event: str) -> bool:
        """Whether a callback does anything at `event`."""
        return any(
            getattr(type(one), event, None) is not getattr(TrainerCallback, event)
            for one in self.handler.callbacks
        )

    def exported(self) -> dict[str, list[Any]]:
        """The state of those callbacks that have any to keep (Hugging Face's ExportableState), by class, in their
        order. Raises UserError when it is nothing that a checkpoint can hold."""
        found: dict[str, list[Any]] = {}
        for one in self._exporting():
            name = type(one).__name__
            found.setdefault(name, []).append(pack(one.state()["attributes"], name, None, None))
        return found

    def restore(self, exported: dict[str, list[Any]]) -> None:
        """Put back what `exported` gave; callbacks that were not there then stay as they are."""
        left = {name: iter(states) for name, states in exported.items()}
        for one in self._exporting():
            state = next(left.get(type(one).__name__, iter(())), None)
            if state is not None:
                for name, value in unpack(state, None, {}).items():
                    setattr(one, name, value)

    def _exporting(self) -> list[Any]:
        return [one for one in self.handler.callbacks if isinstance(one, ExportableState)]


def _reporters(report_to: str | list[str]) -> list[type[TrainerCallback]]:
    names = [report_to] if isinstance(report_to, str) else report_to
    names = [name for name in names if name not in ("none", "")]
    if not names:
        return []
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        return get_reporting_integration_callbacks(names)
    except ValueError as error:
        raise UserError(f"report_to: {error}") from None
