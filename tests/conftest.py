"""Skips say what the machine lacks; SQUASHMOUNT_REQUIRE turns them into failures."""

import os
import shutil

import pytest


def _lacks_root() -> str:
    return "" if os.geteuid() == 0 and "LAB" in os.environ else "needs root: run scripts/test as root"


def _lacks_fuse() -> str:
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "needs a usable /dev/fuse"


def _lacks_podman() -> str:
    missing = [program for program in ("podman", "crun", "newuidmap", "mksquashfs") if not shutil.which(program)]
    return f"needs {', '.join(missing)}" if missing else ""


PROBES = {"needs_root": _lacks_root, "needs_fuse": _lacks_fuse, "needs_podman": _lacks_podman}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, probe in PROBES.items():
        if item.get_closest_marker(marker) is not None and (reason := probe()):
            if os.environ.get("SQUASHMOUNT_REQUIRE") == "all":
                pytest.fail(f"{reason} (a skip is not allowed: SQUASHMOUNT_REQUIRE=all)", pytrace=False)
            pytest.skip(reason)
