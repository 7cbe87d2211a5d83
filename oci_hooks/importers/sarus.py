"""Sarus: `hooks.d/*.json` (OCI hook files, oci-hooks(5)) and `sarus.json`.

What the programs of Sarus' own hooks do is said by a module (mounts, devices, libraries, environment). A hook with
another program is chained as it is: `[[hooks]]`.
"""

import json
import os
import re
from collections.abc import Callable, Sequence

from squashmount.errors import UsageError

from .draft import Draft, Given, Lines, Log, Translated, all_text, collect, module_name, read, stem

_STAGES = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
_PROVIDERS = "<FI_PROVIDER_PATH>"
_PLAIN = re.compile(r"\^?((?:[\w/:@ -]|\\?\.)+)\$?")
_NO_MODULE = {
    "ssh_hook": "its keys and its server belong to Sarus; the module ssh does the same",
    "glibc_hook": "it reads Sarus' own state; libraries are chosen by looking at the image, not from a list",
}
# a module of ours that does the same
_OURS = {"slurm_global_sync_hook": "slurm-sync", "timestamp_hook": "timestamp"}
# a variable of these hooks: who says that now
_OF_OURS = {
    "HOOK_BASE_DIR": "containers meet in SQUASHMOUNT_SYNC_DIR of the job, or below its HOME",
    "PASSWD_FILE": "the user's home is not looked up",
    "TIMESTAMP_HOOK_LOGFILE": "the times go into the container's log: squashmount-hooks log",
    "TIMESTAMP_HOOK_MESSAGE": "the module has points of its own; words for all: squashmount.timestamp.message",
}
# key of sarus.json: where the same is said now
_ELSEWHERE = {
    "userMounts": "who may mount where is the site policy: forbidden destinations in hooks.toml",
    "defaultMPIType": "name one MPI module in the annotation squashmount.mpi, or give the module `always = true`",
    "enablePMIxv3Support": "the module openmpi-pmix",
    "seccompProfile": "seccomp_profile in containers.conf",
    "apparmorProfile": "apparmor_profile in containers.conf",
    "selinuxLabel": "--security-opt label=... of podman run",
    "selinuxMountLabel": "--security-opt label=... of podman run",
    "containersPolicy": "/etc/containers/policy.json",
    "containersRegistries.dPath": "/etc/containers/registries.d",
    "localRepositoryBaseDir": "graphroot in storage.conf",
    "centralizedRepositoryDir": "a store in additionalimagestores of storage.conf",
    "runcPath": "runtime in containers.conf",
    "initPath": "init_path in containers.conf",
    "hooksDir": "the directory of hook files: import those files",
    "securityChecks": "hooks and modules are always checked for who can write them",
    "mksquashfsOptions": "options of migrate2scratch",
}
_SARUS_OWN = (
    "OCIBundleDir",
    "rootfsFolder",
    "prefixDir",
    "tempDir",
    "skopeoPath",
    "umociPath",
    "mksquashfsPath",
    "ramFilesystemType",
)


def translate(files: Sequence[str]) -> Translated:
    """Translate hook files and sarus.json, told apart by what is in them. UsageError: neither of both."""
    logs = [Log(path) for path in files]
    drafts = [_file(log) for log in logs]
    return collect([draft for draft in drafts if draft and not draft.empty], logs)


def _file(log: Log) -> Draft | None:
    text = read(log.file)
    try:
        given = all_text(json.loads(text), log.file)
    except (ValueError, RecursionError) as err:
        raise UsageError(f"{log.file} is not JSON.", details=str(err)) from err
    lines = Lines(text)
    if isinstance(given, dict) and "hook" in given:
        return _hook(Given(given, log), lines, log)
    if isinstance(given, dict) and ({"siteMounts", "siteDevices", "environment", "prefixDir"} & set(given)):
        return _site(Given(given, log), lines, log)
    raise UsageError(f"{log.file} is neither a hook file nor a sarus.json.", details='a hook file has a "hook"')


