"""Image names inside a store. For the source Podman itself resolves; a store of ours has no Podman that could be asked.

Rules followed (containers/image docker/reference, libimage lookupImage): a name without tag or digest means `:latest`;
the first part is a registry when it holds a `.` or `:` or is `localhost`; a short name fits every image whose name ends
in it at a `/`, `localhost/` and `docker.io/library/` first; an ID may be given by its first digits.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from squashmount.errors import AmbiguousImageError, ImageNotFoundError, UsageError
from squashmount.ids import ImageId

from .derive import State
from .source import near_misses


@dataclass(frozen=True, slots=True)
class Match:
    """What a name means; `name` is empty when the image was given by its ID."""

    image: ImageId
    name: str


def with_tag(name: str) -> str:
    """Append `:latest` to a name without tag and digest; a port is not a tag."""
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def find(state: State, wanted: str, *, where: str) -> Match:
    """Return the image `wanted` means. Raises ImageNotFoundError or AmbiguousImageError with the candidates."""
    if not wanted.strip():
        raise UsageError("The image name is empty.")
    by_name = _by_name(state, with_tag(wanted.removeprefix("docker://")))
    if by_name:
        return by_name
    prefix = wanted.removeprefix("sha256:")
    images = [image for image in state.capsules if image.startswith(prefix)] if _is_hex(prefix) else []
    if len(images) == 1:
        return Match(images[0], "")
    if images:
        raise AmbiguousImageError(
            f"The image ID {wanted} is ambiguous.", details=_lines(state, images), hint="give more digits or a name"
        )
    near = near_misses(wanted, list(state.names))
    raise ImageNotFoundError(
        f"{where} has no image {wanted}.",
        details="similar: " + ", ".join(near) if near else "",
        hint=f"migrate2scratch images {where}",
    )


def _by_name(state: State, name: str) -> Match | None:
    for candidate in (name, f"localhost/{name}", f"docker.io/library/{name}", f"docker.io/{name}"):
        if candidate in state.names:
            return Match(state.names[candidate], candidate)
    if "@" in name:
        repository, _, digest = name.partition("@")
        fits = {image for image, one in state.capsules.items() if one.record.get("digest") == digest}
        named = [
            known for known, owner in state.names.items() if owner in fits and _ends_in(_repository(known), repository)
        ]
    else:
        named = [known for known in state.names if _ends_in(known, name)]
    if len({state.names[known] for known in named}) > 1:
        raise AmbiguousImageError(
            f"The short name {name} is ambiguous.", details="\n".join(sorted(named)), hint="give the full name"
        )
    return Match(state.names[named[0]], "" if "@" in name else named[0]) if named else None


def _repository(name: str) -> str:
    return name.partition("@")[0] if "@" in name else with_tag(name).rpartition(":")[0]


def _ends_in(known: str, name: str) -> bool:
    return known == name or known.endswith(f"/{name}")


def _is_hex(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{1,64}", text) is not None


def _lines(state: State, images: Iterable[ImageId]) -> str:
    return "\n".join(f"{image[:12]}  {', '.join(state.names_of(image)) or '<none>'}" for image in sorted(images))
