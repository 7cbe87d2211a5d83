"""The hook: what Podman starts for every container (stage precreate), and the runtime for some (`ldconfig`).

precreate: config.json on stdin, the edited one on stdout (oci-hooks(5)). When nothing applies, the bytes that came go
out again. Podman throws the hook's stderr away and says only `exit status 1`, so a reason is also written to the stderr
of Podman itself, and to the container's log.
"""

import os
import sys

from squashmount.errors import SquashmountError, UsageError, report
from squashmount.lean import TYPE_CHECKING, Any, Callable, suppress

from . import catalogue, log
from .leanjson import dumps, loads
from .selection import PREFIX, Manifest, Selection, passed_variables, select

if TYPE_CHECKING:
    from .plan import Plan
    from .policy import Policy
    from .tree import DirectoryTree

PROGRAM = "squashmount-hook"

_BY_HAND = "Podman starts this program; by hand: squashmount-hooks test ROOTFS"
_SYS_PIDFD_GETFD = 438  # the same number on every architecture


def main(argv: list[str] | None = None) -> int:
    """Run as a hook and return the exit code; every other than 0 has its reason on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["apply"] and len(arguments) in {1, 3}:
            if len(arguments) == 3 and arguments[1] != "--policy":
                raise UsageError(f"Expected --policy FILE, got {arguments[1]}.")
            return _precreate(arguments[2] if len(arguments) == 3 else "")
        folders = all(folder.startswith("/") for folder in arguments[1:])
        if arguments[:1] in (["slurm-sync"], ["timestamp"], ["ssh"]) or (arguments[:1] == ["ldconfig"] and folders):
            return _later(arguments)
        raise UsageError(
            "Expected: squashmount-hook apply [--policy FILE] | ldconfig [/DIR…] | slurm-sync | timestamp | ssh.",
            hint=_BY_HAND,
        )
    except SquashmountError as err:
        return report(err, program=PROGRAM)


def _later(arguments: list[str]) -> int:
    """Run as a hook of another stage: what it says goes into the container's log."""
    state = loads(sys.stdin.buffer.read(), where="The container's state")
    container = str(state.get("id", "unknown"))
    place = os.environ.get(log.STATE, "")
    if not place and arguments[0] != "ldconfig":  # which a CDI file names, without an environment
        place = log.state(dict(os.environ))
    try:
        if arguments[0] == "ldconfig":
            from .ldconfig import renew  # noqa: PLC0415 - only this one is needed

            renew(state, arguments[1:])
        elif arguments[0] == "timestamp":
            from .timestamp import lines  # noqa: PLC0415 - the same

            log.write(place, container, lines(arguments[1:]))
        elif arguments[0] == "ssh":
            from .ssh_place import place_files  # noqa: PLC0415 - the same

            place_files(arguments[1:], state)
        else:
            from .slurm_sync import wait  # noqa: PLC0415 - the same

            log.write(place, container, wait(arguments[1:], dict(os.environ)))
    except SquashmountError as err:
        if place:
            log.write(place, container, log.refused(err))
        podman = os.environ.get(log.PODMAN, "")
        pid = podman.partition(" ")[0]
        if pid.isdecimal() and _identity(int(pid)) == podman:
            _say_in_podman(f"{PROGRAM}: {err}\n", int(pid))
        raise
    return 0


def _precreate(policy_file: str) -> int:
    text = sys.stdin.buffer.read()
    run = _Run(job_environment())
    try:
        config = _parsed(text)
        run.begin(config)
        edited = run.edited(config, policy_file)
    except SquashmountError as err:
        run.refuse(err)
        return err.exit_code
    except Exception as err:
        run.refuse(SquashmountError("The hook failed.", details=f"{type(err).__name__}: {err}"))
        raise
    sys.stdout.buffer.write(text if edited is None else dumps(edited))
    sys.stdout.buffer.flush()
    return 0


def _parsed(text: bytes) -> dict[str, Any]:
    config = loads(text, where="The container's configuration")
    if not isinstance(config, dict):
        raise UsageError("The container's configuration is not a JSON object.", hint=_BY_HAND)
    return config