def _hook(given: Given, lines: Lines, log: Log) -> Draft | None:
    hook = given.sub("hook")
    path = hook.text("path")
    program = os.path.basename(path)
    if program in _NO_MODULE:
        log.add(lines.of('"path"', path), program, _NO_MODULE[program])
        return None
    draft = Draft(module_name(stem(log.file)), f"from Sarus' hook file {os.path.basename(log.file)} ({program})")
    _when(given.sub("when"), lines, draft, log)
    environ = dict(text.partition("=")[::2] for text in hook.texts("env"))
    known: dict[str, Callable[[], None]] = {
        "mount_hook": lambda: _mount_hook(hook.texts("args")[1:], environ, lines, draft, log),
        "mpi_hook": lambda: _mpi_hook(environ, lines, draft, log),
        "amdgpu_hook": lambda: setattr(draft, "planner", "amd"),
        **dict.fromkeys(_OURS, lambda: _ours(_OURS[program], environ, lines, draft, log)),
    }
    known.get(program, lambda: _chain(given, environ, lines, draft, log))()
    return draft


def _ours(module: str, environ: dict[str, str], lines: Lines, draft: Draft, log: Log) -> None:
    draft.requires.append(module)
    for name, value in environ.items():
        log.add(lines.of('"env"', name), f"{name}={value}", _OF_OURS.get(name, "not a variable of this hook"))


def _chain(given: Given, environ: dict[str, str], lines: Lines, draft: Draft, log: Log) -> None:
    hook = given.sub("hook")
    if not hook.text("path").startswith("/"):
        log.add(lines.of('"path"'), f"hook.path {hook.text('path')}", "not an absolute path")
        return
    for stage in given.texts("stages"):
        if stage not in _STAGES:
            log.add(lines.of('"stages"', stage), f"stage {stage}", "a path of the host does not exist in the container")
            continue
        entry = {"stage": stage, "path": hook.text("path"), "args": hook.texts("args"), "env": environ}
        draft.hooks.append({key: value for key, value in entry.items() if value})
    if "timeout" in hook.table:
        log.add(lines.of('"timeout"'), "timeout", "a chained hook has none")


def _when(when: Given, lines: Lines, draft: Draft, log: Log) -> None:
    draft.always = bool(when.table.get("always"))
    if "commands" in when.table:
        log.add(lines.of('"commands"'), "when.commands", "a module cannot depend on the program that is run")
    if "hasBindMounts" in when.table:
        log.add(lines.of('"hasBindMounts"'), "when.hasBindMounts", "a module cannot depend on other mounts")
    wanted = when.map("annotations")
    if len(wanted) > 1:
        # Sarus sets `….enabled` itself whenever it sets an annotation beside it
        wanted = {key: value for key, value in wanted.items() if not re.search(r"\.enabled\$?$", key)} or wanted
    if len(wanted) > 1:
        log.add(lines.of('"annotations"'), "when.annotations", "one of them is enough for a module, here all must hold")
        return
    for key, value in wanted.items():
        plain = [_PLAIN.fullmatch(text) for text in (key, value)]
        line = lines.of('"annotations"', json.dumps(key))
        if not all(plain):
            log.add(line, f"when.annotations {key} = {value}", "a pattern: a module names one key and one value")
        else:
            draft.annotations.append("=".join(match[1].replace("\\", "") for match in plain if match))


def _mount_hook(args: list[str], environ: dict[str, str], lines: Lines, draft: Draft, log: Log) -> None:
    draft.ldconfig = "LDCONFIG_PATH" in environ
    for text in args:
        option, _, value = text.partition("=")
        line = lines.of('"args"', json.dumps(text))
        if option == "--mount":
            _mount(value, line, draft, log)
        elif option == "--device":
            _device(value, line, draft, log)
        else:
            log.add(line, text, "not an option of mount_hook")


