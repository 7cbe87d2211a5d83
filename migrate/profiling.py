"""`profile`: run an image once where nothing of it is cached, and keep what its server recorded.

The run has a Podman store of its own in a temporary directory, with DIR as its only additional store: whatever else
this user's Podman holds or is told, the image comes from its squash file, and no other container shares the server.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from squashmount import process, profile
from squashmount.errors import HostError, StoreError, ToolError, UsageError
from squashmount.ids import ImageId
from squashmount.profile import Profile

from . import publish
from .migration import Options
from .store import Store
from .trouble import explained

_WRITTEN_SECONDS = 60.0
"""How long a server may take to end after its container, and to write what it recorded."""


_TELLS_PODMAN = {"STORAGE_OPTS", "STORAGE_DRIVER", "CONTAINER_HOST", "CONTAINER_CONNECTION", "DOCKER_HOST"}
"""What would make it use another store, or another machine (podman(1), ENVIRONMENT)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is run: `podman run OPTIONS IMAGE PROGRAM`. `mount_program` is the installed squashmount."""

    image: ImageId
    program: tuple[str, ...]
    options: tuple[str, ...]
    tmpdir: str
    mount_program: str
    log: process.Log = process.quiet


def record(store: Store, wanted: Wanted) -> Profile:
    """Run it and return the profile. ToolError when the program fails, HostError when nothing was recorded."""
    with _place(wanted) as place:
        recorded = os.path.join(place, "profile.json")
        environment = {name: value for name, value in os.environ.items() if name not in _TELLS_PODMAN} | {
            "CONTAINERS_STORAGE_CONF": _storage_conf(place, store.root, wanted.mount_program),
            "SQUASHMOUNT_RECORD": recorded,
            "SQUASHMOUNT_LINGER": "0",
            "SQUASHMOUNT_ENGINE": "wire",
        }
        argv = ("podman", "run", "--rm", "--pull=never", *wanted.options, wanted.image, *wanted.program)
        try:
            code = process.run_visibly(*argv, env=environment, log=wanted.log)
            if code:
                raise ToolError(f"The program ended with exit status {code}: no profile is stored.")
            return profile.parse(_read(recorded), where="the recorded profile")
        finally:
            _remove(os.path.join(place, "graph"), environment)


def wanted(store: Store, image: ImageId, arguments: argparse.Namespace) -> Profile | None:
    """Return the profile that `mig` is to lay the files out by. StoreError or UsageError when there is none."""
    path = arguments.profile_file or (store.layout.profile(image) if arguments.profile else "")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return profile.parse(file.read(profile.MAX_BYTES + 1), where=path)
    except FileNotFoundError as err:
        hint = "record it: migrate2scratch profile IMAGE DIR -- CMD"
        raise UsageError(f"There is no profile of {image[:12]}.", details=str(err), hint=hint) from err


def keep(store: Store, image: ImageId, one: Profile, options: Options) -> None:
    """Store a profile with its image. StoreError when the image was removed meanwhile."""
    with (
        explained(store.root),
        store.lock(doing=f"profile {image[:12]}", timeout=options.wait, on_wait=options.on_wait) as held,
    ):
        state = publish.begin(store, held)
        if image not in state.capsules:
            raise StoreError(f"Image {image[:12]} was removed while it ran.", hint="mig it again")
        publish.set_profile(store, image, one, held)


@contextmanager
def _place(wanted: Wanted) -> Iterator[str]:
    if wanted.tmpdir and not os.path.isdir(wanted.tmpdir):
        raise UsageError(f"{wanted.tmpdir} is not a directory.")
    if not os.access(wanted.mount_program, os.X_OK):
        raise HostError(
            f"{wanted.mount_program} cannot be executed.", hint="start migrate2scratch from where it is installed"
        )
    # Podman refuses a runroot of more than 50 characters: a short prefix
    place = tempfile.mkdtemp(prefix="sqm-", dir=os.path.abspath(wanted.tmpdir) if wanted.tmpdir else None)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove(graph: str, environment: dict[str, str]) -> None:
    """Remove what belongs to the ids of the user namespace; the rest is ours to remove."""
    if os.geteuid() != 0:
        process.run("podman", "unshare", "rm", "-rf", graph, env=environment, ok=(0, 1, 125))


def _storage_conf(place: str, store: str, mount_program: str) -> str:
    """Write a storage.conf (storage.conf(5)) with nothing in it but the store, and return its path."""
    graph, run = os.path.join(place, "graph"), os.path.join(place, "run")
    path = os.path.join(place, "storage.conf")
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f'[storage]\ndriver = "overlay"\ngraphroot = {json.dumps(graph)}\nrunroot = {json.dumps(run)}\n'
            f"rootless_storage_path = {json.dumps(graph)}\n"
            f"[storage.options]\nadditionalimagestores = [{json.dumps(store)}]\n"
            f"[storage.options.overlay]\nmount_program = {json.dumps(mount_program)}\n"
        )
    return path


def _read(path: str) -> bytes:
    """Return the recorded profile: the server writes it when it ends, soon after the container."""
    until = time.monotonic() + _WRITTEN_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > until:
            raise HostError(
                "The server recorded nothing.",
                details=f"{path} was not written in {_WRITTEN_SECONDS:g} s",
                hint="see the log beside the servers: podman unshare squashmount ps",
            )
        time.sleep(0.02)
    with open(path, "rb") as file:
        return file.read(profile.MAX_BYTES + 1)
