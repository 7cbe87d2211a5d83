"""The server's memory is bounded by its caches, whatever the image holds and however many read it.

This file is also the program that mounts, in a namespace of its own, with the product's own `Workers`.
"""

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted
from squash_images import content_of, many_files

from squashmount.config import Config

TESTS = str(Path(__file__).resolve().parents[1])
FILES, BIG_MIB = 500_000, 96
WALKERS = 3
OTHERS_KIB = 186 << 10
"""All but the cache of blocks: 250 MiB with the default cache of 64 MiB."""

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = many_files(tmp_path_factory.mktemp("memory") / "image", FILES, "-comp", "zstd", big_mib=BIG_MIB)
    yield path
    os.unlink(path)


def peak_kib(pid: int) -> int:
    """Return the largest resident set a process ever had (proc_pid_status(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def walk(top: str) -> int:
    count = 0
    pending = [top]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    pending.append(entry.path)
    return count


def read(top: str) -> int:
    """Return how many bytes of the large file, and how many small files, are what they should be."""
    right = 0
    for number in range(0, FILES, 97):
        right += Path(top, f"d{number // 500}/f{number}").read_bytes() == content_of(number)
    with open(f"{top}/big", "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            right += len(data)
    return right


def everything(top: str, squash: str, cache_mib: str) -> Any:
    server = Mounted(top, squash, Config(cache_mib=int(cache_mib)))
    try:
        jobs = [("walk", WALKERS), ("read", 1)]
        programs = [
            subprocess.Popen([sys.executable, __file__, job, server.mountpoint], stdout=subprocess.PIPE)
            for job, times in jobs
            for _ in range(times)
        ]
        found = [pickle.loads(program.communicate()[0]) for program in programs]
        return sorted(found), peak_kib(server.workers.pid)
    finally:
        server.close()


@pytest.mark.parametrize("cache_mib", [8, 64])
def test_half_a_million_files_walked_and_read_fit_into_250_mib(squash: str, tmp_path: Path, cache_mib: int) -> None:
    program = subprocess.run(
        [sys.executable, __file__, "everything", str(tmp_path), squash, str(cache_mib)],
        env=os.environ | {"PYTHONPATH": TESTS},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert program.returncode == 0, program.stderr.decode()
    found, peak = pickle.loads(program.stdout)
    names = FILES + FILES // 500 + 1
    assert found == [*[names] * WALKERS, -(-FILES // 97) + (BIG_MIB << 20)]
    assert peak < OTHERS_KIB + (cache_mib << 10)
    assert peak > cache_mib << 10, "the cache was full"


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
