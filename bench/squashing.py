"""Time, size and peak memory of `migrate2scratch mig` by compressor, beside `podman-hpc migrate`, interleaved."""

import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from inputs import NAME
from lab import all_processes
from servers import lab_cpu
from stacks import BenchError, Place

HPC = "podman-hpc"
OURS = "zstd-3"
"""What `mig` does when nothing is configured."""
FORMATS = (OURS, "zstd-1", "zstd-15", "lz4", "gzip-6")
SLOW = {"zstd-15", "gzip-6"}
"""Measured in the first round only."""
SAMPLED_EVERY = 0.05
PAGE = 4096


@dataclass(frozen=True)
class Squashing:
    """`seconds` and `cpu` are seconds, `size` bytes; `memory` is the peak of anonymous memory of all processes, MiB."""

    seconds: float
    cpu: float
    size: int
    memory: float


def measure_squashing(place: Place, names: list[str], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return lists of samples by name. Raises BenchError."""
    found: dict[str, Any] = {}
    for number in range(rounds):
        for name in names:
            if number and name in SLOW:
                continue
            one = _measure(place, name)
            for kind, value in vars(one).items():
                found.setdefault(name, {}).setdefault(kind, []).append(value)
            say(f"squash with {name}: {one.seconds:.1f} s, {one.size >> 20} MiB")
    return found


def _measure(place: Place, name: str) -> Squashing:
    target = place.directory(f"squashed-{name}")
    hpc = place.podman_hpc() if name == HPC else None
    before, begun = lab_cpu(), time.perf_counter()
    with PeakMemory() as peak:
        if hpc:
            hpc.migrate(place.origin, NAME, target)
        else:
            compressor, _, level = name.partition("-")
            options = ("--quiet", "--compressor", compressor, *(("--level", level) if level else ()))
            place.migrate("mig", *options, NAME, str(target)).ok()
    seconds, cpu = time.perf_counter() - begun, lab_cpu() - before
    try:
        size = place.squash(target).stat().st_size
    except ValueError:
        raise BenchError(f"{name} left no squash file") from None
    shutil.rmtree(target)
    return Squashing(round(seconds, 3), round(cpu, 2), size, round(peak.pages * PAGE / 2**20, 1))


class PeakMemory:
    """The most anonymous memory that processes started meanwhile held together, looked at 20 times a second.

    Not the resident size of the largest: compressor, Podman and Python run at once. Not a cgroup's memory.peak: the
    memory controller is not delegated on every machine, and it counts the page cache of what is read and written.
    """

    def __init__(self) -> None:
        self.pages = 0
        self._old = set(all_processes())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(SAMPLED_EVERY):
            self.pages = max(self.pages, sum(_anonymous(pid) for pid in set(all_processes()) - self._old))


def _anonymous(pid: int) -> int:
    """Return pages resident minus shared (proc(5), statm)."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return max(0, int(fields[1]) - int(fields[2]))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the table, with ratios to podman-hpc where it was measured."""
    table = [["", "time", "processor time", "size", "peak memory"]]
    base = {kind: statistics.median(values) for kind, values in found.get(HPC, {}).items()}
    for name, samples in found.items():
        middle = {kind: statistics.median(values) for kind, values in samples.items()}
        ratio = {kind: f" x{middle[kind] / base[kind]:.2f}" if base.get(kind) else "" for kind in middle}
        spread = f"{min(samples['seconds']):.1f}-{max(samples['seconds']):.1f}"
        table.append(
            [
                name if name == HPC else f"mig, {name}" + (" (default)" if name == OURS else ""),
                f"{middle['seconds']:.2f} s ({spread}){ratio['seconds']}",
                f"{middle['cpu']:.1f} s{ratio['cpu']}",
                f"{middle['size'] / 2**20:.0f} MiB{ratio['size']}",
                f"{middle['memory']:.0f} MiB{ratio['memory']}",
            ]
        )
    return table