def _mount(text: str, line: int, draft: Draft, log: Log) -> None:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    source = fields.get("src") or fields.get("source", "")
    target = next((fields[key] for key in ("dst", "destination", "target") if key in fields), "")
    if fields.get("type") != "bind" or not source or not target:
        log.add(line, text, "Sarus takes type=bind with a source and a destination only")
    elif target.startswith(_PROVIDERS + "/"):
        why = draft.library(source, "provider")
        if why:
            log.add(line, text, why)
    elif _PROVIDERS in target:
        log.add(line, text, "the image's provider directory is known to libraries of the role provider only")
    else:
        why = draft.mount(source, target, options=("ro",) if "readonly" in fields else ())
        if why:
            log.add(line, text, why)


def _device(text: str, line: int, draft: Draft, log: Log) -> None:
    source, _, rest = text.partition(":")
    permissions = rest.rpartition(":")[2] if rest else "rwm"
    target = rest if rest.startswith("/") else source
    target = target.partition(":")[0]
    if permissions.startswith("/"):
        permissions = "rwm"
    if target != source:
        log.add(line, text, "a module's device has the same path in the container")
        return
    # mknod of device nodes is nothing a rootless container can do
    why = draft.device(source, permissions=permissions.replace("m", ""))
    if why:
        log.add(line, text, why)


def _mpi_hook(environ: dict[str, str], lines: Lines, draft: Draft, log: Log) -> None:
    draft.planner = "mpich"
    for name, role in (("MPI_LIBS", "primary"), ("MPI_DEPENDENCY_LIBS", "dependency")):
        for path in environ.get(name, "").split(":"):
            why = draft.library(path, role) if path else ""
            if why:
                log.add(lines.of(name, path), f"{name} {path}", why)
    for path in environ.get("BIND_MOUNTS", "").split(":"):
        why = draft.mount(path) if path else ""
        if why:
            log.add(lines.of("BIND_MOUNTS", path), f"BIND_MOUNTS {path}", why)
    strictness = environ.get("MPI_COMPATIBILITY_TYPE")
    if strictness:
        why = "how much older the host's MPI may be is the site policy: mpi_mismatch in hooks.toml"
        log.add(lines.of("MPI_COMPATIBILITY_TYPE"), f"MPI_COMPATIBILITY_TYPE={strictness}", why)


def _site(given: Given, lines: Lines, log: Log) -> Draft:
    draft = Draft("sarus-site", "from sarus.json: what Sarus does for every container", always=True)
    for entry in given.subs("siteMounts"):
        options = ("ro",) if "readonly" in entry.sub("flags").table else ()
        _mount_of_site(entry, options, lines, draft, log)
    for entry in given.subs("siteDevices"):
        line = lines.of('"siteDevices"', json.dumps(entry.text("source")))
        parts = (entry.text("source"), entry.text("destination"), entry.text("access", "rwm"))
        _device(":".join(part for part in parts if part), line, draft, log)
    changes = given.sub("environment")
    for action in ("set", "prepend", "append"):
        for name, value in changes.map(action).items():
            why = draft.literal(action, name, value)
            if why:
                log.add(lines.of('"environment"', f'"{action}"', f'"{name}"'), f"environment {name}={value}", why)
    for name in draft.names(draft.env_unset, changes.texts("unset")):
        log.add(lines.of('"unset"', name), f"environment unset {name}", "not the name of a variable")
    for key in given.table:
        line = lines.of(f'"{key}"')
        if key in _ELSEWHERE:
            log.add(line, key, f"not a module's: {_ELSEWHERE[key]}")
        elif key in _SARUS_OWN:
            log.add(line, key, "concerns Sarus' own work only")
        elif key not in {"siteMounts", "siteDevices", "environment"}:
            log.add(line, key, "not a key that Sarus reads")
    return draft


def _mount_of_site(entry: Given, options: tuple[str, ...], lines: Lines, draft: Draft, log: Log) -> None:
    source, target = entry.text("source"), entry.text("destination")
    if entry.text("type") != "bind" or not source or not target:
        log.add(lines.of('"siteMounts"', json.dumps(source)), f"siteMounts {source}", "Sarus mounts type bind only")
        return
    why = draft.mount(source, target, options=options)
    if why:
        log.add(lines.of('"siteMounts"', json.dumps(source)), f"siteMounts {source}", why)
