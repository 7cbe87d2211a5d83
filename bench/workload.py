"""One workload, timed from inside: in the container (`python3 -c`, so the image need not know it) or on a bare mount.

    workload.py NAME ROOT SPEC

NAME is a key of WORK; ROOT is prefixed to the paths of the image ("" in a container);
SPEC is the JSON of inputs.Spec. Prints one JSON object: `seconds` of the work alone, `began` (time(2) of the first line
of this program) and what was found, so that the caller can check that the work was really done.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BEGAN = time.time()
SKIPPED = {"proc", "sys", "dev", "run"}
CHUNK = 1 << 20
PROCESSES = 16

Found = dict[str, int]
Spec = dict[str, Any]


def import_storm(root: str, spec: Spec) -> Found:
    sys.path.insert(0, f"{root}/bench/modules")
    names = [f"pack{number // 100:03d}.mod{number:05d}" for number in range(spec["modules"])]
    total = sum(__import__(name, fromlist=["VALUE"]).VALUE for name in names)
    return {"count": len(names), "sum": total}


def numeric(_root: str, spec: Spec) -> Found:
    return {"count": sum(importlib.import_module(name).__name__ == name for name in spec["numeric"])}


def walk(root: str, _spec: Spec) -> Found:
    count, todo = 0, [f"{root}/{name}" for name in sorted(os.listdir(root or "/")) if name not in SKIPPED]
    todo = [path for path in todo if not os.path.islink(path) and os.path.isdir(path)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return {"count": count}


def read(root: str, _spec: Spec) -> Found:
    # os.open, not open(): on a bare FUSE mount Python's open() sends an ioctl for each file
    fd = os.open(f"{root}/bench/big", os.O_RDONLY)
    count = size = total = 0
    while data := os.read(fd, CHUNK):
        count, size, total = count + 1, size + len(data), total + int.from_bytes(data[:8], "little")
    os.close(fd)
    return {"count": count, "bytes": size, "sum": total}


def random_reads(root: str, spec: Spec) -> Found:
    fd = os.open(f"{root}/bench/big", os.O_RDONLY)
    blocks, size, total = spec["big_mib"] << 8, 0, 0
    for number in range(spec["random_reads"]):
        # Knuth's multiplicative hash: scattered, and the same for every stack
        data = os.pread(fd, 4096, number * 2654435761 % blocks << 12)
        size, total = size + len(data), total + data[-1]
    os.close(fd)
    return {"count": spec["random_reads"], "bytes": size, "sum": total}


def scatter(root: str, spec: Spec) -> Found:
    """Read every `step`th file of an image of very many."""
    count = size = 0
    for number in range(0, spec["many"], spec["step"]):
        fd = os.open(f"{root}/tree/dir{number // 100:05d}/file{number:07d}", os.O_RDONLY)
        count, size = count + 1, size + len(os.read(fd, CHUNK))
        os.close(fd)
    return {"count": count, "bytes": size}


def _small_files(root: str, count: int) -> list[str]:
    return [f"{root}/bench/small/{number // 100:03d}/{number:05d}" for number in range(count)]


def small(root: str, spec: Spec) -> Found:
    size = total = 0
    for path in _small_files(root, spec["small"]):
        fd = os.open(path, os.O_RDONLY)
        while data := os.read(fd, CHUNK):
            size, total = size + len(data), total + data[0]
        os.close(fd)
    return {"count": spec["small"], "bytes": size, "sum": total}


def open_storm(_root: str, spec: Spec) -> Found:
    """16 processes open, read 64 bytes of and close the same files (they were read once before the clock starts)."""
    paths = _small_files(_root, spec["opened"])
    children = []
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    for _ in range(PROCESSES):
        out_read, out_write = os.pipe()
        if not (pid := os.fork()):
            os.close(go_write)
            os.write(ready_write, b"r")
            os.read(go_read, 1)  # end of file: go
            os.write(out_write, _open_all(paths).to_bytes(8, "little"))
            os._exit(0)
        os.close(out_write)
        children.append((pid, out_read))
    for _ in children:
        os.read(ready_read, 1)
    global STARTED  # noqa: PLW0603 - the preparation is no part of the work
    STARTED = time.perf_counter()
    os.close(go_write)
    done = sum(int.from_bytes(os.read(out, 8), "little") for _pid, out in children)
    codes = [os.waitpid(pid, 0)[1] for pid, _out in children]
    return {"count": done, "failed": sum(bool(code) for code in codes)}


def _open_all(paths: list[str]) -> int:
    done = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        done += len(os.read(fd, 64)) > 0
        os.close(fd)
    return done


def pyc_written(root: str) -> int:
    """Return how many directories of compiled modules changed since the image was made: writing renames into them."""
    top = f"{root}/bench/modules"
    made = os.stat(f"{root}/bench/made").st_mtime
    caches = [f"{top}/{name}/__pycache__" for name in os.listdir(top)]
    return sum(not os.path.isdir(cache) or os.stat(cache).st_mtime > made for cache in caches)


def pyc_of_loaded(root: str) -> int:
    """Return how many directories of compiled modules in use changed since the image was made, as `pyc_written`."""
    made = os.stat(f"{root}/bench/made").st_mtime
    cached = {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
    caches = {os.path.dirname(path) for path in cached if path}
    return sum(os.path.isdir(cache) and os.stat(cache).st_mtime > made for cache in caches)


WORK: dict[str, Callable[[str, Spec], Found]] = {
    "import": import_storm,
    "numeric": numeric,
    "walk": walk,
    "read": read,
    "random": random_reads,
    "scatter": scatter,
    "small": small,
    "open": open_storm,
}


def main(name: str, root: str, spec: Spec) -> int:
    global STARTED  # noqa: PLW0603 - see open_storm
    if name == "open":
        _open_all(_small_files(root, spec["opened"]))
    STARTED = time.perf_counter()
    found = WORK[name](root, spec)
    seconds = time.perf_counter() - STARTED
    if name == "import":
        found["pyc_written"] = pyc_written(root)
    if name == "numeric":
        found["pyc_written"] = pyc_of_loaded(root)
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        fstype = next(line.split()[2] for line in mounts if line.split()[1] == (root or "/"))
    print(json.dumps({"seconds": seconds, "began": BEGAN, "root": fstype, **found}))
    return 0


STARTED = 0.0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
