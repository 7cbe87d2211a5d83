"""`squashmount-hooks cdi`: a CDI file of this host's GPUs, for stock Podman's `--device` without a vendor's tool."""

import json
import os
from typing import Any

from squashmount import atomic
from squashmount.errors import HostError, SpaceError

from . import amd, hook, nvidia, nvidia_host
from .module import Module
from .plan import Hook
from .planners import Question, run_here, run_nothing
from .policy import Policy
from .tree import DirectoryTree, Tree


def made(root: str, kind: str | None) -> tuple[str, list[str]]:
    """Return the file for the host below `root` as text, and remarks. HostError when it has no GPU of that kind."""
    remarks: list[str] = []
    with DirectoryTree(root) as host:
        found = []
        if kind != "amd" and (spec := _nvidia(host, remarks, here=root == "/")):
            found.append(spec)
        if kind != "nvidia" and (spec := amd.made_spec(host)):
            found.append(spec)
    if not found:
        raise HostError(f"This host has no {kind or 'NVIDIA or AMD'} GPU.", hint="are the driver's device nodes there?")
    if len(found) > 1:
        raise HostError("This host has GPUs of both vendors.", hint="one file each: --kind nvidia, --kind amd")
    return json.dumps(found[0], indent=2) + "\n", remarks


def write(path: str, text: str) -> None:
    """Write the file, and its directory where Podman has not made it. SpaceError when that cannot be done."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        atomic.replace_text(path, text)
    except OSError as err:
        raise SpaceError(f"{path} cannot be written.", details=str(err), hint="/etc/cdi is root's") from err


def _nvidia(host: Tree, remarks: list[str], *, here: bool) -> dict[str, Any] | None:
    facts = nvidia_host.read_host(host)
    if not facts.gpus:
        return None
    run = run_here if here else run_nothing
    question = Question(Module("nvidia"), host, host, Policy(), {}, {}, {}, run=run)
    if not facts.driver or not all(gpu.uuid for gpu in facts.gpus):
        facts = nvidia_host.completed(facts, lambda argv: nvidia.said_by(question, argv, remarks))
    parts, origin = nvidia.driver_parts(question, facts.driver, remarks)
    if not nvidia.has_cuda(parts):
        raise HostError(
            f"libcuda.so of the driver {facts.driver or '(unknown)'} is not on this host.",
            details="looked for in the loader's cache and directories",
            hint="install the driver's libraries, then run ldconfig as root",
        )
    remarks.append(f"{len(facts.gpus)} GPUs, driver {facts.driver or 'unknown'}, libraries {origin}")
    # in a directory of their own only the cache leads to them
    program = hook.program()
    renew = Hook("createContainer", program, (program, "ldconfig", nvidia.LIBRARIES))
    return nvidia.made_spec(facts, parts, hooks=(renew,))
