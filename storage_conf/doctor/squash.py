"""Squash files on this node: what squashmount will take, the stores, a mount of its own, and the job: S01 to S08.

S01 engine and overlay · S02 a store does not answer · S03 its lock · S04 what is in it · S05 a squash file cannot be
shown · S06 the Podman at hand reads no stores · S07 the state directory · S08 the Slurm job.
"""

import errno
import os
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from squashmount import linux
from squashmount.config import Config, load_config
from squashmount.errors import SquashmountError
from squashmount.host import probe_host
from squashmount.lowers import Lower
from squashmount.plan import plan_mount
from squashmount.process import quiet
from squashmount.request import parse_request
from squashmount.runtime import state_dir

from .. import checks, store_checks
from ..facts import Facts
from ..finding import Fact, Finding, error, info, warning
from .apparmor import only_podman_may
from .namespace import IdMaps, NamespaceError, in_namespace
from .node import Node
from .places import configuration, own_ranges
from .probe import NotLookedAtError, Probe

STORE_SECONDS = 1.5
"""How long one store may take to be looked at; its lock has as much again."""


def choice(node: Node) -> Iterator[Finding | Fact]:
    """Tell which engine and overlay a new container gets here, and why, by squashmount's own decision: S01, S07."""
    facts = configuration(node)
    program = facts.program
    if program.kind != "squashmount":
        yield Fact("mount program", f"{program.path or 'none'} (not squashmount)")
    try:
        config = load_config(dict(node.environ))
        host = probe_host()._replace(userns=node.uid != 0)
        request = parse_request("lowerdir=/l,upperdir=/u,workdir=/w,volatile", "/merged")
        plan = plan_mount(request, (Lower("/l", "/l", "/s"),), host, config, whiteouts=lambda _path: False)
        yield Fact("engine", f"{plan.engine} ({config.engine} in the configuration)")
        yield Fact("overlay", f"{plan.overlay} ({plan.reason})")
    except SquashmountError as err:
        yield _from_error(err, "S01", "No squashed image can be run with this configuration.")
        return
    yield from _state(node, config, outside=program.kind == "squashmount")


def _from_error(err: SquashmountError, name: str, why: str) -> Finding:
    return error(err.brief, why, err.hint or "look at what is seen here", id=name, evidence=err.details)


def _state(node: Node, config: Config, *, outside: bool) -> Iterator[Finding | Fact]:
    """Look at the state directory without making it: it is made by the first container."""
    default = node.runtime_dir or (f"/run/user/{node.uid}" if node.uid else "/run")
    path = config.runtime_dir.replace("$UID", str(node.uid)) or os.path.join(default, "squashmount")
    yield Fact("state of the servers", path)
    if not os.path.isdir(path) or not outside:
        return
    try:
        state_dir(config, dict(node.environ))
    except SquashmountError as err:
        yield _from_error(err, "S07", "Every server of a squash file keeps its lock and its log there.")


# Stores


_S_IDS = {
    store_checks.unusable_store: "S02",
    store_checks.unreadable_store: "S02",
    store_checks.no_locks: "S03",
    store_checks.incomplete_store: "S04",
    store_checks.torn_store: "S04",
    store_checks.duplicate_name: "S04",
    store_checks.newer_format: "S04",
    store_checks.foreign_program: "S01",
    checks.lost_system_keys: "S06",
}


def stores(node: Node) -> Iterator[Finding | Fact]:
    """Look at every additional store, each in a child of its own: one that hangs must not hide the others."""
    facts = configuration(node)
    named = named_stores(facts)
    if named:
        yield Fact("stores", ", ".join(named))
    waiting = {path: _started(path) for path in named}
    end = time.monotonic() + STORE_SECONDS
    answering = []
    for path, pid in waiting.items():
        if _ended_by(pid, end):
            answering.append(path)
        else:
            yield error(
                f"The store {path} does not answer in {STORE_SECONDS:g} s.",
                "Its file system hangs, and with it every podman command of yours on this node.",
                f"`ls {path}` on another node; tell the site; meanwhile take it out of additionalimagestores",
                id="S02",
            )
    # read in full: again those that answered, with the rules of `squashmount-conf check`
    read = replace(facts, stores=tuple(_read(path) for path in answering))
    for check, name in _S_IDS.items():
        if check is checks.lost_system_keys and len(answering) < len(named):
            continue  # it compares all of them
        yield from (replace(finding, id=name) for finding in check(read))


def named_stores(facts: Facts) -> tuple[str, ...]:
    """Return additionalimagestores, which a gathering without stores leaves out."""
    options = facts.storage.get("options", {})
    named = options.get("additionalimagestores") if isinstance(options, dict) else None
    return tuple(path for path in named if isinstance(path, str)) if isinstance(named, list) else ()


