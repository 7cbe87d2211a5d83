"""What every importer makes: modules as TOML text, and the list of what has no translation."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomlkit

from squashmount.errors import UsageError

VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(rf"{_VARIABLE_NAME.pattern}\*?")
_MODULE_NAME = re.compile(r"[^a-z0-9._-]+")
_NO_DEVICES = ("/dev/shm", "/dev/mqueue", "/dev/hugepages", "/dev/log", "/dev/pts")  # noqa: S108 - names of mounts
_FORBIDDEN = ("/proc", "/sys", "/dev", "/etc", "/etc/passwd", "/etc/group", "/etc/shadow", "/run", "/run/secrets")
_PODMANS = ("netns", "ipcns", "pidns", "utsns", "cgroupns", "userns")
# what belongs to the system cannot be written by the user who starts the container
_SYSTEM = re.compile(r"/(usr|opt|etc|lib|lib32|lib64|bin|sbin|cvmfs)(/|$)")
LITERAL = "podman-hpc, Sarus and Shifter take $ as it stands, a module would put the variable in"
READS = {
    "amd": ("ROCR_VISIBLE_DEVICES",),
    "libraries": ("LD_LIBRARY_PATH", "PATH", "FI_PROVIDER_PATH"),
    "mpich": ("LD_LIBRARY_PATH", "PATH", "FI_PROVIDER_PATH"),
}
"""What the planners of imported modules ask of the container's environment, as in `planners`."""
READ_ONLY = ("ro", "nosuid", "nodev")
WRITABLE = ("rw", "nosuid", "nodev")


@dataclass(frozen=True)
class Untranslated:
    """One thing of a peer's file that no module can say."""

    file: str
    line: int
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.why}"


@dataclass(frozen=True)
class Translated:
    """The modules (name to TOML text) and what was left out, in the order of the files."""

    modules: dict[str, str]
    untranslated: tuple[Untranslated, ...]


