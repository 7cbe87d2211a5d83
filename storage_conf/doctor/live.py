"""Probes that do what Podman does at its start, and look at what comes of it: U42 to U46.

Nothing is written that anybody could find. Files for chown(2) and xattrs have no name (O_TMPFILE; where a file system
cannot do that, as NFS, the name is gone before anything else happens). The overlay has the graphroot as its lower
layer only: an upper layer would get a `work` directory from the kernel. Upper and work lie on a tmpfs in the
namespace, and whether the graphroot's file system can be an upper layer is known by its type: the kernel refuses what
revalidates its names (fs/overlayfs/params.c, ovl_mount_dir_check), and overlay itself for want of RENAME_WHITEOUT.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from squashmount import linux
from squashmount.host import which

from ..facts import NETWORK, Facts, table
from ..finding import Fact, Finding, error, warning
from .apparmor import only_podman_may
from .causes import NO_NAMESPACE
from .namespace import IdMaps, NamespaceError, Ranges, in_namespace, podman_arguments, try_map
from .node import Node
from .places import configuration, nameless_file, nearest, own_ranges
from .probe import NotLookedAtError, Probe

_NOBODY, _LAST = 65534, 65535
_CHOWN_TO = (1, _NOBODY, _LAST)
_NO_UPPER = NETWORK | {"overlay", "ecryptfs", "vfat", "exfat", "aufs", "squashfs", "erofs", "iso9660"}
_STAGES = ("/tmp", "/var/tmp", "/mnt", "/run")  # noqa: S108 - a tmpfs of our own goes over one, in our namespace only


def live(node: Node) -> Iterator[Finding | Fact]:
    """Make Podman's namespace, and in it the overlay, files of other owners, and attributes."""
    uids, gids = own_ranges(node)
    maps = IdMaps(node.uid, node.gid, uids, gids)
    facts = configuration(node)
    place = nearest(facts.graphroot.path)
    try:
        seen = in_namespace(node, maps, lambda: _look(place, ids=() if maps.single else _CHOWN_TO))
    except NamespaceError as err:
        if only_podman_may(node, err):
            raise NotLookedAtError("U31") from err
        yield _no_namespace(err)
        return
    yield from _overlay(facts, place, seen)
    if "file" in seen:
        return  # no space, no permission: U41 and U81 say it
    yield from _chown(facts, place, seen["chown"], mapped=1 + min(_total(uids), _total(gids)))
    if seen["xattr"]:
        yield warning(
            f"Files on {place} cannot have user.* attributes: {os.strerror(seen['xattr'])}.",
            f"{_on(facts)}: overlays in a user namespace keep deletions in user.overlay.* (userxattr), and "
            "fuse-overlayfs owners in user.containers.*; tmpfs has them since Linux 6.6.",
            "put the graphroot on ext4 or xfs, or mount with attributes (Lustre: user_xattr)",
            id="U45",
            evidence=f"fsetxattr(user.squashmount-doctor): {errno.errorcode.get(seen['xattr'])}",
        )


def _total(ranges: Ranges) -> int:
    return sum(count for _, count in ranges)


def _on(facts: Facts) -> str:
    return f"{facts.graphroot.target or '/'} is {facts.graphroot.fstype or 'of an unknown type'}"


# In the namespace


