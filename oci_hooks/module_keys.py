"""The keys of a module file: one description for the checks, the JSON schema and the messages."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from squashmount.errors import UsageError

from .keys import Complaint, Key, complaints, json_schema

SCHEMA_FILE = os.path.join(os.path.dirname(__file__), "module.schema.json")

_NAME = "[a-z0-9][a-z0-9._-]*"
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
_HOST_PATH = r"(?s:[/$].*)"
_TARGET = r"(?s:[/$].*)?"

MOUNT_OPTIONS = (
    *("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind", "noatime", "nodiratime"),
    *("relatime", "private", "rprivate", "slave", "rslave", "shared", "rshared"),
)
STAGES = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
"""Without startContainer: it runs inside the container, where a path of the host does not exist."""

NAMESPACES = ("netns", "ipcns", "pidns", "utsns", "cgroupns")

_OPTIONAL = Key("boolean", "true: what is missing on the host is passed over; false: the container does not start")
_VARIABLES = Key("strings", "names of variables", pattern=_VARIABLE)

KEYS: Mapping[str, Key] = {
    "name": Key("string", "lower-case letters, digits, . _ -; the file's name without .toml", pattern=_NAME),
    "help": Key("string", "one sentence for users"),
    "conflicts": Key("strings", "names of modules that cannot be on together with this one", pattern=_NAME),
    "requires": Key("strings", "names of modules that are switched on with this one", pattern=_NAME),
    "planner": Key("string", "the code that plans what rules cannot say, for example mpich", pattern=f"(?:{_NAME})?"),
    "when": Key(
        "table",
        "the module is on when any of these holds; without: only by name, or when another module requires it",
        keys={
            "always": Key("boolean", "on for every container"),
            "annotation": Key("strings", "KEY=VALUE or KEY: annotations of the container", pattern="(?s:[^=]+(=.*)?)"),
            "label": Key("strings", "KEY=VALUE or KEY: labels of the image", pattern="(?s:[^=]+(=.*)?)"),
            "env": Key("strings", "NAME=VALUE or NAME: environment of the host job", pattern=f"(?s:{_VARIABLE}(=.*)?)"),
        },
    ),
    "mounts": Key(
        "tables",
        "files and directories of the host",
        keys={
            "source": Key("string", "an absolute path or pattern on the host", pattern=_HOST_PATH, required=True),
            "target": Key("string", "an absolute path inside; default: the source", pattern=_TARGET),
            "options": Key("strings", "mount options; default ro, nosuid, nodev", choices=MOUNT_OPTIONS),
            "optional": _OPTIONAL,
            "create": Key(
                "string", "what may be made where nothing is inside", choices=("auto", "file", "dir", "none")
            ),
        },
    ),
    "copies": Key(
        "tables",
        "files written into the container",
        keys={
            "source": Key("string", "an absolute path or pattern on the host", pattern=_HOST_PATH, required=True),
            "target": Key("string", "an absolute path inside; default: the source", pattern=_TARGET),
            "mode": Key("string", "octal permissions, for example 0644", pattern="0?[0-7]{3}"),
            "optional": _OPTIONAL,
        },
    ),
    "devices": Key(
        "tables",
        "device nodes",
        keys={
            "path": Key("string", "a path or pattern below /dev", pattern=r"(?s:/dev/.+)", required=True),
            "optional": Key("boolean", "default true: a missing device never stops a job"),
            "permissions": Key("string", "r, w, m or together", pattern="[rwm]{1,3}"),
        },
    ),
    "env": Key(
        "table",
        "environment of the container",
        keys={
            "set": Key("map", "NAME = value", names=_VARIABLE),
            "prepend": Key("map", "put before a list with colons, as PATH", names=_VARIABLE),
            "append": Key("map", "put behind a list with colons", names=_VARIABLE),
            "unset": _VARIABLES,
            "pass": Key(
                "strings", "names copied from the host job; NAME* for all that begin so", pattern=rf"{_VARIABLE}\*?"
            ),
        },
    ),
    "libraries": Key(
        "tables",
        "shared libraries of the host",
        keys={
            "path": Key("string", "an absolute path or pattern on the host", pattern=_HOST_PATH),
            "soname": Key("string", "looked up in the host's ld.so.cache", pattern="[^/]+"),
            "role": Key("string", "what it is for the planner", choices=("primary", "dependency", "provider")),
            "optional": _OPTIONAL,
        },
    ),
    "hooks": Key(
        "tables",
        "OCI hooks of others to run for the container",
        keys={
            "stage": Key("string", "when the runtime runs it", choices=STAGES, required=True),
            "path": Key("string", "an absolute path on the host", pattern=r"(?s:/.+)", required=True),
            "args": Key("strings", "arguments; the first is the program's name"),
            "env": Key("map", "its environment"),
        },
    ),
    "ldconfig": Key("boolean", "true: the container's ld.so.cache is made anew"),
    "allow_env": Key("strings", "variables of the host job that $NAME in this file may name", pattern=_VARIABLE),
    "image_env": Key(
        "strings",
        "variables of the container's environment that the planner may read; NAME* for all that begin so",
        pattern=rf"{_VARIABLE}\*?",
    ),
    "podman": Key(
        "table",
        "what only Podman can do, for the files of `podman --module NAME` (containers.conf(5))",
        keys={
            **{key: Key("string", "as in containers.conf", pattern="[a-z]+") for key in NAMESPACES},
            "userns": Key("string", "as in containers.conf", pattern="[a-z][a-z0-9:=,-]*"),
            "pmi2_socket": Key("boolean", "true: squashmount-runtime, which leaves the socket of Slurm's PMI2 open"),
        },
    ),
}


def module_complaints(table: Mapping[str, Any]) -> Iterator[Complaint]:
    """Yield what is wrong with a module: keys, values, and what only fits together wrongly."""
    found = list(complaints(table, KEYS))
    yield from found
    if not found:
        yield from _between(table)


def _between(table: Mapping[str, Any]) -> Iterator[Complaint]:
    for at, rule in enumerate(table.get("libraries", ())):
        if ("path" in rule) == ("soname" in rule):
            yield Complaint(f"libraries[{at}]", "needs either path or soname")
    for key in ("mounts", "copies"):
        for at, rule in enumerate(table.get(key, ())):
            parts = rule["source"].split("/") + rule.get("target", "").split("/")
            if ".." in parts:
                yield Complaint(f"{key}[{at}]", "a path contains ..", "name the place itself")
    both = set(table.get("conflicts", ())) & set(table.get("requires", ()))
    if both:
        yield Complaint("conflicts", f"{', '.join(sorted(both))} is also required")
    allowed = set(table.get("allow_env", ()))
    for path, text in _expanded(table):
        for name in sorted(variables(text) - allowed):
            yield Complaint(path, f"${name} is not in allow_env", "only listed variables of the host job are read")


def _expanded(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("mounts", "copies", "libraries"):
        for at, rule in enumerate(table.get(key, ())):
            for name in ("source", "target", "path"):
                yield f"{key}[{at}].{name}", rule.get(name, "")
    for action in ("set", "prepend", "append"):
        for name, text in table.get("env", {}).get(action, {}).items():
            yield f"env.{action}.{name}", text


def variables(text: str) -> set[str]:
    """Return the names of $NAME and ${NAME} in a text."""
    import re  # noqa: PLC0415 - with json, on first use

    return {a or b for a, b in re.findall(rf"\$(?:({_VARIABLE})|\{{({_VARIABLE})\}})", text)}


def check_module(table: Mapping[str, Any], *, where: str) -> None:
    """Raise UsageError with all that is wrong with a module read from the file `where`."""
    found = list(module_complaints(table))
    if found:
        first, *others = map(str, found)
        raise UsageError(f"{where}: {first}.", details="\n".join(f"also {each}" for each in others))


def schema_text() -> str:
    """Return the JSON schema of a module file, as it lies in module.schema.json."""
    return json.dumps(json_schema(KEYS, title="A module of squashmount-hooks"), indent=2) + "\n"
