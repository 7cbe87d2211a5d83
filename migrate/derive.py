"""What Podman reads, as a pure function of the capsules and names: images.json, layers.json and the big data.

`diff-digest` of a layer record must be set: containers-storage (store.go, ImageSize) walks a layer without it to find
its size. Why it is never the digest of a real layer: squashmount.layout.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from squashmount import jsonio
from squashmount.ids import ImageId

from .capsule import Capsule, own_record


@dataclass(frozen=True, slots=True)
class State:
    """The capsules that count, and which image each name means."""

    capsules: Mapping[ImageId, Capsule]
    names: Mapping[str, ImageId]

    def names_of(self, image: ImageId) -> tuple[str, ...]:
        """Return the names of one image, sorted."""
        return tuple(sorted(name for name, owner in self.names.items() if owner == image))

    def with_image(self, one: Capsule) -> "State":
        """Return the state after an image came."""
        return State({**self.capsules, one.image: one}, self.names)

    def with_names(self, image: ImageId, names: Iterable[str]) -> "State":
        """Return the state after an image got names, perhaps of others."""
        return State(self.capsules, {**self.names, **dict.fromkeys(names, image)})

    def without_name(self, name: str) -> "State":
        """Return the state after a name went."""
        return State(self.capsules, {known: owner for known, owner in self.names.items() if known != name})

    def without_image(self, image: ImageId) -> "State":
        """Return the state after an image went with its names."""
        return State(
            {known: one for known, one in self.capsules.items() if known != image},
            {name: owner for name, owner in self.names.items() if owner != image},
        )


def images_json(state: State) -> str:
    """Return the text of images.json."""
    return _text([_image(state, capsule) for capsule in _ordered(state)])


def layers_json(state: State) -> str:
    """Return the text of layers.json."""
    return _text([layer for capsule in _ordered(state) for layer in _layers(capsule)])


def _ordered(state: State) -> list[Capsule]:
    return sorted(state.capsules.values(), key=lambda capsule: (capsule.squashed, capsule.image))


def _image(state: State, capsule: Capsule) -> jsonio.JsonObject:
    names = state.names_of(capsule.image)
    return own_record(capsule.record) | ({"names": list(names)} if names else {}) | {"layer": capsule.top}


def _layers(capsule: Capsule) -> Iterator[jsonio.JsonObject]:
    for layer in capsule.chain:
        record: jsonio.JsonObject = {"id": layer.id, "created": capsule.created, "diff-digest": layer.digest}
        if layer.parent:
            record["parent"] = layer.parent
        if layer.id == capsule.top:
            record["diff-size"] = capsule.tree_bytes
        yield record


def _text(records: list[jsonio.JsonObject]) -> str:
    return json.dumps(records, separators=(",", ":"))
