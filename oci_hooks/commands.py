"""The commands around the hook: plan, list, log, install, remove, test."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from squashmount.config import Config, load_config
from squashmount.errors import EXIT_FINDINGS, ImageNotFoundError, ToolError, UsageError
from squashmount.images import open_image
from squashmount.process import run

from . import catalogue, hook, install, log, plan, podman_modules, unpacked
from .labels import additional_stores
from .planners import run_here, run_nothing, trusting
from .planning import Image, Site, make_plan
from .selection import PREFIX
from .stored import Stored, find
from .tree import DirectoryTree, SquashTree

Add = Callable[[Any, str, str, Callable[[argparse.Namespace], int]], Any]


def add_commands(commands: Any, add: Add) -> None:
    """Add the commands of this file to the parser."""
    made = add(commands, "plan", "say what would be injected into a container of an image, and why", _plan)
    made.add_argument("image", nargs="?", metavar="IMAGE", help="name or ID of an image, in the store or in Podman")
    made.add_argument("--store", metavar="DIR", help="the store; default SQUASH_DIR, then those of Podman")
    made.add_argument("--rootfs", metavar="DIR", help="plan for this root file system instead of an image")
    made.add_argument("--host", default="/", metavar="DIR", help="plan with the files of this host (default /)")
    _add_common(made)

    made = add(
        commands,
        "test",
        "run the hook (of stage precreate, and ldconfig) for a root file system and show what it changes",
        _test,
    )
    made.add_argument("rootfs", metavar="ROOTFS", help="a directory; copied files and ld.so.cache are written into it")
    _add_common(made)

    made = add(commands, "list", "list the modules of this host, and where the hook is installed", _list)
    made.add_argument("--policy", default="", metavar="FILE", help="instead of /etc/squashmount/hooks.toml")
    made.add_argument("--json", action="store_true", help="one JSON object instead of text")

    made = add(commands, "log", "show what the hook did for a container, and why", _log)
    made.add_argument("container", metavar="CONTAINER", help="name or ID")

    made = add(commands, "install", "write what makes Podman run the hook, and its `podman --module NAME`", _install)
    _add_place(made)
    made.add_argument("--program", default="", metavar="PATH", help="the installed squashmount-hook")
    made.add_argument("--policy", default="", metavar="FILE", help="instead of /etc/squashmount/hooks.toml")
    made.add_argument(
        "--annotated",
        action="store_true",
        help="only for containers with an annotation squashmount.*: the hook costs the others nothing",
    )
    _add_place(add(commands, "remove", "remove what install wrote", _remove))


def _add_common(made: Any) -> None:
    made.add_argument("--annotation", action="append", default=[], metavar="KEY=VALUE", help="as given to podman run")
    made.add_argument("--policy", default="", metavar="FILE", help="instead of /etc/squashmount/hooks.toml")
    made.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _add_place(made: Any) -> None:
    place = made.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for this user (default)")
    place.add_argument("--site", action="store_true", help=f"for everybody, in {install.SITE_DIR}")
    place.add_argument("--dir", metavar="DIR", help="in another directory")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _annotations(given: list[str]) -> dict[str, str]:
    for text in given:
        if "=" not in text:
            raise UsageError(f"--annotation {text} is not KEY=VALUE.", hint="as in: --annotation squashmount.mpi=auto")
    return dict(text.partition("=")[::2] for text in given)


def _plan(args: argparse.Namespace) -> int:
    if bool(args.image) == bool(args.rootfs):
        given = "both are given" if args.image else "neither is given"
        raise UsageError("Expected either IMAGE or --rootfs DIR.", details=given, hint="squashmount-hooks plan IMAGE")
    environ = dict(os.environ)
    known = catalogue.read(environ, policy_file=args.policy)
    # the owners of another host's files say nothing here, and its programs would speak of this one
    here = args.host == "/"
    doubt = known.trust.doubt if here else trusting
    config = load_config(environ)
    stored = None if args.rootfs else _stored(args, config.squash_dir, environ)
    if stored or args.rootfs:
        with DirectoryTree(args.host) as host, _image(args, stored, config) as image:
            site = Site(known.modules, known.policy, host, environ, doubt, run_here if here else run_nothing)
            made = make_plan(site, image)
    else:
        asked = _annotations(args.annotation)
        made = unpacked.plan_of(args.image, asked, environ, policy=args.policy, host=args.host)
        made = made._replace(errors=(*made.errors, *_doubts(made, doubt)))
    if args.json:
        _say(json.dumps({"hash": made.hash, **plan.to_json(made)}, indent=2))
    else:
        _print_plan(made)
    return EXIT_FINDINGS if made.errors else 0


def _stored(args: argparse.Namespace, squash_dir: str, environ: dict[str, str]) -> Stored | None:
    """Return the image in the store; None when it may be one that Podman keeps unpacked."""
    if args.store:
        return find(args.store, args.image)
    for store in dict.fromkeys([squash_dir, *additional_stores(environ)]):
        with suppress(ImageNotFoundError):
            if store:
                return find(store, args.image)
    return None


def _doubts(made: plan.Plan, doubt: Callable[[str], str]) -> list[str]:
    """Return what of a plan made inside Podman's user namespace is not trusted: owners are seen only outside."""
    sources = [mount.source for mount in made.mounts if "rw" not in mount.options]
    sources += [copy.source for copy in made.copies] + [hook.path for hook in made.hooks if hook.path]
    found = {source: doubt(source) for source in sources}
    return [f"{source!r} is not trusted: {why}" for source, why in found.items() if why]


