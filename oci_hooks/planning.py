"""Make the plan for one container from modules, trees and variables. Nothing is changed, only the trees are read."""

import os

from squashmount.lean import TYPE_CHECKING, Callable, Iterable, NamedTuple, TypeVar, partial

from .listing import is_pattern, matches
from .module import CopyRule, DeviceRule, HookRule, Module, MountRule
from .plan import PRIVATE, Contribution, Copy, Device, Hook, Mount, Plan
from .planners import Question, planner, run_nothing, trusting
from .policy import Policy
from .selection import Manifest, Selection, passed_variables, select

if TYPE_CHECKING:
    from .tree import Tree

T = TypeVar("T")

_RULES_PLANNER = "libraries"
"""The planner of modules that list libraries and name none."""


class Site(NamedTuple):
    """The host's side: modules by name, policy, files, the job's environment.

    `doubt` says why a file is no good; `run` starts a program of the host.
    """

    modules: dict[str, Module]
    policy: Policy
    host: "Tree"
    environ: dict[str, str]
    doubt: Callable[[str], str] = trusting
    run: Callable[..., str] = run_nothing


class Image(NamedTuple):
    """The container's side: files, environment, annotations; the image's labels and manifest if they are needed."""

    tree: "Tree"
    env: dict[str, str]
    annotations: dict[str, str]
    labels: Callable[[], dict[str, str]] = dict
    manifest: Callable[[], Manifest] = Manifest


class _StopError(Exception):
    """A rule comes to nothing. `kind`: missing (on the host), unfit (the image), or wrong, which nothing excuses."""

    def __init__(self, why: str, kind: str = "wrong") -> None:
        super().__init__(why)
        self.why = why
        self.kind = kind


def select_for(site: Site, image: Image) -> Selection:
    """Return the modules that are on for an image."""
    return select(
        site.modules,
        site.policy,
        annotations=image.annotations,
        environ=site.environ,
        labels=image.labels,
        manifest=image.manifest,
    )


def make_plan(site: Site, image: Image, selection: Selection | None = None) -> Plan:
    """Return what is to be done, why, and what is wrong. Errors are in the plan, none is raised for them."""
    chosen = select_for(site, image) if selection is None else selection
    parts = []
    for module in chosen.modules:
        parts.append((module.name, _Rules(site, image, module).contribution()))
        named = module.planner or (_RULES_PLANNER if module.libraries else "")
        if named:
            parts.append((module.name, _planned(named, site, image, module, chosen.modules)))
    plan = _merged(chosen, parts, site.policy)
    return plan._replace(errors=(*plan.errors, *_no_place_for(plan.devices, image)))


def _no_place_for(devices: tuple[Device, ...], image: Image) -> tuple[str, ...]:
    """Return what is wrong with the image's /dev: crun 1.8 and runc 1.1 make nodes wherever a link there leads."""
    if not devices:
        return ()
    try:
        place = image.tree.target("/dev")
    except OSError as err:
        return (f"'/dev' in the image cannot be resolved: {err.strerror}",)
    if place.path == "/dev" and place.kind in {"dir", ""}:
        return ()
    return ("'/dev' in the image is not a directory of its own: no device can be put there",)


def _planned(name: str, site: Site, image: Image, module: Module, modules: tuple[Module, ...]) -> Contribution:
    plan = planner(name)
    if plan is None:
        return Contribution(errors=(f"the planner {name!r} does not exist in this version",))
    tables = (image.annotations, site.environ, _named(module.image_env, image.env))
    planners = tuple(each.planner for each in modules if each.planner)
    part = plan(Question(module, image.tree, site.host, site.policy, *tables, planners, modules, site.doubt, site.run))
    rules = _Rules(site, image, module)
    mounts = []
    try:
        for hook in part.hooks:
            if hook.path:
                rules.check_trust(hook.path)
        for mount in part.mounts:
            rules.check_trust(mount.source)
            target = rules.destination(mount.target, mount.create, site.host.kind(mount.source))
            mounts.append(mount._replace(target=target))
    except _StopError as stop:
        return part._replace(mounts=(), errors=(*part.errors, stop.why))
    return part._replace(mounts=tuple(mounts))


