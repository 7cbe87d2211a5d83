"""enroot: `environ.d/*.env`, `mounts.d/*.fstab`, `hooks.d/*.sh` and `enroot.conf`.

Formats: enroot's doc/image-format.md (fstab(5) and pam_env(8) with `${NAME}` of the host, `x-create=`). Scripts are
programs for enroot's own environment and are never translated; the module that does the same is named.
"""

import os
import re
from collections.abc import Iterator, Sequence

from squashmount.errors import UsageError

from .draft import Draft, Log, Translated, collect, module_name, read, stem

_PODMANS = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
# script without number and .sh: what to use instead
_SCRIPTS = {
    "nvidia": "the module nvidia",
    "mellanox": "the module infiniband",
    "slurm-pmi": "the modules openmpi-pmix and openmpi-pmi2",
    "slurm-pmix": "the module openmpi-pmix",
    "home": "the module home",
    "cgroups": "--cgroupns of podman run",
    "cgroup": "--cgroupns of podman run",
    "devices": "Podman makes a minimal /dev itself",
    "localtime": "--tz=local of podman run",
    "shadow": "Podman writes passwd and group itself",
    "environ": "a module's [env]",
    "aptfix": "not needed: the ids of Podman's user namespace let apt change users",
}
_SWITCHES = {"ENROOT_MOUNT_HOME": "home"}


def translate(files: Sequence[str]) -> Translated:
    """Translate files, told apart by their ending. UsageError: another ending, or unreadable."""
    logs = [Log(path) for path in files]
    drafts = [_file(log) for log in logs]
    return collect([draft for draft in drafts if draft and not draft.empty], logs)


def _file(log: Log) -> Draft | None:
    ending = os.path.splitext(log.file)[1]
    draft = Draft(module_name(stem(log.file)), f"from enroot's {os.path.basename(log.file)}", always=True)
    text = read(log.file)
    if ending == ".env":
        _environ(text, draft, log)
    elif ending == ".fstab":
        _fstab(text, draft, log)
    elif ending == ".conf":
        draft.name = "enroot-site"
        _conf(text, draft, log)
    elif ending == ".sh":
        log.add(1, os.path.basename(log.file), _instead(stem(log.file)))
    else:
        raise UsageError(f"{log.file} is not a file of enroot.", details="*.env, *.fstab, *.sh or *.conf")
    return draft


def _instead(script: str) -> str:
    name = re.sub(r"^\d+-", "", script)
    if name in _SCRIPTS:
        return f"a script for enroot; instead: {_SCRIPTS[name]}"
    return "a script for enroot's environment (ENROOT_ROOTFS ...): write it as an OCI hook and chain it: [[hooks]]"


def _content(text: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line and not line.startswith("#"):
            yield number, line


def _environ(text: str, draft: Draft, log: Log) -> None:
    for line, entry in _content(text):
        name, equals, value = entry.removeprefix("export ").partition("=")
        value = value.strip().strip("\"'")
        why = draft.expanded("set", name, value) if equals else "not NAME=value"
        if why:
            log.add(line, entry, why)


def _fstab(text: str, draft: Draft, log: Log) -> None:
    for line, entry in _content(text):
        fields = entry.split()
        source = fields[0]
        target = fields[1] if len(fields) > 1 else ""
        rest = [option for part in fields[2:4] for option in part.split(",")]
        kind = fields[2] if len(fields) > 3 else "none"
        options = [option for option in rest if option not in {"none", kind}]
        if not target.startswith(("/", "$")):
            log.add(line, entry, "not SOURCE TARGET TYPE OPTIONS")
        elif source == "tmpfs" or kind not in {"none", "bind", "auto"}:
            log.add(line, entry, f"a file system of its own: --tmpfs {target} or --mount of podman run")
        elif target in _PODMANS:
            log.add(line, entry, f"Podman makes {target} itself")
        else:
            unknown = _mount(source, target, options, draft)
            if unknown:
                log.add(line, entry, unknown)


def _mount(source: str, target: str, options: list[str], draft: Draft) -> str:
    """Add the mount; return what of it has no translation."""
    kept, create, unknown = [], "auto", []
    for option in options:
        if option in {"ro", "rw", "nosuid", "nodev", "noexec"}:
            kept.append(option)
        elif option.startswith("x-create="):
            create = option.partition("=")[2]
        elif option not in {"bind", "rbind", "nofail", "silent", "private", "rprivate", "slave", "rslave", "defaults"}:
            unknown.append(f"{option} is not an option of a module's mount")
    if not source.startswith(("/", "$")):
        return f"{source} is no path of the host: --volume of podman run"
    why = draft.mount(source, target, options=kept, optional="nofail" in options, create=create)
    return why or ", ".join(unknown)


def _conf(text: str, draft: Draft, log: Log) -> None:
    for line, entry in _content(text):
        key, _, value = entry.partition(" ")
        if key in _SWITCHES:
            if value.strip().lower() in {"y", "yes", "1", "true", "on"}:
                draft.requires.append(_SWITCHES[key])
        else:
            log.add(line, key, "concerns enroot's own work only")