class _Run:
    """One start of one container."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ
        self._state = ""
        self._container = "unknown"

    def begin(self, config: dict[str, Any]) -> None:
        """Find out which container it is and where its log goes."""
        self._container = container_id(config) or self._container
        self._state = log.state(self._environ)

    def refuse(self, error: SquashmountError) -> None:
        """Say why the container does not start wherever somebody may look."""
        text = f"{PROGRAM}: {error}\n"
        sys.stderr.write(text)
        _say_in_podman(text, os.getppid())
        if self._state:
            log.write(self._state, self._container, log.refused(error))

    def edited(self, config: dict[str, Any], policy_file: str) -> dict[str, Any] | None:
        """Return the configuration to use; None for the one that came."""
        known = catalogue.read(self._environ, policy_file=policy_file, state=self._state)
        annotations = config.get("annotations") or {}
        selection = select(
            known.modules,
            known.policy,
            annotations=annotations,
            environ=self._environ,
            labels=lambda: _labels(config, self._environ),
            manifest=lambda: _manifest(config, self._environ, self._state),
        )
        if not selection.modules and not selection.errors:
            if selection.rejected:
                log.write(self._state, self._container, [f"not done: {line}" for line in selection.rejected])
            return None
        return self._applied(config, known, selection)

    def _applied(self, config: dict[str, Any], known: catalogue.Catalogue, selection: Selection) -> dict[str, Any]:
        from squashmount.trust import in_user_namespace  # noqa: PLC0415 - the same

        from . import apply, pmi, volumes  # noqa: PLC0415 - only when something applies
        from .tree import DirectoryTree  # noqa: PLC0415 - the same

        with DirectoryTree(root_of(config)) as root:
            plan, how = self._plan(config, known, selection, root)
            unmet = apply.unmet(config, plan)
            errors = [*plan.errors, *volumes.conflicts(config, plan, root)]
            if plan.ldconfig:
                from .ldconfig import trouble  # noqa: PLC0415 - the same

                errors += trouble(root)
            warnings = list(plan.warnings)
            (errors if known.policy.missing_required == "error" else warnings).extend(unmet)
            lines = [f"done: {line}" for line in plan.reasons] + [f"not done: {line}" for line in plan.rejected]
            lines += [f"warning: {line}" for line in warnings]
            if warnings and self._speaks():
                _say_in_podman("".join(f"{PROGRAM}: warning: {line}\n" for line in warnings), os.getppid())
            if not errors:
                job = {**self._environ, log.STATE: self._state, log.PODMAN: _identity(os.getppid())}
                lines += self._ssh(config, plan, known.policy, root, job) if plan.ssh else []
                apply.copy_files(plan, root, apply.root_owner(config))
                digest = apply.edit(config, plan, rootless=in_user_namespace(), program=program(), job=job)
                pmi.name_socket(config, plan, self._environ)
                lines.append(f"plan {digest} ({how})")
            log.write(self._state, self._container, lines)
            if errors:
                raise refusal(errors, tuple(known.modules))
        return config

    def _speaks(self) -> bool:
        """Tell whether this is the task that warns for its whole step (srun(1), SLURM_PROCID)."""
        return self._environ.get("SLURM_PROCID", "0") == "0"

    def _ssh(
        self, config: dict[str, Any], plan: "Plan", policy: "Policy", root: "DirectoryTree", job: dict[str, str]
    ) -> list[str]:
        """Give the container an sshd; returns lines for the log. SquashmountError when it cannot have one."""
        from . import ssh_start  # noqa: PLC0415 - only for this module

        start = ssh_start.Start(config, plan.ssh, self._container)
        try:
            said = ssh_start.prepare(start, root, policy, self._environ, self._state)
        except SquashmountError as err:
            if policy.missing_required == "error":
                raise
            return [f"warning: ssh: {line.strip()}" for line in str(err).splitlines()]
        ssh_start.edit(start, program(), job)
        return said

    def _plan(
        self, config: dict[str, Any], known: catalogue.Catalogue, selection: Selection, root: "DirectoryTree"
    ) -> tuple["Plan", str]:
        """Return the plan, remembered or new, and a word for which."""
        from . import cache  # noqa: PLC0415 - only when something applies

        env = dict(entry.partition("=")[::2] for entry in config.get("process", {}).get("env") or [])
        # the only variable that differs from container to container: nothing to plan by
        env.pop("HOSTNAME", None)
        annotations = config.get("annotations") or {}
        passed = passed_variables(selection.modules, self._environ)
        clear = not selection.errors and not any(name in passed for one in selection.modules for name in one.env.set)
        where = cache.place(self._state, root.root, known, selection) if clear else None
        plan = cache.recall(where, self._environ, env, annotations, passed) if where else None
        if plan is not None and still_fits(plan, root, known.trust.doubt):
            return plan, "remembered"
        from .planners import run_here  # noqa: PLC0415 - with `planning`
        from .planning import Image, Site, make_plan  # noqa: PLC0415 - with what planners import
        from .tree import DirectoryTree  # noqa: PLC0415 - the same

        with DirectoryTree("/") as host:
            watch = cache.Watch(
                cache.WatchedTree(host),
                cache.WatchedVariables(self._environ),
                cache.WatchedVariables(env),
                cache.WatchedVariables(annotations),
            )
            site = Site(known.modules, known.policy, watch.host, watch.environ, known.trust.doubt, run_here)
            plan = make_plan(site, Image(root, watch.env, watch.annotations), selection)
        if where and not plan.errors:
            cache.remember(where, plan, watch)
        return plan, "new"


def still_fits(plan: "Plan", root: "DirectoryTree", doubt: Callable[[str], str]) -> bool:
    """Tell whether a remembered plan's places are real ones in this root, and its files still trusted."""
    targets = [mount.target for mount in plan.mounts] + [copy.target for copy in plan.copies]
    sources = [mount.source for mount in plan.mounts if "rw" not in mount.options]
    sources += [copy.source for copy in plan.copies] + [hook.path for hook in plan.hooks if hook.path]
    try:
        return all(root.target(path).path == path for path in targets) and not any(map(doubt, sources))
    except OSError:
        return False


