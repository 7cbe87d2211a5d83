"""What is to be injected into one container, and why: values only. `planning` makes a Plan, `apply` applies it.

`squashmount-hooks plan` prints what the hook would apply: both get it from `planning.make_plan`.
"""

from squashmount.lean import Any, NamedTuple

Map = dict[str, str]
_NOTHING: Map = {}

PRIVATE = "/run/squashmount/lib"
"""Where libraries of the host go that take no place of the image's, before those in LD_LIBRARY_PATH."""

ANNOTATION = "squashmount.plan"
"""Under this annotation a container carries the hash of the plan that was applied to it."""

PMI_SOCKET = "squashmount.pmi-fd"
"""Under this one, for the runtime, which socket of the job's it is to leave open (`pmi`)."""


class Mount(NamedTuple):
    """A bind mount: `target` is resolved inside the image. `create`: what may be made there (auto, file, dir, none)."""

    source: str
    target: str
    options: tuple[str, ...] = ("ro", "nosuid", "nodev")
    create: str = "auto"


class Copy(NamedTuple):
    """A file written into the container's root file system; `mode` in octal digits."""

    source: str
    target: str
    mode: str = "0644"


class Device(NamedTuple):
    """A device node of the host, with the same path inside; `permissions` are letters of r, w, m."""

    path: str
    permissions: str = "rw"


class Hook(NamedTuple):
    """An OCI hook to run for the container.

    An empty `path` is our own program, with `args` behind its name. `env` holds NAME=value, or NAME for a variable of
    the host job that is looked up when the plan is applied: tasks of a job share a plan. Hooks of a stage run in the
    order of `order`, then of the modules.
    """

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    order: int = 0


class Contribution(NamedTuple):
    """What one module, or a planner on its behalf, adds to a plan.

    `reasons` say why, `rejected` what was considered and not done (both for people, whole sentences). `missing` is what
    a required injection lacks on the host (stops the container unless the policy says warn), `errors` always stop it,
    `warnings` never do. `env_passed` are variables of the job, which give way to what is set. `ssh` is what
    `ssh_start` must know to give the container an sshd; {} for none. `needs` says what the container must have of the
    host (ipc, network: the namespace; user: the user's own number) or else is missing, with the sentence for it.
    """

    mounts: tuple[Mount, ...] = ()
    env_prepend: Map = _NOTHING
    env_set: Map = _NOTHING
    devices: tuple[Device, ...] = ()
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    env_append: Map = _NOTHING
    env_unset: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()
    hooks: tuple[Hook, ...] = ()
    ldconfig: bool = False
    env_passed: Map = _NOTHING
    ssh: Map = _NOTHING
    needs: Map = _NOTHING


class Plan(NamedTuple):
    """Everything to be done for one container. `modules` are the names that are on, in the order they are applied.

    With `errors` the container must not start. What is `missing` is among them, or among the warnings by policy.
    `passed` names the variables in `env_set` that are the job's.
    """

    modules: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    copies: tuple[Copy, ...] = ()
    devices: tuple[Device, ...] = ()
    env_set: Map = _NOTHING
    env_prepend: Map = _NOTHING
    env_append: Map = _NOTHING
    env_unset: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    ldconfig: bool = False
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    ssh: Map = _NOTHING
    needs: Map = _NOTHING

    @property
    def empty(self) -> bool:
        """Whether nothing is to be done and nothing is wrong: the container starts as if there were no hook."""
        return not self.modules and not self.errors

    @property
    def hash(self) -> str:
        """Return 64 hex digits that stand for what is done to the container; not for the sentences about it."""
        import hashlib  # noqa: PLC0415 - OpenSSL, 2 ms: only where there is something to do

        said = {"reasons", "rejected", "warnings", "missing", "errors", "passed", "needs"}
        done = {key: value for key, value in to_json(self).items() if key not in said}
        return hashlib.sha256(_text(done).encode()).hexdigest()


def _text(value: object) -> str:
    # independent of the order in which tables were filled
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    return ascii(value)


_KINDS: dict[str, Any] = {"mounts": Mount, "copies": Copy, "devices": Device, "hooks": Hook}


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON has it: objects, lists and strings."""
    table: dict[str, Any] = {}
    for key, value in plan._asdict().items():
        if key in _KINDS:
            table[key] = [{name: _thawed(one) for name, one in item._asdict().items()} for item in value]
        else:
            table[key] = _thawed(value)
    return table


def from_json(table: dict[str, Any]) -> Plan:
    """Return the plan that `to_json` wrote."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in _KINDS:
            values[key] = tuple(_KINDS[key](**{name: _frozen(one) for name, one in item.items()}) for item in value)
        else:
            values[key] = _frozen(value)
    return Plan(**values)


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
