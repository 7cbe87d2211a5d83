"""What a command will do, decided before anything is done. Pure: state and image in, actions out."""

from dataclasses import dataclass

from squashmount.errors import UsageError
from squashmount.ids import ImageId

from .derive import State
from .image import Image
from .mksquashfs import Format
from .names import Match


@dataclass(frozen=True, slots=True)
class Squash:
    """Make a squash file from the mounted image."""

    image: ImageId
    format: Format
    order: str = ""
    again: bool = False

    def describe(self) -> str:
        """Return a line for people."""
        how = f" {'again ' if self.again else ''}in the order of a profile" if self.order else ""
        return f"squash {self.image[:12]}{how} with {self.format}, {self.format.block // 1024} KiB blocks"


@dataclass(frozen=True, slots=True)
class Share:
    """Use the squash file of an image that has the same layers (a hard link)."""

    image: ImageId
    other: ImageId

    def describe(self) -> str:
        """Return a line for people."""
        return f"share the squash file of {self.other[:12]}, which has the same layers as {self.image[:12]}"


@dataclass(frozen=True, slots=True)
class Name:
    """Give the image a name, perhaps another image's."""

    name: str
    image: ImageId
    taken_from: ImageId | None = None

    def describe(self) -> str:
        """Return a line for people."""
        moved = f", which {self.taken_from[:12]} loses" if self.taken_from else ""
        return f"name {self.image[:12]} {self.name}{moved}"


@dataclass(frozen=True, slots=True)
class Unname:
    """Take a name away from an image that has others."""

    name: str
    image: ImageId

    def describe(self) -> str:
        """Return a line for people."""
        return f"remove the name {self.name} of {self.image[:12]}"


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete an image: its last name goes, or it has none."""

    image: ImageId
    names: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return a line for people."""
        return f"delete {self.image[:12]} ({', '.join(self.names) or 'no name left'})"


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the files of an image that was withdrawn before."""

    image: ImageId

    def describe(self) -> str:
        """Return a line for people."""
        return f"empty the trash of {self.image[:12]}"


Action = Squash | Share | Name | Unname | Drop | Discard


def plan_removal(state: State, match: Match, *, force: bool = False) -> tuple[Action, ...]:
    """Return what `rmi` has to do, by Podman's rules: a name goes alone while there are others.

    Raises UsageError for an image given by ID that has several names, unless `force`.
    """
    names = state.names_of(match.image)
    if match.name and len(names) > 1 and not force:
        return (Unname(match.name, match.image),)
    if not match.name and len(names) > 1 and not force:
        raise UsageError(
            f"Image {match.image[:12]} has several names.",
            details="\n".join(names),
            hint="remove them one by one, or use --force",
        )
    return (Drop(match.image, names),)


def plan_prune(state: State) -> tuple[Action, ...]:
    """Return what `prune` has to do: delete the images without a name."""
    return tuple(Drop(image) for image in sorted(state.capsules) if not state.names_of(image))


def plan_migration(
    state: State,
    image: Image,
    diff_ids: tuple[str, ...],
    wanted: Format,
    *,
    replace: bool = False,
    order: str = "",
) -> tuple[Action, ...]:
    """Return what `mig` has to do; nothing when the image and all its names are there.

    An image that is there is squashed again only for another `order` of its files.
    """
    actions: list[Action] = []
    present = state.capsules.get(image.id)
    if present is None:
        actions.append(Squash(image.id, wanted, order) if order else _content(state, image, diff_ids, wanted))
    elif order and present.order != order:
        actions.append(Squash(image.id, wanted, order, again=True))
    moved: set[ImageId] = set()
    for name in sorted(image.names):
        owner = state.names.get(name)
        if owner != image.id:
            actions.append(Name(name, image.id, owner))
            moved |= {owner} if owner else set()
    if replace:
        actions += [Drop(old) for old in sorted(moved) if set(state.names_of(old)) <= set(image.names)]
    return tuple(actions)


def _content(state: State, image: Image, diff_ids: tuple[str, ...], wanted: Format) -> Squash | Share:
    for other in state.capsules.values():
        same_format = (other.compressor, other.level, other.block) == (wanted.compressor, wanted.level, wanted.block)
        if diff_ids and all(diff_ids) and other.diff_ids == diff_ids and same_format:
            return Share(image.id, other.image)
    return Squash(image.id, wanted)
