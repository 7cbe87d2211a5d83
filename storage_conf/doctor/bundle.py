"""A support bundle: what somebody else needs to help, without what he must not know.

Names (user, group, host, home) become `USER`, `HOST`, `/home/USER`, everywhere the same, so that two lines that spoke
of one thing still do. Values that look like secrets become `REDACTED`. What is not listed here is not in it: the
environment by an allowlist, of /etc/subuid this user's lines only, of nsswitch.conf one line.

It is written at once or not at all, with mode 0600, and never over another file.
"""

import gzip
import io
import json
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from squashmount.errors import SpaceError, UsageError

from ..finding import Fact
from ..ids.libsubid import subid_lines
from .node import Node
from .places import configuration, podman
from .probe import Probe, run_all

_ENVIRONMENT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|TMPDIR|XDG_(RUNTIME_DIR|CONFIG_HOME|DATA_HOME)|STORAGE_(DRIVER|OPTS)"
    r"|CONTAINERS_(CONF|STORAGE_CONF|REGISTRIES_CONF|CONF_OVERRIDE)|_CONTAINERS_\w+|SQUASH_DIR|SQUASHMOUNT_\w+"
    r"|SLURM_(JOB_ID|STEP_ID|NNODES|NTASKS|PROCID|LOCALID|JOB_PARTITION|JOB_NUM_NODES|MEM_PER_NODE|MEM_PER_CPU)"
    r"|REGISTRY_AUTH_FILE|container)"
)
_LINE = 4000
"""Characters of one line that are looked at: a longer one is cut, so that no pattern takes for ever."""

_TELLING = (
    r"[\w.-]{0,40}(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential"
    r"|auth|identity)[\w-]{0,40}"
)
"""Names of what is not shown."""

_SECRETS = (
    # what a telling name is given, in quotes or up to the end of the line: TOML, JSON, environment, mount options
    (
        re.compile(
            rf"""(?i)(["']?{_TELLING}["']?(?:\[\w*\])?\s*[:=]\s*)("(?:\\.|[^"\\])*"(?=\s*(?:[,}}\]#]|$))|'[^']*'(?=\s*(?:[,}}\]#]|$))|.+$)"""
        ),
        r"\1REDACTED",
    ),
    # --password VALUE
    (re.compile(rf"(?i)(--{_TELLING}\s+)\S+"), r"\1REDACTED"),
    # user:password in an address
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^\s\"']*@"), r"\1REDACTED@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_.=-]{8,}"), r"\1 REDACTED"),
    # tokens by their own form: JSON web tokens, GitLab, GitHub, AWS
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), "REDACTED"),
    (re.compile(r"\b(glpat-|gh[pousr]_|github_pat_|AKIA|ASIA|xox[abp]-|hf_)[\w-]{8,}"), "REDACTED"),
)
_NOT_SECRET = re.compile(r"(?i)^(?:REGISTRY_AUTH_FILE|auth_?file)\b")

_BLOCK = re.compile(r"(\"{3}|'{3}).*?(\1|\Z)", re.DOTALL)
"""A text of several lines in TOML: what names it is on another line."""

_TEXT_LIMIT = 200_000
Redact = Callable[[str], str]


def write_bundle(path: str, node: Node, report: Mapping[str, Any]) -> None:
    """Write the bundle with the doctor's answer. UsageError when the file exists, SpaceError when it cannot be made."""
    if os.path.lexists(path):
        raise _there_already(path)
    data = _packed(_parts(node, report))
    folder, name = os.path.split(os.path.abspath(path))
    try:
        handle, temp = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _publish(temp, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)
    except OSError as err:
        raise SpaceError(f"The bundle {path} cannot be written.", details=str(err), hint="name another place") from err


def _publish(temp: str, path: str) -> None:
    """Give the file its name; link(2) never replaces one, but not every file system has it."""
    try:
        try:
            os.link(temp, path)
        except FileExistsError:
            raise
        except OSError:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            os.rename(temp, path)
    except FileExistsError as err:
        raise _there_already(path) from err


def _there_already(path: str) -> UsageError:
    return UsageError(f"{path} is there already.", hint="name another file, or remove it")


def _parts(node: Node, report: Mapping[str, Any]) -> dict[str, str]:
    """Return name → text of what goes in, from children: passwd, a home or a mount that hangs must not hang this."""

    def answer(node: Node) -> Iterator[Fact]:
        yield Fact("doctor.json", json.dumps(redacted(report, redaction(node)), indent=2))

    probes = (
        Probe(("doctor.json",), "The doctor's answer", answer, seconds=3.0),
        Probe(("proc",), "What /proc and /etc say", _of_the_node, seconds=3.0),
        Probe(("conf",), "The configuration", _of_the_configuration, seconds=3.0),
    )
    parts: dict[str, str] = {}
    silent = run_all(probes, node, facts=parts)
    parts |= {f"{one.id}.missing": f"{one.what}\n{one.evidence}\n" for one in silent}
    # passwd hangs: what the environment tells of names must do
    missing = "doctor.json" not in parts
    return parts | ({"doctor.json": json.dumps(redacted(report, redaction(node, passwd=False)))} if missing else {})


