"""The plan for an image that lies unpacked in Podman's graphroot, without a container.

Only Podman can show such an image as one tree, and without root only in its user namespace: there this module runs as a
program (`podman unshare PYTHON -m squashmount.oci_hooks.unpacked`), gets the question as JSON on standard input and
prints the plan. It sees the owners of files as the hook does.

Nothing stays, however it ends: the image is mounted in a mount namespace of its own, and Podman counts that mount
(containers/storage, layers.go, mountpoints.json) in a directory that is gone with it.
"""

import json
import os
import sys
from typing import Any

from squashmount import errors, jsonio, linux
from squashmount.errors import HostError, ImageNotFoundError, SquashmountError, ToolError
from squashmount.process import run

from . import catalogue, plan
from .labels import config_labels
from .planners import run_here, run_nothing, trusting
from .planning import Image, Site, make_plan
from .selection import PREFIX, Manifest
from .tree import DirectoryTree


def plan_of(image: str, annotations: dict[str, str], environ: dict[str, str], *, policy: str, host: str) -> plan.Plan:
    """Return the plan for the image Podman means by that name.

    ImageNotFoundError; ToolError and HostError when Podman cannot show it here.
    """
    policy = os.path.abspath(policy) if policy else ""
    host = os.path.abspath(host)
    question = {"image": image, "annotations": annotations, "environ": environ, "policy": policy, "host": host}
    argv = [sys.executable, "-P", "-m", "squashmount.oci_hooks.unpacked"]
    if os.geteuid() != 0:
        argv = ["podman", "unshare", *argv]
    try:
        text = run(*argv, stdin=json.dumps(question).encode(), env=environ)
    except ToolError as err:
        raise ToolError(
            f"The image {image} cannot be looked at in Podman's user namespace.",
            details=f"{err.brief}\n{err.details}".strip(),
            hint="--rootfs DIR for an unpacked root file system; for a squashed image: --store DIR",
        ) from err
    answer = jsonio.load_object(text, where="squashmount.oci_hooks.unpacked")
    if "error" in answer:
        said = jsonio.get_object(answer, "error")
        kind = getattr(errors, jsonio.get_str(said, "kind"), SquashmountError)
        raise kind(jsonio.get_str(said, "brief"), **{key: jsonio.get_str(said, key) for key in ("details", "hint")})
    return plan.from_json(jsonio.get_object(answer, "plan"))


def main() -> int:
    """Answer one question."""
    question = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"plan": plan.to_json(_planned(question))}
    except SquashmountError as err:
        said = {"kind": type(err).__name__, "brief": err.brief, "details": err.details, "hint": err.hint}
        answer = {"error": said}
    sys.stdout.write(json.dumps(answer))
    return 0


def _planned(question: dict[str, Any]) -> plan.Plan:
    name, host_root, environ = question["image"], question["host"], question["environ"]
    config = _inspected(name)
    known = catalogue.read(environ, policy_file=question["policy"])
    with DirectoryTree(host_root) as host, DirectoryTree(_mounted(str(config["Id"]))) as tree:
        here = host_root == "/"
        doubt, start = (known.trust.doubt, run_here) if here else (trusting, run_nothing)
        env = dict(str(entry).partition("=")[::2] for entry in (config.get("Config") or {}).get("Env") or [])
        words = tuple(
            (key, value) for key, value in (config.get("Annotations") or {}).items() if key.startswith(PREFIX)
        )
        asked = {**dict(words), **question["annotations"]}
        manifest = Manifest(name, words)
        image = Image(tree, env, asked, lambda: config_labels({"config": config.get("Config")}), lambda: manifest)
        return make_plan(Site(known.modules, known.policy, host, environ, doubt, start), image)


def _inspected(name: str) -> dict[str, Any]:
    try:
        found: list[dict[str, Any]] = json.loads(run("podman", "image", "inspect", "--", name))
        return found[0]
    except ToolError as err:
        if "no such" in err.details or "not known" in err.details:
            raise ImageNotFoundError(f"Podman has no image {name}.", hint="podman images; podman pull") from err
        raise


def _mounted(image: str) -> str:
    info = jsonio.load_object(run("podman", "info", "--format", "json"), where="podman info")
    store = jsonio.get_object(info, "store")
    counts = os.path.join(jsonio.get_str(store, "runRoot"), f"{jsonio.get_str(store, 'graphDriverName')}-layers")
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
        os.makedirs(counts, mode=0o700, exist_ok=True)
        linux.mount("tmpfs", counts, "tmpfs", 0, "mode=0700")
    except OSError as err:
        raise HostError(
            "The image cannot be mounted in a mount namespace of its own.",
            details=str(err),
            hint="plan --rootfs DIR looks at an unpacked root file system without one",
        ) from err
    # a server that the mount program starts is this image's only, and ends with the namespace
    os.environ["SQUASHMOUNT_RUNTIME_DIR"] = os.path.join(counts, "squashmount")
    try:
        return run("podman", "image", "mount", image).strip()
    except ToolError as err:
        raise ToolError(
            f"Podman does not mount the image {image[:12]}.",
            details=err.details,
            hint="an unpacked image of an additional store cannot be mounted so: pull it, or plan --rootfs DIR",
        ) from err


if __name__ == "__main__":
    sys.exit(main())
