"""What the project wants to reach, judged by one run's medians; a line says so where a run measured no such thing."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from results import Case, median_of
from squashing import HPC as MIGRATED_BY_HPC
from squashing import OURS as MIGRATED

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Target:
    """`value(left) / value(right)` is to be at most `limit` (or at least, where `at_least`)."""

    text: str
    left: tuple[str, Case]
    right: tuple[str, Case]
    limit: float
    kind: str = "wall"
    at_least: bool = False
    """The ratio is of rates: right's seconds by left's."""


def _of(stack: str, workload: str, state: str, count: int = 1) -> tuple[str, Case]:
    return stack, Case(workload, state, count)


OURS, PROFILED, NATIVE, HPC = "ours-wire", "ours-profiled", "native", "podman-hpc"
BARE, KERNEL = "bare-wire", "bare-kernel"
SQUASHFUSE = {"squashfuse_ll": "bare-squashfuse_ll", "squashfuse_ll 0.5": "bare-squashfuse_ll-0.5"}


def _imports() -> Iterator[Target]:
    ours, native = _of(OURS, "import", "cold"), _of(NATIVE, "import", "warm")
    profiled, hpc = _of(PROFILED, "import", "cold"), _of(HPC, "import", "cold")
    yield Target("import storm, warm, ours / native", _of(OURS, "import", "warm"), native, 1.05)
    yield Target("import storm, first, ours / native warm", ours, native, 1.6)
    yield Target("import storm, first, ours with a profile / native warm", profiled, native, 1.2)
    yield Target("import storm, first, ours / podman-hpc", ours, hpc, 0.30)
    yield Target("import storm, first, ours with a profile / podman-hpc", profiled, hpc, 0.20)
    for name, stack, limit in (("native", NATIVE, 1.15), ("podman-hpc", HPC, 0.35)):
        left, right = (_of(one, "import", "warm", 32) for one in (OURS, stack))
        yield Target(f"import storm, 32 at once, ours / {name}", left, right, limit)


def _storms() -> Iterator[Target]:
    ours = _of(OURS, "open", "warm")
    for name, stack, limit in (
        ("native", NATIVE, 0.9),
        ("squashfuse_ll under kernel overlay", "ours-squashfuse_ll", 2.0),
    ):
        text = f"open storm, 16 processes, rate ours / {name}"
        yield Target(text, ours, _of(stack, "open", "warm"), limit, kind="inside", at_least=True)


def _readers() -> Iterator[Target]:
    for text, workload, squashfuse, kernel in (
        ("walk + lstat of everything", "walk", 0.25, 0.8),
        ("sequential read", "read", 0.5, 0.7),
        ("small files", "small", 0.5, 1.1),
    ):
        limits = dict.fromkeys(SQUASHFUSE.items(), squashfuse) | {("kernel squashfs", KERNEL): kernel}
        for (name, stack), limit in limits.items():
            left, right = (_of(one, workload, "cold") for one in (BARE, stack))
            yield Target(f"{text}, bare, cold, ours / {name}", left, right, limit, kind="inside")


@dataclass(frozen=True)
class Outcome:
    """A target beside what was measured; `met` is None where nothing was."""

    text: str
    bar: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """Return the word of the table."""
        return {True: "met", False: "MISSED", None: NOT_MEASURED}[self.met]


def outcomes(results: dict[str, Any]) -> list[Outcome]:
    """Return every target of the project, in the order in which they were set."""
    ratios = [*_imports(), *_storms(), *_readers()]
    ours, theirs = (_of(stack, "true", "warm") for stack in (OURS, HPC))
    hpc = Target("`podman run true`, warm, ours / podman-hpc", ours, theirs, 0.5)
    return [
        *(_judged_ratio(results, target) for target in ratios),
        _podman_run(results),
        _judged_ratio(results, hpc),
        *_many(results),
        *_traffic(),
        *_squashing(results),
    ]


def _judged_ratio(results: dict[str, Any], target: Target) -> Outcome:
    bar = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
    left, right = (median_of(results, stack, case, target.kind) for stack, case in (target.left, target.right))
    if left is None or right is None:
        return _unknown(target.text, bar)
    ratio = right / left if target.at_least else left / right
    met = ratio >= target.limit if target.at_least else ratio <= target.limit
    return Outcome(target.text, bar, f"{ratio:.2f}", met)


def _unknown(text: str, bar: str) -> Outcome:
    return Outcome(text, bar, "", None)


def _at_most(text: str, limit: float, value: float | None, unit: str) -> Outcome:
    bar = f"≤ {limit:g}{unit}"
    if value is None:
        return _unknown(text, bar)
    shown = f"{value:.0f}{unit}" if unit else f"{value:.2f}"
    return Outcome(text, bar, shown, value <= limit)


def _podman_run(results: dict[str, Any]) -> Outcome:
    ours, native = (median_of(results, stack, Case("true", "warm", 1), "wall") for stack in (OURS, NATIVE))
    extra = None if ours is None or native is None else (ours - native) * 1000
    return _at_most("`podman run true`, warm, ours - native", 40, extra, " ms")


def _many(results: dict[str, Any]) -> Iterator[Outcome]:
    """500,000 files: a smaller image, as of --quick, says nothing about them."""
    found = results.get("many") or {}
    measured = found and max(found["sizes"]) >= 500_000
    samples = found["mount"] if measured else {}
    mounts = {int(size): statistics.median(values) for size, values in samples.items() if values}
    bare = statistics.median(found["interpreter"]) if mounts else 0.0
    over = (mounts[max(mounts)] - bare) * 1000 if mounts else None
    yield _at_most("mount ready, 500,000 files, over interpreter start", 150, over, " ms")
    for size in (50_000, 500):
        ratio = mounts[max(mounts)] / mounts[size] if mounts else None
        yield _at_most(f"mount ready, 500,000 files / {size:,} files (flat)", 1.2, ratio, "")
    ours = found["stacks"].get(BARE, {}) if measured else {}
    for text, kind in (("fully walked", "pss_walk"), ("walked, then 25,000 files read", "pss_scatter")):
        memory = max(ours[kind]) if ours else None
        yield _at_most(f"server memory, 500,000 files, {text}", 250, memory, " MiB")
    others = {name: (stack, 0.25) for name, stack in SQUASHFUSE.items()} | {"kernel squashfs": (KERNEL, 0.8)}
    for name, (stack, limit) in others.items():
        theirs = found["stacks"].get(stack, {}) if measured else {}
        ratio = statistics.median(ours["walk"]) / statistics.median(theirs["walk"]) if ours and theirs else None
        yield _at_most(f"walk + lstat, 500,000 files, bare, cold, ours / {name}", limit, ratio, "")


def _traffic() -> Iterator[Outcome]:
    """A simulation of its own counts requests and bytes."""
    yield _unknown("requests to the shared file system, import storm, ours / squashfuse_ll (`parallel-fs`)", "≤ 0.25")
    yield _unknown("bytes from the shared file system, import storm / compressed bytes needed (`parallel-fs`)", "≤ 1.3")


def _squashing(results: dict[str, Any]) -> Iterator[Outcome]:
    found = results.get("mig") or {}
    both = MIGRATED in found and MIGRATED_BY_HPC in found

    def ratio(kind: str) -> float | None:
        values: Callable[[str], float] = lambda name: statistics.median(found[name][kind])  # noqa: E731
        return values(MIGRATED) / values(MIGRATED_BY_HPC) if both else None

    yield _at_most("`mig` / podman-hpc migrate, time", 0.8, ratio("seconds"), "")
    yield _at_most("`mig` / podman-hpc migrate, size of the squash", 0.8, ratio("size"), "")