@dataclass
class Draft:
    """One module in the making. Fields and their defaults are those of the module format."""

    name: str
    origin: str
    help: str = ""
    planner: str = ""
    notes: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    requires: list[str] = field(default_factory=list)
    always: bool = False
    annotations: list[str] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    libraries: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    env_set: dict[str, str] = field(default_factory=dict)
    env_prepend: dict[str, str] = field(default_factory=dict)
    env_append: dict[str, str] = field(default_factory=dict)
    env_unset: list[str] = field(default_factory=list)
    env_pass: list[str] = field(default_factory=list)
    ldconfig: bool = False
    allow_env: list[str] = field(default_factory=list)
    podman: dict[str, str] = field(default_factory=dict)

    def mount(
        self,
        source: str,
        target: str = "",
        *,
        options: Sequence[str] = (),
        optional: bool = False,
        create: str = "auto",
    ) -> str:
        """Add a mount, or the device when that is what `source` names; return why it has no translation, or "".

        Without options a system path is read-only.
        """
        if source.startswith("/dev/") and not source.startswith(_NO_DEVICES) and _same_place(source, target):
            return self.device(source)
        why = _no_place(source, target) or _podmans_own(target or source)
        if why:
            return why
        self.allow(source, target)
        entry: dict[str, Any] = {"source": source}
        if target and target != source:
            entry["target"] = target
        default = READ_ONLY if _SYSTEM.match(source) else WRITABLE
        # no peer wants set-user-id programs or device nodes through a mount
        chosen = [*options, *(each for each in default[1:] if each not in options)] if options else list(default)
        if chosen != list(READ_ONLY):
            entry["options"] = chosen
        if optional:
            entry["optional"] = True
        if create != "auto":
            entry["create"] = create
        if entry not in self.mounts:
            self.mounts.append(entry)
        return ""

    def podmans(self, key: str, value: str) -> bool:
        """Add what only Podman can do, for `podman --module`; return whether a module can say it."""
        # keep-id has a hyphen, and nothing but userns has options
        if key not in _PODMANS or not re.fullmatch("[a-z][a-z0-9:=,-]*" if key == "userns" else "[a-z]+", value):
            return False
        self.podman[key] = value
        return True

    def device(self, path: str, *, permissions: str = "rw") -> str:
        """Add a device node (or pattern), optional: a missing device never stops a job. Returns as `mount`."""
        if not re.fullmatch(r"/dev/[^\0]+", path) or not re.fullmatch("[rwm]{1,3}", permissions):
            return "not a path below /dev with permissions of r, w, m"
        entry: dict[str, Any] = {"path": path}
        if permissions != "rw":
            entry["permissions"] = permissions
        if entry not in self.devices:
            self.devices.append(entry)
        return ""

    def library(self, path: str, role: str) -> str:
        """Add a library of the host by its path. Returns as `mount`."""
        why = _no_place(path, "")
        if not why:
            self.libraries.append({"path": path, "role": role})
        return why

    def names(self, names: list[str], new: Sequence[str]) -> list[str]:
        """Add names of variables to one of the lists `env_unset` and `env_pass`; return those that are none."""
        form = _NAME if names is self.env_pass else _VARIABLE_NAME
        names += [name for name in new if form.fullmatch(name)]
        return [name for name in new if not form.fullmatch(name)]

    def allow(self, *texts: str) -> None:
        """Allow the variables of the host job that these texts name."""
        for match in VARIABLE.finditer(" ".join(texts)):
            name = match.group(1) or match.group(2)
            if name not in self.allow_env:
                self.allow_env.append(name)

    def literal(self, action: str, name: str, value: str) -> str:
        """Note set, prepend or append of a value that its peer takes as it is. Returns as `mount`."""
        if VARIABLE.search(value):
            return LITERAL
        return self._changed(action, name, value)

    def expanded(self, action: str, name: str, value: str) -> str:
        """Note the value a peer gives to a variable after putting in the job's variables. Returns as `mount`."""
        if action == "set" and value in {f"${{{name}}}", f"${name}"} and not self.names(self.env_pass, [name]):
            return ""
        why = self._changed(action, name, value)
        if not why:
            self.allow(value)
        return why

    def _changed(self, action: str, name: str, value: str) -> str:
        if not _VARIABLE_NAME.fullmatch(name):
            return "not the name of a variable"
        {"set": self.env_set, "prepend": self.env_prepend, "append": self.env_append}[action][name] = value
        return ""

    @property
    def empty(self) -> bool:
        """Whether nothing was found that a module could do."""
        lists = (self.mounts, self.copies, self.devices, self.libraries, self.hooks, self.env_unset, self.env_pass)
        tables = (self.env_set, self.env_prepend, self.env_append)
        return not (any(lists) or any(tables) or self.planner or self.requires or self.ldconfig)

    def text(self) -> str:
        """Return the module as TOML."""
        # no line of a comment may end early, or hold what TOML forbids
        printable = ("".join(char if char.isprintable() else "?" for char in one) for one in (self.origin, *self.notes))
        head = "".join(f"# {line}\n" for line in printable)
        when = {"always": self.always or None, "annotation": self.annotations}
        env = {
            "unset": self.env_unset,
            "pass": self.env_pass,
            "set": self.env_set,
            "prepend": self.env_prepend,
            "append": self.env_append,
        }
        whole = {
            "name": self.name,
            "help": self.help or self.origin,
            "planner": self.planner,
            "conflicts": self.conflicts,
            "requires": self.requires,
            "ldconfig": self.ldconfig or None,
            "allow_env": self.allow_env,
            "image_env": READS.get(self.planner or ("libraries" if self.libraries else "")),
            "when": _given(when),
            "env": _given(env),
            "mounts": self.mounts,
            "copies": self.copies,
            "devices": self.devices,
            "libraries": self.libraries,
            "hooks": self.hooks,
            "podman": self.podman,
        }
        return head + tomlkit.dumps(_given(whole))


def _no_place(source: str, target: str) -> str:
    for path in (source, target) if target else (source,):
        if not path.startswith(("/", "$")) or ".." in path.split("/") or "\0" in path:
            return f"{path!r} is not an absolute path without .."
    return ""


def _podmans_own(target: str) -> str:
    """Return why nothing can be mounted there: the default policy forbids it."""
    if target.startswith(("/dev/shm", "/dev/mqueue")):  # noqa: S108 - the name of a mount
        return 'of Podman: --ipc=host, or ipcns = "host" in a containers.conf module'
    path = target.rstrip("/") or "/"
    if path in {"/", *_FORBIDDEN} or path.startswith(("/proc/", "/sys/", "/dev/")):
        return f"{path} is Podman's, and forbidden to modules"
    return ""


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value}


def _same_place(source: str, target: str) -> bool:
    return target in {"", source} or (target.endswith("/") and os.path.dirname(source) == target.rstrip("/"))


class Log:
    """Collects what one file could not say, with its line."""

    def __init__(self, file: str) -> None:
        """Name the file as the user did."""
        self.file = file
        self.entries: list[Untranslated] = []

    def add(self, line: int, what: str, why: str) -> None:
        """Note one thing and why it has no translation."""
        self.entries.append(Untranslated(self.file, line, what, why))


