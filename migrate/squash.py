"""Makes one squash file: starts `inside.py` where the image can be mounted, follows its progress, checks the result."""

import errno
import hashlib
import os
import select
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from squashmount import errors, jsonio, process
from squashmount.errors import DamagedError, HostError, SpaceError, SquashmountError, ToolError
from squashmount.server.index_writer import append_index

from . import readback
from .job import Job
from .progress import Progress
from .source import Podman, PodmanStore

_NO_SPACE = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Squashed:
    """The finished file. Sizes are in bytes; `restored` counts files whose owner came from the layer headers."""

    path: str
    size: int
    sha256: str
    entries: int
    tree_bytes: int
    root_mode: int
    restored: int


def seconds_since_1970(created: str) -> int:
    """Convert the RFC 3339 time of an image record; times before 1970 and Go's zero time become 0."""
    try:
        stamp = datetime.fromisoformat(created[:19] + "+00:00")
    except ValueError:
        return 0
    return min(max(0, int((stamp - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())), 2**32 - 1)


def make(
    job: Job, podman: Podman, store: PodmanStore, progress: Progress, *, check: bool = True, log: process.Log
) -> Squashed:
    """Squash the image to `job.output`, written back to disk.

    Raises ToolError, SpaceError or HostError; the caller removes the file.
    """
    helper = (sys.executable, "-P", "-m", "squashmount.migrate.inside")
    argv = podman.argv("unshare", *helper) if store.rootless else helper
    report = _follow(argv, job, progress, log)
    try:
        return _checked(job, report, progress, check=check, log=log)
    except OSError as err:
        raise _write_error(err, job.output) from err


def _checked(job: Job, report: jsonio.JsonObject, progress: Progress, *, check: bool, log: process.Log) -> Squashed:
    """Add the listing index, and return the file when it is durable and can be read back."""
    _add_index(job.output, log)
    # the disk, SHA-256 and reading back keep different things busy; an error of fsync(2) is reported once, so here
    with ThreadPoolExecutor(2) as beside:
        durable = beside.submit(_sync, job.output)
        summed = beside.submit(_checksum, job.output)
        if check:
            progress.step("read back")
            samples = map(readback.Sample.from_json, report.get("samples") or ())
            readback.check(job.output, entries=jsonio.get_int(report, "entries"), samples=samples)
        progress.step("checksum")
        digest, size = summed.result()
        durable.result()
    return Squashed(
        path=job.output,
        size=size,
        sha256=digest,
        entries=jsonio.get_int(report, "entries"),
        tree_bytes=jsonio.get_int(report, "bytes"),
        root_mode=jsonio.get_int(report, "root_mode"),
        restored=jsonio.get_int(report, "restored"),
    )


def _add_index(output: str, log: process.Log) -> None:
    try:
        log(f"listing index: {append_index(output)} bytes")
    except DamagedError as err:
        raise ToolError("The new squash file cannot be read back.", details=err.details or err.brief) from err


def _write_error(err: OSError, output: str) -> SquashmountError:
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _no_space(str(err))
    return HostError(f"{output} cannot be written.", details=str(err), hint="try again; if it stays, look at DIR")


def _no_space(details: str) -> SpaceError:
    hint = "free space in DIR (migrate2scratch prune --now empties its trash) or raise the quota"
    return SpaceError("No space for the squash file.", details=details, hint=hint)


def _follow(argv: tuple[str, ...], job: Job, progress: Progress, log: process.Log) -> jsonio.JsonObject:
    with tempfile.TemporaryFile() as stderr, process.started(*argv, stderr=stderr, grace=10.0, log=log) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(job.to_json())
        child.stdin.flush()
        progress.step("squash")
        buffer = b""
        while True:
            ready, _, _ = select.select([child.stdout], [], [], 1.0)
            progress.tick()
            if not ready:
                continue
            chunk = os.read(child.stdout.fileno(), 65536)
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                message = jsonio.load_object(line, where="squash helper")
                if "percent" in message:
                    progress.percent(jsonio.get_int(message, "percent"))
                elif "error" in message:
                    raise _error(jsonio.get_object(message, "error"))
                elif "done" in message:
                    return jsonio.get_object(message, "done")
            if not chunk:
                stderr.seek(0)
                raise ToolError(
                    f"The squash helper ended early (exit status {child.wait()}).",
                    details=stderr.read().decode("utf-8", "replace").strip()[-2000:],
                )


def _error(message: jsonio.JsonObject) -> SquashmountError:
    brief, details = jsonio.get_str(message, "brief"), jsonio.get_str(message, "details", "")
    if any(text in details for text in _NO_SPACE):
        return _no_space(details)
    kind = getattr(errors, jsonio.get_str(message, "kind"), ToolError)
    error: SquashmountError = kind(brief, details=details, hint=jsonio.get_str(message, "hint", ""))
    return error


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _checksum(path: str) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
