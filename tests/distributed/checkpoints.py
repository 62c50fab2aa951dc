"""What several ranks save, load, and make of a save that fails on one of them: the ranks' side of the tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from surefoot import SFTConfig
from surefoot.errors import StoppedError, UserError
from surefoot.events import Event
from surefoot.model import save as model_save
from surefoot.model.network import Network, look_at
from surefoot.ranks import rank, ranks
from surefoot.runfolder import RunFolder
from surefoot.train import agreement, result, saver
from surefoot.train.checkpoint import Snapshot, kept_tensors, load
from surefoot.train.distributed import shard, shard_state
from surefoot.train.identity import weights_digest
from surefoot.train.keeping import Keeping
from surefoot.train.manifest import Progress
from surefoot.train.optim import Optimizers, build
from surefoot.train.pieces import settled
from surefoot.train.resume import Start
from surefoot.train.saver import Saver
from surefoot.train.step import losses, update
from surefoot.train.storage import Storage
from tests import tiny
from tests.distributed.failing import FAULTS, FULL, Failing, TooLarge, hearing_no_verdict, raising
from tests.distributed.ranks import BUDGET, Case, model_of, steps, whole

CASES = [
    Case("llama_tied", "adamw_torch"),
    Case(optim="sgd", optim_args="momentum=0.9"),
    Case("gemma2", "adafactor", "scale_parameter=true"),
    Case(optim="muon"),
    Case("mixtral", "adafactor"),
    Case(lora=True),
]
"""Tied weights; matrices of rows and columns on the side; experts (three dimensions); weights of a single row,
which most ranks have nothing of."""
AT = 2
"""The step after which all cases are saved."""


def prepared(case: Case, sharded: bool) -> tuple[Network, Optimizers]:
    net, args = model_of(case, 0.1)
    network = look_at(net, steps()[0], None)
    network = shard(network) if sharded else network
    optimizers = build(net, args)
    shard_state(optimizers)
    return network, optimizers


def trained(case: Case, sharded: bool) -> tuple[Network, Optimizers]:
    network, optimizers = prepared(case, sharded)
    for examples in steps()[:AT]:
        losses(network, examples, BUDGET, backprop=True)
        update(optimizers, 1.0)
        optimizers.zero_grad()
    return network, optimizers


def loaded(case: Case, sharded: bool, path: Path) -> tuple[Network, Optimizers]:
    network, optimizers = prepared(case, sharded)
    with torch.no_grad():
        for parameter in network.model.parameters():
            if parameter.requires_grad:  # what is not loaded is seen
                parameter.zero_()
    assert load(path, network.model, optimizers).step == AT
    return network, optimizers


def state_of(network: Network, optimizers: Optimizers) -> dict[str, Any]:
    """Hashes of all that was kept, whole."""
    tensors, plain = optimizers.state()
    groups = optimizers.groups_state(tensors)
    tensors = {**kept_tensors(network.model), **settled(tensors)}
    found = {name: hashlib.sha256(whole(t).numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    return {"tensors": found, "plain": json.loads(json.dumps([plain, groups]))}


def outlook(network: Network, optimizers: Optimizers) -> list[float]:
    """Loss of the next step, and of that after it: weights and optimizer state decide them."""
    found = []
    for examples in steps()[::-1][:2]:
        found.append(losses(network, examples, BUDGET, backprop=True).loss)
        update(optimizers, 1.0)
        optimizers.zero_grad()
    return found


def said_of(network: Network, optimizers: Optimizers) -> dict[str, Any]:
    return {
        "state": state_of(network, optimizers),
        "digest": weights_digest(network.model),
        "frozen": weights_digest(network.model, frozen_only=True),
        "outlook": outlook(network, optimizers),
    }


def saver_of(folder: Path, **more: Any) -> Saver:
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.jsonl").touch()
    made = Saver(
        RunFolder(folder),
        **{"limit": None, "memory_left": lambda: 1 << 40, "timeout_seconds": 30.0} | more,
    )
    made.begin(0)
    return made


def save(network: Network, optimizers: Optimizers, folder: Path) -> None:
    (event,) = saver_of(folder).save(snapshot(network, optimizers), None, wait=True)
    assert event.type == "checkpoint", event


def snapshot(network: Network, optimizers: Optimizers, step: int = AT) -> Snapshot:
    return Snapshot(network.model, optimizers, Progress(step=step), "the test")


def path_of(folder: Path, step: int = AT) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


# The cases, on two ranks, and on any number ---------------------------------------------------------------


def leave_trained(case: Case, folder: Path) -> dict[str, Any]:
    """Saved sharded, loaded by ranks that each hold all, and saved by them; the model as it is handed out."""
    network, optimizers = trained(case, sharded=True)
    save(network, optimizers, folder / "full")
    partial_save = partial(model_save.save, network.model, tiny.tokenizer())
    result.save_result(RunFolder(folder / "full"), partial_save, lambda _: None)
    found = {"full": said_of(network, optimizers)}
    network, optimizers = loaded(case, False, path_of(folder / "full"))
    save(network, optimizers, folder / "none")
    return found | {"none": said_of(network, optimizers)}


def leave_loaded(case: Case, folder: Path) -> dict[str, Any]:
    """Loaded, sharded, from what other numbers of ranks have saved; and saved again."""
    network, optimizers = loaded(case, True, path_of(folder / "none"))
    found = {"of one": said_of(network, optimizers)}
    network, optimizers = loaded(case, True, path_of(folder / "full"))
    save(network, optimizers, folder / f"full-{ranks()}")
    return found | {"of two": said_of(network, optimizers)}


# Saves that fail ------------------------------------------------------------------------------------------


def leave_faults(folder: Path) -> dict[str, Any]:
    """One save that works, one with a fault, one more; of each, what was said and what is there."""
    network, optimizers = trained(CASES[0], sharded=True)
    found: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        for wait in (True, False):
            place = folder / f"{name}-{wait}"
            how = fault()
            events, free, deaf = how.pop("events", None), how.pop("free", False), how.pop("deaf", False)
            good = saver_of(place)
            good.save(snapshot(network, optimizers, 1), None, wait=True)
            one = saver_of(place, **how)
            one.sound |= good.sound
            if events is not None and rank() == 0:
                one.run.sync_events = events  # type: ignore[method-assign]
            now = snapshot(network, optimizers, 2)
            if free:
                own = now.bytes + saver.SMALL_FILES_BYTES
                one.storage.free_bytes = lambda _, own=own: own + 1  # type: ignore[method-assign]
            with hearing_no_verdict() if deaf and rank() == 1 else nullcontext():
                said = one.save(now, None, wait=wait)
                said += one.finish()
            dist.barrier()  # the first one has taken away what is left
            left = sorted(path.name for path in (place / "checkpoints").iterdir())
            dist.barrier()  # all have looked
            one.storage, one.run.sync_events = Storage(), lambda: None  # type: ignore[method-assign]
            one.timeout_seconds = 30.0
            said_then = one.save(snapshot(network, optimizers, 3), None, wait=True)
            found[place.name] = {
                "said": [event.to_dict() for event in said],
                "left": left,
                "sound": sorted(one.sound),
                "then": [event.type for event in said_then],
            }
    return found


def leave_refusals(folder: Path) -> dict[str, Any]:
    network, optimizers = trained(CASES[0], sharded=True)

    def refused(do: Callable[[], Any]) -> list[str]:
        try:
            do()
        except (UserError, StoppedError) as error:
            return [type(error).__name__, str(error)]
        return ["nothing", ""]

    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "LOOK_SECONDS", 0.3)
        found["apart"] = refused(lambda: saver_of(folder / f"apart-{rank()}"))
        patch.setattr(saver, "WAITS", (0.01, 0.02))
        one = saver_of(folder / "surely", storage=Failing(1, "write", raising(FULL), times=99))
        said: list[Event] = []
        make = partial(snapshot, network, optimizers)
        found["surely"] = refused(lambda: one.save_surely(make, None, said.append))
        found["alerts"] = [event.type for event in said]
        one.storage = Failing(1, "write", raising(FULL), times=2)
        one.save_surely(make, None, said.append)
        found["at last"] = sorted(one.sound)
        one.save_surely(make, None, said.append)  # it is there
        optimizers.parts[0].param_groups[0]["seen"] = rank()
        found["needed"] = needed(network, optimizers, folder)
        found["parted"] = refused(lambda: one.save(make(), None))
    return found


def needed(network: Network, optimizers: Optimizers, folder: Path) -> int:
    """The bytes that a run asks for before it begins."""
    asked: list[int] = []
    nobody: Any = None
    keeping = Keeping(
        run=RunFolder(folder), args=SFTConfig(folder), network=network, optimizers=optimizers,
        progress=Progress(), callbacks=nobody, emit=nobody,
    )  # fmt: skip
    keeping.saver.begin = asked.append  # type: ignore[method-assign]
    keeping.begin(Start(None, own=False))
    return asked[0]


def leave_results(folder: Path) -> dict[str, Any]:
    """Saving the model fails on one rank: for a while, then for good, then for another reason."""
    network, _ = prepared(CASES[0], sharded=True)
    run = RunFolder(folder / "model-run")
    run.path.mkdir(exist_ok=True)
    said: list[str] = []
    found: dict[str, Any] = {}
    original, gathered = model_save.save_file, model_save.DTensor.full_tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "WAITS", (0.01, 0.02))
        bug = ValueError("a bug")
        cases = (("once", FULL, 1), ("for good", FULL, 9), ("bug", bug, 1), ("memory", bug, 0))
        for name, error, times in cases:
            left = {"times": times}

            def failing(*given: Any, error: Exception = error, left: dict[str, int] = left) -> None:
                if rank() == 1 and left["times"]:
                    left["times"] -= 1
                    raise error
                original(*given)

            def without(tensor: Any, name: str = name) -> Any:
                whole = gathered(tensor)
                return TooLarge() if name == "memory" and rank() == 1 else whole

            patch.setattr(model_save, "save_file", failing)
            patch.setattr(model_save.DTensor, "full_tensor", without)
            write = partial(model_save.save, network.model, tiny.tokenizer())
            try:
                result.save_result(run, write, said.append)
                found[name] = "saved"
            except (ValueError, RuntimeError, StoppedError) as caught:
                found[name] = f"{type(caught).__name__}: {caught}"
            dist.barrier()
            found[f"{name}, left"] = sorted(path.name for path in run.path.iterdir())
            dist.barrier()
    return found | {"said": said}


# The processes --------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """One of two processes that train and save, or of more that load."""
    found: dict[str, Any] = {}
    for case in CASES:
        with case.arithmetic:
            leave = leave_trained if ranks() == 2 else leave_loaded
            found[case.name] = leave(case, folder / case.name)
    if ranks() == 2:
        found["faults"] = leave_faults(folder)
        found["refusals"] = leave_refusals(folder)
        found["results"] = leave_results(folder)
    (folder / f"said-{ranks()}.{rank()}.json").write_text(json.dumps(found))
