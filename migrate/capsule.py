"""A capsule: everything about one image in the store. Immutable once published; squashmount.layout names its files."""

import json
import os
from dataclasses import asdict, dataclass

from squashmount import jsonio, layout
from squashmount.errors import StoreError
from squashmount.ids import ImageId, LayerId

FORMAT = 1
_OF_ITS_STORE = ("names", "layer", "mapped-layers", "mapped-image-layers")


def own_record(record: jsonio.JsonObject) -> jsonio.JsonObject:
    """Return Podman's record of an image without the members that hold only in the store it comes from."""
    return {key: value for key, value in record.items() if key not in _OF_ITS_STORE}


@dataclass(frozen=True, slots=True)
class Capsule:
    """One image. Sizes in bytes; `record` is Podman's own record of the image; `diff_ids` bottom layer first.

    `layers` is how many layers the image's configuration names. `file` is the name of the squash file in the capsule,
    `order` tells by which profile its files were laid out (Profile.order), "" by none.
    """

    image: ImageId
    record: jsonio.JsonObject
    diff_ids: tuple[str, ...]
    size: int
    sha256: str
    tree_bytes: int
    entries: int
    root_mode: int
    compressor: str
    level: int
    block: int
    squashed: str
    made_by: str
    restored_owners: int = 0
    layers: int = 1
    file: str = layout.SQUASH
    order: str = ""
    format: int = FORMAT

    @property
    def created(self) -> str:
        """Return when the image was built."""
        return jsonio.get_str(self.record, "created", "0001-01-01T00:00:00Z", where=self.image)

    @property
    def chain(self) -> tuple[layout.ImageLayer, ...]:
        """Return the layer records that stand for the image, the lowest first; the last one has the squash."""
        return layout.image_layers(self.image, self.layers)

    @property
    def top(self) -> LayerId:
        """Return the layer the image record points to."""
        return self.chain[-1].id

    @property
    def compression(self) -> str:
        """Return the compressor, with its level where it has one."""
        return f"{self.compressor}-{self.level}" if self.compressor in {"gzip", "zstd"} else self.compressor

    def to_json(self) -> str:
        """Return the text of capsule.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def parse(text: str | bytes, *, where: str) -> Capsule:
    """Read capsule.json; StoreError when it is damaged or of a newer format. Unknown members are ignored."""
    value = jsonio.load_object(text, where=where)
    if jsonio.get_int(value, "format", where=where) > FORMAT:
        raise StoreError(f"{where} was written by a newer version.", hint="update squashmount")
    file = jsonio.get_str(value, "file", layout.SQUASH, where=where)
    if not layout.is_squash(file):
        raise StoreError(f"{where} names the squash file {file!r}.")
    return Capsule(
        image=ImageId(jsonio.get_str(value, "image", where=where)),
        record=jsonio.get_object(value, "record", where=where),
        diff_ids=jsonio.get_strs(value, "diff_ids", where=where),
        size=jsonio.get_int(value, "size", where=where),
        sha256=jsonio.get_str(value, "sha256", where=where),
        tree_bytes=jsonio.get_int(value, "tree_bytes", where=where),
        entries=jsonio.get_int(value, "entries", where=where),
        root_mode=jsonio.get_int(value, "root_mode", where=where),
        compressor=jsonio.get_str(value, "compressor", where=where),
        level=jsonio.get_int(value, "level", where=where),
        block=jsonio.get_int(value, "block", where=where),
        squashed=jsonio.get_str(value, "squashed", where=where),
        made_by=jsonio.get_str(value, "made_by", "", where=where),
        restored_owners=jsonio.get_int(value, "restored_owners", 0, where=where),
        layers=jsonio.get_int(value, "layers", 1, where=where),
        file=file,
        order=jsonio.get_str(value, "order", "", where=where),
        format=jsonio.get_int(value, "format", where=where),
    )


def read(path: str) -> Capsule:
    """Read a capsule.json. StoreError when it is missing or damaged, OSError when it cannot be read now."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError) as err:
        image = os.path.basename(os.path.dirname(path))
        raise StoreError(f"There is no capsule of {image[:12]}.", details=str(err)) from err
    return parse(text, where=path)
