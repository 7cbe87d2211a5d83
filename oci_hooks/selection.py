"""Which modules are on for a container: what the site says, what the annotations ask for, what the conditions find.

Users write `--annotation squashmount.NAME=on|off`, or a value that a module waits for (`squashmount.mpi=auto`). A word
under `squashmount.` that no module knows is an error: a mistyped one must not end in a container that runs slowly.
"""

from squashmount.lean import Callable, NamedTuple

from .module import Module
from .plan import ANNOTATION, PMI_SOCKET
from .policy import Policy

PREFIX = "squashmount."

_YES = frozenset({"on", "true", "yes", "1"})
_NO = frozenset({"off", "false", "no", "0"})
_OF_OURS = frozenset({ANNOTATION, PMI_SOCKET})


class Manifest(NamedTuple):
    """The words under our prefix in the manifests of an image, which `image` names in messages."""

    image: str = ""
    words: tuple[tuple[str, str], ...] = ()


class Selection(NamedTuple):
    """The modules that are on, what is required first, and why each; `errors` stop the container."""

    modules: tuple[Module, ...] = ()
    why: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def select(
    modules: dict[str, Module],
    policy: Policy,
    *,
    annotations: dict[str, str],
    environ: dict[str, str],
    labels: Callable[[], dict[str, str]],
    manifest: Callable[[], Manifest] = Manifest,
) -> Selection:
    """Return what is on.

    `labels` is called only when a module asks for labels of the image, `manifest` only when there is an annotation
    that says something to us: it could be the image's.
    """
    asked, errors = _asked(modules, annotations)
    if any(key.startswith(PREFIX) and key not in _OF_OURS for key in annotations):
        errors[:0] = brought(annotations, manifest())
    unknown = [name for name in policy.on if name not in modules]
    errors += [f"The site's policy switches on the module {name}, which is not installed." for name in unknown]
    wanted: dict[str, str] = {}
    rejected = []
    for name, module in modules.items():
        why = asked.get(name, "") or _why(module, policy, annotations, environ, labels)
        refused = _refused(module, policy, annotations)
        if why and refused:
            rejected.append(f"{name}: {refused}")
            if name in asked and name in policy.off:
                errors.append(f"The module {name} is asked for ({why}), but {refused}.")
        elif why:
            wanted[name] = why
    chosen = _with_required(modules, policy, annotations, wanted, errors)
    errors += _conflicts(chosen)
    return Selection(
        tuple(chosen), tuple(f"{one.name}: {wanted[one.name]}" for one in chosen), tuple(rejected), (*errors,)
    )


