"""Who serves a squash file, and what that costs: memory and processor time of the servers, from /proc."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import all_processes

PROGRAMS = ("squashfuse_ll", "squashfuse", "fuse-overlayfs")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """`pss_mib` is proportional set size, MiB; `cpu` is user and system seconds since the servers began."""

    pss_mib: float
    cpu: float
    processes: int


def cost_of(pids: Iterable[int]) -> Cost:
    """Add up what these processes use; those that ended meanwhile count nothing."""
    found = [(_pss(pid), _cpu(pid)) for pid in pids]
    alive = [(pss, cpu) for pss, cpu in found if pss is not None]
    return Cost(round(sum(pss for pss, _cpu in alive) / 1024, 1), round(sum(cpu for _pss, cpu in alive), 2), len(alive))


def is_server(pid: int, squash: Path) -> bool:
    """Tell whether a process holds the squash file open, or is a file system of the peers."""
    words = _read(f"/proc/{pid}/cmdline").split(b"\0")
    # the newest squashfuse is an argument of the dynamic linker
    return any(os.path.basename(os.fsdecode(word)) in PROGRAMS for word in words[:4]) or holds(pid, squash)


def servers_of(squash: Path) -> list[int]:
    """Return the processes that hold a squash file open."""
    return [pid for pid in all_processes() if holds(pid, squash)]


def holds(pid: int, path: Path) -> bool:
    """Tell whether a process has the file open, by whatever name and in whatever mount namespace."""
    name, its = os.path.basename(os.path.realpath(path)), os.stat(path)
    try:
        links = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        # the name first: stat(2) on whatever a process has open may wait for a dead file system
        return any(
            os.path.samestat(os.stat(link), its) for link in links if os.path.basename(os.readlink(link)) == name
        )
    except OSError:
        return False


def lab_cpu() -> float:
    """Return the processor seconds of everything in the lab's cgroup so far."""
    for line in _read("/sys/fs/cgroup/cpu.stat").splitlines():
        if line.startswith(b"usage_usec "):
            return int(line.split()[1]) / 1e6
    return 0.0


def environ_of(pid: int) -> bytes:
    """Return a process's environment, empty when it is gone."""
    return _read(f"/proc/{pid}/environ")


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended."""
    fields = _stat(pid)
    return not fields or fields[0] == "Z"


def _pss(pid: int) -> int | None:
    """Return KiB (proc(5), smaps_rollup)."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return None


def _cpu(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    # the name may hold anything, also parentheses
    return _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