def _packed(parts: Mapping[str, str]) -> bytes:
    """Return a tar.gz whose members say nothing about who packed it."""
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, text in parts.items():
            data = text.encode(errors="surrogateescape")
            member = tarfile.TarInfo(f"squashmount-doctor/{name}")
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def redacted(value: Any, redact: Redact) -> Any:
    """Return JSON with every string redacted, and what lies under a telling key gone."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            redact(str(key)): "REDACTED" if _is_telling(str(key)) else redacted(item, redact)
            for key, item in value.items()
        }
    return [redacted(item, redact) for item in value] if isinstance(value, (list, tuple)) else value


def _is_telling(key: str) -> bool:
    return bool(re.fullmatch(rf"(?i){_TELLING}", key)) and not _NOT_SECRET.match(key)


def redaction(node: Node, *, passwd: bool = True) -> Redact:
    """Return what takes names and secrets out of a text."""
    names = _names(node, passwd=passwd)
    # the longest first: a home directory contains the user's name; not inside of other words
    patterns = [
        (re.compile(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", re.IGNORECASE), names[word])
        for word in sorted(names, key=len, reverse=True)
    ]

    def redact(text: str) -> str:
        text = _BLOCK.sub("REDACTED", text)
        return "\n".join(_line(line[:_LINE], patterns) for line in text.split("\n"))

    return redact


def _line(line: str, names: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, by in _SECRETS:
        if not (pattern is _SECRETS[0][0] and _NOT_SECRET.match(line.strip())):
            line = pattern.sub(by, line)
    for pattern, by in names:
        line = pattern.sub(by, line)
    return line


def _names(node: Node, *, passwd: bool) -> dict[str, str]:
    entry = node.passwd if passwd else None
    names: dict[str, str] = {}
    for host in (os.uname().nodename, *(node.environ.get(key, "") for key in ("HOSTNAME", "SLURMD_NODENAME"))):
        first, _, domain = host.partition(".")
        names |= {host: "HOST", first: "HOST", domain: "DOMAIN"}
    full = entry.pw_gecos.split(",")[0] if entry else ""
    names |= {full: "FULL-NAME"} if len(full) > 3 else {}
    for word in (entry.pw_name if entry else "", node.environ.get("USER"), node.environ.get("LOGNAME")):
        names[word or ""] = "USER"
    for home in (entry.pw_dir if entry else "", node.environ.get("HOME", "")):
        names[home.rstrip("/")] = "/home/USER"
        names[os.path.realpath(home).rstrip("/") if home else ""] = "/home/USER"
    for common in ("", "root", "/root", "localhost"):
        names.pop(common, None)
    return names


def _of_the_node(node: Node) -> Iterator[Fact]:
    redact = redaction(node)
    lines = subid_lines(node.text("/etc/nsswitch.conf") or "")
    parts = {
        "versions": f"squashmount {version('squashmount')}\npodman {_podman(node)}\n{' '.join(_uname())}\n",
        "os-release": node.text("/etc/os-release") or "",
        "environment": _environment(node),
        "mountinfo": _mountinfo(node),
        "cgroup": node.text("/proc/self/cgroup") or "",
        "status": node.text("/proc/self/status") or "",
        "nsswitch": "".join(f"{number}: subid: {' '.join(words)}\n" for number, words in lines),
        "subuid": _own_lines(node, "/etc/subuid"),
        "subgid": _own_lines(node, "/etc/subgid"),
    }
    yield from (Fact(name, redact(text[:_TEXT_LIMIT])) for name, text in parts.items())


def _podman(node: Node) -> str:
    found = podman(node)
    return found.version if found else ""


def _of_the_configuration(node: Node) -> Iterator[Fact]:
    redact = redaction(node)
    facts = configuration(node)
    effective = redacted({"storage": facts.storage, "engine": facts.engine}, redact)
    yield Fact("effective.json", json.dumps(effective, indent=2, default=str))
    files = {file.path for file in (*facts.files, *facts.engine_files, *((facts.system,) if facts.system else ()))}
    for number, path in enumerate(sorted(files)):
        yield Fact(f"conf/{number}-{os.path.basename(path)}", redact(f"# {path}\n{_text(path)}"))


def _mountinfo(node: Node) -> str:
    """Return the mounts, without other users' homes and runtime directories, and without servers' names."""
    homes = {os.path.dirname(os.path.realpath(node.environ.get("HOME") or "/")), "/run/user", "/home", "/users"} - {"/"}
    own = {os.path.realpath(node.environ.get("HOME") or "/"), f"/run/user/{node.uid}"}
    kept = []
    for line in (node.text("/proc/self/mountinfo") or "").splitlines():
        fields = line.split(" ")
        target = fields[4] if len(fields) > 4 else ""
        others = any(target.startswith(f"{top}/") for top in homes)
        if not others or any(target == one or target.startswith(f"{one}/") for one in own):
            kept.append(_SERVER.sub(r"\1SERVER", line))
    return "\n".join([*kept, ""])


_SERVER = re.compile(r"((?<= - )\S+ (?=[^/\s]+:)|(?<= - )\S+ //|\b(?:mount|client)?addr=)(?:[^/\s,]+?(?=:/|[/,\s]|$))")


def _uname() -> tuple[str, ...]:
    uname = os.uname()
    return uname.sysname, uname.release, uname.version, uname.machine


def _environment(node: Node) -> str:
    chosen = {name: value for name, value in sorted(node.environ.items()) if _ENVIRONMENT.fullmatch(name)}
    return "".join(f"{name}={value}\n" for name, value in chosen.items())


def _own_lines(node: Node, path: str) -> str:
    """Return this user's lines with their numbers, and how many there are in all."""
    lines = (node.text(path) or "").splitlines()
    mine = {node.user, str(node.uid), node.name}
    own = [f"{number}: {line}" for number, line in enumerate(lines, 1) if line.split(":")[0].strip() in mine]
    return "\n".join([f"{len(lines)} lines, written {_age(node.path(path))}", *own, ""])


def _age(path: str) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(os.stat(path).st_mtime))
    except OSError:
        return "never"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_TEXT_LIMIT)
    except OSError as err:
        return f"# {os.strerror(err.errno or 0)}\n"