class Lines:
    """Finds the line of a value in a text whose parser gives no positions (JSON, TOML)."""

    def __init__(self, text: str) -> None:
        """Keep the text."""
        self._text = text

    def of(self, *needles: str) -> int:
        """Return the line (from 1) of the last of `needles` that follow one another; 1 when there is none."""
        at = -1
        for needle in needles:
            found = self._text.find(needle, at + 1)
            if found < 0:
                break
            at = found
        return self._text.count("\n", 0, at + 1) + 1


class Given:
    """A table of a peer's file, read with its types checked. UsageError names the file and the key."""

    def __init__(self, value: object, log: Log, path: str = "") -> None:
        """Take what the parser gave; `path` is where in the file it was."""
        self._log, self._path = log, path
        self.table: dict[str, Any] = self._checked(value, dict, "a table", path)

    def _checked(self, value: Any, kind: type, what: str, path: str) -> Any:
        if not isinstance(value, kind):
            raise UsageError(f"{self._log.file}: {path or 'the file'} is not {what}.", details=f"it is {value!r:.200}")
        return value

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def sub(self, key: str) -> "Given":
        """Return the table under a key, empty when there is none."""
        return Given(self.table.get(key) or {}, self._log, self._at(key))

    def subs(self, key: str) -> "list[Given]":
        """Return the tables of the list under a key."""
        values = self._checked(self.table.get(key) or [], list, "a list", self._at(key))
        return [Given(value, self._log, self._at(key)) for value in values]

    def text(self, key: str, default: str = "") -> str:
        """Return the text under a key."""
        value = self.table.get(key)
        return default if value is None else str(self._checked(value, str, "a text", self._at(key)))

    def texts(self, key: str) -> list[str]:
        """Return the texts of the list under a key; a single one is a list of one."""
        value = self.table.get(key) or []
        values = [value] if isinstance(value, str) else self._checked(value, list, "a list", self._at(key))
        return [str(self._checked(each, str, "a text", self._at(key))) for each in values]

    def map(self, key: str) -> dict[str, str]:
        """Return the table of texts under a key; numbers and booleans become texts."""
        table = self.sub(key).table
        return {
            str(name): str(self._checked(value, (str, int, float), "a text", f"{self._at(key)}.{name}"))  # type: ignore[arg-type]
            for name, value in table.items()
        }


def read(path: str) -> str:
    """Return the text of a file; UsageError when it cannot be read or is no text."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as err:
        raise UsageError(f"{path} cannot be read.", details=err.strerror or "") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"{path} is not a text file.", details=str(err)) from err
    return str(all_text(text, path))


def all_text(value: Any, path: str) -> Any:
    """Return what a parser gave; UsageError when a text in it can be in no file: an escape may stand for anything."""
    todo, seen = [value], {id(value)}
    while todo:
        one = todo.pop()
        if isinstance(one, (dict, list)):
            inner = [*one, *one.values()] if isinstance(one, dict) else one
            # YAML's aliases: the same again, or a circle
            todo += [each for each in inner if isinstance(each, str) or id(each) not in seen]
            seen |= {id(each) for each in inner}
        elif isinstance(one, str):
            _check_text(one, path)
    return value


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise UsageError(f"{path} holds a text that is none.", details=str(err)) from err
    if "\0" in text:
        raise UsageError(f"{path} holds a null byte.", details=f"in {text!r:.200}")


def collect(drafts: Iterable[Draft], logs: Iterable[Log]) -> Translated:
    """Return the result; UsageError when two files make a module of one name."""
    modules: dict[str, str] = {}
    for draft in drafts:
        if draft.name in modules:
            raise UsageError(
                f"Two of the files make a module {draft.name}.",
                hint="rename one, or import them into two directories",
            )
        modules[draft.name] = draft.text()
    return Translated(
        modules, tuple(entry for log in logs for entry in sorted(log.entries, key=lambda each: each.line))
    )


def module_name(text: str) -> str:
    """Return a name a module may have: small letters, digits, `.`, `_`, `-`."""
    return _MODULE_NAME.sub("-", text.lower()).strip("-._") or "module"


def stem(path: str) -> str:
    """Return the file's name without folder and last extension."""
    return os.path.splitext(os.path.basename(path))[0]


def pairs(words: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Split each `NAME=value`; the third part tells whether there was a `=`."""
    for word in words:
        name, equals, value = word.partition("=")
        yield name, value, bool(equals)