def _named(names: tuple[str, ...], env: dict[str, str]) -> dict[str, str]:
    """Return the variables that a module names. Asked for by that name: so `cache` knows them."""
    found: dict[str, str] = {}
    for name in names:
        value = env.get(name)
        if name.endswith("*"):
            found |= {each: text for each, text in dict.items(env) if each.startswith(name[:-1])}
        elif value is not None:
            found[name] = value
    return found


class _Rules:
    """The rules of one module, followed one by one."""

    def __init__(self, site: Site, image: Image, module: Module) -> None:
        self._site, self._image, self._module = site, image, module
        self._mounts: list[Mount] = []
        self._copies: list[Copy] = []
        self._devices: list[Device] = []
        self._hooks: list[Hook] = []
        self._reasons: list[str] = []
        self._rejected: list[str] = []
        self._missing: list[str] = []
        self._errors: list[str] = []

    def contribution(self) -> Contribution:
        """Follow all rules."""
        module = self._module
        for mount in module.mounts:
            self._follow(partial(self._mount, mount), optional=mount.optional)
        for copy in module.copies:
            self._follow(partial(self._copy, copy), optional=copy.optional)
        for device in module.devices:
            self._follow(partial(self._device, device), optional=device.optional)
        for hook in module.hooks:
            self._follow(partial(self._hook, hook), optional=False)
        env = module.env
        passed = passed_variables((module,), self._site.environ)
        return Contribution(
            mounts=tuple(self._mounts),
            copies=tuple(self._copies),
            devices=tuple(self._devices),
            hooks=tuple(self._hooks),
            env_set=self._values(env.set),
            env_passed=passed,
            env_prepend=self._values(env.prepend),
            env_append=self._values(env.append),
            env_unset=env.unset,
            ldconfig=module.ldconfig,
            reasons=tuple(self._reasons),
            rejected=tuple(self._rejected),
            missing=tuple(self._missing),
            errors=tuple(self._errors),
        )

    def _follow(self, act: Callable[[], None], *, optional: bool) -> None:
        try:
            act()
        except _StopError as stop:
            if optional and stop.kind != "wrong":
                self._rejected.append(stop.why)
            elif stop.kind == "missing":
                self._missing.append(stop.why)
            else:
                self._errors.append(stop.why)

    def _mount(self, rule: MountRule) -> None:
        found = []
        for source, target in self._pairs(rule.source, rule.target):
            # what may be written is data of users, nothing that would be executed unseen
            if "rw" not in rule.options:
                self.check_trust(source)
            place = self.destination(target, rule.create, self._site.host.kind(source))
            found.append(Mount(source, place, rule.options, rule.create))
        self._mounts += found
        self._reasons += [f"{mount.source!r} is mounted on {mount.target!r}" for mount in found]

    def _copy(self, rule: CopyRule) -> None:
        found = []
        for source, target in self._pairs(rule.source, rule.target):
            if self._site.host.kind(source) != "file":
                raise _StopError(f"{source!r} cannot be copied: it is not a regular file")
            self.check_trust(source)
            found.append(Copy(source, self.destination(target, "file", "file"), rule.mode))
        self._copies += found
        self._reasons += [f"{copy.source!r} is copied to {copy.target!r}" for copy in found]

    def _device(self, rule: DeviceRule) -> None:
        nodes = [path for path in matches(self._site.host, rule.path) if self._site.host.kind(path) == "other"]
        if not nodes:
            raise _StopError(f"the device {rule.path} is not on this host", "missing")
        if any(".." in path.split("/") for path in nodes):
            raise _StopError(f"the device {rule.path} contains ..")
        self._devices += [Device(path, rule.permissions) for path in nodes]
        self._reasons += [f"the device {path!r}" for path in nodes]

    def _hook(self, rule: HookRule) -> None:
        if self._site.host.kind(rule.path) != "file":
            raise _StopError(f"the hook {rule.path} is not on this host", "missing")
        self.check_trust(rule.path)
        env = tuple(f"{name}={value}" for name, value in rule.env.items())
        self._hooks.append(Hook(rule.stage, rule.path, rule.args or (rule.path,), env))
        self._reasons.append(f"the hook {rule.path!r} runs at {rule.stage}")

    def _pairs(self, source: str, target: str) -> list[tuple[str, str]]:
        """Return (path on the host, path inside) of everything a source means; _StopError when that is nothing."""
        pattern = self._expanded(source, _literal)
        if not pattern.startswith("/") or ".." in pattern.split("/"):
            raise _StopError(f"{source} becomes {pattern!r}, which is not an absolute path without ..")
        found = matches(self._site.host, pattern)
        if not found:
            raise _StopError(f"{source} is not on this host", "missing")
        inside = self._expanded(target, str)
        if not inside:
            return [(path, path) for path in found]
        # a pattern means a directory also where it fits one file today
        if is_pattern(source) or inside.endswith("/"):
            return [(path, os.path.join(inside, os.path.basename(path))) for path in found]
        return [(found[0], inside)]

    def destination(self, target: str, create: str, kind: str) -> str:
        """Return where in the image something of `kind` goes; _StopError when it must not, or cannot."""
        if not target.startswith("/") or ".." in target.split("/"):
            raise _StopError(f"the destination {target!r} is not an absolute path without ..")
        try:
            place = self._image.tree.target(target)
        except OSError as err:
            raise _StopError(f"{target!r} in the image cannot be resolved: {err.strerror}", "unfit") from err
        for path in (os.path.normpath(target), place.path):
            forbidden = self._site.policy.forbids(path)
            if forbidden:
                leads = f" (leads to {place.path!r})" if place.path != os.path.normpath(target) else ""
                raise _StopError(f"the destination {target!r}{leads} is forbidden by the policy ({forbidden})")
        if place.dangling:
            raise _StopError(f"{target!r} in the image leads to {place.path!r}, which does not exist", "unfit")
        self._check_kind(target, place.kind, create, kind)
        return place.path

    def _check_kind(self, target: str, there: str, create: str, kind: str) -> None:
        if not there and create == "none":
            raise _StopError(f"the image has no {target!r}", "unfit")
        wanted = "dir" if kind == "dir" else "file"
        if not there and create not in {"auto", wanted}:
            raise _StopError(f"{target!r} would be made as a {create}, but a {wanted} is to be mounted there")
        if there and there != wanted:
            said = {"dir": "a directory", "file": "a file"}
            what = said.get(there, "neither a file nor a directory")
            raise _StopError(f"{target!r} in the image is {what}, not {said[wanted]}", "unfit")

    def check_trust(self, source: str) -> None:
        """Raise _StopError when somebody else could have put the file there."""
        doubt = self._site.doubt(source)
        if doubt:
            raise _StopError(f"{source!r} is not trusted: {doubt}")

    def _values(self, texts: dict[str, str]) -> dict[str, str]:
        values = {}
        for name, text in texts.items():
            try:
                values[name] = self._expanded(text, str)
            except _StopError as stop:
                self._missing.append(f"{name}: {stop.why}")
        return values

    def _expanded(self, text: str, use: Callable[[str], str]) -> str:
        """Replace $NAME and ${NAME} by the job's variables that the module may read."""
        if "$" not in text:
            return text
        import re  # noqa: PLC0415 - 8 ms, for the modules that use it

        def value(match: "re.Match[str]") -> str:
            name = match[1] or match[2]
            found = self._site.environ.get(name) if name in self._module.allow_env else None
            if not found:
                raise _StopError(f"the job has no variable {name}, which {text} needs", "missing")
            if "\0" in found:
                raise _StopError(f"the job's variable {name} holds a null byte")
            return use(found)

        return re.sub(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})", value, text)


