"""What lets an ordinary user make a user namespace with many ids: U20 to U24, U30, U31.

newuidmap writes the id map for the user, by a setuid bit or by file capabilities; a launcher, a mount option or a
sysctl can take that away, and the message is the same for all of them. Root needs none of it.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterator

from squashmount.mountinfo import parse_line

from ..finding import Finding, Severity, error, info, warning
from . import apparmor
from .namespace import IdMaps, NamespaceError, in_namespace
from .node import Node
from .probe import Probe

_TOOLS = (("newuidmap", 7, "cap_setuid"), ("newgidmap", 6, "cap_setgid"))
"""Program, number and name of the capability (linux/capability.h)."""

_SENSIBLE = 1000
"""User namespaces; each pause process and each container has one or more, and all of a user's count."""

_SYSCTL = "as root: sysctl -w {0}; and the same line in /etc/sysctl.d/90-podman.conf"


# newuidmap and newgidmap


def tools(node: Node) -> Iterator[Finding]:
    """Look at the two programs: U20."""
    if node.uid == 0:
        return
    if not node.environ.get("PATH"):
        yield error(
            "PATH is not set.",
            "Podman finds neither newuidmap nor its other programs (env -i, sbatch --export=NONE, a service do that).",
            f"export PATH={os.defpath}; in a job: start it by a login shell (#!/bin/bash -l)",
            id="U20",
            evidence=f"PATH={node.environ['PATH']}" if "PATH" in node.environ else "no PATH in the environment",
        )
        return
    for program, bit, capability in _TOOLS:
        path = _on_path(node, program)
        if path is None:
            yield error(
                f"{program} is not installed, or not on PATH.",
                "Podman cannot map more than one id without it.",
                "as root: apt-get install uidmap (RHEL: dnf install shadow-utils)",
                id="U20",
                evidence=f"PATH={node.environ['PATH']}",
            )
        elif wrong := _wrong_with(path, bit, capability):
            what, why, fix = wrong
            yield error(f"{path} {what}.", why, f"as root: {fix}", id="U20", evidence=_looks(path))


def _on_path(node: Node, program: str) -> str | None:
    folders = node.environ["PATH"].split(":")
    paths = (os.path.join(folder or ".", program) for folder in folders)
    return next((path for path in paths if os.access(path, os.X_OK) and os.path.isfile(path)), None)


def _wrong_with(path: str, bit: int, capability: str) -> tuple[str, str, str] | None:
    """Return what is wrong, why it matters, and the fix; nothing where it has one privilege that counts."""
    status = os.stat(path)
    setuid = bool(status.st_mode & stat.S_ISUID)
    granted, effective = file_capabilities(path)
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        why = "On such a mount neither setuid bits nor file capabilities count: `write to uid_map failed`."
        mount = os.path.dirname(os.path.realpath(path))
        return "lies on a file system mounted nosuid", why, f"mount -o remount,suid $(findmnt -nT {mount} -o TARGET)"
    if setuid and status.st_uid == 0 and granted:
        why = "Together they fail: `open of uid_map failed: Permission denied`, as the process is no longer yours."
        return "has the setuid bit and file capabilities", why, f"setcap -r {path}"
    if setuid and status.st_uid == 0:
        return None
    cure = f"chown root:root {path}; chmod 4755 {path}   (or: setcap {capability}+ep {path})"
    why = "`write to uid_map failed: Operation not permitted`; images made by tar without xattrs lose capabilities."
    if setuid:
        return f"is setuid, but belongs to uid {status.st_uid}", why, cure
    if granted >> bit & 1 and effective:
        return None
    if granted:
        return f"has file capabilities, but not {capability}+ep", why, f"setcap {capability}+ep {path}"
    return "has neither the setuid bit nor a file capability", why, cure