@contextmanager
def _image(args: argparse.Namespace, stored: Stored | None, config: Config) -> Iterator[Image]:
    annotations = _annotations(args.annotation)
    if stored is None:
        with DirectoryTree(args.rootfs) as tree:
            yield Image(tree, {}, annotations)
        return
    with open_image(stored.squash, config) as squash:
        merged = {**dict(stored.manifest.words), **annotations}
        yield Image(SquashTree(squash), stored.env, merged, lambda: stored.labels, lambda: stored.manifest)


def _print_plan(made: plan.Plan) -> None:
    if made.empty:
        _say("Nothing is injected.")
    else:
        _say("modules: " + (", ".join(made.modules) or "none"))
    for what, lines in (
        ("because", made.reasons),
        ("not done", made.rejected),
        ("warning", made.warnings),
        ("the container must share", tuple(made.needs)),
        ("would not start", made.errors),
    ):
        for line in lines:
            _say(f"{what}: {line}")
    for name, value in made.env_set.items():
        _say(f"set: {name}={value}")
    for name, value in made.env_prepend.items():
        _say(f"prepend: {name}={value}")
    for name, value in made.env_append.items():
        _say(f"append: {name}={value}")
    for name in made.env_unset:
        _say(f"unset: {name}")
    if made.modules:
        _say(f"hash: {made.hash}")


