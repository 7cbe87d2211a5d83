"""The newest squashfuse: this machine's own where it is new enough, else Debian 13's, run by its own libc.

Nothing of it is installed: the packages are unpacked below CACHE, a script starts the program by its dynamic linker.
"""

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from lab import CACHE, run
from peers import private_apt

RELEASE = "trixie"
NEW_ENOUGH = (0, 5)

# ld.so(8): --library-path instead of the machine's libraries, which are older than the program
STARTER = """#!/bin/sh
exec {top}/usr/lib/{triplet}/{linker} --library-path {top}/usr/lib/{triplet} {top}/usr/bin/squashfuse_ll "$@"
"""


def newest_squashfuse() -> Path:
    """Return a squashfuse_ll of at least 0.5 that every user can execute. Raises AssertionError with apt's log."""
    own = shutil.which("squashfuse_ll")
    if own and version(Path(own)) >= NEW_ENOUGH:
        return Path(own)
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    top = CACHE / f"squashfuse-{RELEASE}"
    with top.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not top.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as directory:
                _unpack(Path(directory), top)
    return top / "squashfuse_ll"


def version(program: Path) -> tuple[int, ...]:
    """Return what `squashfuse_ll --version` says, () when it says nothing of the kind."""
    done = run(str(program), "--version", timeout=10)
    found = re.search(r"squashfuse (\d+(?:\.\d+)+)", done.out + done.err)
    return tuple(map(int, found[1].split("."))) if found else ()


def _unpack(work: Path, top: Path) -> None:
    apt = private_apt(work, "deb", RELEASE)
    # to this apt-get nothing is installed: it brings libc and every library the program needs
    run(*apt, "install", "--download-only", "--no-install-recommends", "--yes", "squashfuse", timeout=300).ok()
    fresh = work / "tree"
    for package in sorted((work / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(fresh)).ok()
    (linker,) = (path for path in (fresh / "usr/lib").glob("*/ld-linux*.so.*") if path.parent.name != "lib")
    starter = fresh / "squashfuse_ll"
    starter.write_text(STARTER.format(top=top, triplet=linker.parent.name, linker=linker.name))
    starter.chmod(0o755)
    fresh.chmod(0o755)
    os.rename(fresh, top)
