"""A model that is drawn and then filled is the one that is loaded whole, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Chunk, Transpose, WeightConverter

from surefoot.errors import UserError
from surefoot.model import filling, sources
from surefoot.model.adapters import adapt
from surefoot.model.blueprint import adapted, blueprint
from surefoot.model.excerpt import excerpt, transferred
from surefoot.model.filling import fill, fill_model, whole_tensors
from surefoot.model.load import load
from surefoot.model.network import Network, head_of, look_at
from surefoot.model.sources import Joined, NoBlueprint, OnFile, Reader, Source, Traced
from tests import tiny
from tests.security.hostile import edit

CPU = torch.device("cpu")
Spoil = Callable[[Path], object]


def saved(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, **config: Any) -> str:
    """A tiny model's folder."""
    model = tiny.model(architecture, dtype, **config)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("llama"), "llama_tied")


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(model: torch.nn.Module, whole: torch.nn.Module) -> None:
    """Every parameter and buffer: value, type, whether it trains, with which others it is one."""
    own, others = tensors(model), tensors(whole)
    assert own.keys() == others.keys()
    for name, tensor in others.items():
        assert own[name].dtype == tensor.dtype, name
        assert own[name].requires_grad == tensor.requires_grad, name
        assert torch.equal(own[name], tensor), name
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]


