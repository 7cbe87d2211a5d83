"""The mount_program as a file: what it is and who can run it. It is never started."""

import os
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Program:
    """`kind` is squashmount, fuse-overlayfs, other, or empty (none configured)."""

    path: str = ""
    kind: str = ""
    exists: bool = False
    executable: bool = False
    interpreter: str = ""  # of a script, when this user cannot execute it


def read_program(path: str) -> Program:
    """Look at a mount_program as this user."""
    if not path:
        return Program()
    head = _head(path)
    name = os.path.basename(path)
    kind = "squashmount" if b"squashmount" in head else name if name == "fuse-overlayfs" else "other"
    interpreter = _interpreter(path)
    broken = interpreter if interpreter and not os.access(interpreter, os.X_OK) else ""
    return Program(path, kind, os.path.exists(path), os.access(path, os.X_OK), broken)


def closed_to_others(program: str) -> str:
    """Return what keeps other users from running a program (a folder, it, its interpreter), or empty.

    A program that is not here (an image root is being filled) is nobody's fault.
    """
    interpreter = _interpreter(program)
    paths = [program, os.path.realpath(program)]
    if interpreter:
        paths += [interpreter, os.path.realpath(interpreter)]
    steps = (step for path in paths for step in accumulate(path.split("/"), lambda up, name: f"{up}/{name}"))
    return next((step for step in steps if os.path.exists(step) and not os.stat(step).st_mode & 0o001), "")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _interpreter(program: str) -> str:
    here = os.path.dirname(os.path.realpath(program))
    if os.path.basename(program) == "squashmount-mount" and os.path.exists(f"{here}/../pyvenv.cfg"):
        return f"{here}/python3"  # the shell in its first line only starts this
    first = _head(program).split(b"\n", 1)[0]
    words = os.fsdecode(first[2:]).split() if first.startswith(b"#!") else []
    return words[0] if words else ""
