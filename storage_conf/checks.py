"""Facts → findings about files, places and surroundings. Pure. Stores and the mount program: `store_checks`."""

from collections.abc import Callable, Iterator

from .conf import GRAPHROOT
from .facts import Facts, Place, table
from .finding import Finding, error, info, warning
from .podman import unset_variables
from .schema import unknown_keys, wrong_types
from .store_checks import STORE_CHECKS

RUNROOT_LIMIT = 50
"""Characters of an expanded runroot (podman pkg/domain/infra/runtime_libpod.go): sockets below it have 107."""

_REGENERATE = "squashmount-conf generate --write DIR"


def unreadable_file(facts: Facts) -> Iterator[Finding]:
    """Report a file that is missing, not permitted or not TOML."""
    for file in (*facts.files, *facts.engine_files, *([facts.system] if facts.system else [])):
        if file.problem:
            why = "Podman stops with an error, or goes on with its defaults: vfs, and no store."
            yield error(f"{file.path} cannot be read: {file.problem}", why, f"repair {file.path} (or move it away)")


def unknown_key(facts: Facts) -> Iterator[Finding]:
    """Report a key Podman ignores."""
    for file in facts.files:
        for key, meant in unknown_keys(file.data):
            fix = f"write {meant}" if meant else f"remove {key}"
            yield warning(f"{file.path}: unknown key {key}", "Podman ignores it; version 6 does not even say so.", fix)


def wrong_type(facts: Facts) -> Iterator[Finding]:
    """Report a value Podman cannot decode: it refuses the whole file."""
    for file in facts.files:
        for key, wanted in wrong_types(file.data):
            why = "Podman refuses the whole file (incompatible types)."
            yield error(f"{file.path}: {key} must be {wanted}", why, f"write {key.rpartition('.')[2]} as {wanted}")


def driver(facts: Facts) -> Iterator[Finding]:
    """Report a driver without additional stores and mount program (options are prefixed with its name, options.go)."""
    name = facts.storage.get("driver", "")
    if name not in {"overlay", "overlay2"}:
        said = f"The storage driver is {name}." if name else "No storage driver is set."
        why = "Stores and mount_program belong to overlay; without a setting rootless Podman may choose vfs."
        # unset and nothing depends on it: most likely overlay is chosen
        kind = error if name or facts.stores or facts.program.path else warning
        yield kind(said, why, 'in [storage]: driver = "overlay"')


def former_driver(facts: Facts) -> Iterator[Finding]:
    """Report another first driver: a graphroot keeps it."""
    if facts.history.driver not in {"", "overlay"}:
        # a Podman that nobody told otherwise works with it as before
        kind = error if facts.storage.get("driver") or facts.stores or facts.program.path else warning
        root = facts.graphroot.path
        why = "Podman remembers the first driver of a graphroot and overrides storage.conf with it."
        fix = f"save what you need, then: podman system reset (or rm -rf {root}), or choose another graphroot"
        yield kind(f"{root} was first used with the driver {facts.history.driver}.", why, fix)


def former_runroot(facts: Facts) -> Iterator[Finding]:
    """Report another first runroot: a graphroot keeps it (tried with 5.4.2)."""
    remembered = facts.history.runroot
    if remembered and remembered != facts.runroot.path:
        why = f"{facts.graphroot.path}/db.sql remembers {remembered}, and Podman takes that."
        fix = f'runroot = "{remembered}", another graphroot, or podman system reset (removes your images)'
        yield warning(f"runroot {facts.runroot.path} is not used.", why, fix)


def network_place(facts: Facts) -> Iterator[Finding]:
    """Report a graphroot or runroot that two nodes see."""
    for name, here in _places(facts):
        if here.shared:
            why = (
                f"{here.target} is {here.fstype}: other ids cannot be stored there (chown fails), locks are slow or "
                "missing, and nodes that share one directory damage each other's containers."
            )
            yield error(f"{name} {here.path} is on a network file system.", why, f'{name} = "{_local(name)}"')


