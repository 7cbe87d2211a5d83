"""CSCS' Container Engine and Sarus Suite: environment definition files (EDF, TOML).

A file is what a user types: the image and the options of `podman run` have no place in a module and are listed with the
words to type; mounts, environment and the hooks that annotations switch on become a module of the file's name.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from squashmount.errors import UsageError

from .draft import Draft, Given, Lines, Log, Translated, all_text, collect, module_name, read, stem

# annotation: the shipped module that does the same
_HOOKS = {
    "com.hooks.cxi.enabled": "libfabric-cxi",
    "com.hooks.aws_ofi_nccl.enabled": "nccl-plugin",
    "com.hooks.mpi.enabled": "mpich",
}
_DETAIL = re.compile(r"com\.hooks\.(cxi|aws_ofi_nccl|mpi)\.")
_NOT_SIMPLE = re.compile(r"\$\{\w+:|\$\$")


def translate(files: Sequence[str]) -> Translated:
    """Translate EDF files. UsageError: not TOML, or not an EDF."""
    logs = [Log(path) for path in files]
    drafts = [_file(log) for log in logs]
    return collect([draft for draft in drafts if not draft.empty], logs)


def _file(log: Log) -> Draft:
    text = read(log.file)
    try:
        given = Given(all_text(tomllib.loads(text), log.file), log)
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        raise UsageError(f"{log.file} is not TOML.", details=str(err)) from err
    lines = Lines(text)
    name = module_name(stem(log.file))
    draft = Draft(name, f"from the environment definition {stem(log.file)}")
    draft.notes.append(f"--environment={stem(log.file)} is now: podman run --annotation squashmount.{name}=on IMAGE")
    draft.requires += [module_name(stem(base)) for base in given.texts("base_environment")]
    for entry in given.texts("mounts"):
        _mount(entry, lines.of("mounts", entry), draft, log)
    for key, value in given.map("env").items():
        _environment(key, value, lines.of("env", key), draft, log)
    for key, value in _flat(given.sub("annotations").table):
        _annotation(key, str(value).lower(), lines.of("annotations", *key.split(".")), draft, log)
    for key, value in given.table.items():
        if key in {"base_environment", "mounts", "env", "annotations"}:
            continue
        _option(key, value, lines.of(key), log)
    return draft


def _flat(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def _mount(entry: str, line: int, draft: Draft, log: Log) -> None:
    source, _, rest = entry.partition(":")
    if _NOT_SIMPLE.search(entry):
        log.add(line, f"mounts {entry}", "a module knows $NAME and ${NAME} only")
        return
    target, _, flags = rest.partition(":")
    if source.startswith(".") or source.endswith(".sqsh"):
        log.add(line, f"mounts {entry}", "a path that depends on the caller, or an image: --volume of podman run")
        return
    kept: list[str] = []
    for flag in re.split(r"[+,]", flags):
        if flag in {"ro", "rw", "nosuid", "nodev", "noexec"}:
            kept.append(flag)
        elif flag.startswith("x-create") or flag in {"", "private", "rprivate", "rbind", "bind", "z", "Z"}:
            continue  # what a mount of a module is anyway
        else:
            log.add(line, f"mounts {entry}: {flag}", "not an option of a module's mount")
    create = next((flag.partition("=")[2] for flag in re.split(r"[+,]", flags) if flag.startswith("x-create=")), "auto")
    why = draft.mount(source, target or source, options=kept, create=create)
    if why:
        log.add(line, f"mounts {entry}", why)


def _environment(name: str, value: str, line: int, draft: Draft, log: Log) -> None:
    why = ""
    if not value:
        why = "not the name of a variable" if draft.names(draft.env_unset, [name]) else ""
    elif _NOT_SIMPLE.search(value):
        log.add(line, f"env {name} = {value}", "a module knows $NAME and ${NAME} only")
    # ${NAME} is the image's value where it has one
    elif value.startswith(f"${{{name}}}:"):
        why = draft.expanded("append", name, value.partition(":")[2])
    elif value.endswith(f":${{{name}}}"):
        why = draft.expanded("prepend", name, value.rpartition(":")[0])
    else:
        why = draft.expanded("set", name, value)
    if why:
        log.add(line, f"env {name} = {value}", why)


def _annotation(key: str, value: str, line: int, draft: Draft, log: Log) -> None:
    if key in _HOOKS:
        if value == "true":
            draft.requires.append(_HOOKS[key])
    elif key == "com.hooks.aws_ofi_nccl.variant":
        log.add(line, f"annotations {key}", "the module nccl-plugin has one plugin: set its path for each variant")
    elif _DETAIL.match(key):
        log.add(line, f"annotations {key}", "the shipped module finds this out, or the site says it there")
    elif key.startswith("com.hooks."):
        log.add(line, f"annotations {key}", "there is no module for this hook")
    else:
        log.add(line, f"annotations {key}", f"belongs to the command: podman run --annotation {key}={value}")


def _option(key: str, value: Any, line: int, log: Log) -> None:
    typed = {
        "image": f"podman run {_podman_name(str(value))}",
        "workdir": f"podman run --workdir {value}",
        "entrypoint": "podman run" if value else 'podman run --entrypoint ""',
        "writable": "podman run" if value else "podman run --read-only",
        "devices": "podman run --device for each",
    }
    if key in typed:
        log.add(line, f"{key} = {value}", f"belongs to the command: {typed[key]}")
    else:
        log.add(line, key, "not a key of an environment definition")


def _podman_name(image: str) -> str:
    # [USER@][REGISTRY#]IMAGE, Docker Hub without a registry
    name = image.rpartition("@")[2] if "#" in image else image
    if image.startswith(("/", "$", "./")):
        return image
    return name.replace("#", "/", 1) if "#" in name else f"docker.io/{name}"
