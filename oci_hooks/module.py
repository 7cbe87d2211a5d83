"""A module: what one TOML file says is to be injected, and when. Values only; `plan` decides, `apply` acts.

The hook runs at every container start, so this loads nothing: the description of the keys is in `module_keys`, and the
hook builds modules from the compiled form (`compiled`) without reading TOML.
"""

from squashmount.lean import Any, NamedTuple

Map = dict[str, str]
_NOTHING: Map = {}


class When(NamedTuple):
    """When a module is on: if any of these holds. `KEY=VALUE` compares, `KEY` asks whether it is there."""

    always: bool = False
    annotation: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


class MountRule(NamedTuple):
    """`source` is a path or pattern on the host; an empty `target` means the same path inside."""

    source: str
    target: str = ""
    options: tuple[str, ...] = ("ro", "nosuid", "nodev")
    optional: bool = False
    create: str = "auto"


class CopyRule(NamedTuple):
    """A file copied into the container's root file system with `mode` (octal digits)."""

    source: str
    target: str = ""
    mode: str = "0644"
    optional: bool = False


class DeviceRule(NamedTuple):
    """Device nodes of the host (path or pattern), with the same path inside."""

    path: str
    optional: bool = True
    permissions: str = "rw"


class LibraryRule(NamedTuple):
    """Host libraries by path (pattern) or by soname in the host's ld.so.cache."""

    path: str = ""
    soname: str = ""
    role: str = "primary"
    optional: bool = False


class HookRule(NamedTuple):
    """An OCI hook added to the container's configuration."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: Map = _NOTHING


class EnvRules(NamedTuple):
    """Edits of the container's environment.

    `passed` (`pass` in TOML) are names copied from the host job, `NAME*` for all that begin so, as in `podman run -e`.
    """

    set: Map = _NOTHING
    prepend: Map = _NOTHING
    append: Map = _NOTHING
    unset: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


class Module(NamedTuple):
    """One module; `origin` is the file it comes from, `podman` is for `podman_modules` and nothing to the hook."""

    name: str
    origin: str = ""
    help: str = ""
    conflicts: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    planner: str = ""
    when: When = When()
    mounts: tuple[MountRule, ...] = ()
    copies: tuple[CopyRule, ...] = ()
    devices: tuple[DeviceRule, ...] = ()
    env: EnvRules = EnvRules()
    libraries: tuple[LibraryRule, ...] = ()
    hooks: tuple[HookRule, ...] = ()
    ldconfig: bool = False
    allow_env: tuple[str, ...] = ()
    image_env: tuple[str, ...] = ()
    podman: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


_RULES: dict[str, Any] = {
    "mounts": MountRule,
    "copies": CopyRule,
    "devices": DeviceRule,
    "libraries": LibraryRule,
    "hooks": HookRule,
}


def built(table: dict[str, Any], origin: str) -> Module:
    """Make a module of a table that was checked before (`load`), or comes from the compiled form."""
    values: dict[str, Any] = {key: _frozen(value) for key, value in table.items() if key not in _RULES}
    for key, kind in _RULES.items():
        values[key] = tuple(
            kind(**{name: _frozen(value) for name, value in rule.items()}) for rule in table.get(key, ())
        )
    values["when"] = When(**{key: _frozen(value) for key, value in table.get("when", {}).items()})
    env = {"passed" if key == "pass" else key: _frozen(value) for key, value in table.get("env", {}).items()}
    values["env"] = EnvRules(**env)
    return Module(**values)._replace(origin=origin)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load(path: str) -> Module:
    """Read one module file. UsageError names the file, the key and what is allowed."""
    return built(load_table(path), path)


def load_table(path: str) -> dict[str, Any]:
    """Read and check one module file, as the table it is; the name defaults to the file's."""
    import os  # noqa: PLC0415 - with the others

    from .keys import read_toml  # noqa: PLC0415 - not in the hook
    from .module_keys import check_module  # noqa: PLC0415 - the same

    table = read_toml(path)
    table.setdefault("name", os.path.basename(path).removesuffix(".toml"))
    check_module(table, where=path)
    return table
