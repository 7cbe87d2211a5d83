"""Ask libsubid for the ranges of many users, and nsswitch for their accounts.

The plugin is foreign code that may hang, print and crash, so a child asks.
"""

import json
import os
import pwd
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from squashmount.errors import HostError, ToolError

from .libsubid import abi, ranges_of
from .ranges import KINDS, Account, Kind, Range


def ask(names: Sequence[str], *, seconds: float, source: str) -> tuple[Range, ...]:
    """Return the ranges of these users as this node's source lists them; a user without one is not in it.

    Raises HostError without libsubid, ToolError when it does not answer all of it in `seconds`.
    """
    lines = _answers(lambda answer: _list(names, answer), "libsubid", seconds)
    if lines == ["none"]:
        raise HostError("libsubid is not installed.", hint="install the package uidmap or shadow-utils-subid")
    return tuple(_parsed(line, names, source) for line in lines)


def accounts(owners: Sequence[str], *, seconds: float) -> Iterator[Account]:
    """Yield the accounts of those owners, names or uids in digits, whom getpwnam(3) or getpwuid(3) knows.

    ToolError when nsswitch does not answer all of it in `seconds`.
    """
    if not owners:
        return
    for line in _answers(lambda answer: _look_up(owners, answer), "nsswitch", seconds):
        name, uid, gid, login = json.loads(line)
        yield Account(name, uid, gid, "nsswitch", login=login)


def _answers(question: Callable[[TextIO], None], who: str, seconds: float) -> list[str]:
    begin = time.monotonic()
    with _asking(question) as pipe:
        said = _read(pipe, seconds)
    lines = said.decode(errors="backslashreplace").split("\n")
    if lines[-1] != "end":
        hint = "is sssd alive? `sssctl domain-status`; --timeout SECONDS gives it longer"
        late = time.monotonic() - begin >= seconds
        raise ToolError(f"{who} {f'gave no complete answer in {seconds:g} s' if late else 'crashed'}.", hint=hint)
    return lines[:-1]


def _look_up(owners: Sequence[str], answer: TextIO) -> None:
    for owner in owners:
        with suppress(KeyError, OverflowError, ValueError):
            entry = pwd.getpwuid(int(owner)) if owner.isascii() and owner.isdigit() else pwd.getpwnam(owner)
            login = not entry.pw_shell.endswith(("/nologin", "/false"))
            answer.write(json.dumps([entry.pw_name, entry.pw_uid, entry.pw_gid, login]) + "\n")


def _list(names: Sequence[str], answer: TextIO) -> None:
    if not abi():
        answer.write("none\n")
        return
    for index, name in enumerate(names):
        for kind in KINDS:
            answer.writelines(f"{kind} {index} {start} {count}\n" for start, count in ranges_of([name], kind))


def _parsed(line: str, names: Sequence[str], source: str) -> Range:
    kind, index, start, count = line.split(" ")
    made: Kind = "uid" if kind == "uid" else "gid"
    return Range(names[int(index)], int(start), int(count), made, source)


@contextmanager
def _asking(question: Callable[[TextIO], None]) -> Iterator[int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _as_child(question, writer)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _as_child(question: Callable[[TextIO], None], writer: int) -> None:
    """Be the child: never returns."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        with open(writer, "w", encoding="utf-8") as answer:
            question(answer)
            answer.write("end")
    finally:
        os._exit(0)


def _read(pipe: int, seconds: float) -> bytes:
    end = time.monotonic() + seconds
    said = bytearray()
    while (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            data = os.read(pipe, 1 << 16)
            if not data:
                break
            said += data
    return bytes(said)
