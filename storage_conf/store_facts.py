"""What an additional image store looks like from here: read once, judged elsewhere."""

import errno
import fcntl
import os
import signal
import time
from dataclasses import dataclass

from squashmount.errors import StoreError
from squashmount.jsonio import JsonObject, get_str, get_strs, load_objects
from squashmount.layout import StoreLayout

LOCK_TIMEOUT = 3.0
"""Seconds to wait for the read lock that every podman command takes on images.lock and layers.lock."""


@dataclass(frozen=True)
class StoreFacts:
    """One directory of additionalimagestores; paths inside it are relative."""

    path: str
    problem: str = ""  # it cannot be used at all: missing, not a directory, not permitted
    unreadable: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    torn: tuple[tuple[str, str], ...] = ()  # file, what the parser says
    empty: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name, image ids
    layerless: tuple[str, ...] = ()  # image ids whose top layer is in no record
    version: str = ""  # squashmount/version; empty: not ours
    squashed: bool = False
    lock: str = "ok"  # ok, timeout, or a symbolic errno


def read_store(path: str, *, lock_timeout: float = LOCK_TIMEOUT) -> StoreFacts:
    """Look at everything Podman reads at its start. Never raises for what it finds."""
    layout = StoreLayout(path)
    try:
        os.listdir(path)
    except OSError as err:
        return StoreFacts(path, problem=os.strerror(err.errno or 0))
    texts, unreadable, missing = _read_all(layout)
    torn, empty = [], []
    parsed: dict[str, list[JsonObject]] = {}
    for name, text in texts.items():
        if name.endswith(".json") and not text.strip():
            empty.append(name)
        elif name.endswith(".json"):
            try:
                parsed[name] = load_objects(text, where=name)
            except StoreError as err:
                torn.append((name, err.details or err.brief))
    images, layers = parsed.get(_IMAGES_JSON, []), parsed.get(_LAYERS_JSON)
    lock = os.path.join(path, _LOCKS[0])
    return StoreFacts(
        path,
        unreadable=tuple(unreadable),
        missing=tuple(missing),
        torn=tuple(torn),
        empty=tuple(empty),
        duplicates=_duplicates(images),
        layerless=_layerless(images, layers),
        version=_version(layout),
        squashed=os.path.isdir(layout.ours) or _has_squash_link(layout),
        lock=try_lock(lock, lock_timeout) if _LOCKS[0] in texts else "ok",
    )


_IMAGES_JSON, _LAYERS_JSON = "overlay-images/images.json", "overlay-layers/layers.json"
_LOCKS = ("overlay-images/images.lock", "overlay-layers/layers.lock")


def _read_all(layout: StoreLayout) -> tuple[dict[str, bytes], list[str], list[str]]:
    texts: dict[str, bytes] = {}
    unreadable, missing = [], []
    for name in (_IMAGES_JSON, _LAYERS_JSON, *_LOCKS):
        try:
            with open(os.path.join(layout.root, name), "rb") as file:
                texts[name] = file.read()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
        except OSError:
            unreadable.append(name)
    return texts, unreadable, missing


def _duplicates(images: list[JsonObject]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    owners: dict[str, list[str]] = {}
    for image in images:
        for name in set(_names(image)):
            owners.setdefault(name, []).append(_text(image, "id"))
    return tuple((name, tuple(ids)) for name, ids in sorted(owners.items()) if len(ids) > 1)


def _layerless(images: list[JsonObject], layers: list[JsonObject] | None) -> tuple[str, ...]:
    if layers is None:
        return ()
    known = {_text(layer, "id") for layer in layers}
    return tuple(_text(image, "id") for image in images if _text(image, "layer") not in known | {""})


def _names(image: JsonObject) -> tuple[str, ...]:
    try:
        return get_strs(image, "names")
    except StoreError:
        return ()


def _text(obj: JsonObject, key: str) -> str:
    try:
        return get_str(obj, key, "")
    except StoreError:
        return ""


def _version(layout: StoreLayout) -> str:
    try:
        with open(layout.version, encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def _has_squash_link(layout: StoreLayout) -> bool:
    try:
        return any(name.endswith(".squash") for name in os.listdir(layout.links))
    except OSError:
        return False


def try_lock(path: str, timeout: float) -> str:
    """Take and drop a read lock as podman does, in a child: ok, timeout (seconds given), or a symbolic errno.

    Podman waits (F_SETLKW) and repeats on any error for ever (rawfilelock_unix.go): a file system that cannot lock
    shows as a hanging podman.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(_lock_code(path))
    status = _wait(pid, timeout)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        _wait(pid, 0.5)  # a child that the file system does not let go is left to init
        return "timeout"
    code = os.waitstatus_to_exitcode(status)
    return "ok" if code == 0 else errno.errorcode.get(code, f"error {code}")


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    return None


def _lock_code(path: str) -> int:
    try:
        with open(path, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH)
    except OSError as err:
        return err.errno or 255
    return 0
