"""Edits of config.json: complete, once, and only where the plan says so."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from squashmount.oci_hooks import apply, leanjson
from squashmount.oci_hooks.plan import Copy, Device, Hook, Mount, Plan
from squashmount.oci_hooks.tree import DirectoryTree

from squashmount.errors import SquashmountError, UsageError

CONFIG: dict[str, Any] = {
    "process": {"args": ["x"], "env": ["PATH=/bin", "GONE=1", "EMPTY=", "ODD=a=b"]},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "annotations": {"io.x": "y"},
}
PLAN = Plan(
    modules=("m",),
    mounts=(Mount("/opt/a/b", "/opt/a/b"), Mount("/opt/a", "/opt/a", ("rw", "bind", "rslave"))),
    devices=(Device("/dev/null", "r"),),
    env_set={"A": "1"},
    env_prepend={"PATH": "/opt/bin:/x", "LD_LIBRARY_PATH": "/l", "EMPTY": "e"},
    env_append={"MANPATH": "/m", "PATH": "/last"},
    env_unset=("GONE", "NEVER"),
    hooks=(Hook("poststop", "/bin/true", ("true",), ("X=1",)),),
    ldconfig=True,
)


def edited(config: dict[str, Any], *, rootless: bool = True) -> dict[str, Any]:
    config = copy.deepcopy(config)
    apply.edit(config, PLAN, rootless=rootless, program="/p/squashmount-hook")
    return config


def test_everything_is_applied() -> None:
    made = edited(CONFIG)
    assert made["process"]["env"] == [
        "PATH=/opt/bin:/x:/bin:/last",
        "EMPTY=e",
        "ODD=a=b",
        "A=1",
        "LD_LIBRARY_PATH=/l",
        "MANPATH=/m",
    ]
    assert made["mounts"][1:] == [
        {"destination": "/opt/a", "type": "bind", "source": "/opt/a", "options": ["rw", "bind", "rslave"]},
        {
            "destination": "/opt/a/b",
            "type": "bind",
            "source": "/opt/a/b",
            "options": ["rbind", "ro", "nosuid", "nodev", "rprivate"],
        },
        {
            "destination": "/dev/null",
            "type": "bind",
            "source": "/dev/null",
            "options": ["bind", "nosuid", "noexec", "ro", "rprivate"],
        },
    ]
    assert made["hooks"] == {
        "poststop": [{"path": "/bin/true", "args": ["true"], "env": ["X=1"]}],
        "createContainer": [{"path": "/p/squashmount-hook", "args": ["/p/squashmount-hook", "ldconfig"]}],
    }
    assert made["annotations"] == {"io.x": "y", "squashmount.plan": PLAN.hash}


def test_applying_twice_is_applying_once() -> None:
    for rootless in (True, False):
        once = edited(CONFIG, rootless=rootless)
        assert edited(once, rootless=rootless) == once


def test_root_gets_a_device_node_and_the_permission() -> None:
    made = edited(CONFIG, rootless=False)
    (node,) = made["linux"]["devices"]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/null", "c", 1, 3)
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    ]
    assert all(mount["destination"] != "/dev/null" for mount in made["mounts"])


def test_go_writes_null_for_empty_lists() -> None:
    made = edited({"process": {"env": None}, "mounts": None, "annotations": None, "hooks": None})
    assert len(made["mounts"]) == 3


def test_files_are_copied_inside(tmp_path: Path) -> None:
    root, source = tmp_path / "root", tmp_path / "source"
    root.mkdir()
    source.write_bytes(b"x" * 3_000_000)
    (root / "fifo").mkdir()
    os.mkfifo(root / "fifo/f")
    (root / "out").symlink_to(tmp_path)
    plan = Plan(copies=(Copy(str(source), "/new/deep/file", "0640"), Copy(str(source), "/fifo/f")))
    with DirectoryTree(str(root)) as tree:
        apply.copy_files(plan, tree)
        apply.copy_files(plan, tree)
        made = root / "new/deep/file"
        assert made.read_bytes() == (root / "fifo/f").read_bytes() == source.read_bytes()
        assert made.stat().st_mode & 0o7777 == 0o640
        assert os.listdir(made.parent) == ["file"]
        with pytest.raises(SquashmountError, match="cannot be copied to '/new/deep/file/x'"):
            apply.copy_files(Plan(copies=(Copy(str(source), "/new/deep/file/x"),)), tree)
        with pytest.raises(SquashmountError, match="cannot be copied"):
            apply.copy_files(Plan(copies=(Copy("/none", "/y"),)), tree)
    assert sorted(os.listdir(tmp_path)) == ["root", "source"]


@pytest.mark.parametrize("fast", [True, False])
def test_json_is_what_json_says(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(leanjson, "_fast", None)
    value = {"a": [1, -2.5, 1e300, True, None, 'é\n"\ud800\u2028', {}], "b": {"c": 2**70}}
    assert json.loads(leanjson.dumps(value)) == value
    assert leanjson.loads(b" \n" + json.dumps(value).encode() + b"\n", where="x") == value
    for bad in (b"", b"{", b'{"a": tru}', b"{} {}", b"\xff", b'["\\x"]', b"[" * 200_000):
        with pytest.raises(UsageError, match="x is not valid JSON"):
            leanjson.loads(bad, where="x")
