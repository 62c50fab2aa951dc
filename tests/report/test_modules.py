"""The scripts of reports and pages: modules that import what there is, and that can stand in one scope."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import surefoot
from surefoot.report.page import SCRIPTS, render

SOURCE = Path(surefoot.__file__).parent
DRAWING = SOURCE / "report" / "assets" / "js"
PAGES = SOURCE / "dashboard" / "assets" / "js"
DECLARED = re.compile(r"^(export )?(?:async )?(?:function|const|let|class) (\w+)", re.M)
PARAMETERS = {"parts.js": {"key"}, "slides.js": {"shown"}}
"""Parameters and options that are called as functions, and have the name of one elsewhere."""
IMPORTED = re.compile(r'^import \{ (.+?) \} from "(.+?)";$', re.M)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def modules() -> list[Path]:
    return sorted([*DRAWING.glob("*.js"), *PAGES.glob("*.js")])


def resolved(module: Path, name: str) -> Path:
    """Where an import leads: the server has the report's drawing at /assets/draw."""
    if name.startswith("../draw/js/"):
        return DRAWING / name.removeprefix("../draw/js/")
    return module.parent / name


def test_every_import_is_there_and_used() -> None:
    for module in modules():
        source = text(module)
        body = IMPORTED.sub("", source)
        for names, origin in IMPORTED.findall(source):
            exported = {name for export, name in DECLARED.findall(text(resolved(module, origin))) if export}
            for name in names.split(", "):
                assert name in exported, f"{module.name} imports {name} of {origin}"
                assert re.search(rf"\b{name}\b", body), f"{module.name} does not use {name}"
        assert len(IMPORTED.findall(source)) == len(re.findall(r"^import ", source, re.M)), module.name


def test_nothing_is_used_that_is_not_imported() -> None:
    """One scope, as in a report, would hide it."""
    exported = {name for module in modules() for export, name in DECLARED.findall(text(module)) if export}
    for module in modules():
        source = text(module)
        own = {name for names, _ in IMPORTED.findall(source) for name in names.split(", ")}
        own |= {name for _, name in DECLARED.findall(source)}
        own |= set(re.findall(r"(?:const|let) (?:\{ )?(\w+)", source)) | PARAMETERS.get(module.name, set())
        for name in exported - own:
            called = re.search(rf"(?:(?<![\w.$])|(?<=\.\.\.)){name}\(", IMPORTED.sub("", source))
            constant = name.isupper() and re.search(rf"\b{name}\b", source)
            handed = re.search(rf"[(,:] ?{name}[,)]", IMPORTED.sub("", source)) and name in (
                "pct",
                "fmt",
                "signed",
                "tenTo",
                "duration",
                "num",
            )
            assert not (called or constant or handed), f"{module.name} uses {name}, which it does not import"


def test_every_export_is_imported_somewhere() -> None:
    imported = {
        name
        for module in modules()
        for names, _ in IMPORTED.findall(text(module))
        for name in names.split(", ")
    }
    for module in modules():
        for export, name in DECLARED.findall(text(module)):
            assert not export or name in imported | {"start"}, f"{module.name} exports {name} to nobody"


def test_the_reports_modules_fit_into_one_scope() -> None:
    assert sorted(SCRIPTS) == sorted(path.name for path in DRAWING.glob("*.js"))
    names = Counter(name for script in SCRIPTS for _, name in DECLARED.findall(text(DRAWING / script)))
    assert [name for name, count in names.items() if count > 1] == []
    for number, script in enumerate(SCRIPTS):
        for _, origin in IMPORTED.findall(text(DRAWING / script)):
            assert origin.removeprefix("./") in SCRIPTS[:number], f"{script} stands before {origin}"
    assert not re.search(r"^(import|export) ", render([]), re.M)


def test_scripts_make_no_html_and_no_code() -> None:
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.srcdoc|http://|https://"
    for module in modules():
        found = [word for word in re.findall(banned, text(module)) if "w3.org" not in word]
        allowed = {"list.js": ["http://"]}  # the name of SVG
        assert found == allowed.get(module.name, []), module.name


def test_scripts_are_readable_in_one_sitting() -> None:
    assert {
        module.name: lines for module in modules() if (lines := len(text(module).splitlines())) > 450
    } == {}
