"""What of a plan and the volumes of a container would be in each other's way: both cannot be had.

The runtime follows the links in a volume and makes what is missing in it, which is then in a directory of the user's;
the plan saw neither (it looks at the image). A mount above a volume hides it, and what is copied below one is hidden.
"""

import os

from squashmount.lean import TYPE_CHECKING, Any, Iterator, NamedTuple

from .plan import Plan

if TYPE_CHECKING:
    from .tree import Tree

_MEMORY = frozenset({"tmpfs", "ramfs"})
_PODMANS = ("/proc", "/sys", "/dev")
"""Podman mounts these and much below them, from the host where namespaces are shared."""


class _Volume(NamedTuple):
    """A mount that was there before the plan's; `place` is where it leads in the image."""

    place: str
    source: str
    options: tuple[str, ...] = ()
    memory: bool = False


class _Wanted(NamedTuple):
    """A mount or a copy of the plan."""

    source: str
    target: str
    options: tuple[str, ...] = ()
    copied: bool = False


def conflicts(config: dict[str, Any], plan: Plan, image: "Tree") -> list[str]:
    """Return what of the plan contradicts what the user asked for on Podman's command line, or the image's VOLUMEs."""
    wanted = [_Wanted(mount.source, mount.target, mount.options) for mount in plan.mounts]
    wanted += [_Wanted(copy.source, copy.target, copied=True) for copy in plan.copies]
    if not wanted:
        return []
    own = {(mount.target, mount.source) for mount in plan.mounts}  # a container that was started before
    volumes = [one for one in _volumes(config, image) if (one.place, one.source) not in own]
    return [text for one in wanted for volume in volumes if (text := _conflict(one, volume))]


def _volumes(config: dict[str, Any], image: "Tree") -> Iterator[_Volume]:
    for mount in config.get("mounts") or []:
        destination = os.path.normpath(str(mount.get("destination", "")))
        try:
            place = image.target(destination).path
        except OSError:
            place = destination  # the runtime will say what is wrong with it
        source, options = str(mount.get("source", "")), tuple(mount.get("options") or ())
        yield _Volume(place, source, options, mount.get("type") in _MEMORY)


def _conflict(one: _Wanted, volume: _Volume) -> str:
    """Return the sentence for one pair; "" when both can be had."""
    what = f"{one.source!r} cannot be {'copied to' if one.copied else 'mounted on'} {one.target!r}"
    if one.target == volume.place:
        return "" if one.source == volume.source else f"{what}: the container has {volume.source!r} there"
    if _is_podmans(volume):
        return ""
    below = _below(one.target, volume.place)
    if below:
        # with tmpcopyup the runtime takes along what the image has there
        empty = volume.memory and (not one.copied or "tmpcopyup" in volume.options)
        same = not one.copied and one.source == volume.source.rstrip("/") + below
        return "" if empty or same else f"{what}: {volume.place!r} is a volume of the container ({volume.source!r})"
    hidden = _below(volume.place, one.target)
    if not hidden:
        return ""
    protected = "ro" in volume.options and "rw" in one.options
    same = volume.source == one.source.rstrip("/") + hidden and not protected
    return "" if same else f"{what}: it would hide {volume.place!r}, a volume of the container ({volume.source!r})"


def _below(path: str, above: str) -> str:
    """Return what of a path comes after a directory; "" when it is not below it."""
    return path[len(above) :] if path.startswith(f"{above}/") else ""


def _is_podmans(volume: _Volume) -> bool:
    """Tell whether Podman mounts this by itself: kernel file systems, and its files (/etc/hosts, /run/secrets …)."""
    if any(volume.place == place or _below(volume.place, place) for place in _PODMANS):
        return True
    _, found, rest = volume.source.partition("-containers/")
    return bool(found) and rest[64:].startswith("/userdata")
