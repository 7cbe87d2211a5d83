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

from .manifest import given_stores, image_of

_STORAGE_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")


def labels_of(config: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    """Return the labels. SquashmountError when they cannot be found: a module waits for them."""
    place = image_of(config)
    if place is None:
        return {}  # a root file system without an image (podman run --rootfs)
    return _image_labels(place.image, [place.graphroot, *given_stores(environ), *additional_stores(environ)])


def _image_labels(image: str, stores: list[str]) -> dict[str, str]:
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


def storage_files(environ: dict[str, str]) -> list[str]:
    """Return the paths where containers-storage looks for storage.conf; the first that is there counts."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")
    given = environ.get("CONTAINERS_STORAGE_CONF")
    return [given] if given else [os.path.join(home, "containers/storage.conf"), *_STORAGE_CONF]


def additional_stores(environ: dict[str, str]) -> list[str]:
    """Return the image stores that storage.conf names besides the graphroot."""
    for path in storage_files(environ):
        try:
            with open(path, "rb") as file:
                storage = tomllib.load(file).get("storage", {})
        except (OSError, ValueError):
            continue
        stores = [*storage.get("options", {}).get("additionalimagestores", []), storage.get("imagestore")]
        return [str(store) for store in stores if store]
    return []
