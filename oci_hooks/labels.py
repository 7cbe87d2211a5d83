"""The labels of a container's image. Podman does not tell a hook: they are read where containers-storage keeps them.

config.json → paths of the graphroot and the runroot → the container's record → its image → the image's configuration,
in the graphroot or in an additional image store. Used only when a module asks for labels.
"""

import json
import os
import tomllib

from squashmount.errors import SquashmountError
from squashmount.layout import StoreLayout, big_data_name
from squashmount.lean import Any

_STORAGE_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")


def labels_of(config: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    """Return the labels. SquashmountError when they cannot be found: a module waits for them."""
    graphroot, found, _ = (config.get("root") or {}).get("path", "").partition("/overlay/")
    container, runroot = _container(config)
    if not found or not container:
        return {}  # a root file system without an image (podman run --rootfs)
    for path in (
        f"{graphroot}/overlay-containers/containers.json",
        f"{graphroot}/overlay-containers/volatile-containers.json",
        f"{runroot}/overlay-containers/volatile-containers.json",
    ):
        for record in _records(path):
            if record.get("id") == container:
                return _image_labels(record.get("image", ""), [graphroot, *additional_stores(environ)])
    raise SquashmountError(f"The container {container[:12]} is not in {graphroot}: its image's labels are not known.")


def _container(config: dict[str, Any]) -> tuple[str, str]:
    for mount in config.get("mounts") or []:
        before, found, rest = str(mount.get("source", "")).partition("/overlay-containers/")
        name = rest.partition("/")[0]
        if found and len(name) == 64:
            return name, before
    return "", ""


def _records(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            records: list[dict[str, Any]] = json.loads(file.read() or b"[]")
            return records
    except (FileNotFoundError, ValueError):
        return []


def _image_labels(image: str, stores: list[str]) -> dict[str, str]:
    if not image:
        return {}
    for store in stores:
        path = os.path.join(StoreLayout(store).images, image, big_data_name(f"sha256:{image}"))
        try:
            with open(path, "rb") as file:
                return config_labels(json.load(file))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as err:
            raise SquashmountError(f"The labels of image {image[:12]} cannot be read.", details=str(err)) from err
    raise SquashmountError(
        f"The configuration of image {image[:12]} is in no store: its labels are not known.",
        details="looked in: " + ", ".join(stores),
    )


def config_labels(image: dict[str, Any]) -> dict[str, str]:
    """Return the labels in an image's configuration (OCI image specification, config.md)."""
    labels = (image.get("config") or {}).get("Labels") or {}
    return {str(key): str(value) for key, value in labels.items()}


def additional_stores(environ: dict[str, str]) -> list[str]:
    """Return the additional image stores of storage.conf, as containers-storage finds that file."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")
    given = environ.get("CONTAINERS_STORAGE_CONF")
    for path in [given] if given else [os.path.join(home, "containers/storage.conf"), *_STORAGE_CONF]:
        try:
            with open(path, "rb") as file:
                storage = tomllib.load(file).get("storage", {})
        except (OSError, ValueError):
            continue
        options = storage.get("options", {})
        return [str(store) for store in options.get("additionalimagestores", [])]
    return []
