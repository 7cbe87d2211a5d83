"""The hook's file for Podman: hooks.d JSON 1.0.0 (oci-hooks(5)), for one user or for everybody."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from squashmount import atomic
from squashmount.errors import SpaceError, UsageError

from .module import Module
from .policy import Policy
from .selection import PREFIX

NAME = "squashmount.json"
SITE_DIR = "/usr/share/containers/oci/hooks.d"
"""The only directory rootless Podman reads without being told (containers.conf(5), hooks_dir)."""

_OTHER_DIR = "/etc/containers/oci/hooks.d"
_OURS = f"^{re.escape(PREFIX)}"


@dataclass(frozen=True, slots=True)
class Installed:
    """One of our files: where, and the program it starts; `trouble` says why that cannot work.

    `annotated`: Podman starts it only for containers with an annotation of ours.
    """

    path: str
    program: str
    trouble: str = ""
    annotated: bool = False


def on_without_annotation(modules: Iterable[Module], policy: Policy) -> list[str]:
    """Return the names of modules that can be on for a container without an annotation of ours."""
    return sorted(
        one.name
        for one in modules
        if one.name not in policy.off and (one.name in policy.on or one.when.always or one.when.env or one.when.label)
    )


def hook_json(program: str, policy_file: str = "", *, annotated: bool = False) -> str:
    """Return the text of the file. `annotated`: Podman starts the hook only where an annotation is ours."""
    arguments = [program, "apply", *(["--policy", policy_file] if policy_file else [])]
    value = {
        "version": "1.0.0",
        "hook": {"path": program, "args": arguments},
        # regular expressions for key and value (oci-hooks(5))
        "when": {"annotations": {_OURS: ".*"}} if annotated else {"always": True},
        "stages": ["precreate"],
    }
    return json.dumps(value, indent=2) + "\n"


def user_dir(environ: dict[str, str]) -> str:
    """Return where a user keeps hooks; Podman reads it only when told to. UsageError without a home."""
    home = environ.get("XDG_CONFIG_HOME") or (os.path.join(environ["HOME"], ".config") if environ.get("HOME") else "")
    if not os.path.isabs(home):
        raise UsageError("HOME is not set.", hint="name the directory: --dir DIR")
    return os.path.join(home, "containers", "oci", "hooks.d")


def install(directory: str, program: str, policy_file: str = "", *, annotated: bool = False) -> str:
    """Write the file and return its path. UsageError for a program Podman could not start, SpaceError."""
    if not os.access(program, os.X_OK):
        raise UsageError(f"The program {program} does not exist.", hint="name it: --program /PATH/squashmount-hook")
    path = os.path.join(directory, NAME)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        atomic.replace_text(path, hook_json(program, policy_file, annotated=annotated))
    except OSError as err:
        raise SpaceError(
            f"{path} cannot be written.", details=str(err), hint="name a directory of yours: --dir DIR, or be root"
        ) from err
    return path


def remove(directory: str) -> str:
    """Remove the file; return its path, or "" when there was none."""
    path = os.path.join(directory, NAME)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return ""
    except OSError as err:
        raise SpaceError(f"{path} cannot be removed.", details=str(err)) from err
    return path


def advice(directory: str) -> str:
    """Return what is left to do so that Podman reads the directory; "" when it does by itself."""
    if directory == SITE_DIR:
        return ""
    also = "" if directory == _OTHER_DIR else f'"{SITE_DIR}", '
    return (
        f"Podman reads {directory} only when told to. Put this into containers.conf:\n"
        f'  [engine]\n  hooks_dir = [{also}"{directory}"]\n'
        f"or name it in every call: podman --hooks-dir {directory} run ..."
    )


def installed(directories: list[str]) -> list[Installed]:
    """Return our files in these directories and the two of the system."""
    found = []
    for directory in dict.fromkeys([*directories, SITE_DIR, _OTHER_DIR]):
        path = os.path.join(directory, NAME)
        try:
            with open(path, encoding="utf-8") as file:
                value: dict[str, Any] = json.load(file)
            program, annotated = str(value["hook"]["path"]), "always" not in value["when"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as err:
            found.append(Installed(path, "", f"cannot be read: {err}"))
            continue
        gone = "" if os.access(program, os.X_OK) else f"{program} does not exist: install again"
        found.append(Installed(path, program, gone, annotated))
    return found
