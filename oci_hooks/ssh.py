"""The planner "ssh": what a container needs so that `ssh NODE` reaches the container of the same job on that node.

The host's sshd and ssh come along with every library they need, and with the loader, in a directory of their own: they
run in any image that has a shell, whatever its C library, and nothing of the image runs with the host's libraries.

The container's own command starts sshd (`ssh_files`, the script `start`) before it becomes what the user asked for.
So sshd has, on every runtime, what that command has: user, capabilities, seccomp filter, label, cgroup, limits,
namespaces; and it dies with the container's PID namespace. A hook would have to make all of that again, and one at
poststart would lose the race against the command.
"""

import os
from typing import TYPE_CHECKING

from .libraries import Libraries, Library
from .plan import Contribution, Mount
from .ssh_places import CONFIG, LIBRARIES, SHELL

if TYPE_CHECKING:
    from .planners import Question
    from .tree import Tree

_SSHD = ("/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd")
_ENV = ("/usr/bin/env", "/bin/env")
_CLIENTS = ("/usr/bin/ssh", "/usr/bin/scp", "/usr/bin/sftp")
_LIBEXEC = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec/ssh", "/usr/lib/misc")
_HELPERS = ("sftp-server", "sshd-session", "sshd-auth")
"""sshd is several programs since OpenSSH 9.8 (sshd-session) and 10.0 (sshd-auth); their paths are compiled in."""

_CHROOTS = (
    *("/run/sshd", "/var/run/sshd", "/var/empty/sshd", "/usr/share/empty.sshd", "/var/empty", "/var/lib/empty"),
    *("/var/lib/sshd", "/var/chroot/ssh"),
)
"""Where builds of sshd let the process that speaks with strangers live; which of them is compiled in."""

_PLUGINS = ("libnss_files.so.2", "libnss_dns.so.2")
"""Loaded by the C library before 2.34 when a user or host is looked up."""

_SHIPPED_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ssh_config")
_MOST_BYTES = 8 << 20


def plan_ssh(question: "Question") -> Contribution:
    """Answer for the module: the programs and their libraries, and what `ssh_start` must know."""
    image, host = question.image, question.host
    missing = [] if image.resolve(SHELL) else [f"the image has no {SHELL}, which every command by ssh is started with"]
    sshd = _first(host, _SSHD)
    if not sshd:
        missing.append("this host has no sshd (package openssh-server)")
    if not host.resolve(_CLIENTS[0]):
        missing.append(f"this host has no {_CLIENTS[0]} (package openssh-client)")
    env = _first(host, _ENV)
    if missing or not env:
        return Contribution(missing=tuple(missing) or ("this host has no env",))
    libraries = Libraries(host)
    programs = {os.path.basename(path): path for path in (sshd, env, *_CLIENTS) if host.resolve(path)}
    for name in _HELPERS:
        path = _first(host, [f"{folder}/{name}" for folder in _LIBEXEC])
        programs |= {name: path} if path else {}
    loaded = {name: libraries.load(path) for name, path in programs.items()}
    closure = _closure(libraries, [one for one in loaded.values() if one], missing)
    if missing:
        return Contribution(missing=tuple(missing))
    mounts = [Mount(one.real, f"{LIBRARIES}/{name}", create="file") for name, one in loaded.items() if one]
    mounts += [Mount(one.real, f"{LIBRARIES}/{name}", create="file") for name, one in closure.items()]
    mounts.append(Mount(_SHIPPED_CONFIG, CONFIG, create="file"))
    with host.open(closure["ld"].real) as file:
        argv0 = "yes" if b"--argv0" in file.read(_MOST_BYTES) else ""  # glibc 2.33
    told = {"programs": " ".join(sorted(loaded)), "chroot": _chroot(host, [*loaded.values()]), "argv0": argv0}
    return Contribution(
        mounts=tuple(mounts),
        env_append={"PATH": f"{os.path.dirname(LIBRARIES)}/bin"},
        ssh=told,
        reasons=(f"{sshd} of the host starts before the command, with {len(closure)} libraries of its own",),
    )


def _first(tree: "Tree", paths: "tuple[str, ...] | list[str]") -> str:
    return next((path for path in paths if tree.kind(path) == "file"), "")


def _closure(libraries: Libraries, programs: list[Library], missing: list[str]) -> dict[str, Library]:
    """Return every library that the programs need, the C library and its loader (as `ld`) too."""
    chosen = {name: one for name in _PLUGINS for one in libraries.named(name)[:1]}
    waiting = [*programs, *chosen.values()]
    while waiting:
        user = waiting.pop()
        for name in user.elf.needed:
            one = chosen.get(name) or libraries.find(name, wanted_by=user)
            if one is None:
                missing.append(f"{user.path} needs {name}, which is not on this host")
            elif name not in chosen:
                chosen[name] = one
                waiting.append(one)
    loader = libraries.load(programs[0].elf.interpreter) if programs else None
    if loader is None:
        missing.append("the loader of the host's sshd was not found")
        return chosen
    return {**chosen, "ld": loader}


def _chroot(host: "Tree", programs: "list[Library | None]") -> str:
    """Return the directory that an sshd of root's asks for: the longest of the known ones that a program contains."""
    texts = []
    for one in programs:
        if one and os.path.basename(one.path).startswith("sshd"):
            with host.open(one.real) as file:
                texts.append(file.read(_MOST_BYTES))
    inside = [path for path in _CHROOTS if any(b"\0" + path.encode() + b"\0" in text for text in texts)]
    return max(inside, key=len, default=_CHROOTS[0])
