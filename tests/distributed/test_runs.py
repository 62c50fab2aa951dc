"""Runs on 1, 2 and 4 processes are the same run: events, slide, evaluation, weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import QUESTIONS, write_recipe
from tests.distributed.compared import alike
from tests.distributed.started import run
from tests.faults.children import Zygote, events

WATCH = [{"prompt": QUESTIONS[0][0], "completion": QUESTIONS[0][1][:3], "alternatives": ["Ro"]}]
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}
HELD_OUT = {"eval_strategy": "steps", "eval_steps": 4, "eval_samples": 2, "eval_exact_match": True}
SEEN = {"watch": WATCH, "slides": [5], "tensors_every": 4, "max_new_tokens": 6}
WEIGHTS = {"all": {}, "lora": LORA}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, zygote: Zygote) -> Path:
    """Recipes with everything that a run looks at, run by one process."""
    place = tmp_path_factory.mktemp("runs")
    plain = {"per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "load_best_model_at_end": True}
    for name, more in WEIGHTS.items():
        options = plain | HELD_OUT | SEEN | more
        write_recipe(
            place, tiny_folder, f"{name}.yaml", eval_dataset_name=str(place / "rows.jsonl"), **options
        )
        run(zygote, ["train", f"{name}.yaml", "--output_dir", f"{name}-1"], place, 1)
    return place


@pytest.mark.parametrize(
    ("weights", "count", "shard"),
    [
        *(("all", 2, "none"), ("all", 2, "full"), ("all", 4, "none"), ("all", 4, "full")),
        *(("lora", 2, "full"), ("lora", 4, "none")),
    ],
)
def test_any_number_of_processes_train_the_same(
    place: Path, zygote: Zygote, weights: str, count: int, shard: str
) -> None:
    one, name = f"{weights}-1", f"{weights}-{count}-{shard}"
    more = ["--output_dir", name, "--shard", shard, "--per_device_train_batch_size", 4 // count]
    run(zygote, ["train", f"{weights}.yaml", *more], place, count)
    alike(place / one, place / name, 2e-4)
    kinds = {event["type"] for event in events(place / name)}
    assert kinds >= {"start", "step", "tensors", "eval", "watch", "sample", "slide", "checkpoint", "end"}
    models = [AutoModelForCausalLM.from_pretrained(place / part / "model") for part in (one, name)]
    for (key, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")
    slides = [json.loads((place / p / "slides/step-00000005/slide.json").read_text()) for p in (one, name)]
    for key in ("loss_before", "loss_after", "promised", "obtained"):
        assert slides[0][key] == pytest.approx(slides[1][key], rel=1e-3)
    assert slides[0]["backward"]["grad_norm"] == pytest.approx(slides[1]["backward"]["grad_norm"], rel=1e-4)
