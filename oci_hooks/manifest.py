"""What the manifest of a container's image says under our own words. Podman before 4.6 merges it into config.json.

It puts the annotations of the manifest among the container's, unmarked; those of the command line win (podman,
pkg/specgen/generate/container.go, CompleteSpec, until pull request 18542). Modules are switched by users and sites
only, so what the image brought is told from the rest here: container → record in containers-storage → image → manifest.
The answer is remembered with the times of all files it comes from. Asked only for containers with a word of ours.
"""

import os

from squashmount.errors import SquashmountError, UsageError
from squashmount.lean import Any, NamedTuple

from .leanjson import dumps, loads
from .selection import PREFIX, Manifest

FORMAT = 1
KEPT = 64
_ENCODED = "=bWFuaWZlc3Qt"  # base64 of "manifest-", as layout.big_data_name writes manifest-sha256:DIGEST
_VARIABLES = ("CONTAINERS_STORAGE_CONF", "XDG_CONFIG_HOME", "HOME", "STORAGE_OPTS")


class Place(NamedTuple):
    """Where containers-storage keeps a container's image: its ID, the graphroot, and the driver in all paths."""

    image: str
    graphroot: str
    driver: str


def image_of(config: dict[str, Any]) -> Place | None:
    """Return the image's place; None for a root file system without an image (podman run --rootfs).

    SquashmountError when the root file system is in containers-storage and no container of that ID or layer is.
    """
    parts = str((config.get("root") or {}).get("path", "")).split("/")
    for at in range(len(parts) - 1, 0, -1):
        graphroot, driver = "/".join(parts[:at]), parts[at]
        layer = next((part for part in parts[at + 1 :] if len(part) == 64), "")
        if layer and os.path.isdir(f"{graphroot}/{driver}-containers"):
            return _recorded(config, graphroot, driver, layer)
    return None


def _recorded(config: dict[str, Any], graphroot: str, driver: str, layer: str) -> Place | None:
    container, runroot = _container(config)
    places = [f"{graphroot}/{driver}-containers/{name}containers.json" for name in ("", "volatile-")]
    if runroot:
        places.append(f"{runroot}/{driver}-containers/volatile-containers.json")
    for path in places:
        for record in _records(path):
            if layer == record.get("layer") or (container and container == record.get("id")):
                image = str(record.get("image") or "")
                return Place(image, graphroot, driver) if image else None
    raise SquashmountError(f"The container {container[:12]} is not in {graphroot}: its image is not known.")


def _container(config: dict[str, Any]) -> tuple[str, str]:
    for mount in config.get("mounts") or []:
        before, found, rest = str(mount.get("source", "")).partition("-containers/")
        name = rest.partition("/")[0]
        if found and len(name) == 64:
            return name, before.rpartition("/")[0]
    return "", ""


def _records(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            records: list[dict[str, Any]] = loads(file.read() or b"[]", where=path)
            return records
    except FileNotFoundError:
        return []
    except OSError as err:
        raise SquashmountError("The containers of containers-storage cannot be read.", details=str(err)) from err


def manifest_of(config: dict[str, Any], environ: dict[str, str], state: str) -> Manifest:
    """Return our words in the manifest of a container's image. SquashmountError when that cannot be told.

    `environ` is Podman's: it finds the additional image stores; `state` is where answers are kept, "" for nowhere.
    """
    place = image_of(config)
    if place is None:
        return Manifest()
    given = given_stores(environ)
    key = [FORMAT, *place, *given, *(environ.get(name) for name in _VARIABLES)]
    remembered = os.path.join(state, "hook-images", f"{place.image}.json") if state else ""
    words = _recalled(remembered, key) if remembered else None
    if words is None:
        from .labels import additional_stores, storage_files  # noqa: PLC0415 - TOML

        # the times before the look: what changes meanwhile counts the next time
        looked = {path: _stamp(path) for path in storage_files(environ)}
        stores = [place.graphroot, *given, *additional_stores(environ)]
        words = words_in(place.image, [f"{store}/{place.driver}-images/{place.image}" for store in stores], looked)
        if remembered:
            _remember(remembered, {"key": key, "looked": looked, "words": words})
    return Manifest(place.image[:12], tuple((name, value) for name, value in words))


def words_in(image: str, folders: list[str], looked: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """Return our words in all manifests of an image, which are in these folders of it.

    An image can have several manifests (it was pulled as another's part, or lies in two stores): which one Podman takes
    depends on the name that it was run by. `looked` is filled with every path that was looked at and its time.
    """
    seen: dict[str, Any] = {} if looked is None else looked
    found: dict[tuple[str, str], None] = {}
    there = False
    for folder in dict.fromkeys(folders):
        seen[folder] = _stamp(folder)
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            raise SquashmountError(f"The image {image[:12]} cannot be read.", details=str(err)) from err
        there = True
        for name in sorted(names):
            if name == "manifest" or name.startswith(_ENCODED):
                path = os.path.join(folder, name)
                seen[path] = _stamp(path)
                found |= dict.fromkeys(_words(path, image))
    if not there:
        raise SquashmountError(
            f"The image {image[:12]} is in no store: it is not known whether it switches modules on by itself.",
            details="looked in: " + ", ".join(folders),
            hint="name the store in storage.conf (additionalimagestores)",
        )
    return list(found)


def _words(path: str, image: str) -> list[tuple[str, str]]:
    try:
        with open(path, "rb") as file:
            annotations = loads(file.read(), where=path).get("annotations") or {}
            return [(str(name), str(value)) for name, value in annotations.items() if str(name).startswith(PREFIX)]
    except (OSError, UsageError, AttributeError) as err:
        raise SquashmountError(f"The manifest of the image {image[:12]} cannot be read.", details=str(err)) from err


def given_stores(environ: dict[str, str]) -> list[str]:
    """Return the additional image stores that Podman, our parent, was given outside of storage.conf."""
    options = environ.get("STORAGE_OPTS", "").split(",")
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            options += os.fsdecode(file.read()).replace("--storage-opt=", "").split("\0")
    except OSError:
        pass
    names = ("additionalimagestore=", "overlay.additionalimagestore=", "overlay.imagestore=", "--imagestore=")
    return [option.partition("=")[2] for option in options if option.startswith(names)]


def _stamp(path: str) -> Any:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev]


def _recalled(path: str, key: list[Any]) -> list[tuple[str, str]] | None:
    try:
        with open(path, "rb") as file:
            kept = loads(file.read(), where=path)
        if kept["key"] != key or any(_stamp(each) != before for each, before in kept["looked"].items()):
            return None
        return [(name, value) for name, value in kept["words"]]
    except (OSError, UsageError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _remember(path: str, kept: dict[str, Any]) -> None:
    from squashmount import atomic  # noqa: PLC0415 - only for an image that is new here

    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        atomic.replace_text(path, dumps(kept).decode(), mode=0o600)
        names = [os.path.join(folder, name) for name in os.listdir(folder)]
        for old in sorted(names, key=lambda each: os.lstat(each).st_mtime_ns)[: max(len(names) - KEPT, 0)]:
            os.unlink(old)
    except OSError:
        return