def file_capabilities(path: str) -> tuple[int, bool]:
    """Return the permitted set and whether it is effective at once (capabilities(7), struct vfs_cap_data)."""
    try:
        data = os.getxattr(path, "security.capability")
    except OSError:
        return 0, False
    magic, low = struct.unpack_from("<II", data)
    high = struct.unpack_from("<I", data, 12)[0] if len(data) >= 20 else 0
    return high << 32 | low, bool(magic & 1)


def _looks(path: str) -> str:
    status = os.stat(path)
    granted, effective = file_capabilities(path)
    nosuid = "nosuid" if os.statvfs(path).f_flag & os.ST_NOSUID else "suid"
    caps = f"{granted:#x}{' effective' if effective else ''}" if granted else "none"
    return f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}, file capabilities {caps}, mount {nosuid}"


# The process


def process(node: Node) -> Iterator[Finding]:
    """Look at what the launcher left of the process's rights: U21, U22; and at its chroot and namespaces."""
    if node.uid == 0:
        return
    status = dict(_split(line) for line in (node.text("/proc/self/status") or "").splitlines())
    if status.get("NoNewPrivs") == "1":
        yield error(
            "This process may not gain privileges (no_new_privs).",
            "newuidmap's setuid bit does not count then. A launcher set it (setpriv, systemd NoNewPrivileges=, "
            "bwrap, Docker's no-new-privileges), and nothing can take it back.",
            "start podman outside of that launcher, or ask the site to leave no_new_privs away",
            id="U21",
            evidence="/proc/self/status: NoNewPrivs: 1",
        )
    bounding = int(status.get("CapBnd", "f" * 16), 16)
    if lacking := [name for _, bit, name in _TOOLS if not bounding >> bit & 1]:
        yield error(
            f"The capability bounding set lacks {' and '.join(lacking)}.",
            "newuidmap and newgidmap cannot get what they need, setuid or not. A launcher or container took it away.",
            "start podman outside of that launcher, or ask the site to keep CAP_SETUID and CAP_SETGID",
            id="U22",
            evidence=f"/proc/self/status: CapBnd: {status.get('CapBnd')}",
        )
    yield from _namespaces(node, filtered=status.get("Seccomp", "0") != "0")


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _namespaces(node: Node, *, filtered: bool) -> Iterator[Finding]:
    """Read the limits, and only where they allow a namespace try to make one."""
    found = list(_limits(node))
    yield from found
    refused = None if any(one.severity is Severity.ERROR for one in found) else _refused(node)
    if refused is None:
        if filtered and not found:
            yield _filter()
        return
    yield _cause(node, refused, filtered=filtered)


def _filter() -> Finding:
    return info(
        "A seccomp filter is set for this process.",
        "Namespaces can be made here; if a container fails with EPERM or ENOSYS, the filter is a suspect.",
        "compare with a shell outside of the launcher",
        id="U23",
        evidence="/proc/self/status: Seccomp: 2",
    )


def _limits(node: Node) -> Iterator[Finding]:
    users = _number(node, "user/max_user_namespaces")
    if users is not None and users < _SENSIBLE:
        yield (warning if users else error)(
            f"At most {users} user namespaces are allowed." if users else "User namespaces are forbidden.",
            "Podman needs one for you and more for containers: `cannot clone: No space left on device`.",
            _SYSCTL.format("user.max_user_namespaces=28633"),
            id="U30",
            evidence=f"/proc/sys/user/max_user_namespaces: {users}",
        )
    if _number(node, "user/max_mnt_namespaces") == 0:
        yield error(
            "Mount namespaces are forbidden.",
            "Podman and every container needs one: `No space left on device`.",
            _SYSCTL.format("user.max_mnt_namespaces=28633"),
            id="U31",
            evidence="/proc/sys/user/max_mnt_namespaces: 0",
        )
    if _number(node, "kernel/unprivileged_userns_clone") == 0:
        yield error(
            "Unprivileged users may not make user namespaces.",
            "The kernel (Debian's patch) refuses: `cannot clone: Operation not permitted`.",
            _SYSCTL.format("kernel.unprivileged_userns_clone=1"),
            id="U31",
            evidence="/proc/sys/kernel/unprivileged_userns_clone: 0",
        )


