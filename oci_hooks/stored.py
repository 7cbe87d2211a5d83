"""An image in a store of ours, looked at without Podman: its squash file and its configuration."""

import json
import os
from dataclasses import dataclass
from typing import Any

from squashmount import jsonio
from squashmount.errors import AmbiguousImageError, ImageNotFoundError, StoreError
from squashmount.ids import ImageId
from squashmount.layout import StoreLayout, big_data_name

from .labels import config_labels
from .manifest import words_in
from .selection import Manifest


@dataclass(frozen=True, slots=True)
class Stored:
    """One image: where its squash file is, what its configuration says, and our words in its manifest."""

    image: ImageId
    squash: str
    env: dict[str, str]
    labels: dict[str, str]
    manifest: Manifest


def find(store: str, wanted: str) -> Stored:
    """Return the image of that name or ID. ImageNotFoundError, AmbiguousImageError, StoreError."""
    layout = StoreLayout(store)
    names = _names(layout)
    full = wanted if "@" in wanted or ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    images = {names[name] for name in (full, f"localhost/{full}", f"docker.io/library/{full}") if name in names}
    images = images or {image for name, image in names.items() if name.endswith(f"/{full}")}
    images = images or {image for image in _listed(layout.capsules) if image.startswith(wanted.removeprefix("sha256:"))}
    if not images or not wanted:
        raise ImageNotFoundError(f"{store} has no image {wanted}.", hint=f"migrate2scratch images {store}")
    if len(images) > 1:
        raise AmbiguousImageError(f"{wanted} means several images.", details="\n".join(sorted(images)))
    return _read(layout, ImageId(images.pop()))


def _read(layout: StoreLayout, image: ImageId) -> Stored:
    try:
        with open(layout.capsule_json(image), "rb") as file:
            capsule = jsonio.load_object(file.read(), where=layout.capsule_json(image))
        data = os.path.join(layout.capsule_data(image), big_data_name(f"sha256:{image}"))
        with open(data, "rb") as file:
            config: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as err:
        raise StoreError(f"The image {image[:12]} in {layout.root} cannot be read.", details=str(err)) from err
    entries = (config.get("config") or {}).get("Env") or []
    env = dict(str(entry).partition("=")[::2] for entry in entries)
    manifest = Manifest(image[:12], tuple(words_in(image, [layout.capsule_data(image)])))
    return Stored(image, layout.squash(image, jsonio.get_str(capsule, "file")), env, config_labels(config), manifest)


def _names(layout: StoreLayout) -> dict[str, str]:
    found = {}
    for entry in _listed(layout.names):
        try:
            with open(os.path.join(layout.names, entry), "rb") as file:
                value = jsonio.load_object(file.read(), where=entry)
            found[jsonio.get_str(value, "name")] = jsonio.get_str(value, "image")
        except (StoreError, FileNotFoundError):
            continue  # torn: no name, as everywhere
    return found


def _listed(path: str) -> list[str]:
    try:
        return [name for name in os.listdir(path) if not name.startswith(".")]
    except FileNotFoundError:
        return []
