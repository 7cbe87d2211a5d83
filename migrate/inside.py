"""The part that runs inside Podman's user namespace: mount the image, look at it, squash it.

Started by `squash.py` as `podman unshare PYTHON -m squashmount.migrate.inside` (rootful: without `podman unshare`).
The job comes as one JSON line on standard input, which then stays open: its end is the order to stop. Reports go out
as JSON lines: {"percent": n}, then {"done": {…}} or {"error": {…}}.

Nothing survives this process, however it ends: the image is mounted in a mount namespace of its own, and every process
is in a PID namespace whose first process dies with its parent (pid_namespaces(7): then the kernel kills the rest).
"""

import errno
import hashlib
import json
import os
import select
import signal
import socket
import stat
import sys
import tempfile
import termios
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from squashmount import idmap, linux, process
from squashmount.errors import HostError, SquashmountError, ToolError

from . import mksquashfs, owners, readback, survey
from .job import Job


def main() -> int:
    """Read the job, do it in new namespaces, and wait for its end or for the order to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    try:
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    except OSError as err:
        _report_error(HostError("Cannot make a private mount namespace.", details=str(err)))
        return 1
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        os._exit(_first_process(Job.from_json(line), theirs))
    theirs.close()
    return _watch(child, ours)


def _watch(child: int, link: socket.socket) -> int:
    """Wait until the child's end of `link` closes because it ended (pidfd_open(2) is missing before Linux 5.3)."""
    ready, _, _ = select.select([link, sys.stdin.buffer], [], [])
    if link not in ready:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _first_process(job: Job, link: socket.socket) -> int:
    """Do the job unless the parent is gone: it may have died before the kernel was asked to tell us.

    getppid(2) cannot say so: the parent of the first process of a PID namespace is outside of it, always 0. The
    parent's end of `link` can.
    """
    try:
        linux.die_with_parent(0)
        if select.select([link], [], [], 0)[0]:
            return 1
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        with suppress(OSError):  # refused where parts of /proc are hidden; the old one still serves
            linux.mount("proc", "/proc", "proc")
        _report(done=_squash(job))
    except SquashmountError as err:
        _report_error(err)
        return 1
    except OSError as err:
        _report_error(ToolError("The image could not be read.", details=str(err)))
        return 1
    return 0


def _squash(job: Job) -> dict[str, Any]:
    root = _mounted(job)
    found = survey.survey(root)
    restored = _owners_to_restore(job, root, found)
    run = _prepared(job, root, found, restored)
    _run(mksquashfs.command(job.binary, run))
    return {
        "entries": found.entries,
        "bytes": found.size,
        "root_mode": run.root_owner[0] if run.root_owner else found.root_mode,
        "restored": len(restored),
        "samples": [asdict(sample) for sample in _samples(root, found, restored)],
    }