def _literal(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _merged(chosen: Selection, parts: list[tuple[str, Contribution]], policy: Policy) -> Plan:
    errors = [*chosen.errors, *_said(parts, "errors")]
    missing = _said(parts, "missing")
    warnings = _said(parts, "warnings")
    if policy.missing_required == "warn":
        warnings = (*warnings, *missing)
    else:
        errors += missing
    mounts = _unique_mounts(parts, errors)
    copies = _unique_copies(parts, mounts, errors)
    env = _set_once(parts, errors)
    passed = {name: value for _, part in parts for name, value in part.env_passed.items()}
    kept_out = [name for name, value in passed.items() if env.get(name, value) != value]
    return Plan(
        modules=tuple(module.name for module in chosen.modules),
        mounts=mounts,
        copies=copies,
        devices=_unique(part.devices for _, part in parts),
        env_set={**env, **passed, **env},
        env_prepend=_joined(sorted((part.env_prepend for _, part in parts), key=_is_private)),
        env_append=_joined(part.env_append for _, part in parts),
        env_unset=_unique(part.env_unset for _, part in parts),
        hooks=_unique(part.hooks for _, part in parts),
        ldconfig=any(part.ldconfig for _, part in parts),
        reasons=(*chosen.why, *_said(parts, "reasons")),
        rejected=(
            *chosen.rejected,
            *_said(parts, "rejected"),
            *(f"{name} of the job is not passed on: a module sets it" for name in kept_out),
        ),
        warnings=warnings,
        missing=missing,
        errors=tuple(errors),
        passed=tuple(name for name in passed if name not in env),
        ssh=_set_once([(name, part._replace(env_set=part.ssh)) for name, part in parts], errors),
        needs={key: f"{name}: {text}" for name, part in parts for key, text in part.needs.items()},
    )


def _said(parts: list[tuple[str, Contribution]], what: str) -> tuple[str, ...]:
    return tuple(f"{name}: {text}" for name, part in parts for text in getattr(part, what))


def _unique(groups: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))


