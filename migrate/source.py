"""Podman as the source of images: where its graphroot is and which image a name means.

Names are resolved by Podman itself (short names, tags, digests, ID prefixes, additional stores) through podman-py on a
transient `podman system service`: no rule is repeated here. The service listens in a fresh private directory.
"""

import difflib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from squashmount import jsonio, process
from squashmount.errors import AmbiguousImageError, ImageNotFoundError, ToolError, UsageError
from squashmount.ids import ImageId

from .image import Graph

_START_SECONDS = 30.0
_PREFIX = "squashmount-mig-"
_SOCKET_PATH_LIMIT = 100
"""A socket address holds 108 bytes (unix(7))."""


@dataclass(frozen=True, slots=True)
class Podman:
    """How to call Podman: the program and the global options that select a store."""

    program: str = "podman"
    root: str = ""
    runroot: str = ""

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """Return a full command line."""
        options = [f"--root={self.root}"] if self.root else []
        options += [f"--runroot={self.runroot}"] if self.runroot else []
        return (self.program, *options, *arguments)


@dataclass(frozen=True, slots=True)
class PodmanStore:
    """What `podman info` says about the store."""

    graphroot: str
    runroot: str
    driver: str
    rootless: bool
    ignores_chown_errors: bool
    single_id: bool
    additional: tuple[str, ...]
    version: str


def describe(podman: Podman, log: process.Log = process.quiet) -> PodmanStore:
    """Ask Podman for its store; ToolError when Podman is missing or cannot start."""
    text = process.run(*podman.argv("info", "--format", "json"), hint="install Podman 4 or newer", log=log)
    info = jsonio.load_object(text, where="podman info")
    store = jsonio.get_object(info, "store", where="podman info")
    options = jsonio.get_object(store, "graphOptions", where="podman info.store")
    host = jsonio.get_object(info, "host", where="podman info")
    return PodmanStore(
        graphroot=jsonio.get_str(store, "graphRoot", where="podman info.store"),
        runroot=jsonio.get_str(store, "runRoot", where="podman info.store"),
        driver=jsonio.get_str(store, "graphDriverName", where="podman info.store"),
        rootless=jsonio.get_object(host, "security").get("rootless") is True,
        ignores_chown_errors=str(options.get("overlay.ignore_chown_errors", "")).lower() == "true",
        single_id=_single_id(host),
        additional=_additional_stores(jsonio.get_str(store, "configFile", "", where="podman info.store"), options),
        version=jsonio.get_str(jsonio.get_object(info, "version"), "Version", ""),
    )


def _additional_stores(config_file: str, options: jsonio.JsonObject) -> tuple[str, ...]:
    """Return the additional image stores: all the configuration names, and the one `podman info` 4 and 5 show."""
    import tomllib  # noqa: PLC0415 - 10 ms

    shown = options.get("overlay.imagestore")
    stores = shown.split(",") if isinstance(shown, str) else []
    with suppress(OSError, tomllib.TOMLDecodeError), open(config_file, "rb") as file:
        storage = jsonio.get_object(tomllib.load(file), "storage", where=config_file)
        named = jsonio.get_object(storage, "options", where=config_file)
        stores = [*jsonio.get_strs(named, "additionalimagestores", where=config_file), *stores]
    return tuple(dict.fromkeys(store for store in stores if store))


def _single_id(host: jsonio.JsonObject) -> bool:
    ranges = jsonio.get_object(host, "idMappings", where="podman info.host").get("uidmap")
    return isinstance(ranges, list) and [one.get("size") for one in ranges if isinstance(one, dict)] == [1]


def resolve(podman: Podman, graph: Graph, name: str, log: process.Log = process.quiet) -> ImageId:
    """Return the id of the image Podman means by `name`.

    Raises ImageNotFoundError with near misses, AmbiguousImageError with the candidates, ToolError when the service
    does not answer.
    """
    if not name.strip() or name.startswith("-"):
        raise UsageError(f"{name!r} is not an image name.")
    image = _ask_podman(podman, name, log)
    if image is not None:
        return image
    candidates = _by_prefix(graph, name)
    if len(candidates) > 1:
        raise AmbiguousImageError(
            f"The image ID {name} is ambiguous.", details="\n".join(candidates), hint="give more digits or a name"
        )
    raise _not_found(graph, name)