def refusal(errors: list[str], names: tuple[str, ...] = ()) -> SquashmountError:
    """Return the error that stops a container: the first reason is the sentence, the others follow.

    `names` are those of the modules there are: the one the first reason speaks of can be switched off.
    """
    first, *others = errors
    end = "" if first.endswith(("?", ".")) else "."
    without = f"; --annotation {PREFIX}{_named(first, names)}=off does without" if _named(first, names) else ""
    return SquashmountError(
        f"The container is not started: {first}{end}",
        details="\n".join(f"also: {each}" for each in others),
        hint=f"squashmount-hooks plan says more{without}",
    )


def _named(reason: str, names: tuple[str, ...]) -> str:
    """Return the module that a reason is about: `NAME: ...`, `The module NAME ...`, `The modules NAME and ...`."""
    words = reason.split(maxsplit=3)
    found = words[2] if words[:2] in (["The", "module"], ["The", "modules"]) else reason.partition(":")[0]
    return found if found in names else ""


def container_id(config: dict[str, Any]) -> str:
    """Return the container's ID, which Podman writes only into paths (overlay-containers/ID/userdata); or ""."""
    for mount in config.get("mounts") or []:
        _, found, rest = str(mount.get("source", "")).partition("/overlay-containers/")
        name = rest.partition("/")[0]
        if found and len(name) == 64 and all(char in "0123456789abcdef" for char in name):
            return name
    return ""


def root_of(config: dict[str, Any]) -> str:
    """Return the container's root file system. Podman writes an absolute path; UsageError for any other."""
    path = (config.get("root") or {}).get("path", "")
    if not isinstance(path, str) or not os.path.isabs(path):
        raise UsageError(f"The container's configuration names no absolute root.path, but {path!r}.", hint=_BY_HAND)
    return path


def program() -> str:
    """Return the path of the program that runs this."""
    return os.path.join(os.path.dirname(os.path.abspath(sys.executable)), PROGRAM)


def _labels(config: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    from .labels import labels_of  # noqa: PLC0415 - only where a module asks

    return labels_of(config, environ)


def _manifest(config: dict[str, Any], environ: dict[str, str], state: str) -> Manifest:
    from .manifest import manifest_of  # noqa: PLC0415 - only for a container with an annotation of ours

    return manifest_of(config, environ, state)


def job_environment() -> dict[str, str]:
    """Return the environment of the host job: Podman's own. It starts hooks with an empty one."""
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        entries = []
    parent = dict(os.fsdecode(entry).partition("=")[::2] for entry in entries if b"=" in entry)
    return {**parent, **os.environ}


def _identity(pid: int) -> str:
    """Return what no other process ever is: pid and start time (proc(5), stat, field 22); "" for none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return f"{pid} {file.read().rpartition(b') ')[2].split()[19].decode()}"
    except OSError:
        return ""


def _say_in_podman(text: str, podman: int) -> None:
    """Write to the stderr of Podman, a pid, where ours was thrown away; best effort."""
    try:
        if os.fstat(2).st_rdev != os.stat(os.devnull).st_rdev:
            return
        fd = _descriptor_of(podman, 2)
    except OSError:
        return
    try:
        os.write(fd, text.encode(errors="backslashreplace"))
    except OSError:
        return
    finally:
        os.close(fd)


def _descriptor_of(pid: int, number: int) -> int:
    """Return a copy of another process's descriptor (pidfd_getfd(2), Linux 5.6): pipes of others cannot be opened."""
    import ctypes  # noqa: PLC0415 - only where something went wrong

    fd = -1
    with suppress(OSError):  # ESRCH among the container's process ids, where hooks of stage createContainer are
        process = os.pidfd_open(pid)
        try:
            fd = ctypes.CDLL(None, use_errno=True).syscall(_SYS_PIDFD_GETFD, process, number, 0)
        finally:
            os.close(process)
    return fd if fd >= 0 else os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
