"""What a child finds otherwise than its parent: its machine, its memory, the numbers of a step."""

from __future__ import annotations

from typing import Any


def machine(threads: int, device: str, torch_version: str) -> None:
    """Another number of threads, another device, another torch."""
    import torch

    from surefoot.train import setup, trainer

    torch.set_num_threads(threads)
    setup._device_name = lambda place: device
    plain = trainer.describe

    def describe(*given: Any) -> dict[str, Any]:
        content = plain(*given)
        content["versions"]["torch"] = torch_version
        return content

    trainer.describe = describe


def poison(step: int, value: float, where: str) -> None:
    """From update number `step` on, the loss is `value`, or one entry of the gradient."""
    from surefoot.microscope import capture
    from surefoot.microscope import run as microscope
    from surefoot.train import step as steps

    plain = steps.losses

    def losses(network: Any, *given: Any, seed: int | None = None, backprop: bool, **more: Any) -> Any:
        found = plain(network, *given, seed=seed, backprop=backprop, **more)
        if not (backprop and seed is not None and seed >= steps.seed_of(7, step - 1)):
            return found
        if where == "loss":
            vars(found)["loss"] = value
        else:
            gradient = next(p.grad for p in network.model.parameters() if p.grad is not None)
            gradient.view(-1)[0] = value
        return found

    microscope.losses = losses
    if hasattr(capture, "losses"):
        capture.losses = losses


def memory(free: int) -> None:
    """So many bytes are free."""
    from surefoot.train import hardware

    hardware.free_bytes = lambda place: free