def _samples(root: str, found: survey.Survey, restored: list[owners.Restored]) -> list[readback.Sample]:
    """Return some files as they must be in the squash."""
    fixed = {path: (mode, uid, gid) for path, mode, uid, gid in restored}
    samples = []
    for _, path in sorted(found.candidates)[: survey.SAMPLES]:
        with open(os.path.join(os.fsencode(root), path), "rb") as file:
            info = os.fstat(file.fileno())
            mode, uid, gid = fixed.get(path, (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        samples.append(readback.Sample(path.decode("utf-8", "surrogateescape"), mode, uid, gid, digest))
    return samples


def _prepared(job: Job, root: str, found: survey.Survey, restored: list[owners.Restored]) -> mksquashfs.Run:
    """Write the pseudo file and decide about xattrs."""
    top = next(((mode, uid, gid) for path, mode, uid, gid in restored if not path), None)
    if top and not job.binary.sets_root:
        raise ToolError(
            f"mksquashfs {job.binary} cannot set the owner of the root directory.", hint="install squashfs-tools 4.5.1"
        )
    fixes = (mksquashfs.modify(*fix) for fix in restored if fix[0])
    text, definitions = mksquashfs.split_definitions(fixes)
    pseudo = os.path.join(job.runtime_dir, "pseudo")
    with open(pseudo, "wb") as file:
        file.write(text)
    # A name that is not there, or leads out of the image, would end mksquashfs
    first = [path for path in map(os.fsencode, job.first) if _is_file(os.fsencode(root), path)]
    order = os.path.join(job.runtime_dir, "order")
    with open(order, "wb") as file:
        file.write(mksquashfs.sort_list(first))
    return mksquashfs.Run(
        root=root,
        output=job.output,
        format=job.format,
        created=job.created,
        processors=job.processors,
        xattrs=_xattr_mode(job, found),
        pseudo_file=pseudo if text else "",
        pseudo_definitions=definitions,
        root_owner=top,
        sort_file=order if first else "",
    )


def _is_file(root: bytes, path: bytes) -> bool:
    """Tell whether a path of a profile names a regular file of the image without a link in it."""
    full = os.path.join(root, path)
    try:
        return os.path.realpath(full) == full and stat.S_ISREG(os.lstat(full).st_mode)
    except OSError:
        return False


def _mounted(job: Job) -> str:
    """Mount the image with Podman and make sure that the mount is in our own namespace.

    Podman counts mounts in the runroot (containers/storage layers.go, mountpoints.json). A count that a killed process
    leaves behind never goes away, so Podman gets an empty private directory to count in, and nobody needs to unmount.
    """
    if job.counts:
        linux.mount("tmpfs", job.counts, "tmpfs", 0, "mode=0700")
    linux.mount("tmpfs", job.runtime_dir, "tmpfs", 0, "mode=0700")
    os.environ["SQUASHMOUNT_RUNTIME_DIR"] = job.runtime_dir
    root = process.run(*job.podman, "image", "mount", job.image).strip()
    if not job.copies and not _is_mount(root):
        raise ToolError("Podman did not mount the image where it can be squashed.", details=root)
    return root


def _is_mount(path: str) -> bool:
    here = os.lstat(path)
    parent = os.lstat(os.path.join(path, ".."))
    return here.st_dev != parent.st_dev or here.st_ino == parent.st_ino


def _owners_to_restore(job: Job, root: str, found: survey.Survey) -> list[owners.Restored]:
    if not owners.lost(found.owners, job.owners_seen, ignored=job.owners_lost or _single_id()):
        return []
    if not job.owner_records:
        raise HostError(
            "The owners of the files cannot be restored: Podman has no record of the headers of a layer.",
            hint="squash the image as a user with a range in /etc/subuid",
        )
    return owners.differences(root, owners.merged(job.owner_records))


def _single_id() -> bool:
    """Tell whether this user namespace maps one id only (no range in /etc/subuid)."""
    return sum(entry.length for entry in idmap.read_id_map("/proc/self/uid_map")) == 1


def _xattr_mode(job: Job, found: survey.Survey) -> str:
    """Decide about xattrs. Before 4.6 mksquashfs takes all or none.

    The host's SELinux labels then come along where the image has file capabilities: no FUSE mount shows them.
    """
    mode = found.xattrs
    if mode != "filter" or job.binary.excludes_xattrs:
        return mode
    if not found.storage_xattrs:
        return "keep"
    raise ToolError(
        f"mksquashfs {job.binary} cannot leave out single extended attributes.",
        details=f"the image has its own xattrs and also {found.example}",
        hint="install squashfs-tools 4.6 or newer",
    )


def _run(argv: list[str]) -> None:
    """Run mksquashfs and report its percentages. It gets a terminal: into a pipe it writes them 4 KiB at a time."""
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}  # excludes -mkfs-time
    ours, theirs = _terminal()
    with tempfile.TemporaryFile() as stderr, process.started(*argv, stderr=stderr, stdout=theirs, env=env) as child:
        os.close(theirs)
        shown = -1
        while text := _read(ours):
            percent = mksquashfs.parse_progress(text)
            if percent is not None and percent != shown:
                _report(percent=percent)
                shown = percent
        code = child.wait()
        if code != 0:
            stderr.seek(0)
            errors = stderr.read().decode("utf-8", "replace").strip()
            raise ToolError(f"mksquashfs failed with exit status {code}.", details="\n".join(errors.splitlines()[-8:]))
    os.close(ours)


def _terminal() -> tuple[int, int]:
    """Return both ends of a terminal, of a pipe where there is no /dev/pts."""
    try:
        ours, theirs = os.openpty()
    except OSError:
        return os.pipe()
    termios.tcsetwinsize(theirs, (24, 80))
    return ours, theirs


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode("ascii", "replace")
    except OSError as err:
        if err.errno != errno.EIO:  # how a terminal says that nobody holds its other end (pty(7))
            raise
        return ""


def _report(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _report_error(err: SquashmountError) -> None:
    _report(error={"kind": type(err).__name__, "brief": err.brief, "details": err.details, "hint": err.hint})


if __name__ == "__main__":
    sys.exit(main())
