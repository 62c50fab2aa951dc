"""Fault 26: one row too long for memory: layers recompute, or an error before step 1; never out of memory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import transformers as tf

from tests.conftest import write_rows
from tests.faults.children import Child, Zygote, events
from tests.faults.conftest import Recipe

MEMORY = "tests.faults.patches_resume:memory"


def test_recomputes_or_is_refused_before_the_first_step(
    zygote: Zygote, recipe: Recipe, tiny_folder: Path, tmp_path: Path
) -> None:
    config = tf.AutoConfig.from_pretrained(tiny_folder, num_hidden_layers=10)
    shutil.copytree(tiny_folder, tmp_path / "deep")
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    rows = [{"prompt": "q?", "completion": "yes"}] * 9 + [{"prompt": "q?", "completion": "x" * 100}]
    data = write_rows(tmp_path / "long.jsonl", rows)

    def train(free: int, name: str, **more: Any) -> tuple[Child, Path]:
        run = tmp_path / name
        options = {
            "dataset_name": str(data),
            "output_dir": str(run),
            "max_steps": 5,
            "micro_batch_tokens": 16,
        }
        path = recipe(f"{name}.yaml", **options, **more)
        return zygote.run(["train", path], tmp_path, patch=MEMORY, patch_args={"free": free}), run

    def plan(run: Path) -> dict[str, Any]:
        return json.loads((run / "run.json").read_text("utf-8"))["plan"]

    seen: dict[str, tuple[Child, Path]] = {}

    def kind(free: int) -> str:
        child, run = train(free, f"with-{free}")
        if child.wait() == 2:
            found = "too long" if ": an example of " in child.err else "weights"
        else:
            assert child.wait() == 0, child.err
            found = "recomputed" if plan(run)["checkpointed_layers"] else "fits"
        seen.setdefault(found, (child, run))
        return found

    # How much each takes is the planner's own measure: look for it, from what is far too little to plenty.
    for better in (("fits",), ("fits", "recomputed")):
        low, high = 1e4, 1e9
        while high / low > 1.05:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if kind(int(middle)) in better else (middle, high)
    assert set(seen) >= {"fits", "recomputed", "too long"}
    child, run = seen["too long"]
    said = child.err.partition("surefoot: ")[2]
    match = re.fullmatch(
        rf"{re.escape(str(data))}:10: an example of \d+ tokens needs .* of memory.*, and .* can be used: "
        r"set max_length=(\d+), or train an adapter \(use_peft=true\)\n",
        said,
    )
    assert match, child.err
    assert "Traceback" not in child.err and not events(run)
    losses = [
        [event["loss"] for event in events(seen[one][1]) if event["type"] == "step"]
        for one in ("recomputed", "fits")
    ]
    assert len(losses[0]) == 5 and losses[0] == losses[1]