def _unique_mounts(parts: list[tuple[str, Contribution]], errors: list[str]) -> tuple[Mount, ...]:
    found: dict[str, tuple[str, Mount]] = {}
    for name, part in parts:
        for mount in part.mounts:
            other, before = found.setdefault(mount.target, (name, mount))
            if before.source != mount.source or before.options != mount.options:
                text = f"{name}: {mount.source!r} and {before.source!r} (module {other}) are both to be mounted on"
                errors.append(f"{text} {mount.target!r}")
    return tuple(mount for _, mount in found.values())


def _unique_copies(
    parts: list[tuple[str, Contribution]], mounts: tuple[Mount, ...], errors: list[str]
) -> tuple[Copy, ...]:
    """Return the copies; adds an error where two differ, or where a mount would hide or need what is copied."""
    found: dict[str, tuple[str, Copy]] = {}
    for name, part in parts:
        for copy in part.copies:
            other, before = found.setdefault(copy.target, (name, copy))
            if before != copy:
                text = f"{name}: {copy.source!r} and {before.source!r} (module {other}) are both to be copied to"
                errors.append(f"{text} {copy.target!r}" + _modes(copy, before))
    for name, copy in found.values():
        for mount in mounts:
            if f"{copy.target}/".startswith(f"{mount.target}/") or mount.target.startswith(f"{copy.target}/"):
                text = f"{name}: {copy.source!r} is to be copied to {copy.target!r}, and {mount.source!r} mounted on"
                errors.append(f"{text} {mount.target!r}")
    return tuple(copy for _, copy in found.values())


def _modes(one: Copy, other: Copy) -> str:
    return f", with modes {one.mode} and {other.mode}" if one.source == other.source else ""


def _set_once(parts: list[tuple[str, Contribution]], errors: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, part in parts:
        for key, value in part.env_set.items():
            if values.setdefault(key, value) != value:
                errors.append(f"{name}: {key} is set to {value!r}, and to {values[key]!r} by another module")
    return values


def _is_private(table: dict[str, str]) -> bool:
    # what an MPI needs of the driver is there as well, and must not hide the image's newer compat libraries
    return table.get("LD_LIBRARY_PATH") == PRIVATE


def _joined(tables: Iterable[dict[str, str]]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for table in tables:
        for key, value in table.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: ":".join(texts) for key, texts in values.items()}
