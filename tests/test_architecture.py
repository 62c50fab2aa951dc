"""The house holds: imports go one way, start-up is light, files are readable in one sitting."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "surefoot"

ORDER = [
    ["errors"],
    ["names", "regular", "credentials", "durable", "ranks", "cards", "console"],
    ["validation"],
    ["config"],
    ["recipes"],
    ["data.rows"],
    ["data.strictjson", "data.ledger", "data.repeats", "data.store", "data.turns"],
    ["data.badrows", "data.lines"],
    ["data.jsonrows", "data.tables"],
    ["data.files", "data.messages"],
    ["data.shapes"],
    ["data.sources", "data.formats", "data.encode"],
    ["data.template_meter"],
    ["data.template_compiler", "data.template_operations"],
    ["data.template_filters"],
    ["data.template_environment"],
    ["data.chat_template"],
    ["data.render"],
    ["data.cache", "data.sharing"],
    ["data.dataset", "data.forest", "data.sampler"],
    ["model.loss", "model.tiles", "model.lora", "model.offload", "model.telling"],
    ["model.tiled"],
    ["model.attention"],
    ["model.folder", "model.gguf_header", "model.claims"],
    ["model.adapter_folder", "model.hub"],
    ["model.network", "model.sources"],
    ["model.save"],
    ["model.load", "model.adapters", "model.flops"],
    ["model.blueprint"],
    ["model.excerpt", "model.filling"],
    ["events"],
    ["runfolder"],
    [
        "train.hardware",
        "train.interrupt",
        "train.plain",
        "train.progress",
        "train.restarts",
        "train.watchdog",
    ],
    ["train.optim"],
    ["train.recompute", "train.restored"],
    ["train.distributed", "train.compiling"],
    ["train.accord", "train.rates"],
    ["train.memory"],
    ["train.remembered"],
    ["train.storage", "train.tensorfile", "train.manifest"],
    ["train.identity", "train.pieces", "train.agreement"],
    ["train.step", "train.checkpoint"],
    ["train.saver"],
    ["train.resume", "train.result"],
    ["train.speed"],
    ["train.planner", "train.sketch"],
    ["train.paper"],
    ["train.advice"],
    ["train.textbook", "train.cases"],
    ["train.budget"],
    ["train.selfcheck"],
    ["train.loading"],
    ["train.evaluate", "train.setup", "train.callbacks"],
    ["microscope.parts"],
    ["microscope.panels", "microscope.spell", "microscope.independent", "microscope.lesson"],
    [
        "microscope.records",
        "microscope.capture",
        "microscope.histogram",
        "microscope.arithmetic",
        "microscope.ground",
    ],
    ["microscope.vocabulary"],
    ["microscope.predict", "microscope.replay", "microscope.direction"],
    ["microscope.head", "microscope.batch", "microscope.extras", "microscope.mountain", "microscope.weights"],
    ["microscope.slide"],
    ["microscope.headline"],
    ["microscope.watchman"],
    ["microscope.opening"],
    ["microscope.run", "microscope.explain"],
    ["train.keeping", "train.judging"],
    ["train.between"],
    ["train.trainer"],
    ["report.glyphs", "report.worst", "report.records", "report.texts", "report.parcel"],
    ["report.columns", "report.runs"],
    ["report.curves"],
    ["report.page"],
    ["report.notebook"],
    ["report.terminal_parts"],
    [
        "report.terminal_forward",
        "report.terminal_head",
        "report.terminal_update",
        "report.terminal_result",
        "report.terminal_mountain",
    ],
    ["report.terminal"],
    ["dashboard.index", "dashboard.guard"],
    ["dashboard.state"],
    ["dashboard.library"],
    ["dashboard.pages", "dashboard.rows"],
    ["dashboard.stream"],
    ["dashboard.server"],
    ["commands.options", "commands.outlived", "commands.loopback"],
    ["commands.launch", "commands.recipe", "commands.beside"],
    ["commands.answers"],
    ["commands.train", "commands.evaluate", "commands.chat", "commands.compare", "commands.preview"],
    [
        "commands.check",
        "commands.explain",
        "commands.report",
        "commands.worst",
        "commands.plan",
        "commands.ui",
    ],
    ["commands.checkpoints"],
    ["commands.verify"],
    ["cli"],
    ["__main__"],
]
"""A module imports only from lines above its own. Adding a module means saying where it stands."""

FREE = {"", "data", "model", "train", "microscope", "report", "dashboard", "commands"}
"""Packages whose __init__ holds no code, and the public names (loaded lazily)."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surefoot"):
            module = (node.module or "").removeprefix("surefoot").removeprefix(".")
            found.add(module)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("surefoot.") for a in node.names if a.name.startswith("surefoot.")}
    return found


def modules() -> dict[str, Path]:
    named = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in sorted(SOURCE.rglob("*.py"))
    }
    return {name: path for name, path in named.items() if not name.endswith("__init__")}


def test_every_module_has_its_place() -> None:
    assert sorted(name for level in ORDER for name in level) == sorted(modules())


def test_imports_go_one_way() -> None:
    level = {name: index for index, names in enumerate(ORDER) for name in names}
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imports(path) - FREE
        if level[other] >= level[name]
    ]
    assert wrong == []


def test_files_are_readable_in_one_sitting() -> None:
    long = {
        str(path): lines
        for path in SOURCE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 350
    }
    assert long == {}


def test_consoles_print_texts_as_they_are() -> None:
    found = [path.name for path in SOURCE.rglob("*.py") if "Console(" in path.read_text(encoding="utf-8")]
    assert found == ["console.py"]


def test_nothing_is_ever_unpickled() -> None:
    banned = ("import pickle", "torch.load(", "pickle.load", "np.load(", "joblib", "dill")
    found = [
        f"{path}: {word}" for path in SOURCE.rglob("*.py") for word in banned if word in path.read_text()
    ]
    assert found == []
