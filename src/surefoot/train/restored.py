"""Running a model at will, and finding it afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from surefoot.model.network import Network


@contextmanager
def restored(network: Network) -> Iterator[None]:
    """While open, there are no gradients at first, and the model may be run and differentiated at will. Then all
    is as it was: weights' gradients, what trains, buffers, settings of modules (training mode among them), random
    state. Weights are not looked after."""
    modules, parameters = list(network.model.modules()), list(network.model.parameters())
    plain = (bool, int, float, str, type(None))
    settings = [{k: v for k, v in vars(m).items() if isinstance(v, plain)} for m in modules]
    buffers = [{k: (b, None if b is None else b.clone()) for k, b in m._buffers.items()} for m in modules]
    trains = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with torch.random.fork_rng(devices=[network.device] if network.device.type == "cuda" else []):
            yield
    finally:
        for module, before, kept in zip(modules, settings, buffers, strict=True):
            vars(module).update(before)
            for name, (buffer, content) in kept.items():
                module._buffers[name] = buffer
                if buffer is not None and content is not None:
                    with torch.no_grad():
                        buffer.copy_(content)
        for parameter, training, gradient in trains:
            parameter.grad = None
            parameter.requires_grad_(training)
            parameter.grad = gradient