def _read(path: str) -> Any:
    from ..store_facts import read_store  # noqa: PLC0415 - only where there are stores

    return read_store(path, lock_timeout=STORE_SECONDS)


def _started(path: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.listdir(path)
        os.stat(os.path.join(path, "overlay-images/images.json"))
    except OSError:
        pass  # an answer, too
    finally:
        os._exit(0)


def _ended_by(pid: int, end: float) -> bool:
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)  # in state D it stays; nobody waits for it
            return False
        time.sleep(0.002)
    return True


# The self-test


_HELLO = b"squashmount reads this\n"
_SQUASH = b64decode(
    "aHNxcwQAAAAAAAAAAAACAAEAAAABABEAwAIBAAQAAABdAAAAAAAAACgBAAAAAAAAIAEAAAAAAAD/"
    "/////////3cAAAAAAAAAtgAAAAAAAAD3AAAAAAAAABIBAAAAAAAAc3F1YXNobW91bnQgcmVhZHMg"
    "dGhpcwo9AHjaY2JYwsgABUwMqEAciJkZ/sPlmYEYxGEF4ozUnJx8Roa3cElGJEM0gJgFLIaQZ0Ey"
    "RIpBFWwIAKPHBjktAHjaY2SAACY4zcKQkZqTk6/AwMjADIQ5mXnZUDmgCAODLZhmYkgtSQYAhgUF"
    "cBCAYAAAAAAAAAAXAAABAAAAAOUAAAAAAAAAEQB42rNlQAUKUDoWSgMADKgAu/8AAAAAAAAABIAA"
    "AAAAGgEAAAAAAAA="
)
"""Made by: mkdir -p t/etc; echo "squashmount reads this" > t/etc/hello; ln -s hello t/etc/link;
mksquashfs t SQUASH -comp gzip -noappend -all-root -all-time 0 -mkfs-time 0 -no-xattrs -nopad (4.5.1)."""


def self_test(node: Node) -> Iterator[Finding | Fact]:
    """Show a squash file in Podman's namespace with our own server, under an overlay, read it, and end it: S05.

    The file is in memory and the mount point on a tmpfs of the namespace: nothing is left anywhere.
    """
    uids, gids = own_ranges(node)
    start = time.monotonic()
    try:
        seen = in_namespace(node, IdMaps(node.uid, node.gid, uids, gids), _show)
    except NamespaceError as err:
        if only_podman_may(node, err):
            raise NotLookedAtError("U31") from err
        return  # U42 says it
    if "error" in seen:
        yield error(
            f"A squash file cannot be shown: {seen['error']}",
            "squashmount's own server was tried in Podman's namespace, as for a container.",
            seen["hint"] or "look at what is seen here",
            id="S05",
            evidence=seen["details"],
        )
        return
    through = "FUSE and kernel overlay" if seen["overlay"] else "FUSE"
    yield Fact("self-test", f"a squash file was read through {through}, {time.monotonic() - start:.2f} s in all")


def _show() -> dict[str, Any]:
    """Be in the namespace: mount, read, unmount."""
    try:
        return {"overlay": _read_back()}
    except SquashmountError as err:
        return {"error": err.brief, "hint": err.hint, "details": err.details}
    except OSError as err:
        return {"error": f"{os.strerror(err.errno or errno.EIO)}.", "hint": "", "details": str(err)}