def _test(args: argparse.Namespace) -> int:
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": os.path.abspath(args.rootfs)},
        "process": {"args": ["/bin/sh"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"]},
        "annotations": _annotations(args.annotation),
        "mounts": [],
    }
    options = ["--policy", args.policy] if args.policy else []
    try:
        out = run(hook.program(), "apply", *options, stdin=json.dumps(config).encode())
    except ToolError as err:
        sys.stderr.write(f"{err.details.partition(chr(10))[2] or err}\n")
        return EXIT_FINDINGS
    edited = json.loads(out)
    later = [(stage, one) for stage, hooks in edited.get("hooks", {}).items() for one in hooks]
    failed = [each for _, one in later if _needs_no_runtime(one) and (each := _renewed(args.rootfs, one))]
    changed = {key: value for key, value in edited.items() if value != config.get(key)}
    if args.json:
        _say(json.dumps(changed, indent=2))
    elif not changed:
        _say("Nothing is injected.")
    else:
        for mount in edited["mounts"]:
            _say(f"mount: {mount['source']} on {mount['destination']} ({','.join(mount['options'])})")
        for entry in edited["process"]["env"]:
            if entry not in config["process"]["env"]:  # type: ignore[index]
                _say(f"environment: {entry}")
        for stage, one in later:
            how = "was run, without the mounts" if _needs_no_runtime(one) else "was not run, which takes a container"
            _say(f"hook: {stage}: {' '.join(one['args'])} ({how})")
        for device in edited.get("linux", {}).get("devices", []):
            _say(f"device: {device['path']}")
    for said in failed:
        sys.stderr.write(f"{said}\n")
    return EXIT_FINDINGS if failed else 0


def _needs_no_runtime(one: dict[str, Any]) -> bool:
    return bool(one["args"][:2] == [hook.program(), "ldconfig"])


def _renewed(rootfs: str, one: dict[str, Any]) -> str:
    """Run a hook that makes ld.so.cache anew as the runtime would; return what it says when it fails."""
    with tempfile.TemporaryDirectory() as bundle:
        with open(os.path.join(bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump({"root": {"path": os.path.abspath(rootfs)}}, file)
        try:
            run(*one["args"], stdin=json.dumps({"id": "test", "bundle": bundle}).encode(), env={})
        except ToolError as err:
            return err.details.partition("\n")[2] or str(err)
    return ""


def _list(args: argparse.Namespace) -> int:
    environ = dict(os.environ)
    known = catalogue.read(environ, policy_file=args.policy)
    found = install.installed([install.user_dir(environ)] if environ.get("HOME") else [])
    own = podman_modules.user_dir(install.user_dir(environ)) if environ.get("HOME") else ""
    podman = {place: podman_modules.installed(place) for place in (podman_modules.SITE_DIR, own) if place}
    modules = [
        {"name": one.name, "file": one.origin, "help": one.help, "when": one.when._asdict()}
        for one in sorted(known.modules.values())
        if one.name not in known.policy.off
    ]
    if args.json:
        hooks = [
            {"file": each.path, "program": each.program, "trouble": each.trouble, "annotated": each.annotated}
            for each in found
        ]
        _say(json.dumps({"modules": modules, "installed": hooks, "podman_modules": podman}, indent=2))
        return 0
    for one in sorted(known.modules.values()):
        if one.name in known.policy.off:
            continue
        when = "for everybody" if one.name in known.policy.on or one.when.always else ""
        waits = [*one.when.annotation, *(f"job has {name}" for name in one.when.env)]
        waits += [f"image has label {name}" for name in one.when.label]
        _say(f"{one.name:16} {one.help}")
        _say(f"{'':16} on: {when or ', '.join([f'squashmount.{one.name}=on', *waits])}")
    for line in _where(found, known):
        _say(line)
    for place, names in podman.items():
        if names:
            _say(f"podman --module: {' '.join(names)} ({place})")
    if not found:
        _say("The hook is not installed: squashmount-hooks install")
    return 0


def _where(found: list[install.Installed], known: catalogue.Catalogue) -> Iterator[str]:
    everywhere = ", ".join(install.on_without_annotation(known.modules.values(), known.policy))
    for each in found:
        yield f"installed: {each.path}" + (f": {each.trouble}" if each.trouble else "")
        if each.annotated:
            yield f"{'':11}only for containers with an annotation {PREFIX}*"
            if everywhere:
                yield f"{'':11}so never for {everywhere}: install again, without --annotated"


def _log(args: argparse.Namespace) -> int:
    wanted = args.container
    with suppress(ToolError):
        # a name: Podman knows the container as long as it exists
        wanted = run("podman", "container", "inspect", "--format", "{{.Id}}", wanted).strip() or wanted
    sys.stdout.write(log.read(log.state(dict(os.environ)), wanted))
    return 0


def _directory(args: argparse.Namespace) -> str:
    if args.site:
        return install.SITE_DIR
    return os.path.abspath(args.dir) if args.dir else install.user_dir(dict(os.environ))


def _install(args: argparse.Namespace) -> int:
    policy_file = os.path.abspath(args.policy) if args.policy else ""
    # what is wrong with the modules is said now, not at the first container
    known = catalogue.read(dict(os.environ), policy_file=policy_file)
    directory, program = _directory(args), os.path.abspath(args.program or hook.program())
    everywhere = install.on_without_annotation(known.modules.values(), known.policy)
    if args.annotated and everywhere:
        raise UsageError(
            f"With --annotated the hook would not run for {', '.join(everywhere)}, which need no annotation.",
            hint="install without --annotated, or switch them off in the policy",
        )
    _say(f"written: {install.install(directory, program, policy_file, annotated=args.annotated)}")
    modules = _modules_directory(args)
    if modules:
        runtime = os.path.join(os.path.dirname(program), podman_modules.RUNTIME)
        hooks_dirs = [] if args.site else [install.SITE_DIR, directory]
        wanted = podman_modules.texts(known.modules, known.policy, runtime=runtime, hooks_dirs=hooks_dirs)
        others = podman_modules.install(modules, wanted)
        _say(f"written: {modules}: {' '.join(sorted(wanted))} (podman --module NAME run ...)")
        for path in others:
            _say(f"left as it is: {path}, which is not ours")
    advice = install.advice(directory)
    if advice:
        _say(advice)
    return 0


def _modules_directory(args: argparse.Namespace) -> str:
    """Return where `podman --module` finds what belongs to this place; "" for a directory of the caller's own."""
    if args.site:
        return podman_modules.SITE_DIR
    return "" if args.dir else podman_modules.user_dir(install.user_dir(dict(os.environ)))


def _remove(args: argparse.Namespace) -> int:
    directory = _directory(args)
    removed = install.remove(directory)
    _say(f"removed: {removed}" if removed else f"The hook was not installed in {directory}.")
    modules = _modules_directory(args)
    names = podman_modules.remove(modules) if modules else []
    if names:
        _say(f"removed: {modules}: {' '.join(names)}")
    return 0