def _asked(modules: dict[str, Module], annotations: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the modules an annotation names, and what is wrong with the annotations that begin with our prefix."""
    asked: dict[str, str] = {}
    errors: list[str] = []
    known = _known_values(modules)
    for key, value in annotations.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or key in _OF_OURS:
            continue
        if name in modules and value in _YES:
            asked[name] = f"annotation {key}={value}"
        elif value not in _NO or (name not in modules and key not in known):
            errors += _mistake(key, value, modules, known)
    return asked, errors


def brought(annotations: dict[str, str], manifest: Manifest) -> list[str]:
    """Return the errors for the annotations that the image says of itself: it must not choose what it gets of the host.

    The same words typed by the user look the same, and are refused as well: he has others.
    """
    said = dict.fromkeys(
        (key, value)
        for key, value in manifest.words
        if key.startswith(PREFIX) and key not in _OF_OURS and annotations.get(key) == value
    )
    return [
        f"The image {manifest.image} carries the annotation {key}={value}, but only users and sites switch modules. "
        f"Build it without, or type another value: --annotation {key}={_other(value)}."
        for key, value in said
    ]


def _other(value: str) -> str:
    if value in _YES:
        return "off, or to have it, =" + ("yes" if value == "on" else "on")
    return "on" if value in _NO else "VALUE"


def _known_values(modules: dict[str, Module]) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for module in modules.values():
        for condition in module.when.annotation:
            key, equals, value = condition.partition("=")
            known.setdefault(key, set()).add(value if equals else "*")
    return known


def _mistake(key: str, value: str, modules: dict[str, Module], known: dict[str, set[str]]) -> list[str]:
    values = known.get(key, set())
    if "*" in values or value in values:
        return []
    if any(key.startswith(f"{parent}.") for parent in (*known, *(PREFIX + name for name in modules))):
        return []  # squashmount.mpi.x: a word to the planner
    if values or key.removeprefix(PREFIX) in modules:
        allowed = sorted(values) + (["on"] if key.removeprefix(PREFIX) in modules else []) + ["off"]
        return [f"The annotation {key}={value!r} means nothing here; allowed: {', '.join(allowed)}."]
    import difflib  # noqa: PLC0415 - only for a mistake

    every = [*modules, *(known_key.removeprefix(PREFIX) for known_key in known)]
    near = difflib.get_close_matches(key.removeprefix(PREFIX), every, n=1)
    hint = f"did you mean {PREFIX}{near[0]}?" if near else "see: squashmount-hooks list"
    return [f"No module knows the annotation {key}; {hint}"]


def _why(
    module: Module,
    policy: Policy,
    annotations: dict[str, str],
    environ: dict[str, str],
    labels: Callable[[], dict[str, str]],
) -> str:
    """Return the first condition that holds; "" for none."""
    if module.name in policy.on:
        return "on for everybody by the site's policy"
    if module.when.always:
        return "on for every container"
    return (
        _holds("annotation", module.when.annotation, annotations)
        or _holds("variable of the job", module.when.env, environ)
        or (_holds("label of the image", module.when.label, labels()) if module.when.label else "")
    )


def _holds(what: str, conditions: tuple[str, ...], values: dict[str, str]) -> str:
    for condition in conditions:
        key, equals, value = condition.partition("=")
        found = values.get(key)
        if found is not None and (not equals or found == value):
            return f"{what} {condition}"
    return ""


def _refused(module: Module, policy: Policy, annotations: dict[str, str]) -> str:
    if module.name in policy.off:
        return "the site's policy has switched it off"
    keys = [condition.partition("=")[0] for condition in module.when.annotation]
    for key in (PREFIX + module.name, *keys):
        if annotations.get(key) in _NO:
            return f"switched off by annotation {key}={annotations[key]}"
    return ""


def _with_required(
    modules: dict[str, Module], policy: Policy, annotations: dict[str, str], wanted: dict[str, str], errors: list[str]
) -> list[Module]:
    """Return the wanted modules behind those they require, which are added to `wanted`; each once."""
    chosen: dict[str, Module] = {}
    pending: set[str] = set()

    def add(name: str, by: str) -> None:
        if name in chosen or name in pending:
            return
        module = modules.get(name)
        if module is None:
            errors.append(f"The module {by} requires the module {name}, which is not installed.")
            return
        refused = _refused(module, policy, annotations)
        if refused:
            errors.append(f"The module {by} requires the module {name}, but {refused}.")
            return
        pending.add(name)
        for required in module.requires:
            add(required, name)
        wanted.setdefault(name, f"required by {by}")
        chosen[name] = module

    for name in tuple(wanted):
        add(name, name)
    return list(chosen.values())


def _conflicts(chosen: list[Module]) -> list[str]:
    on = {module.name for module in chosen}
    pairs = {tuple(sorted((module.name, other))) for module in chosen for other in module.conflicts if other in on}
    return [f"The modules {a} and {b} cannot be on together." for a, b in sorted(pairs)]


def passed_variables(modules: tuple[Module, ...], environ: dict[str, str]) -> dict[str, str]:
    """Return the job's variables that modules pass on. NAME* passes all that begin so.

    Nothing is planned by them, so a remembered plan gets the present ones (dict.items: unseen by `cache`).
    """
    wanted = [name for module in modules for name in module.env.passed]
    if not wanted:
        return {}
    return {name: value for name, value in dict.items(environ) if any(_is_passed(name, each) for each in wanted)}


def _is_passed(name: str, wanted: str) -> bool:
    return name == wanted or (wanted.endswith("*") and name.startswith(wanted[:-1]))
