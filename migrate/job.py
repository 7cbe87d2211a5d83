"""What the part inside the user namespace is told to do; travels as one line of JSON."""

import json
from dataclasses import asdict, dataclass

from squashmount import jsonio

from .mksquashfs import Format, Mksquashfs


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be squashed into one file.

    `owner_records` say who owns what (Graph.owner_records; empty: not known); `owners_seen` are all ids the layers
    named. `copies` is true for storage drivers without mounts (vfs). `runtime_dir` is an empty directory for
    temporary files and for a server that the mount of the image may start, `counts` is where Podman counts mounts.
    `first` are the paths of the files that come first in the file, in this order.
    """

    podman: tuple[str, ...]
    image: str
    output: str
    binary: Mksquashfs
    format: Format
    created: int
    runtime_dir: str
    processors: int = 0
    copies: bool = False
    owner_records: tuple[str, ...] = ()
    owners_seen: tuple[int, ...] = ()
    owners_lost: bool = False
    counts: str = ""
    first: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return one line."""
        value = asdict(self) | {"binary": asdict(self.binary) | {"compressors": []}}
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> "Job":
        """Rebuild the job from its line."""
        value = jsonio.load_object(line, where="job")
        binary = jsonio.get_object(value, "binary")
        made: jsonio.JsonObject = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        made["binary"] = Mksquashfs(str(binary["path"]), tuple(binary["version"]), sets_root=bool(binary["sets_root"]))
        made["format"] = Format(**jsonio.get_object(value, "format"))
        return cls(**made)
