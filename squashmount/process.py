"""The only place that starts programs."""

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence

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


def status(*argv: str, env: Mapping[str, str] | None = None, cwd: str | None = None, log: Log = quiet) -> int:
    """Run a program for its exit status alone."""
    log("$ " + shlex.join(argv))
    try:
        return subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode
    except OSError:
        return 127


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