def _read_back() -> bool:
    """Return whether an overlay could be put on top. SquashmountError and OSError tell what failed."""
    from squashmount.server.fusemount import mount_fuse, unmount_fuse  # noqa: PLC0415 - only here

    stage = _stage()
    linux.mount("tmpfs", stage, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m")
    for name in ("m", "upper", "work", "merged"):
        os.mkdir(f"{stage}/{name}")
    fuse = mount_fuse(f"{stage}/m", source="squashmount-doctor", default_permissions=False)
    server = _served(fuse)
    os.close(fuse)
    try:
        _compare(f"{stage}/m")
        layers = f"lowerdir={stage}/m,upperdir={stage}/upper,workdir={stage}/work,userxattr"
        try:
            linux.mount("overlay", f"{stage}/merged", "overlay", 0, layers)
        except OSError:
            return False  # U43 says it
        _compare(f"{stage}/merged")
        linux.umount(f"{stage}/merged", linux.MNT_DETACH)
        return True
    finally:
        unmount_fuse(f"{stage}/m")
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _stage() -> str:
    """Return a directory to cover with a tmpfs: not one that we, or our Python, are installed below."""
    ours = [os.path.realpath(path) + "/" for path in (__file__, sys.prefix, sys.base_prefix)]
    places = ("/tmp", "/var/tmp", "/mnt", "/media")  # noqa: S108 - covered in our namespace only
    free = (path for path in places if not any(own.startswith(f"{os.path.realpath(path)}/") for own in ours))
    return next(path for path in free if os.path.isdir(path))


def _served(fuse: int) -> int:
    """Return the pid of a server of the squash file."""
    from squashmount.images import open_image  # noqa: PLC0415 - the server's modules are for this probe alone
    from squashmount.server.tree import IdShift, Tree  # noqa: PLC0415 - the same
    from squashmount.server.wire import serve  # noqa: PLC0415 - the same

    memory = os.memfd_create("squashmount-doctor")
    os.write(memory, _SQUASH)
    image = open_image(f"/proc/self/fd/{memory}", Config(cache_mib=1))
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        linux.die_with_parent(parent)
        serve(fuse, Tree(image, IdShift()), threads=1, log=quiet)
    finally:
        os._exit(0)


def _compare(root: str) -> None:
    with open(f"{root}/etc/hello", "rb") as file:
        said = file.read()
    if said != _HELLO or os.readlink(f"{root}/etc/link") != "hello" or sorted(os.listdir(root)) != ["etc"]:
        raise SquashmountError("it has another content than was packed.", details=repr(said[:80]))


# The job


_MEMORY = (
    "/sys/fs/cgroup{path}/memory.max",
    "/sys/fs/cgroup/memory{path}/memory.limit_in_bytes",
)


def job(node: Node) -> Iterator[Finding | Fact]:
    """Tell the Slurm job this runs in, and what in it does containers harm: S08."""
    number = node.environ.get("SLURM_JOB_ID")
    cgroup = node.text("/proc/self/cgroup") or ""
    if not number:
        if "/job_" in cgroup:
            yield info(
                "This process is in a Slurm job, but SLURM_JOB_ID is not set.",
                "It came by ssh, or the environment was cleaned: hooks that ask for the job do not know it.",
                "srun --jobid=NUMBER --overlap --pty bash",
                id="S08",
            )
        return
    limit = _memory_limit(node, cgroup)
    shown = f", memory {limit >> 20} MiB" if limit else ""
    step = node.environ.get("SLURM_STEP_ID")
    yield Fact("Slurm", f"job {number}{f', step {step}' if step else ''}{shown}")
    if f"/job_{number}" not in cgroup and "/job_" in cgroup:
        yield warning(
            f"SLURM_JOB_ID is {number}, but this process is in another job.",
            "The variable was inherited: what is made for this job is not what the containers get.",
            f"srun --jobid={number} --overlap --pty bash",
            id="S08",
            evidence=next((line for line in cgroup.splitlines() if "/job_" in line), ""),
        )
    facts = configuration(node)
    yield from (replace(finding, id="S08") for finding in checks.cgroup_manager(facts))
    yield from _in_memory(node, facts, limit)
    temp = node.environ.get("TMPDIR")
    if temp and not os.access(temp, os.W_OK):
        yield error(
            f"TMPDIR {temp} cannot be written.",
            "Podman unpacks images there; the variable came from another node.",
            "export TMPDIR=/tmp",
            id="S08",
        )


def _memory_limit(node: Node, cgroup: str) -> int:
    """Return the smallest limit of this process's cgroup and those above it, bytes; 0 without one."""
    limits = []
    for line in cgroup.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in {"", "memory"}:
            continue
        while path not in {"/", ""}:
            text = node.text(_MEMORY[0 if not kinds else 1].format(path=path)) or ""
            if text.strip().isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
            path = os.path.dirname(path)
    return min(limits, default=0)


def _in_memory(node: Node, facts: Facts, limit: int) -> Iterator[Finding]:
    here = facts.graphroot
    if here.fstype not in {"tmpfs", "ramfs"} or node.uid == 0:
        return
    size = os.statvfs(here.target)
    total = size.f_blocks * size.f_frsize
    if limit and total > limit // 2:
        yield warning(
            f"graphroot {here.path} is in memory, and may take more than the job has.",
            f"{here.target} ({here.fstype}) holds up to {total >> 20} MiB, which count as the job's memory: an image "
            "that is unpacked there can end the job (out of memory).",
            "squash images (migrate2scratch mig IMAGE DIR): then hardly anything is written; or a graphroot on a disk",
            id="S08",
            evidence=f"limit {limit >> 20} MiB",
        )


PROBES = (
    Probe(("S01", "S07"), "The mount program", choice, explained_by=("U50",)),
    Probe(("S02", "S03", "S04", "S06"), "The image stores", stores, seconds=8.0),
    Probe(
        ("S05",),
        "The self-test of squashmount",
        self_test,
        explained_by=("U01", "U03", "U07", "U10", "U11", "U12", "U20", "U21", "U22", "U24", "U30", "U31", "U42", "U70"),
    ),
    Probe(("S08",), "The Slurm job", job),
)
