"""The house: who may import whom, what lies where, and that an import starts nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

import visit_counter
from visit_counter import errors

PACKAGE = Path(visit_counter.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {Path()})

# From the top down: a module imports from its own folder and from folders on lower floors, never from its own floor
# or from above. What is not in a folder is the ground floor, except `create_app`, which puts everything together.
FLOORS = (
    ("cli",),
    ("web", "server"),
    ("runtime",),
    ("counting", "statistics", "embedded"),
    ("flush",),
    ("journal",),
    ("shards",),
    ("config",),
    ("model", "private_files"),
    ("errors", "steps", "logs"),
)
AT_THE_ROOT = ("__init__.py", "__main__.py", "application.py", "errors.py", "logs.py", "private_files.py", "steps.py")
# Which of our modules may import a library: a folder, or a file.
LIBRARIES = {
    "flask": ["application.py", "web/", "cli/"],
    "werkzeug": ["application.py", "web/"],
    "click": ["cli/"],
    "flask_caching": ["application.py", "counting/cache.py"],
    "redis": ["shards/", "embedded/"],
    "gunicorn": ["server/"],
    "apscheduler": ["runtime/scheduler.py"],
}
# Logic without input and output.
PURE = ("model", "shards/ring.py", "shards/shard_map.py", "journal/records.py", "journal/pending.py")


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports when it runs; what is for type checkers alone does not count."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse((PACKAGE / path).read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import says the whole name"
            found.update({str(node.module)} | {f"{node.module}.{name.name}" for name in node.names})
        todo.extend(ast.iter_child_nodes(node))
    return found


def ours(path: Path) -> set[str]:
    """Return the folders and root modules of ours that a module imports from."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("visit_counter.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def floor_of(name: str) -> int:
    """Return the floor of a folder or root module; 0 is the highest."""
    return next(number for number, names in enumerate(FLOORS) if name in names)


def is_in(path: Path, places: list[str] | tuple[str, ...]) -> bool:
    """Tell whether a module is one of these files, or in one of these folders."""
    return any(path.as_posix() == place or path.is_relative_to(place) for place in places)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_imports_from_its_own_folder_and_from_lower_floors_alone(path: Path) -> None:
    if path.name in ("__init__.py", "__main__.py", "application.py") and len(path.parts) == 1:
        return  # they put the parts together
    mine = path.parts[0].removesuffix(".py")
    assert [name for name in ours(path) - {mine} if floor_of(name) <= floor_of(mine)] == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = [path for path in MODULES if library in {name.partition(".")[0] for name in imports(path)}]
    assert importers, "a library that nobody imports needs no rule"
    assert [path for path in importers if not is_in(path, LIBRARIES[library])] == []


@pytest.mark.parametrize("path", [path for path in MODULES if is_in(path, PURE)], ids=str)
def test_what_is_pure_does_no_input_or_output(path: Path) -> None:
    assert imports(path).isdisjoint({"os", "socket", "threading", "subprocess", "time", "logging"})


def test_at_the_root_lie_only_what_puts_the_parts_together_and_what_everybody_needs() -> None:
    assert tuple(path.name for path in MODULES if len(path.parts) == 1) == AT_THE_ROOT


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_every_folder_says_its_promise(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(re.findall(r"[.:](?:\s|$)", text)) >= 3, f"{folder}/__init__.py: three sentences"


def test_the_picture_of_the_house_is_the_tree() -> None:
    picture = ARCHITECTURE.read_text(encoding="utf-8").split("```house\n")[1].split("```")[0]
    shown: set[str] = set()
    folders: list[str] = []
    for line in picture.splitlines()[1:]:
        depth, name = (len(line) - len(line.lstrip())) // 4 - 1, line.split()[0]
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            shown.add("".join(folders) + name)
    is_shown = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".lua") and path.stem != "__init__"]
    assert shown == {path.relative_to(PACKAGE).as_posix() for path in is_shown} | {"__init__.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.lua")), ids=lambda path: path.stem)
def test_every_script_says_above_its_code_what_it_is_given_and_what_it_returns(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = list(takewhile(lambda line: line.startswith("--"), lines))
    code = "\n".join(lines[len(head) :])
    for name in ("KEYS", "ARGV"):
        numbers = sorted({int(number) for number in re.findall(rf"\b{name}\[(\d)\]", code)})
        told = "\n".join(head).split(f"-- {name}")[1]
        assert all(re.search(rf"(^|-)\s+{number}\s", told) for number in numbers), f"{path.name}: {name} {numbers}"
    assert any("Returns" in line for line in head), path.name


def test_every_exception_is_in_errors_and_in_its_tree() -> None:
    elsewhere = []
    for path in MODULES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if path.name != "errors.py" and any(re.search(r"(Error|Exception)$", base) for base in bases):
                elsewhere.append(f"{path}: {ast.unparse(node).splitlines()[0]}")
    assert elsewhere == []
    tree = _drawn(errors.__doc__ or "")
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert tree == real | {"VisitCounterError": ""}


def _drawn(text: str) -> dict[str, str]:
    """Return the exceptions of the drawn tree, each with the one that it hangs on."""
    path: list[tuple[int, str]] = []
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"([ |+-]*)(\w+Error)\b", line)
        if not match:
            continue
        depth = len(match[1])
        while path and path[-1][0] >= depth:
            path.pop()
        found[match[2]] = path[-1][1] if path else ""
        path.append((depth, match[2]))
    return found


STARTS_NOTHING = """
import os, sys, threading, importlib

def seen():
    files = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            files.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the listing's own
    with open("/proc/thread-self/children") as children:
        return files, threading.active_count(), children.read()

before = seen()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert seen() == before, (before, seen())
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc, which is Linux's")
def test_importing_starts_nothing(tmp_path: Path) -> None:
    """No thread, no open file, no child process, and nothing written."""
    names = [".".join(("visit_counter", *path.with_suffix("").parts)).removesuffix(".__init__") for path in MODULES]
    done = subprocess.run(
        [sys.executable, "-P", "-c", STARTS_NOTHING, *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# What gunicorn loads before its hooks are called, and what a supervisor of the embedded shards does.
LOADED_EARLY = {
    "master": ("server.startup", "server.life", "server.options", "server.serve", "server.log", "server.worker"),
    "supervisor": ("embedded.supervisor",),
}


@pytest.mark.parametrize("process", LOADED_EARLY)
def test_the_embedded_shards_wait_for_no_large_library(process: str) -> None:
    """The master loads Flask and redis-py while they start, and the supervisor never does."""
    names = [f"visit_counter.{name}" for name in LOADED_EARLY[process]]
    program = (
        f"import sys, {', '.join(names)}\nprint(*{{'flask', 'werkzeug', 'redis', 'apscheduler'}} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == []
