"""Modules of Podman's own configuration: `podman --module NAME run`, for what only Podman's command line can say.

One file NAME for each of our modules, and one for each word users write (`squashmount.mpi=auto`: mpi): the annotation
that switches it on, and the module's `[podman]` table (containers.conf(5); Podman 4.8 and newer for `append`).
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from squashmount import atomic
from squashmount.errors import SpaceError

from .module import Module
from .policy import Policy
from .selection import PREFIX

SITE_DIR = "/usr/share/containers/containers.conf.modules"
"""Where a package puts them: a file of the same name in /etc/containers/containers.conf.modules is taken instead."""

RUNTIME = "squashmount-runtime"

MARK = "# Made by squashmount-hooks install"

_AUTO = "=auto"
_SOCKET = "pmi2_socket"


def user_dir(hooks_dir: str) -> str:
    """Return where Podman looks for a user's modules, beside his `oci/hooks.d`."""
    return os.path.join(os.path.dirname(os.path.dirname(hooks_dir)), "containers.conf.modules")


def texts(modules: Mapping[str, Module], policy: Policy, *, runtime: str, hooks_dirs: Iterable[str]) -> dict[str, str]:
    """Return the text of every file by name. `hooks_dirs` are for users whose Podman reads no other configuration."""
    usable = {name: one for name, one in modules.items() if name not in policy.off}
    wanted: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for word, waiting in _words(usable).items():
        wanted[word] = (f"{PREFIX}{word}{_AUTO}", _for_all([one.podman for one in waiting]))
    wanted |= {name: (f"{PREFIX}{name}=on", one.podman) for name, one in usable.items()}
    return {name: _text(name, *entry, runtime, tuple(hooks_dirs)) for name, entry in wanted.items()}


def _words(modules: Mapping[str, Module]) -> dict[str, list[Module]]:
    words: dict[str, list[Module]] = {}
    for one in modules.values():
        for condition in one.when.annotation:
            if condition.startswith(PREFIX) and condition.endswith(_AUTO):
                words.setdefault(condition.removeprefix(PREFIX).removesuffix(_AUTO), []).append(one)
    return words


def _for_all(tables: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what suits all: a user namespace for each rank, which PMIx asks for, breaks MPICH's shared memory."""
    common = {key: value for key, value in tables[0].items() if all(one.get(key) == value for one in tables)}
    return {**common, _SOCKET: any(one.get(_SOCKET) for one in tables)}


def _text(name: str, annotation: str, podman: Mapping[str, Any], runtime: str, hooks_dirs: tuple[str, ...]) -> str:
    lines = [f"{MARK}: podman --module {name} run ...", "[containers]"]
    # several --module: each adds to the list
    lines.append(f'annotations = ["{annotation}", {{append = true}}]')
    lines += [f'{key} = "{value}"' for key, value in podman.items() if key != _SOCKET]
    engine = []
    if podman.get(_SOCKET):
        engine.append(f"runtime = {json.dumps(runtime)}")
    if hooks_dirs:
        engine.append(f"hooks_dir = {json.dumps(hooks_dirs)}")
    return "\n".join([*lines, *(["[engine]", *engine] if engine else [])]) + "\n"


def install(directory: str, wanted: Mapping[str, str]) -> list[str]:
    """Write the files, remove those of ours that are no longer wanted; return what is another's and was left alone.

    Raises SpaceError when a file cannot be written.
    """
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        others = []
        for name, text in wanted.items():
            path = os.path.join(directory, name)
            if os.path.lexists(path) and not _is_ours(path):
                others.append(path)
            else:
                atomic.replace_text(path, text)
    except OSError as err:
        raise SpaceError(f"The modules in {directory} cannot be written.", details=str(err)) from err
    _remove(directory, keep=wanted)
    return others


def installed(directory: str) -> list[str]:
    """Return the names of our files in a directory, sorted."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [name for name in names if _is_ours(os.path.join(directory, name))]


def remove(directory: str) -> list[str]:
    """Remove our files; return their names. SpaceError when one cannot be removed."""
    return _remove(directory, keep=())


def _remove(directory: str, keep: Iterable[str]) -> list[str]:
    gone = [name for name in installed(directory) if name not in set(keep)]
    try:
        for name in gone:
            os.unlink(os.path.join(directory, name))
    except OSError as err:
        raise SpaceError(f"The modules in {directory} cannot be removed.", details=str(err)) from err
    return gone


def _is_ours(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False