def shared_by_users(facts: Facts) -> Iterator[Finding]:
    """Report one path for all users in a file of the site; Podman 6 takes even root's graphroot."""
    if not facts.machine.rootless:
        return
    owners = {file.path: file.owner for file in (*facts.files, *([facts.system] if facts.system else []))}
    for name, here in _places(facts):
        if here.raw and "$" not in here.raw and owners.get(here.origin) == 0:
            why = f"{here.origin} speaks to all users, and all would use this one directory."
            if facts.machine.podman >= 6:
                why += " Since Podman 6 the system's graphroot applies to rootless users too."
            fix = f'{name} = "{_local(name)}" in /etc/containers/storage.rootless.conf.d/50-squashmount.conf'
            if facts.machine.podman < 6:
                fix = f'{name} = "{_local(name)}" in {here.origin}'
            yield error(f"{name} {here.raw} is the same for every user.", why, fix)


def unwritable_place(facts: Facts) -> Iterator[Finding]:
    """Report a place the user cannot make."""
    for name, here in _places(facts):
        if not here.writable:
            why = "Podman makes and writes this directory as you."
            yield error(f"{name} {here.path} cannot be written.", why, f'{name} = "{_local(name)}"')


def variables(facts: Facts) -> Iterator[Finding]:
    """Report a variable that is not set: it becomes nothing, and so does ${UID}."""
    for name, here in _places(facts):
        for variable in unset_variables(here.raw, facts.machine):
            why = f"Podman reads it as {here.path}: without the variable two users may meet in one directory."
            fix = (
                "write $UID without braces" if variable == "UID" else f"set {variable}, or use $UID, which always works"
            )
            yield error(f"{name} {here.raw}: the variable {variable} is empty here.", why, fix)


def long_runroot(facts: Facts) -> Iterator[Finding]:
    """Report more than 50 characters: Podman refuses them."""
    path = facts.runroot.path
    if len(path) > RUNROOT_LIMIT:
        why = f"It has {len(path)} characters; Podman allows {RUNROOT_LIMIT} (paths of sockets are short)."
        yield error(f"runroot {path} is too long.", why, f'runroot = "{_local("runroot")}"')


def runroot_on_disk(facts: Facts) -> Iterator[Finding]:
    """Report state that survives a reboot."""
    here = facts.runroot
    if here.fstype not in {"", "tmpfs", "ramfs"} and not here.shared:
        why = f"{here.target} is {here.fstype}: after a reboot Podman finds the state of containers that are gone."
        yield info(
            f"runroot {here.path} is not on tmpfs.", why, "use tmpfs, or let a boot script or the epilog remove it"
        )


def graphroot_flags(facts: Facts) -> Iterator[Finding]:
    """Report noexec: overlays have flags of their own (tried: kernel and fuse-overlayfs), bind mounts inherit them."""
    if "noexec" in facts.graphroot.flags:
        why = "Containers are not affected, but programs in named volumes do not start: they are bind mounts."
        yield info(f"graphroot {facts.graphroot.path} is on a noexec mount.", why, "keep named volumes for data only")


def lost_system_keys(facts: Facts) -> Iterator[Finding]:
    """Report stores of the system file that do not reach this user (Podman <= 5)."""
    machine, system = facts.machine, facts.system
    if machine.podman >= 6 or not machine.rootless or not system or system.path in {file.path for file in facts.files}:
        return
    options = table(system.data, "storage", "options")
    wanted = {item for item in options.get("additionalimagestores", []) if isinstance(item, str)}
    lost = sorted(wanted - {store.path for store in facts.stores})
    if lost:
        by = f"{facts.files[-1].path} replaces it" if facts.files else "rootless users get only a few keys of that file"
        why = f"Podman {machine.podman} reads no stores from the system file: {by}."
        fix = f"squashmount-conf generate --write {' '.join(lost)}; for all users: generate --site"
        yield warning(f"{', '.join(lost)} of {system.path} is not used for you.", why, fix)


