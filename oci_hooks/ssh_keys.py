"""The keys of a job: one pair for its user, one for its containers' sshd, made once for all nodes.

    <directory>/<job>/id, id.pub, host, host.pub

The directory is shared by the nodes and the user's own. The first container of a job makes the keys beside their place
and renames the directory: rename(2) fails where another node was first, and then its keys are taken. So there is no
lock, and nobody ever sees half a set.
"""

import errno
import os
import secrets
import stat
import time
import zlib

from squashmount.errors import HostError, SquashmountError, UsageError
from squashmount.lean import NamedTuple, suppress

PER_NODE = 64
"""Ports of a job: so many containers of one job can be on a node."""

_FILES = ("id", "id.pub", "host", "host.pub")
_NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-[]")
_JOBS = ("SLURM_HET_JOB_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "JOB_ID")
_KEPT_SECONDS = 60 * 24 * 3600
_LONGEST = 128


class Keys(NamedTuple):
    """The contents of the four files."""

    id: str
    id_public: str
    host: str
    host_public: str


def job_name(environ: dict[str, str], annotations: dict[str, str]) -> str:
    """Return the job's name, another one after every requeue. UsageError when there is no job."""
    asked = annotations.get("squashmount.ssh.job", "")
    name = asked or next((environ[key] for key in _JOBS if environ.get(key)), "")
    if not name:
        raise UsageError(
            "There is no job whose containers could be reached by ssh.",
            details="none of these is set: " + ", ".join(_JOBS),
            hint="--annotation squashmount.ssh.job=NAME, the same for all containers that belong together",
        )
    # a requeued job keeps its number, and what is left of its first run may still be there on a node that died
    restart = environ.get("SLURM_RESTART_COUNT", "")
    if restart not in {"", "0"} and not asked:
        name = f"{name}-{restart}"
    if not set(name) <= _NAMES or name.startswith(".") or len(name) > _LONGEST:
        raise UsageError(f"The job's name {name!r} cannot be one of a directory.")
    return name


def first_port(job: str, ports: tuple[int, ...]) -> int:
    """Return the port of a job's first container on each node; the next has the next one.

    Numbers that follow each other, as those of jobs on one node do, never share a port. UsageError for too few ports.
    """
    low, high = ports if len(ports) == 2 else (0, 0)
    places = (high - low + 1) // PER_NODE
    if places < 1 or high > 65535 or low < 1024:
        raise UsageError(
            f"ssh_ports {list(ports)} is no range for ssh.", hint=f"at least {PER_NODE} ports from 1024 to 65535"
        )
    digits = ""
    for char in job:
        if not char.isdigit():
            break
        digits += char
    number = int(digits) if digits else 0
    if digits != job:
        number += zlib.crc32(job.encode())
    return low + number % places * PER_NODE


def index_on_node(environ: dict[str, str], annotations: dict[str, str]) -> int:
    """Return which of the job's containers on this node this is. UsageError for what is no such number."""
    text = annotations.get("squashmount.ssh.index") or environ.get("SLURM_LOCALID") or "0"
    if not text.isascii() or not text.isdecimal() or len(text) > 4 or int(text) >= PER_NODE:
        raise UsageError(
            f"{text!r} is not the number of a container on this node.",
            details="from the annotation squashmount.ssh.index, or SLURM_LOCALID",
            hint=f"a job has {PER_NODE} ports for ssh on a node: 0 to {PER_NODE - 1}",
        )
    return int(text)


def job_keys(directory: str, job: str) -> Keys:
    """Return the job's keys, made now if nobody has. HostError when others could have made or read them."""
    place = os.path.join(directory, job)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if not os.path.lexists(place):
            _make(directory, place)
            _prune(directory, job)
        return _read(place)
    except OSError as err:
        raise SquashmountError(
            f"The keys of the job {job} cannot be made or read in {directory}.",
            details=str(err),
            hint="ssh_directory in /etc/squashmount/hooks.toml must be a directory of the user's that all nodes share",
        ) from err


def _make(directory: str, place: str) -> None:
    from squashmount.process import run  # noqa: PLC0415 - once a job

    temporary = os.path.join(directory, f".tmp-{secrets.token_hex(8)}")
    os.mkdir(temporary, 0o700)
    try:
        for name in ("id", "host"):
            path = os.path.join(temporary, name)
            hint = "install openssh-client on the nodes"
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path, env=_PATH, timeout=60, hint=hint)
        for name in _FILES:
            fd = os.open(os.path.join(temporary, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o600)
                os.fsync(fd)
            finally:
                os.close(fd)
        try:
            os.rename(temporary, place)
        except OSError as err:
            # a directory with something in it: another node was first
            if err.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
    finally:
        _remove(temporary)


_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


def _read(place: str) -> Keys:
    status = os.lstat(place)
    _check(place, status, directory=True)
    texts = []
    for name in _FILES:
        path = os.path.join(place, name)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, encoding="ascii") as file:
            _check(path, os.fstat(fd), directory=False)
            texts.append(file.read(1 << 16))
    with suppress(OSError):
        os.utime(place)  # in use: not to be pruned
    return Keys(*texts)


def _check(path: str, status: os.stat_result, *, directory: bool) -> None:
    right = stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)
    if not right or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise HostError(
            f"{path} is not a {'directory' if directory else 'file'} that only you can read and write.",
            details=f"owner {status.st_uid} (you are {os.geteuid()}), mode {stat.S_IMODE(status.st_mode):04o}",
            hint="remove it; the keys are made anew",
        )


def _prune(directory: str, keep: str) -> None:
    """Remove the keys of jobs that started their last container long ago, and what a killed maker left."""
    now = time.time()
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with suppress(OSError):
            age = now - os.lstat(path).st_mtime
            if name != keep and age > (3600 if name.startswith(".tmp-") else _KEPT_SECONDS):
                _remove(path)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        for name in (*_FILES,):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)
