"""Stage createContainer: make the container's ld.so.cache anew, in its mount namespace, before its root is entered.

The host's ldconfig is used: the image may have none, and it changes its root itself before it follows anything
(ldconfig(8), -r).
"""

import os

from squashmount.errors import ToolError, UsageError
from squashmount.lean import Iterable
from squashmount.process import run

from .leanjson import loads

_PLACES = ("/sbin/ldconfig.real", "/sbin/ldconfig", "/usr/sbin/ldconfig")  # the first: Ubuntu wraps it in a script


def renew(state: bytes, folders: Iterable[str] = ()) -> None:
    """Run ldconfig for the container whose state the runtime wrote to stdin. ToolError when it fails.

    `folders` are directories inside that the cache covers besides those in the image's configuration.
    """
    bundle = loads(state, where="The container's state").get("bundle", "")
    if not os.path.isabs(bundle):
        raise UsageError(f"The container's state names no absolute bundle, but {bundle!r}.")
    with open(os.path.join(bundle, "config.json"), "rb") as file:
        config = loads(file.read(), where="config.json")
    # relative to the bundle (OCI runtime specification, config.md, "Root"); the cwd is not to be relied upon
    root = os.path.join(bundle, config["root"]["path"])
    program = next((path for path in _PLACES if os.access(path, os.X_OK)), "")
    if not program:
        raise ToolError("This host has no ldconfig.", hint="set ldconfig = false in the module")
    run(program, "-r", root, *folders)