def env_graphroot(facts: Facts) -> Iterator[Finding]:
    """Report a graphroot that Podman 4 and 5 ignore: in a file that CONTAINERS_STORAGE_CONF names."""
    machine, storage = facts.machine, facts.storage
    graphroot = storage.get("graphroot")
    if machine.named_by_variable and machine.rootless and machine.podman < 6 and graphroot:
        why = "Podman 4 and 5 take only rootless_storage_path from a file named in CONTAINERS_STORAGE_CONF."
        if storage.get("rootless_storage_path") != graphroot:
            yield error(f"graphroot {graphroot} is not used.", why, f'add rootless_storage_path = "{graphroot}"')


def deprecated_path(facts: Facts) -> Iterator[Finding]:
    """Report the old key: Podman 6 wants graphroot in a rootless drop-in. A file for all says the same with both."""
    old = facts.storage.get("rootless_storage_path")
    if facts.machine.podman >= 6 and old is not None and old != facts.storage.get("graphroot"):
        ignored = "graphroot" in facts.storage
        what = "is ignored: graphroot is set too" if ignored else "is deprecated in Podman 6"
        why = "Podman 6 reads graphroot for rootless users, from drop-ins of their own."
        yield warning(f"rootless_storage_path {what}.", why, "generate again: squashmount-conf generate --podman 6")


def environment(facts: Facts) -> Iterator[Finding]:
    """Report two variables that silently replace what the file says."""
    environ = facts.machine.environ
    if "STORAGE_OPTS" in environ:
        why = "It replaces all options of storage.conf: mount_program and additionalimagestores are not used."
        yield error("STORAGE_OPTS is set.", why, "unset STORAGE_OPTS")
    if environ.get("STORAGE_DRIVER", "overlay") != "overlay":
        why = "It replaces the driver of storage.conf."
        yield error(f"STORAGE_DRIVER is {environ['STORAGE_DRIVER']}.", why, "unset STORAGE_DRIVER")


def runtime_dir(facts: Facts) -> Iterator[Finding]:
    """Report a missing XDG_RUNTIME_DIR: Podman's own choice may differ between two shells of one job."""
    if not facts.machine.rootless or facts.runtime_dir == "ok":
        return
    given = facts.machine.runtime_dir
    what = f"XDG_RUNTIME_DIR {given} {facts.runtime_dir}." if given else "XDG_RUNTIME_DIR is not set."
    why = "Podman then keeps its state in /tmp under another name: two shells of one job do not see each other's."
    fix = 'export XDG_RUNTIME_DIR=/run/user/$(id -u), or in a job: mkdir -m 700 -p "/tmp/xdg-$(id -u)" and export that'
    yield warning(what, why, fix)


def cgroup_manager(facts: Facts) -> Iterator[Finding]:
    """Report a cgroup manager that needs the systemd user session a Slurm job does not have."""
    manager = table(facts.engine, "engine").get("cgroup_manager", "systemd")
    if "SLURM_JOB_ID" in facts.machine.environ and manager != "cgroupfs":
        why = "In a job there is no systemd session to ask for a cgroup; containers fail or leave the job's cgroup."
        fix = f'in containers.conf, [engine] cgroup_manager = "cgroupfs" ({_REGENERATE})'
        yield warning(f"cgroup_manager is {manager} inside a Slurm job.", why, fix)


def _places(facts: Facts) -> tuple[tuple[str, Place], ...]:
    return ("graphroot", facts.graphroot), ("runroot", facts.runroot)


def _local(name: str) -> str:
    return GRAPHROOT if name == "graphroot" else GRAPHROOT.replace("storage", "run")


Check = Callable[[Facts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    unreadable_file,
    wrong_type,
    unknown_key,
    environment,
    driver,
    former_driver,
    former_runroot,
    network_place,
    shared_by_users,
    unwritable_place,
    variables,
    long_runroot,
    env_graphroot,
    lost_system_keys,
    deprecated_path,
    *STORE_CHECKS,
    runtime_dir,
    cgroup_manager,
    runroot_on_disk,
    graphroot_flags,
)


def run_checks(facts: Facts) -> tuple[tuple[str, Finding], ...]:
    """Return every finding with the name of its check, in the order of CHECKS."""
    return tuple((check.__name__, finding) for check in CHECKS for finding in check(facts))
