"""The star (who may import whom), the package map, and what the mount path may load."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("squashmount", "migrate", "oci_hooks", "storage_conf")
POINTS = FOLDERS[1:]
SOURCES = sorted(path for folder in FOLDERS for path in (TOP / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the absolute names a file imports; a relative import is named from its folder: `.x` → `.x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_imports_flow_to_the_centre(path: Path) -> None:
    folder, *below = path.relative_to(TOP).parts
    for name in imports(path):
        first = name.lstrip(".").split(".")[0]
        level = len(name) - len(name.lstrip("."))
        assert level <= len(below) or folder == "squashmount", f"{name} climbs out of {folder}"
        if not name.startswith("."):
            assert first not in POINTS, f"{name}: a folder is imported as squashmount.{first}, and only by tests"
            assert not re.match(rf"squashmount\.({'|'.join(POINTS)})\b", name), f"{name}: never sideways, never back"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_programs_are_started_in_one_place(path: Path) -> None:
    if path != TOP / "squashmount/process.py":
        assert "subprocess" not in imports(path)


def test_every_package_folder_is_mapped() -> None:
    setup = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(TOP) for folder in FOLDERS for path in (TOP / folder).rglob("__init__.py")}
    names = {str(path).replace("/", ".") for path in folders}
    expected = {name if name.startswith("squashmount") else f"squashmount.{name}" for name in names}
    assert set(setup["packages"]) == expected
    assert set(setup["package-dir"]) == {"squashmount"} | {f"squashmount.{folder}" for folder in POINTS}


HEAVY = {
    "argparse",
    "asyncio",
    "dataclasses",
    "email",
    "importlib.metadata",
    "inspect",
    "logging",
    "lz4",
    "pathlib",
    "podman",
    "PySquashfsImage",
    "pyfuse3",
    "rich",
    "shutil",
    "subprocess",
    "tempfile",
    "tomlkit",
    "tomllib",
    "traceback",
    "zstandard",
}


def loaded_by(code: str) -> set[str]:
    """Return the modules a fresh interpreter has after running `code`, beyond those it starts with."""
    script = f"import sys; before = set(sys.modules); {code}; loaded = sorted(set(sys.modules) - before); "
    script += "import json; print(json.dumps(loaded))"
    # -S: site itself (and .pth files of the environment) may load anything
    path = [str(TOP), *(entry for entry in sys.path if "site-packages" in entry)]
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path[:0] = {path!r}; {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


MOUNT_PATH = {
    # `os`, which `site` would have loaded
    *("os", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "os.path"),
    *(
        "_collections",
        "_functools",
        "_ctypes",
        "_operator",
        "_struct",
        "ctypes",
        "ctypes._endian",
        "errno",
        "fcntl",
        "struct",
        "types",
    ),
    *("squashmount", "squashmount.__main__", "squashmount.config", "squashmount.errors", "squashmount.host"),
    *("squashmount.idmap", "squashmount.keeper", "squashmount.lean", "squashmount.linux", "squashmount.lowers"),
    *("squashmount.mount", "squashmount.mountinfo", "squashmount.overlay", "squashmount.plan"),
    *("squashmount.request", "squashmount.runtime"),
}
"""All a container start loads when its server is there already, beyond an interpreter without `site`."""


def test_mount_path_is_light() -> None:
    assert loaded_by("import squashmount.__main__, squashmount.mount") <= MOUNT_PATH


def test_server_loads_no_more_than_it_serves_with() -> None:
    loaded = loaded_by("import squashmount.supervisor, squashmount.worker, squashmount.server.prefetch")
    assert loaded & HEAVY == set(), "decoders are loaded when a squash file needs them"
    loaded |= loaded_by("from squashmount.squashfs.compress import decoder; decoder('zstd')")
    slow = {"collections", "contextlib", "enum", "functools", "json", "re", "threading", "typing", "zstandard"}
    assert loaded & slow == set()
