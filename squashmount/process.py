"""The only place that starts programs."""

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .errors import ToolError

Log = Callable[[str], None]


def quiet(_line: str) -> None:
    """Swallow a log line."""


def run(
    *argv: str,
    ok: tuple[int, ...] = (0,),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes | None = None,
    timeout: float | None = None,
    pass_fds: Sequence[int] = (),
    hint: str = "",
    log: Log = quiet,
) -> str:
    """Run a program to its end and return its standard output.

    `timeout` is in seconds. Raises ToolError (quoting the command and its standard error) when the program is
    missing, ends with a status not in `ok`, or takes too long.
    """
    return _checked(argv, ok=ok, env=env, cwd=cwd, stdin=stdin, timeout=timeout, pass_fds=pass_fds, hint=hint, log=log)[
        0
    ]


def run_both(
    *argv: str,
    ok: tuple[int, ...] = (0,),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    log: Log = quiet,
) -> tuple[str, str]:
    """Run a program to its end and return what it wrote to standard output and to standard error; errors as of run."""
    return _checked(argv, ok=ok, env=env, cwd=None, stdin=None, timeout=timeout, pass_fds=(), hint="", log=log)


def run_visibly(*argv: str, env: Mapping[str, str] | None = None, log: Log = quiet) -> int:
    """Run a program to its end and return its exit status: it has our standard input, and our standard error twice.

    Raises ToolError when the program is missing or cannot be executed.
    """
    log("$ " + shlex.join(argv))
    try:
        return subprocess.run(argv, env=env, stdout=2, check=False).returncode
    except OSError as err:
        raise ToolError(f"{argv[0]} cannot be started.", details=str(err)) from err


@contextmanager
def started(
    *argv: str,
    stderr: BinaryIO,
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
    grace: float = 0.0,
    log: Log = quiet,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that runs beside us, with pipes on its standard input and output (or `stdout`, a descriptor).

    When the block ends, so does the program: its standard input is closed, it gets `grace` seconds to end by itself,
    then SIGTERM, five seconds later SIGKILL. Raises ToolError when the program is missing or cannot be executed.
    """
    log("$ " + shlex.join(argv))
    try:
        output = subprocess.PIPE if stdout is None else stdout
        child = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=output, stderr=stderr)
    except OSError as err:
        raise ToolError(f"{argv[0]} cannot be started.", details=str(err)) from err
    try:
        yield child
    finally:
        _ended(child, grace)


def _ended(child: subprocess.Popen[bytes], grace: float) -> None:
    if child.stdin:
        with suppress(BrokenPipeError):
            child.stdin.close()
    if not _gone(child, grace):
        child.terminate()
        if not _gone(child, 5.0):
            child.kill()
            child.wait()
    if child.stdout:
        child.stdout.close()


def _gone(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _checked(
    argv: Sequence[str],
    *,
    ok: tuple[int, ...],
    env: Mapping[str, str] | None,
    cwd: str | None,
    stdin: bytes | None,
    timeout: float | None,
    pass_fds: Sequence[int],
    hint: str,
    log: Log,
) -> tuple[str, str]:
    log("$ " + shlex.join(argv))
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(
            argv,
            env=env,
            cwd=cwd,
            capture_output=True,
            check=False,
            timeout=timeout,
            pass_fds=pass_fds,
            **given,
        )
    except FileNotFoundError as err:
        raise ToolError(f"{argv[0]} is not installed or not on PATH.", hint=hint or f"install {argv[0]}") from err
    except PermissionError as err:
        raise ToolError(f"{argv[0]} cannot be executed.", details=str(err), hint=hint) from err
    except subprocess.TimeoutExpired as err:
        raise ToolError(f"{argv[0]} did not finish in {timeout:g} s.", details=shlex.join(argv), hint=hint) from err
    out, error = os.fsdecode(done.stdout), os.fsdecode(done.stderr).strip()
    if done.returncode not in ok:
        raise ToolError(
            f"{os.path.basename(argv[0])} {_how_it_ended(done.returncode)}.",
            details="\n".join(filter(None, (shlex.join(argv), error))),
            hint=hint,
        )
    return out, error


def _how_it_ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit status {code}"
