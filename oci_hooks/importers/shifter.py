"""Shifter: `udiRoot.conf`.

`key = value` lines, values of several words, continued by a backslash at the end of the line (doc/config of Shifter).
`module_NAME_*` become modules, `siteFs` and `siteEnv*` one more that is always on.
"""

import re
from collections.abc import Iterator, Sequence

from .draft import Draft, Log, Translated, collect, module_name, pairs, read

_MODULE_KEY = re.compile(
    r"module_(.+)_(siteEnv|siteEnvPrepend|siteEnvAppend|siteEnvUnset|conflict|siteFs|copyPath|enabled|roothook|userhook)"
)
_SITE_KEYS = ("siteEnv", "siteEnvPrepend", "siteEnvAppend", "siteEnvUnset", "siteFs")
_MODULE_FILES = "/opt/udiImage/modules"
# key: where the same is said now
_ELSEWHERE = {
    "optUdiImage": "a mount of this directory to /opt/udiImage, if an sshd of Shifter is wanted",
    "etcPath": "Podman writes /etc/hosts, resolv.conf, passwd and group itself; mount other files one by one",
    "sitePreMountHook": "mount points are made where a mount needs them",
    "sitePostMountHook": "a script of the host: write it as a createContainer hook and chain it: [[hooks]]",
    "imagePath": "the store DIR of migrate2scratch",
    "defaultImageType": "docker:// is Podman's default",
    "siteResources": "the modules nvidia and mpich put the host's libraries where the loader finds them",
    **dict.fromkeys(("nvidiaBinPath", "nvidiaLibPath", "nvidiaLib64Path"), "the module nvidia"),
}


def translate(files: Sequence[str]) -> Translated:
    """Translate files of udiRoot.conf's format. UsageError: unreadable."""
    logs = [Log(path) for path in files]
    drafts = [draft for log in logs for draft in _file(log)]
    return collect([draft for draft in drafts if not draft.empty], logs)


def _file(log: Log) -> list[Draft]:
    drafts: dict[str, Draft] = {}
    site = Draft("shifter-site", "from udiRoot.conf: what Shifter does for every container", always=True)
    off: set[str] = set()
    on: list[tuple[str, int]] = []
    for line, key, value in _lines(read(log.file)):
        match = _MODULE_KEY.fullmatch(key)
        if match:
            name = match[1]
            draft = drafts.setdefault(name, _draft(name))
            if match[2] == "enabled" and value == "0":
                off.add(name)
                log.add(line, f"module {name}", "is switched off here, and is left out")
            else:
                _set(match[2], value, line, draft, log, name=name)
        elif key in _SITE_KEYS:
            _set(key, value, line, site, log)
        elif key == "defaultModules":
            on = [(name, line) for name in re.split(r"[,\s]+", value) if name]
        else:
            log.add(line, key, _ELSEWHERE.get(key, "concerns Shifter's own work only"))
    for name, line in on:
        if name in drafts:
            drafts[name].always = True
        else:
            log.add(line, f"defaultModules {name}", "there is no such module in this file")
    return [site, *(draft for name, draft in drafts.items() if name not in off)]


def _draft(name: str) -> Draft:
    draft = Draft(module_name(name), f"from Shifter's module {name}")
    draft.notes.append(f"shifter --module={name} is now: podman run --annotation squashmount.{draft.name}=on")
    return draft


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Give (line of the key, key, value) with continued lines joined."""
    begun, kept = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        begun = begun or number
        if raw.endswith("\\"):
            kept += raw[:-1] + " "
            continue
        whole, line = (kept + raw).strip(), begun
        begun, kept = 0, ""
        key, equals, value = whole.partition("=")
        if whole and not whole.startswith("#") and equals:
            yield line, key.strip(), value.strip()


def _set(key: str, value: str, line: int, draft: Draft, log: Log, *, name: str = "") -> None:
    """Do what a key says; `name` is the module's own, as its directory in the container is called."""
    if key in {"siteEnv", "siteEnvPrepend", "siteEnvAppend"}:
        action = {"siteEnv": "set", "siteEnvPrepend": "prepend", "siteEnvAppend": "append"}[key]
        for variable, text, equals in pairs(value.split()):
            why = draft.literal(action, variable, text) if equals else "a name without a value"
            if why:
                log.add(line, f"{key} {variable}{'=' if equals else ''}{text}", why)
    elif key == "siteEnvUnset":
        for word in draft.names(draft.env_unset, value.split()):
            log.add(line, f"{key} {word}", "not the name of a variable")
    elif key == "conflict":
        draft.conflicts += [module_name(other) for other in value.split()]
    elif key == "siteFs":
        for entry in re.split(r"[\s;]+", value):
            _file_system(entry, line, draft, log)
    elif key == "copyPath":
        # a bind instead of a copy shows the same files
        why = draft.mount(value, f"{_MODULE_FILES}/{name}", options=("ro",))
        if why:
            log.add(line, f"{key} {value}", why)
    elif key == "roothook":
        why = "a script that runs as root of the host; write it as a createContainer hook and chain it: [[hooks]]"
        log.add(line, f"{key} {value}", why)
    elif key == "userhook":
        why = "a script of the container, run before the command: make it the image's entrypoint"
        log.add(line, f"{key} {value}", why)


def _file_system(entry: str, line: int, draft: Draft, log: Log) -> None:
    if not entry:
        return
    source, _, rest = entry.partition(":")
    target, *flags = rest.split(":") if rest else [source]
    options: tuple[str, ...] = ()
    for flag in flags:
        if flag in {"ro", "rw"}:
            options = (flag,)
        elif flag.startswith("perNodeCache"):
            log.add(line, f"siteFs {entry}", "a file system for each node: --tmpfs or a volume of podman run")
            return
        elif flag not in {"rec", "slave", ""}:
            log.add(line, f"siteFs {entry}: {flag}", "not a flag that Shifter reads")
    why = draft.mount(source, target, options=options)
    if why:
        log.add(line, f"siteFs {entry}", why)
