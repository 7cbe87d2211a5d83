"""Images and layers as Podman records them in a graphroot: JSON in, frozen values out. Nothing is written.

Source: containers/storage images.go (type Image) and layers.go (type Layer); the files are replaced by rename, so
reading them without Podman's lock gives one consistent version.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from squashmount import jsonio, layout
from squashmount.errors import StoreError
from squashmount.ids import ImageId

_ZERO = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Image:
    """One record of images.json; `raw` is the whole record, kept because newer Podmans add members."""

    id: ImageId
    layer: str
    names: tuple[str, ...]
    created: str
    digest: str
    raw: jsonio.JsonObject

    @property
    def big_data(self) -> tuple[str, ...]:
        """Keys of the files that belong to the image: manifests, configuration, signatures."""
        return jsonio.get_strs(self.raw, "big-data-names", where=f"image {self.id}")


@dataclass(frozen=True, slots=True)
class Layer:
    """One record of layers.json in the store `home`.

    `owners_seen` holds the user and group ids the layer's tar stream named.
    """

    id: str
    parent: str
    diff_digest: str
    owners_seen: frozenset[int]
    home: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """The image side of one graphroot; `layers` also holds those of the additional stores, the graphroot's first."""

    root: str
    driver: str
    images: tuple[Image, ...]
    layers: dict[str, Layer]

    def image(self, image: ImageId) -> Image | None:
        """Return the record of an image, or None when it lies in another store."""
        return next((found for found in self.images if found.id == image), None)

    def chain(self, top: str) -> tuple[Layer, ...]:
        """Return the layers of an image, the bottom one first; the chain ends where another store begins."""
        layers: list[Layer] = []
        while top in self.layers:
            layers.append(self.layers[top])
            top = self.layers[top].parent
            if len(layers) > len(self.layers):
                raise StoreError(f"The layers in {self.root} form a circle.", hint="podman system check")
        return tuple(reversed(layers))

    def diff_ids(self, top: str) -> tuple[str, ...]:
        """Return the digests of the layers, bottom first; a base layer of another store stands for itself by its id."""
        layers = self.chain(top)
        base = layers[0].parent if layers else top
        return ((f"layer:{base}",) if base else ()) + tuple(layer.diff_digest for layer in layers)

    def big_data_path(self, image: ImageId, key: str) -> str:
        """Return the file that holds one big data item."""
        return os.path.join(self.root, f"{self.driver}-images", image, layout.big_data_name(key))

    def owner_records(self, top: str) -> tuple[str, ...]:
        """Return the files that say who owns what, bottom first: tar-split records, or a squash file at the bottom.

        Empty when a layer has neither.
        """
        records: list[str] = []
        for layer in reversed(self.chain(top)):
            squash = self._squash(layer)
            records.append(squash or self._tar_split(layer))
            if squash:
                break
        return tuple(reversed(records)) if all(map(os.path.exists, records)) else ()

    def _tar_split(self, layer: Layer) -> str:
        return os.path.join(layer.home, f"{self.driver}-layers", f"{layer.id}.tar-split.gz")

    def _squash(self, layer: Layer) -> str:
        """Return the squash file of a layer in a squash store, "" when it has none."""
        overlay = os.path.join(layer.home, self.driver)
        try:
            with open(os.path.join(overlay, layer.id, "link"), encoding="ascii") as file:
                squash = os.path.join(overlay, "l", f"{file.read().strip()}.squash")
        except OSError:
            return ""
        return squash if os.path.exists(squash) else ""


def read_graph(root: str, driver: str, additional: tuple[str, ...] = ()) -> Graph:
    """Read both JSON files; a missing file is an empty store, as it is for Podman."""
    images = _records(os.path.join(root, f"{driver}-images", "images.json"))
    layers: dict[str, Layer] = {}
    for home in (root, *additional):
        for raw in _records(os.path.join(home, f"{driver}-layers", "layers.json")):
            layer = _to_layer(raw, home)
            layers.setdefault(layer.id, layer)
    return Graph(root, driver, tuple(map(to_image, images)), layers)


def to_image(raw: jsonio.JsonObject) -> Image:
    """Check and convert one record."""
    return Image(
        id=ImageId(jsonio.get_str(raw, "id", where="images.json")),
        layer=jsonio.get_str(raw, "layer", "", where="images.json"),
        names=jsonio.get_strs(raw, "names", where="images.json"),
        created=jsonio.get_str(raw, "created", _ZERO, where="images.json"),
        digest=jsonio.get_str(raw, "digest", "", where="images.json"),
        raw=raw,
    )


def _to_layer(raw: jsonio.JsonObject, home: str) -> Layer:
    return Layer(
        id=jsonio.get_str(raw, "id", where="layers.json"),
        parent=jsonio.get_str(raw, "parent", "", where="layers.json"),
        diff_digest=jsonio.get_str(raw, "diff-digest", "", where="layers.json"),
        owners_seen=frozenset(_ints(raw.get("uidset")) | _ints(raw.get("gidset"))),
        home=home,
    )


def _ints(value: object) -> set[int]:
    return {item for item in value if isinstance(item, int)} if isinstance(value, Iterable) else set()


def _records(path: str) -> list[jsonio.JsonObject]:
    try:
        with open(path, "rb") as file:
            return jsonio.load_objects(file.read(), where=path)
    except FileNotFoundError:
        return []
    except OSError as err:
        raise StoreError(f"Cannot read Podman's {path}.", details=str(err)) from err