# The whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*tiny.CONFIGS, *tiny.FURTHER])
def test_a_drawn_model_is_the_loaded_one(architecture: str, tmp_path: Path) -> None:
    name = saved(tmp_path, architecture)
    edit(tmp_path / "generation_config.json", top_k=7)
    drawn = blueprint(name, dtype=torch.float64)
    assert all(p.is_meta for p in drawn.model.parameters())
    assert not any(b.is_meta for b in drawn.model.buffers())
    whole = load(name, dtype=torch.float64).model
    assert isinstance(whole, tf.PreTrainedModel)
    kept = [id(p) for p in drawn.model.parameters()]
    fill_model(drawn.model, CPU)
    assert [id(p) for p in drawn.model.parameters()] == kept
    assert_same(drawn.model, whole)
    assert drawn.model.config.to_dict() == whole.config.to_dict()
    assert drawn.model.name_or_path == whole.name_or_path
    assert drawn.model.training == whole.training
    assert drawn.model.generation_config.to_dict() == whole.generation_config.to_dict()
    ids = torch.arange(3, 40)[None]
    for model in (drawn.model, whole):
        model.set_experts_implementation("eager")  # the other ways to compute experts know no float64
    with torch.no_grad():
        assert torch.equal(drawn.model(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    drawn = blueprint(str(tmp_path))
    fill_model(drawn.model, CPU)
    assert_same(drawn.model, load(str(tmp_path)).model)


def test_names_without_the_base_models_prefix(tmp_path: Path) -> None:
    tiny.model("llama_tied", torch.float32).model.save_pretrained(tmp_path)  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    drawn = blueprint(str(tmp_path))
    fill_model(drawn.model, CPU)
    assert_same(drawn.model, load(str(tmp_path)).model)


def test_what_is_not_the_models_is_said(llama: str, tmp_path: Path) -> None:
    spoiled = copied(llama, tmp_path)
    change(spoiled, lambda held: held.update(stray=torch.zeros(2), other=torch.zeros(2)))
    assert blueprint(str(spoiled)).notes == ("not part of the model, so not read: other and 1 others",)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_types(kept: torch.dtype, dtype: torch.dtype | None, tmp_path: Path) -> None:
    name = saved(tmp_path, "llama", kept)
    drawn = blueprint(name, dtype=dtype)
    fill_model(drawn.model, CPU)
    assert_same(drawn.model, load(name, dtype=dtype).model)


def test_a_type_set_in_between_casts_what_loading_would_have_given(tmp_path: Path) -> None:
    name = saved(tmp_path, "llama", torch.float32)
    edit(tmp_path / "config.json", dtype="float16")
    drawn, whole = blueprint(name, dtype=None).model, load(name, dtype=None).model
    for model in (drawn, whole):
        for parameter in model.parameters():
            assert parameter.dtype == torch.float16
            parameter.data = parameter.data.to(torch.float32)
    fill_model(drawn, CPU)
    assert_same(drawn, whole)


def test_buffers_on_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    build = LlamaMLP.__init__

    def with_buffer(self: LlamaMLP, config: Any) -> None:
        build(self, config)
        self.register_buffer("scale", torch.randn(3))
        self.register_buffer("steps", torch.tensor(7))

    monkeypatch.setattr(LlamaMLP, "__init__", with_buffer)
    name = saved(tmp_path, "llama")
    drawn = blueprint(name)
    fill_model(drawn.model, CPU)
    assert_same(drawn.model, load(name).model)
    assert drawn.model.model.layers[1].mlp.scale.any()  # type: ignore[union-attr,index]


def test_each_tensor_by_itself(llama: str) -> None:
    found = {name: read() for name, read in whole_tensors(blueprint(llama).model)}
    whole = dict(load(llama).model.named_parameters())
    assert list(found) == list(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


# No blueprint ----------------------------------------------------------------------------------------------


def copied(llama: str, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(llama, tmp_path / "spoiled"))


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    held = load_file(folder / "model.safetensors")
    how(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def held(how: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    return partial(change, how=how)


def config(**changed: Any) -> Spoil:
    return lambda folder: edit(folder / "config.json", **changed)


NORM = "model.norm.weight"
REFUSED: list[tuple[Spoil, str]] = [
    (held(lambda x: x.pop(NORM)), "model.norm.weight is not in the weight files"),
    (held(lambda x: x.update({NORM: torch.ones(7)})), "does not build it without memory"),
    (held(lambda x: x.update({NORM: x[NORM].to(torch.float8_e4m3fn)})), "is of type F8_E4M3"),
    (
        held(lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"] + 1})),
        "lm_head.weight and model.embed_tokens.weight are both in the weight files",
    ),
    (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "its weights are quantised",
    ),
    (lambda folder: edit(folder / "adapter_config.json", peft_type="LORA"), "an adapter is read onto"),
]


@pytest.mark.parametrize(("spoil", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_no_blueprint(llama: str, tmp_path: Path, spoil: Spoil, said: str) -> None:
    folder = copied(llama, tmp_path)
    spoil(folder)
    with pytest.raises(NoBlueprint, match=said):
        blueprint(str(folder))


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (Transpose(0, 1), r"converted \(Transpose\)"),
        (Chunk(dim=0), "q_proj.weight is not in the weight files"),
    ],
    ids=["transposed", "cut"],
)
def test_none_where_weights_are_converted(
    operation: Any, said: str, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proj = "self_attn.{}_proj.weight"
    cut = isinstance(operation, Chunk)
    targets = [proj.format(name) for name in ("k", "v")] if cut else proj.format("q")
    conversion = WeightConverter(proj.format("q"), targets, operations=[operation])
    from transformers import conversion_mapping

    monkeypatch.setattr(
        conversion_mapping,
        "get_checkpoint_conversion_mapping",
        lambda kind: {"llama": [conversion], "legacy": []}.get(kind),
    )
    with pytest.raises(NoBlueprint, match=said):
        blueprint(llama)


def test_experts_that_are_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.model("mixtral", torch.float32).save_pretrained(tmp_path, max_shard_size="7KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    drawn = blueprint(str(tmp_path))
    monkeypatch.setattr(filling, "PIECE", 1)  # expert by expert
    monkeypatch.setattr(sources, "OPEN_FILES", 2)
    fill_model(drawn.model, CPU)
    assert_same(drawn.model, load(str(tmp_path)).model)
    assert len(list(tmp_path.glob("*.safetensors"))) > 10


def test_a_part_or_another_form_of_a_tensor_is_not_that_tensor() -> None:
    source, traced = Source(Path("x"), "x", (4, 4), torch.float32), Traced()
    made = OnFile(source, traced).to(device="cpu")
    assert traced.source(made) == traced.source(torch.nn.Parameter(made)) == source
    for other in (made.T, made[:2], made.view(2, 8), made.view(torch.int32), made + 0, made.clone()):
        assert traced.source(other) is None


def test_rows_of_what_is_joined(tmp_path: Path) -> None:
    held = {name: torch.randn(shape) for name, shape in {"a": (3, 4), "b": (2, 4), "c": (3, 4)}.items()}
    save_file(held, tmp_path / "x.safetensors")
    leaf = {
        name: Source(tmp_path / "x.safetensors", name, tuple(t.shape), t.dtype) for name, t in held.items()
    }
    a, b, c = leaf["a"], leaf["b"], leaf["c"]
    for dim, stacked, parts in (
        (0, False, "abc"),
        (1, False, "ac"),
        (0, True, "ac"),
        (1, True, "ac"),
        (2, True, "ca"),
    ):
        join = torch.stack if stacked else torch.cat
        want = join([held[name] for name in parts], dim)
        found = Joined(tuple(leaf[name] for name in parts), dim, stacked, tuple(want.shape))
        with Reader() as reader:
            for start in range(len(want)):
                for end in range(start + 1, len(want) + 1):
                    assert torch.equal(reader.rows(found, start, end), want[start:end])
    deep = Joined(
        (Joined((a, c), 0, True, (2, 3, 4)), Joined((c, a), 0, True, (2, 3, 4))), 1, False, (2, 6, 4)
    )
    with Reader() as reader:
        want = torch.cat([torch.stack([held["a"], held["c"]]), torch.stack([held["c"], held["a"]])], 1)
        assert torch.equal(reader.rows(deep, 1, 2), want[1:])
        assert torch.equal(reader.whole(b), held["b"])


def test_none_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(NoBlueprint, match="GGUF"):
        blueprint(str(tmp_path / "a.gguf"))


def test_none_of_code_that_ships_with_a_model(llama: str, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert blueprint(str(folder)).name == str(folder)
    with pytest.raises(NoBlueprint, match="code that ships with a model"):
        blueprint(str(folder), trust_remote_code=True)


def test_none_where_a_table_is_lost(llama: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    build = LlamaMLP.__init__

    def with_table(self: LlamaMLP, config: Any) -> None:
        build(self, config)
        self.table = torch.arange(3)

    monkeypatch.setattr(LlamaMLP, "__init__", with_table)
    with pytest.raises(NoBlueprint, match=r"layers\.0\.mlp\.table is a table"):
        blueprint(llama)


def test_a_hostile_folder_is_refused_as_in_loading(llama: str, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: "../one"}}))
    with pytest.raises(UserError, match="is not the name of a file in this folder"):
        blueprint(str(folder))


# Filling ---------------------------------------------------------------------------------------------------


def test_a_file_that_has_changed(llama: str, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path)
    drawn = blueprint(str(folder))
    change(folder, lambda held: held.update({NORM: torch.ones(7)}))
    with pytest.raises(UserError, match=r"model\.safetensors: model\.norm\.weight has the shape \[7\] now"):
        fill_model(drawn.model, CPU)


def test_a_file_that_is_gone(llama: str, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path)
    drawn = blueprint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        fill_model(drawn.model, CPU)


def test_what_nothing_gives_values_to(llama: str) -> None:
    drawn = blueprint(llama)
    drawn.model.model.register_parameter("gate", torch.nn.Parameter(torch.zeros(2, device="meta")))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"model\.gate has no values"):
        fill_model(drawn.model, CPU)


def test_tied_weights_are_read_once_and_in_pieces(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Watched:
        def __init__(self, path: str, framework: str) -> None:
            self.file = safe_open(path, framework)

        def __enter__(self) -> Watched:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def get_slice(self, name: str) -> Any:
            asked.append(name)
            return self.file.get_slice(name)

    drawn = blueprint(llama)
    monkeypatch.setattr(sources, "safe_open", Watched)
    monkeypatch.setattr(filling, "PIECE", 1000)
    fill_model(drawn.model, CPU)
    assert sorted(set(asked)) == sorted(load_file(Path(llama) / "model.safetensors"))
    assert asked.count("model.embed_tokens.weight") == 14  # 97 rows, 7 of them in 1,000 bytes
    assert_same(drawn.model, load(llama).model)


# Adapters --------------------------------------------------------------------------------------------------


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_lora_weights": "gaussian", "target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["norm"], "lora_dropout": 0.1},
        {"target_modules": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_an_adapter_has_the_values_that_it_has_on_the_whole(
    kept: torch.dtype, options: dict[str, Any], tmp_path: Path
) -> None:
    name = saved(tmp_path, "llama", kept)
    made, after = [], []
    for build in (lambda: load(name, dtype=None).model, lambda: blueprint(name, dtype=None).model):
        torch.manual_seed(5)
        model = build()
        adapting = adapt if len(made) == 0 else adapted
        made.append(adapting(model, lora(**options)))
        after.append(torch.rand(1))
    whole, drawn = made
    assert {p.device.type for p in drawn.parameters()} == {"cpu", "meta"}
    fill_model(drawn, CPU)
    assert_same(drawn, whole)
    assert after[0] == after[1]  # what is drawn next is the same too


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_no_adapter_that_looks_at_the_weights(llama: str, options: dict[str, Any]) -> None:
    with pytest.raises(NoBlueprint, match="begins with what it finds in the weights"):
        adapted(blueprint(llama).model, lora(**options))


def test_an_adapter_that_finds_no_place(llama: str) -> None:
    with pytest.raises(UserError, match="lora_target_modules"):
        adapted(blueprint(llama).model, lora(target_modules=["nowhere"]))


# Excerpts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("llama_tied", 1),
        ("gemma2", 2),
        ("lfm2", 2),
        ("smollm3", 2),
        ("exaone4", 3),
        ("qwen3_moe", 1),
        ("gpt2", 1),
        ("opt", 1),
    ],
)
def test_an_excerpt_has_each_kind_of_layer_and_real_weights(
    architecture: str, layers: int, tmp_path: Path
) -> None:
    name = saved(tmp_path, architecture)
    drawn = blueprint(name, dtype=torch.float64)
    small = excerpt(drawn)
    assert small.model.config.num_hidden_layers == layers
    assert small.notes == ()
    fill_model(small.model, CPU)
    whole = tensors(load(name, dtype=torch.float64).model)
    parts = tensors(small.model)
    assert len(parts) < len(whole) or layers == drawn.model.config.num_hidden_layers
    assert all(torch.equal(tensor, whole[name]) for name, tensor in parts.items())
    assert excerpt(drawn, room=0).model.config.num_hidden_layers == 1
    assert excerpt(drawn, room=10 * drawn.bytes).model.config.num_hidden_layers == layers


@pytest.mark.parametrize("architecture", ["llama_tied", "gemma2", "granite", "gptj", "smollm3", "cohere2"])
def test_the_way_through_an_excerpt_is_that_of_the_whole(architecture: str, tmp_path: Path) -> None:
    name, rows = saved(tmp_path, architecture), tiny.family(1)
    whole = look_at(load(name, dtype=torch.float64).model, rows, None)
    drawn = blueprint(name, dtype=torch.float64)
    small = excerpt(drawn).model
    fill_model(small, CPU)
    network = fill(transferred(look_at(small, rows, None), drawn.model), CPU)
    assert network.model is drawn.model
    for part in ("merged", "packed", "border", "product_dtype"):
        assert getattr(network, part) == getattr(whole, part)
    assert (network.head is None) == (whole.head is None)
    if network.head is not None and whole.head is not None:
        assert network.head.weight_VD is drawn.model.get_output_embeddings().weight
        assert (network.head.scale, network.head.softcap) == (whole.head.scale, whole.head.softcap)
    tiny.assert_exact(network, rows, [60])


def test_a_network_before_it_is_filled_is_on_meta(llama: str) -> None:
    model = blueprint(llama).model
    network = Network(model, head=head_of(model))
    assert network.device.type == "meta"
    assert fill(network, CPU).device == CPU
