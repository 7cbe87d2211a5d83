"""Skips say what the machine lacks; SQUASHMOUNT_REQUIRE turns them into failures."""

import os
import shutil
from collections.abc import Generator
from typing import TypeVar

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
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _no_skip(report)


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _no_skip(report: Report) -> Report:
    if report.skipped and os.environ.get("SQUASHMOUNT_REQUIRE") == "all" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is not allowed here (SQUASHMOUNT_REQUIRE=all): {report.longrepr}"
    return report