def _ask_podman(podman: Podman, name: str, log: process.Log) -> ImageId | None:
    from podman import PodmanClient  # noqa: PLC0415 - 0.3 s of imports, only for commands that ask Podman
    from podman.errors import APIError, ImageNotFound, PodmanError  # noqa: PLC0415

    parent = _private_parent()
    _sweep(parent)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent) as directory:
        address = os.path.join(directory, "podman.sock")
        service = _until_we_die(podman.argv("system", "service", "--time=60", f"unix://{address}"))
        with (
            open(os.path.join(directory, "stderr"), "w+b") as stderr,
            process.started(*service, stderr=stderr, log=log) as child,
        ):
            _wait_for(address, child.poll, stderr.name)
            try:
                with PodmanClient(base_url=f"http+unix://{address}", timeout=60) as client:
                    return ImageId(str(client.images.get(name).attrs["Id"]).removeprefix("sha256:"))
            except ImageNotFound:
                return None
            except (APIError, PodmanError, OSError, KeyError) as err:
                if "ambiguous" in str(err) or "multiple" in str(err):
                    return None
                details = f"{err}\n{err.__context__}" if err.__context__ else str(err)
                raise ToolError(f"Podman could not look up {name}.", details=details) from err


def _until_we_die(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Let setpriv(1) of util-linux ask for a signal when this process is killed; without it the service has 60 s."""
    return ("setpriv", "--pdeathsig", "TERM", "--", *argv) if shutil.which("setpriv") else argv


def _sweep(parent: str) -> None:
    """Delete the socket directories of our processes that were killed."""
    for entry in os.listdir(parent):
        pid = entry.removeprefix(_PREFIX).partition("-")[0]
        if entry.startswith(_PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)


def _wait_for(path: str, poll: Callable[[], int | None], stderr: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(path):
        if poll() is not None or time.monotonic() > deadline:
            with open(stderr, encoding="utf-8", errors="replace") as file:
                raise ToolError("podman system service did not start.", details=file.read().strip())
        time.sleep(0.01)


def _answers(path: str) -> bool:
    """Tell whether somebody listens; the file is there a moment before (bind(2), then listen(2))."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _private_parent() -> str:
    for path in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp inside
        if path and os.access(path, os.W_OK | os.X_OK) and len(path) < _SOCKET_PATH_LIMIT - 30:
            return path
    raise ToolError("No directory for Podman's socket.", hint="set XDG_RUNTIME_DIR or TMPDIR to a short, writable path")


def _by_prefix(graph: Graph, name: str) -> list[str]:
    prefix = name.removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{1,64}", prefix):
        return []
    return [
        f"{image.id[:12]}  {', '.join(image.names) or '<none>'}"
        for image in graph.images
        if image.id.startswith(prefix)
    ]


def _not_found(graph: Graph, name: str) -> ImageNotFoundError:
    known = [known for image in graph.images for known in image.names]
    near = near_misses(name, known)
    return ImageNotFoundError(
        f"Podman has no image {name}.",
        details="similar: " + ", ".join(near) if near else f"looked in {graph.root}",
        hint=f"podman pull {name}",
    )


def near_misses(name: str, known: list[str]) -> list[str]:
    """Return at most three known names that look like `name`, compared with and without registry and tag."""
    spellings: dict[str, str] = {}
    for full in known:
        last = full.rpartition("/")[2]
        for spelling in (full, last, last.partition(":")[0], full.rpartition(":")[0]):
            spellings.setdefault(spelling, full)
    wanted = (name, name.rpartition("/")[2], name.rpartition("/")[2].partition(":")[0])
    found = [spellings[near] for one in wanted for near in difflib.get_close_matches(one, spellings, n=3, cutoff=0.6)]
    return list(dict.fromkeys(found))[:3]
