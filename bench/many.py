"""Images of very many files: how soon they are mounted, how fast they are walked, what their server holds.

The squash files are made by sqfstar from a stream of tar headers, so that no tree of that many files is ever on disk.
"""

import fcntl
import hashlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bare import BareStack, BareWire
from inputs import Spec
from lab import CACHE, run, wait_for
from selection import make_stacks
from servers import cost_of, servers_of
from stacks import BenchError, Place, Stack, drop_cache

SIZES = (500, 50_000, 500_000)
QUICK_SIZES = (500, 2000)
STACKS = ("bare-wire", "bare-kernel", "bare-squashfuse_ll", "bare-squashfuse_ll-0.5")
EDITION = 2
"""To be counted up when what the images hold changes."""
PER_DIRECTORY = 100
STEP = 20
"""Every so many files one is read after the walk."""


@dataclass(frozen=True)
class ManySpec(Spec):
    """An image that holds nothing but `many` files of up to 400 bytes, 100 in a directory."""

    many: int = 0
    step: int = STEP

    def expected(self, workload: str) -> dict[str, int]:
        """Return what a workload must find; `walk` is told by Place.found."""
        numbers = range(0, self.many, self.step)
        return {"scatter": {"count": len(numbers), "bytes": sum(len(_content(number)) for number in numbers)}}.get(
            workload, {}
        )


def measure_many(
    place: Place, names: list[str], sizes: tuple[int, ...], rounds: int, say: Callable[[str], None]
) -> Any:
    """Return `interpreter` and `mount` seconds, and for the largest image what each stack took and held."""
    stacks = {size: _stacks_of(place, names, size) for size in sizes}
    python = place.product / "bin/python"
    found: dict[str, Any] = {
        "sizes": sizes,
        "interpreter": [],
        "mount": {str(size): [] for size in sizes},
        "stacks": {},
    }
    try:
        for _ in range(rounds):
            found["interpreter"].append(_seconds(lambda: run(str(python), "-c", "pass").ok()))
            for size, made in stacks.items():
                for stack in made:
                    if isinstance(stack, BareWire):
                        found["mount"][str(size)].append(_mount_seconds(stack))
                        stack.rest()
        for number in range(min(rounds, 3)):
            for stack in stacks[max(sizes)]:
                _add(found["stacks"].setdefault(stack.name, {}), _walked(stack))
            say(f"{max(sizes)} files: walk {number + 1} done")
    finally:
        for made in stacks.values():
            for stack in made:
                stack.close()
    return found


def _stacks_of(place: Place, names: list[str], size: int) -> list[Stack]:
    store = many_files(size).parent
    lab = place.lab / store.name
    lab.mkdir()
    directories = -(-size // PER_DIRECTORY)
    its = replace(place, lab=lab, store=store, spec=ManySpec(many=size), found={"image": size + directories})
    made = make_stacks(its, [name for name in STACKS if name in names])
    for stack in made:
        stack.prepare()
    return made


def _mount_seconds(stack: BareStack) -> float:
    stack.rest()
    wait_for(lambda: not servers_of(stack.squash()), "the server before has ended")
    drop_cache(stack.squash())
    return _seconds(stack.mount)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return round(time.perf_counter() - begun, 4)


def _walked(stack: Stack) -> dict[str, float]:
    stack.cold()
    walk = stack.measure("walk", 1).wall
    after_walk = cost_of(servers_of(stack.squash()))
    again = stack.measure("walk", 1).wall
    scatter = stack.measure("scatter", 1).wall
    after_reads = cost_of(servers_of(stack.squash()))
    stack.rest()
    return {
        "walk": round(walk, 4),
        "walk_again": round(again, 4),
        "scatter": round(scatter, 4),
        "pss_walk": after_walk.pss_mib,
        "cpu_walk": after_walk.cpu,
        "pss_scatter": after_reads.pss_mib,
    }


def _add(samples: dict[str, list[float]], found: dict[str, float]) -> None:
    for kind, value in found.items():
        samples.setdefault(kind, []).append(value)


def many_files(count: int) -> Path:
    """Return a squash of `count` files, alone in its directory; made once and kept in CACHE."""
    top = CACHE / f"many-{EDITION}-{count}"
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = top / "many.squash"
    with top.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            top.mkdir(exist_ok=True)
            _pack(count, top / "new")
            (top / "new").rename(path)
    return path


def _pack(count: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    argv = ("sqfstar", "-comp", "zstd", "-no-duplicates", "-no-progress", "-quiet", str(path))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as packing:
        assert packing.stdin is not None
        for piece in _tar(count):
            packing.stdin.write(piece)
        packing.stdin.close()
        if packing.wait():
            raise BenchError(f"sqfstar ended with {packing.returncode}")


def _tar(count: int) -> Iterator[bytes]:
    yield _header(b"tree/", 0, b"5")
    for number in range(count):
        directory = b"tree/dir%05d/" % (number // PER_DIRECTORY)
        if number % PER_DIRECTORY == 0:
            yield _header(directory, 0, b"5")
        content = _content(number)
        yield (
            _header(directory + b"file%07d" % number, len(content), b"0", _scattered(number))
            + content
            + bytes(-len(content) % 512)
        )
    yield bytes(1024)


def _content(number: int) -> bytes:
    digest = hashlib.blake2b(b"%d" % number).digest()
    return (digest + b" the quick brown fox" * 20)[: 16 + _scattered(number) % 385]


def _scattered(number: int) -> int:
    return number * 2654435761 % 2**32 >> 4  # Knuth's multiplicative hash


def _header(name: bytes, size: int, kind: bytes, mtime: int = 0) -> bytes:
    # tar(5), ustar: name, mode, uid, gid, size, mtime, checksum (counted as spaces), type, link, magic
    mode = b"0000755\0" if kind == b"5" else b"0000644\0"
    head = name.ljust(100, b"\0") + mode + b"0000000\0" * 2 + b"%011o\0%011o\0" % (size, mtime)
    rest = (kind + bytes(100) + b"ustar\x0000").ljust(512 - 156, b"\0")
    checksum = sum(head) + 8 * 32 + sum(rest)
    return head + b"%06o\0 " % checksum + rest


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the table: for each stack walk, walk again, reads, memory."""
    table = [["", "walk, cold", "walk again", "read every 20th file", "PSS after the walk", "PSS after the reads"]]
    for name, samples in found["stacks"].items():
        middle = {kind: statistics.median(values) for kind, values in samples.items()}
        seconds = [f"{middle[kind]:.2f} s" for kind in ("walk", "walk_again", "scatter")]
        memory = [f"{middle[kind]:.0f} MiB" for kind in ("pss_walk", "pss_scatter")]
        table.append([name, *seconds, *memory])
    return table


def mount_rows(found: dict[str, Any]) -> list[list[str]]:
    """Return how soon `squashmount mount` has returned, over bare interpreter start."""
    bare = statistics.median(found["interpreter"]) * 1000
    table = [["", "median", "min-max", "over interpreter start"]]
    table.append(["python -c pass", f"{bare:.0f} ms", _span(found["interpreter"]), ""])
    for size, values in found["mount"].items():
        if values:
            middle = statistics.median(values) * 1000
            table.append([f"{size} files", f"{middle:.0f} ms", _span(values), f"{middle - bare:.0f} ms"])
    return table


def _span(values: list[float]) -> str:
    return f"{min(values) * 1000:.0f}-{max(values) * 1000:.0f} ms"