def _look(place: str, ids: tuple[int, ...]) -> dict[str, Any]:
    """Try everything, in the namespace; errno by what was tried, 0 where it worked."""
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY)  # before a tmpfs covers it
    seen: dict[str, Any] = {}
    try:
        file = nameless_file(place)
    except OSError as err:
        seen["file"] = err.errno
    else:
        seen["chown"] = {number: _code(partial(os.fchown, file, number, number)) for number in ids}
        if ids:
            _code(partial(os.fchown, file, 0, 0))  # a server that refuses the others may refuse this as well
        seen["xattr"] = _code(partial(os.setxattr, file, "user.squashmount-doctor", b"1"))
        os.close(file)
    stage = next(path for path in _STAGES if os.path.isdir(path))
    seen["tmpfs"] = _code(partial(linux.mount, "tmpfs", stage, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m"))
    if not seen["tmpfs"]:
        seen["overlay"] = {options: _code(partial(_try_overlay, stage, folder, options)) for options in _VARIANTS}
    return seen


_VARIANTS = ("userxattr", "")


def _code(work: Callable[[], object]) -> int:
    try:
        work()
    except OSError as err:
        return err.errno or errno.EIO
    return 0


def _try_overlay(stage: str, lower: int, options: str) -> None:
    base = os.path.join(stage, options or "plain")
    for name in ("", "upper", "work", "merged"):
        os.mkdir(os.path.join(base, name))
    data = f"lowerdir=/proc/self/fd/{lower},upperdir={base}/upper,workdir={base}/work"
    linux.mount("overlay", f"{base}/merged", "overlay", 0, ",".join(filter(None, (data, options))))
    os.close(os.open(f"{base}/merged/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    linux.umount(f"{base}/merged", linux.MNT_DETACH)


# What it means


_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"range .* not allowed",
        "Its source of ranges does not grant what Podman asks for: a static podman reads files, or it was changed.",
        "compare `getsubids $USER` with /etc/subuid; ask the site",
    ),
    (
        r"open of [ug]id_map failed: Permission denied",
        "It has the setuid bit and file capabilities at once; together they hide the process from it.",
        "as root: chmod u-s {path}   (or: setcap -r {path})",
    ),
    (
        r"write to [ug]id_map failed: Operation not permitted",
        "Something took its privilege away: no_new_privs, a bounding set, seccomp, AppArmor, a nosuid mount.",
        "look at NoNewPrivs and CapBnd in /proc/self/status; start the job without the launcher that sets them",
    ),
    (
        r"write to [ug]id_map failed: Invalid argument",
        "The kernel refuses ranges that overlap, more than 340 of them, or more than 4096 bytes.",
        "remove the line that is there twice",
    ),
    (
        r"owned by a different user",
        "The group of this process is not the group of the login, which {program} wants.",
        "leave newgrp, sg or srun --gid; check with: id -g; getent passwd $USER",
    ),
    (r"Cannot determine your user name", "The uid has no entry in passwd on this node.", "is sssd running? `id`"),
    (
        r"is not installed or not on PATH",
        "Podman needs it for every container that has more than one id.",
        "as root: apt-get install uidmap (dnf install shadow-utils)",
    ),
    (r"did not finish", "It waits for the source of the ranges: sssd, LDAP.", "`id`; is sssd running?"),
)
_REFUSED = {
    errno.ENOSPC: (
        "The limit of user (or mount) namespaces is reached, or 0.",
        "as root: sysctl user.max_user_namespaces=28633",
    ),
    errno.EPERM: (
        "A chroot, seccomp, or kernel.unprivileged_userns_clone=0 forbids it.",
        "leave the chroot (pivot_root instead), or as root: sysctl kernel.unprivileged_userns_clone=1",
    ),
    errno.EINVAL: ("The kernel is built without user namespaces.", "use another kernel"),
}


def _no_namespace(err: NamespaceError) -> Finding:
    path = which(err.step) or err.step
    why, fix = _REFUSED.get(err.code, ("The kernel refuses it.", "ask the site"))
    if err.step == "namespace":
        why = "The namespace can be made, but its capabilities do not count (AppArmor's restriction does that)."
        fix = "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile with `userns,`"
    for pattern, cause, cure in _CAUSES if err.step.startswith("new") else ():
        if re.search(pattern, err.text):
            why, fix = cause.format(program=err.step), cure.format(path=path)
            break
    if err.step.startswith("new") and "Operation not permitted" in err.text and not _privileged(path):
        why, fix = "It has neither the setuid bit nor the file capability.", f"as root: chmod 4755 {path}"
    return error(
        f"Podman's user namespace cannot be made: {err.step} fails.", why, fix, id="U42", evidence=err.text.strip()
    )


def _privileged(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_ISUID) or "security.capability" in os.listxattr(path)
    except OSError:
        return True  # it cannot be told


def _overlay(facts: Facts, place: str, seen: dict[str, Any]) -> Iterator[Finding | Fact]:
    by = "fuse-overlayfs takes its place, which is slower" if which("fuse-overlayfs") else "fuse-overlayfs is missing"
    report = warning if which("fuse-overlayfs") else error
    cure = "as root: install fuse-overlayfs" if report is error else "a graphroot on ext4, xfs or tmpfs of the node"
    fstype = facts.graphroot.fstype
    if not seen.get("overlay"):
        yield warning(
            f"A tmpfs cannot be mounted in the namespace: {os.strerror(seen['tmpfs'])}.",
            "Containers have several of them.",
            "look for AppArmor or SELinux messages in dmesg",
            id="U43",
        )
        return
    code = min(seen["overlay"].values())
    said = ", ".join(f"{name or 'plain'}: {errno.errorcode.get(code, 'ok')}" for name, code in seen["overlay"].items())
    if code:
        yield report(
            f"The kernel mounts no overlay here: {os.strerror(seen['overlay'][_VARIANTS[0]])}.",
            f"Linux before 5.11 cannot in user namespaces, some file systems cannot be a layer; {by}.",
            cure,
            id="U43",
            evidence=f"lower layer {place}: {said}",
        )
    elif fstype in _NO_UPPER or fstype.startswith("fuse"):
        yield report(
            f"The kernel's overlay cannot write to {place}.",
            f"{_on(facts)}, which cannot be an upper layer; {by}.",
            cure,
            id="U43",
            evidence=f"as a lower layer {said}",
        )
    else:
        yield Fact("overlay in a user namespace", said)


def _chown(facts: Facts, place: str, seen: dict[str, int], mapped: int) -> Iterator[Finding]:
    refused = {int(number): code for number, code in seen.items() if code}
    refused = {number: code for number, code in refused.items() if number < mapped}  # else too few ids: U09
    if not refused:
        return
    number, code = next(iter(refused.items()))
    overlay = table(facts.storage, "options", "overlay")
    ignored = str(overlay.get("ignore_chown_errors", "")).lower() == "true"
    why = f"{_on(facts)}: "
    if code == errno.EINVAL:
        why += "it does not know the ids of this namespace."
    else:
        why += "its server lets nobody give files away (NFS root_squash, Lustre nodemap), so images cannot be unpacked."
    report = warning if ignored else error
    yield report(
        f"Files on {place} cannot belong to the container's user {number}: {os.strerror(code)}.",
        why + (" ignore_chown_errors is set: all files are yours." if ignored else ""),
        'graphroot = "/tmp/$USER/containers" or another local directory; or ignore_chown_errors = "true"',
        id="U44",
        evidence=", ".join(f"chown {number}: {errno.errorcode.get(code, code)}" for number, code in refused.items()),
    )


def denied(node: Node) -> Iterator[Finding]:
    """Ask for one id more than the user has: whoever gets it can get every id, other users' too."""
    for program, own, ranges in zip(("newuidmap", "newgidmap"), (node.uid, node.gid), own_ranges(node), strict=True):
        if node.uid == 0 or not ranges:
            continue
        start, count = _merged(ranges)[-1]
        asked = (start, count + 1) if start + count < 2**32 - 1 else (start - 1, count + 1)
        try:
            said = try_map(node, program, podman_arguments(own, [asked]))
        except NamespaceError:
            return  # U42 says it
        if said is None:
            last = asked[0] + asked[1] - 1
            yield error(
                f"{program} gives you ids that are not yours.",
                "The source of the ranges (a plugin of nsswitch.conf) grants more than it lists: every user can read "
                "and write the files of all others through `podman unshare`.",
                "tell the site at once: replace the plugin named in the `subid:` line of /etc/nsswitch.conf",
                id="U46",
                evidence=f"yours: {start}:{count}; asked for and granted: {asked[0]}:{asked[1]} (up to {last})",
            )


def _merged(ranges: Ranges) -> list[tuple[int, int]]:
    """Return the ranges by start, those that touch as one: newuidmap grants across them."""
    merged: list[tuple[int, int]] = []
    for start, count in sorted(ranges):
        if merged and start <= sum(merged[-1]):
            first = merged[-1][0]
            merged[-1] = first, max(sum(merged[-1]), start + count) - first
        else:
            merged.append((start, count))
    return merged


PROBES = (
    Probe(("U42", "U43", "U44", "U45"), "Podman's user namespace", live, explained_by=NO_NAMESPACE),
    Probe(("U46",), "The probe for ids of others", denied, explained_by=NO_NAMESPACE),
)
