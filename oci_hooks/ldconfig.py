"""Stage createContainer: make the container's ld.so.cache anew, in its mount namespace, before its root is entered.

The host's ldconfig is used: the image may have none, and it changes its root itself before it follows anything
(ldconfig(8), -r).
"""

import os

from squashmount.errors import ToolError, UsageError
from squashmount.lean import TYPE_CHECKING, Any, Iterable
from squashmount.process import run

from .leanjson import loads
from .loader_conf import read

if TYPE_CHECKING:
    from .tree import Tree

_PLACES = ("/sbin/ldconfig.real", "/sbin/ldconfig", "/usr/sbin/ldconfig")  # the first: Ubuntu wraps it in a script

_TIMEOUT = 20.0
"""Seconds until it is given up: it waits for ever for who writes into a FIFO (one that a volume puts in the place of
/etc/ld.so.conf, say). Podman waits 240 s, and then names no reason."""


def trouble(root: "Tree") -> list[str]:
    """Return what ldconfig would wait for in the image, told before the container is made: nothing is said later."""
    return [f"{path!r} in the image is no file: the loader's cache cannot be made" for path in read(root).odd]


def renew(state: dict[str, Any], folders: Iterable[str] = ()) -> None:
    """Run ldconfig for the container whose state the runtime tells. ToolError when it fails.

    `folders` are directories inside that the cache covers besides those in the image's configuration.
    """
    bundle = state.get("bundle", "")
    if not os.path.isabs(bundle):
        raise UsageError(f"The container's state names no absolute bundle, but {bundle!r}.")
    with open(os.path.join(bundle, "config.json"), "rb") as file:
        config = loads(file.read(), where="config.json")
    # relative to the bundle (OCI runtime specification, config.md, "Root"); the cwd is not to be relied upon
    root = os.path.join(bundle, config["root"]["path"])
    program = next((path for path in _PLACES if os.access(path, os.X_OK)), "")
    if not program:
        raise ToolError("This host has no ldconfig.", hint="set ldconfig = false in the module")
    try:
        run(program, "-r", root, *folders, timeout=_TIMEOUT)
    except ToolError as err:
        raise ToolError(
            "The container's ld.so.cache cannot be made.",
            details=f"{err.brief}\n{err.details}".strip(),
            hint="is all that the image's /etc/ld.so.conf includes a file? Without: ldconfig = false in the module",
        ) from err
