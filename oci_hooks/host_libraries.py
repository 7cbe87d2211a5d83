"""The host libraries a module lists ([[libraries]]), by path, pattern or SONAME, and the planner "libraries" for them.

The planner brings them along as they are: into the private directory at the front of LD_LIBRARY_PATH, and over copies
of the image that only run paths reach (conda). What is swapped by rules of its own, as MPI, has a planner of its own.
"""

import re
from dataclasses import dataclass
from os.path import dirname
from typing import TYPE_CHECKING

from .dependencies import Dependencies, is_fabric
from .libraries import Libraries, Library, split_name
from .plan import Contribution, Mount
from .plugins import by_file_name, newest, providers
from .preflight import Finding, Findings, Verdict, said, same_build, stands_for

if TYPE_CHECKING:
    from .module import LibraryRule
    from .planners import Question

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """What the rules come to: `others` are no primaries, of them `providers` plugins; `missing` is not on the host."""

    primaries: tuple[Library, ...]
    others: tuple[Library, ...]
    missing: tuple[str, ...]
    providers: tuple[Library, ...] = ()


def host_libraries(question: "Question", host: Libraries) -> Listed:
    """Follow the rules of a module. Of the job's environment only what the module allows is read."""
    primaries: list[Library] = []
    others: list[Library] = []
    missing: list[str] = []
    plugins: list[Library] = []
    for rule in question.module.libraries:
        found = _follow(rule, question, host)
        if not found and not rule.optional:
            missing.append(f"The library {rule.path or rule.soname} of the module is not on this host.")
        (primaries if rule.role == "primary" else others).extend(found)
        plugins += found if rule.role == "provider" else []
    return Listed(tuple(primaries), tuple(others), tuple(missing), tuple(plugins))


def _follow(rule: "LibraryRule", question: "Question", host: Libraries) -> list[Library]:
    if not rule.path:
        return host.named(rule.soname)[:1]
    lacking = False

    def value(match: re.Match[str]) -> str:
        nonlocal lacking
        name = match[1] or match[2]
        text = question.environ.get(name, "") if name in question.module.allow_env else ""
        lacking = lacking or not text
        # what the job says is a path, never a pattern
        return re.sub(r"[*?[]", r"[\g<0>]", text)

    pattern = _VARIABLE.sub(value, rule.path)
    if lacking or not pattern.startswith("/") or ".." in pattern.split("/"):
        return []
    return [library for path in host.matches(pattern) if (library := host.load(path))]


def host_glibc(question: "Question") -> bool:
    """Return whether the host's C library is put into the container as well."""
    return "glibc" in question.planners


def plan_libraries(question: "Question") -> Contribution:
    """Answer for a module that lists libraries and names no planner."""
    from .fabric import agreed  # noqa: PLC0415 - it asks what other modules list

    image, host = Libraries(question.image, question.image_env), Libraries(question.host)
    listed = host_libraries(question, host)
    if listed.missing:
        return Contribution(missing=listed.missing)
    found = Findings()
    plugins = newest(listed.providers)
    wanted = newest(one for one in (*listed.primaries, *listed.others) if one not in listed.providers)
    common = agreed(question, host)
    host.preferred = common.libraries
    libraries = common.instead(wanted)
    found.reasons += common.reasons(one.real for one in wanted)
    check_machine(image, (*libraries, *plugins), found)
    copies = [] if found.hard else over(image, libraries, found)
    glibc = host_glibc(question)
    placed = Dependencies(image, host, list(plugins), [], found, extra=libraries, host_glibc=glibc).place()
    named = [*placed.mounts, *by_file_name(libraries, placed.mounts)]
    beside, told = providers(plugins, image, named)
    warnings = (*found.warnings, *image.problems, *host.problems)
    if found.hard:
        return Contribution(missing=said(found.hard), rejected=tuple(found.rejected), warnings=warnings)
    return Contribution(
        mounts=(*copies, *named, *beside),
        env_prepend=dict(placed.env_prepend),
        env_set={**placed.env_set, **told},
        reasons=(*(f"{one.path} comes first in the container." for one in (*libraries, *plugins)), *found.reasons),
        rejected=tuple(found.rejected),
        warnings=warnings,
    )


def check_machine(image: Libraries, libraries: tuple[Library, ...], found: Findings) -> None:
    """Add a finding for each library that no C library of the image could be loaded with."""
    libcs = image.named("libc.so.6")
    for library in libraries:
        if libcs and all(libc.elf.abi != library.elf.abi for libc in libcs):
            evidence = f"is for {library.elf.abi_name}, the image for {libcs[0].elf.abi_name}"
            found.hard.append(Finding(Verdict.WRONG_MACHINE, library.path, evidence))


def over(image: Libraries, libraries: tuple[Library, ...], found: Findings) -> list[Mount]:
    """Return mounts over copies outside of the loader's directories: programs reach them by run paths."""
    by_name = {library.name: library for library in libraries}
    stems = {split_name(name)[0] for name in by_name}
    known = {*image.defaults, *image.path}
    mounts: dict[str, Mount] = {}
    for copy in image.copies(lambda name: split_name(name)[0] in stems):
        library = by_name.get(copy.name)
        if library is None or library.elf.abi != copy.elf.abi or dirname(copy.real) in known:
            continue
        if same_build(library, copy) or copy.real in mounts:
            continue
        if stands_for(library, copy) or is_fabric(copy.name):
            mounts[copy.real] = Mount(library.real, copy.real, create="none")
        else:
            found.rejected.append(f"{copy.path} stays the image's: it is newer than the host's {library.path}.")
    return list(mounts.values())