def _number(node: Node, name: str) -> int | None:
    text = (node.text(f"/proc/sys/{name}") or "").strip()
    return int(text) if text.isdigit() else None


def _refused(node: Node) -> NamespaceError | None:
    """Make a user and mount namespace with the own id alone."""
    try:
        in_namespace(node, IdMaps(node.uid, node.gid), lambda: True)
    except NamespaceError as err:
        return err
    return None


def _cause(node: Node, refused: NamespaceError, *, filtered: bool) -> Finding:
    evidence = f"{refused}"
    if by_number := _by_number(refused, filtered=filtered):
        return by_number
    if apparmor.only_podman_may(node, refused):
        return warning(
            "AppArmor allows user namespaces to podman, but not to this python.",
            "podman and what it starts may use them; other programs may not, and squashmount's own live checks (U42 to "
            "U45, S05) are run by python: what they would see in Podman's namespace is not known.",
            "nothing for podman itself; for these checks, as root: an AppArmor profile with `userns,` for this python",
            id="U31",
            evidence=f"{evidence}; kernel.apparmor_restrict_unprivileged_userns is 1; {apparmor.PROFILE} has `userns,`",
        )
    if apparmor.restricted(node):
        return error(
            "AppArmor takes the capabilities away from user namespaces.",
            "Ubuntu 23.10 and later allow them to programs with a profile only; `write failed /proc/self/uid_map`.",
            "as root: an AppArmor profile with `userns,` for podman and for this python, or "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            id="U31",
            evidence=evidence,
        )
    whole = any(mount.target == "/" for mount in map(parse_line, _mount_lines(node)))
    if filtered and whole:
        return error(
            "A user namespace cannot be made, and a seccomp filter is set.",
            "The filter of a launcher or container forbids unshare(2): `cannot clone: Operation not permitted`.",
            "start podman outside of that launcher, or ask the site for a filter that allows unshare, clone and mount",
            id="U23",
            evidence=evidence,
        )
    return error(
        "This process lives in a chroot, or a security module forbids namespaces." if whole else _CHROOT,
        "The kernel makes no user namespace there (user_namespaces(7)): `cannot clone: Operation not permitted`.",
        "enter the tree with pivot_root: bwrap and systemd-nspawn do, chroot and unshare --root do not"
        + ("; no chroot: as root look for `userns_create` in the audit log (SELinux, AppArmor)" if whole else ""),
        id="U24",
        evidence=evidence + ("" if whole else "; / is no mount point in /proc/self/mountinfo"),
    )


def _by_number(refused: NamespaceError, *, filtered: bool) -> Finding | None:
    evidence = f"{refused}"
    if refused.code == errno.ENOSPC:
        return error(
            "The limit of user namespaces is reached.",
            "All your processes on this node share it, and namespaces of dead containers count while one holds them.",
            _SYSCTL.format("user.max_user_namespaces=28633") + "; as you: podman ps -a, lsns -t user",
            id="U30",
            evidence=evidence,
        )
    if refused.code in {errno.EINVAL, errno.ENOSYS} and not filtered:
        return error(
            "This kernel has no user namespaces.",
            "It is built without CONFIG_USER_NS: no rootless Podman, whatever is configured.",
            "another kernel",
            id="U31",
            evidence=evidence,
        )
    return None


_CHROOT = "This process lives in a chroot."


def _mount_lines(node: Node) -> list[str]:
    return [line for line in (node.text("/proc/self/mountinfo") or "").splitlines() if " - " in line]


PROBES = (
    Probe(("U20",), "newuidmap and newgidmap", tools),
    Probe(("U21", "U22", "U23", "U24", "U30", "U31"), "The rights of this process", process),
)
