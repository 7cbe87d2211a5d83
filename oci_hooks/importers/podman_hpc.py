"""podman-hpc: `modules.d/*.yaml`.

Keys and rules as podman-hpc 1.2 reads them (siteconfig.py, hook_tool.py): a module adds arguments to `podman run`, and
its hook copies and binds. `SRC[:DST]` has variables, `~`, patterns in SRC, `DST/` for a directory; a relative SRC lies
below the modules directory. Arguments for namespaces act before any hook runs: they become the table `[podman]`.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from squashmount.errors import ToolError, UsageError

from .draft import Draft, Log, Translated, all_text, collect, module_name, read, stem

_KEYS = ("name", "cli_arg", "help", "env", "additional_args", "copy", "bind", "conflicts", "depends_on")
_LISTS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "MANPATH")
# option of `podman run`: key of containers.conf(5), [containers]
_CONTAINERS_CONF = {
    "--ipc": "ipcns",
    "--network": "netns",
    "--net": "netns",
    "--pid": "pidns",
    "--uts": "utsns",
    "--userns": "userns",
    "--cgroupns": "cgroupns",
    "--shm-size": "shm_size",
    "--ulimit": "default_ulimits",
    "--tz": "tz",
    "--annotation": "annotations",
}
_TAKES_VALUE = {"-e", "--env", "-v", "--volume", "--device", "--mount", "--security-opt", "--hooks-dir"}


@dataclass(frozen=True)
class _Value:
    """A value of the YAML file with its line, and the lines of its parts when it is a list."""

    value: Any
    line: int
    lines: tuple[int, ...]

    def items(self) -> Iterator[tuple[str, int]]:
        """Give each part as text with its line; a single value is a list of one."""
        values = self.value if isinstance(self.value, list) else [] if self.value is None else [self.value]
        for value, line in zip(values, self.lines or (self.line,), strict=False):
            yield str(value), line


def translate(files: Sequence[str]) -> Translated:
    """Translate module files. UsageError: not a podman-hpc module; ToolError: PyYAML is not installed."""
    logs = [Log(path) for path in files]
    return collect([_module(log) for log in logs], logs)


def _module(log: Log) -> Draft:
    fields = _load(log.file)
    name = str(fields["name"].value) if "name" in fields else stem(log.file)
    draft = Draft(module_name(name), f"from podman-hpc's module {name}")
    if "help" in fields:
        draft.help = str(fields["help"].value)
    option = str(fields["cli_arg"].value) if "cli_arg" in fields else name
    draft.notes.append(
        f"podman-hpc run --{option} is now: podman --module {draft.name} run, "
        f"or podman run --annotation squashmount.{draft.name}=on"
    )
    if "env" in fields:
        switch = str(fields["env"].value)
        why = draft.literal("set", switch, "1")
        if why:
            log.add(fields["env"].line, f"env {switch}", why)
    for key, names in (("conflicts", draft.conflicts), ("depends_on", draft.requires)):
        if key in fields:
            names += [module_name(text) for text, _ in fields[key].items()]
    if "additional_args" in fields:
        _arguments(fields["additional_args"], draft, log)
    for key in ("copy", "bind"):
        for rule, line in fields[key].items() if key in fields else ():
            _rule(rule, line, draft, log)
    # podman-hpc runs the image's ldconfig after every module
    draft.ldconfig = any(key in fields for key in ("copy", "bind"))
    _unknown(fields, log)
    return draft


def _load(path: str) -> dict[str, _Value]:
    try:
        import yaml  # noqa: PLC0415 - optional: only this importer needs it
    except ModuleNotFoundError as err:
        raise ToolError("PyYAML is not installed.", hint="pip install 'squashmount[import]'") from err
    text = read(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = all_text(yaml.safe_load(text), path)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise UsageError(f"{path} is not YAML.", details=str(err)) from err
    if not isinstance(root, yaml.MappingNode) or not isinstance(values, dict):
        raise UsageError(f"{path} is not a module of podman-hpc.", details="a table of keys such as name, env, bind")
    fields = {}
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{path} is not a module of podman-hpc.", details="a key that is no word")
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        lines = tuple(part.start_mark.line + 1 for part in parts)
        fields[str(key.value)] = _Value(values.get(key.value), key.start_mark.line + 1, lines)
    return fields


def _unknown(fields: dict[str, _Value], log: Log) -> None:
    for key, value in fields.items():
        if key == "shared_run" and value.value:
            why = "one container for all tasks of a node is made before a hook runs: start it once and use podman exec"
            log.add(value.line, "shared_run", why)
        elif key == "hidden" and value.value:
            log.add(value.line, "hidden", "modules are no options: there is no help text to hide from")
        elif key not in {*_KEYS, "shared_run", "hidden"}:
            log.add(value.line, key, "not a key that podman-hpc reads")


def _arguments(given: _Value, draft: Draft, log: Log) -> None:
    words = []
    for text, line in given.items():
        try:
            words += [(word, line) for word in shlex.split(text)]
        except ValueError as err:
            log.add(line, f"additional_args {text}", f"cannot be split into words: {err}")
    while words:
        option, line = words.pop(0)
        value = ""
        if option.startswith("--") and "=" in option:
            option, _, value = option.partition("=")
        elif option in _TAKES_VALUE | set(_CONTAINERS_CONF) and words:
            value = words.pop(0)[0]
        _argument(option, value, line, draft, log)


def _argument(option: str, value: str, line: int, draft: Draft, log: Log) -> None:
    said = f"additional_args {option} {value}".rstrip()
    if option in {"-e", "--env"}:
        _environment(value, line, draft, log)
    elif option in {"-v", "--volume"}:
        source, _, rest = value.partition(":")
        target, _, flags = rest.partition(":")
        options = [flag for flag in flags.split(",") if flag]
        why = draft.mount(source, target or source, options=options)
        if why:
            log.add(line, said, why)
    elif option == "--device":
        why = draft.device(value.partition(":")[0])
        if why:
            log.add(line, said, why)
    elif option in _CONTAINERS_CONF:
        key = _CONTAINERS_CONF[option]
        if draft.podmans(key, value):
            return
        quoted = f'"{value}"' if value else "..."
        log.add(line, said, f"acts before any hook: {key} = {quoted} in [containers] of a containers.conf module")
    elif option == "--privileged":
        log.add(line, said, "a hook cannot add it, and mounts and devices of a module work without")
    else:
        log.add(line, said, "an option of podman run that a hook cannot add")


def _environment(text: str, line: int, draft: Draft, log: Log) -> None:
    name, equals, value = text.partition("=")
    if not equals:
        if draft.names(draft.env_pass, [name]):
            log.add(line, f"additional_args -e {text}", "not the name of a variable")
        return
    # podman-hpc replaces a list, so of two modules one wins; both are meant to add to it
    why = draft.literal("prepend" if name in _LISTS else "set", name, value)
    if why:
        log.add(line, f"additional_args -e {text}", why)


def _rule(rule: str, line: int, draft: Draft, log: Log) -> None:
    source, _, target = rule.partition(":")
    target = target.partition(":")[0]
    source, target = (text.replace("~", "$HOME", 1) if text.startswith("~") else text for text in (source, target))
    if not target:
        log.add(line, rule, "without a destination podman-hpc itself ends with an error")
        return
    if not source.startswith(("/", "$")):
        source = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(log.file)), source))
    if "*" in target:
        folder, name = os.path.split(target)
        # podman-hpc puts what the pattern of SRC fits into the one of DST: the same names in another directory
        if source.count("*") != 1 or "*" in folder or name != os.path.basename(source):
            log.add(line, rule, "a pattern in the destination that changes names")
            return
        target = f"{folder}/"
    # a bind instead of a copy shows the same file, and needs no writable layer
    why = draft.mount(source, target, optional=True)
    if why:
        log.add(line, rule, why)
