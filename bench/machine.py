"""The machine a result comes from, without anything that names it."""

import os
import platform
import re
from typing import Any

from lab import TOP, run
from peers import PODMAN_HPC

PROGRAMS = {
    "podman": ("podman", "--version"),
    "crun": ("crun", "--version"),
    "fuse-overlayfs": ("fuse-overlayfs", "--version"),
    "squashfuse": ("dpkg-query", "-W", "-f", "${Version}", "squashfuse"),
    "mksquashfs": ("mksquashfs", "-version"),
}
"""How to ask each for its version. squashfuse 0.1.105 says 0.1.104: the package tells better."""


def describe() -> dict[str, Any]:
    """Return processors, memory, kernel and versions."""
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) // 1024
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = re.findall(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    release = platform.freedesktop_os_release()
    return {
        "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "memory_mib": memory,
        # a local version after the third number may name the site
        "kernel": ".".join(re.findall(r"\d+", platform.release())[:3]),
        "system": release.get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "revision": _revision(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {name: _version(*argv) for name, argv in PROGRAMS.items()} | {"podman-hpc": PODMAN_HPC},
    }


def _revision() -> str:
    """Return the commit that is measured, marked when files of the product differ from it; "" outside a checkout."""
    parts = ("squashmount", "migrate", "pyproject.toml")
    try:
        commit = run("git", "-C", str(TOP), "rev-parse", "--short", "HEAD").ok()
        changed = run("git", "-C", str(TOP), "status", "--porcelain", "--", *parts).ok()
    except (OSError, AssertionError):
        return ""
    return f"{commit} with changes" if changed else commit


def short_name(machine: dict[str, Any]) -> str:
    """Return a name of the kind of machine for a file name."""
    return f"{machine['cpus']}cpu-{round(machine['memory_mib'] / 1024)}gib-linux{machine['kernel']}"


def _version(*argv: str) -> str:
    try:
        done = run(*argv, timeout=10)
    except (OSError, AssertionError):
        return "?"
    found = re.search(r"\d+\.\d+[\w.+~-]*", re.sub(r"fusermount3 version.*", "", done.out + done.err))
    return found.group() if found else "?"
