"""Who may use a user namespace where AppArmor restricts them (Ubuntu 23.10 and later).

There unshare(2) works for everybody, but the capabilities in the namespace count only for programs with a profile that
has a `userns` rule (AppArmor wiki, unprivileged_userns_restriction). Ubuntu 24.04 ships one for podman in
/etc/apparmor.d/podman; what podman starts inherits it. It ships none for Python.
"""

import errno
import fnmatch
import os
import re

from .namespace import NamespaceError
from .node import Node

PROFILE = "/etc/apparmor.d/podman"
_DISABLED = "/etc/apparmor.d/disable/podman"
"""A link there keeps a profile from being loaded (aa-disable(8))."""

_ATTACHED = re.compile(r'^\s*(?:profile\s+\S+\s+)?"?(?P<program>/[^\s"]*podman[^\s"]*)"?[^\n]*\{', re.MULTILINE)
_USERNS = re.compile(r"^\s*(?:allow\s+)?userns\b[^\n]*,", re.MULTILINE)


def restricted(node: Node) -> bool:
    """Tell whether the kernel restricts user namespaces to programs with a profile."""
    return (node.text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") or "").strip() == "1"


def only_podman_may(node: Node, refused: NamespaceError) -> bool:
    """Tell whether this refusal is of our own program alone: podman has a profile and may do what we may not."""
    ours = refused.step in {"unshare", "namespace"} and refused.code in {errno.EPERM, errno.EACCES}
    return ours and restricted(node) and _podman_has_a_profile(node)


def _podman_has_a_profile(node: Node) -> bool:
    text = "\n".join(line.partition("#")[0] for line in (node.text(PROFILE) or "").splitlines())
    attached = _ATTACHED.search(text)
    if not attached or not _USERNS.search(text) or os.path.lexists(node.path(_DISABLED)):
        return False
    podman = _podman(node)
    pattern = attached["program"]
    # a pattern with {a,b} or @{VARIABLE} is AppArmor's own: it was not written to leave podman out
    return not podman or "{" in pattern or fnmatch.fnmatchcase(podman, pattern)


def _podman(node: Node) -> str:
    """Return where the podman on PATH really is: profiles go by that."""
    folders = node.environ.get("PATH", os.defpath).split(":")
    paths = (os.path.join(folder or ".", "podman") for folder in folders)
    return next((os.path.realpath(path) for path in paths if os.access(path, os.X_OK) and os.path.isfile(path)), "")
