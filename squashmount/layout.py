"""The only place that knows a path inside a store on the shared file system.

DIR is a containers-storage additional image store (storage.conf(5), additionalimagestores). What Podman reads is
derived from the capsules and can be rebuilt from them::

    DIR/
      squashmount/
        version                          store format number
        capsules/<image id>/             immutable once published
          image.squashfs                 the flattened image, container ids; image-<hash>.squashfs when it was laid out
                                         anew: capsule.json says which one counts
          capsule.json                   digest, layer chain, sizes, checksum, how it was made
          profile.json                   what programs need first; may come later, and be replaced
          data/                          big data files exactly as Podman stored them (manifest, =<base64 name>)
        names/<percent-encoded name>     one small JSON file per name; owned by one image
        lock/                            the lease lock
        staging/<random>/  trash/        unfinished work; withdrawn images waiting for the last job
      overlay/<layer>/{diff,link,merged,work,empty}
      overlay/l/<LINK>                   -> ../<layer>/diff
      overlay/l/<LINK>.squash            -> ../../squashmount/capsules/<id>/image.squashfs
      overlay-layers/{layers.json,layers.lock}
      overlay-images/{images.json,images.lock}
      overlay-images/<image id>/         copies of data/

One layer record per layer of the image's history (Podman counts them when it commits or builds on top), with digests
of our own invention, and ids computed from these as Podman computes them, so that a commit on top finds the chain. Only
the topmost layer has a squash, and that is the flattened image. Digests and ids are never those of real layers: Podman
reuses any layer it finds in an additional store by id or digest when it pulls or builds another image, and that other
image would get an empty base.
"""

import os

from .ids import ImageId, LayerId, LinkId
from .lean import NamedTuple

FORMAT = 1
"""Version of the layout above, written to squashmount/version."""


class ImageLayer(NamedTuple):
    """One layer record of an image: `parent` is the id of the one below, "" for the lowest."""

    id: LayerId
    digest: str
    parent: str


def image_layers(image: ImageId, count: int) -> tuple[ImageLayer, ...]:
    """Return the records that stand for an image of `count` (at least one) layers, the lowest first.

    The ids follow from the digests as in containers/image, storage/storage_dest.go: the first is the digest itself,
    every other the hash of the parent's id, "+" and the digest.
    """
    import hashlib  # noqa: PLC0415 - OpenSSL; servers know no more of a store than `profile_of`

    layers: list[ImageLayer] = []
    parent = ""
    for number in range(max(count, 1)):
        digest = hashlib.sha256(f"squashmount layer {number} of {image}\n".encode()).hexdigest()
        chained = hashlib.sha256(f"{parent}+{digest}".encode()).hexdigest() if parent else digest
        layers.append(ImageLayer(LayerId(chained), f"sha256:{digest}", parent))
        parent = chained
    return tuple(layers)


def link_of(layer: LayerId) -> LinkId:
    """Return the short link name: 26 of A-Z and 2-7, the form containers-storage uses (drivers/overlay, idLength)."""
    import base64  # noqa: PLC0415 - as above
    import hashlib  # noqa: PLC0415 - as above

    return LinkId(base64.b32encode(hashlib.sha256(f"link {layer}\n".encode()).digest()).decode()[:26])


def big_data_name(key: str) -> str:
    """Return the file name containers-storage gives a big data item (images.go, makeBigDataBaseName)."""
    if key and all(char.isascii() and (char.islower() or char.isdigit() or char == ".") for char in key):
        return key
    import base64  # noqa: PLC0415 - as above

    return "=" + base64.b64encode(key.encode()).decode()


SQUASH = "image.squashfs"
PROFILE = "profile.json"


def is_squash(name: str) -> bool:
    """Tell whether a file in a capsule is (or was, or will be) its squash file."""
    return "/" not in name and name.startswith("image") and name.endswith(".squashfs")


def learned_profiles(squash: str, environ: dict[str, str]) -> tuple[str, ...]:
    """Return where a server keeps the profile it recorded unasked: with the image, or in the user's own cache.

    The first place that can be written; () for a squash file in no store of ours, or one that is in the trash.
    """
    beside = profile_of(squash)
    image = os.path.basename(os.path.dirname(beside))
    if len(image) != 64:
        return ()
    cache = environ.get("XDG_CACHE_HOME") or (os.path.join(environ["HOME"], ".cache") if environ.get("HOME") else "")
    own = (os.path.join(cache, "squashmount", "profiles", f"{image}.json"),) if os.path.isabs(cache) else ()
    return (beside, *own)


def staging_beside(profile: str) -> str:
    """Return where a file that is to become a profile is written: where the next writer deletes it if we die."""
    directory = os.path.dirname(profile)
    if os.path.basename(profile) != PROFILE:
        return directory
    return os.path.join(os.path.dirname(os.path.dirname(directory)), "staging")


def profile_of(squash: str) -> str:
    """Return the profile that belongs to a squash file, which lies beside it; "" for a file in no store of ours."""
    directory, name = os.path.split(squash)
    ours = is_squash(name) and os.path.basename(os.path.dirname(directory)) in {"capsules", "trash"}
    return os.path.join(directory, PROFILE) if ours else ""


class StoreLayout:
    """Paths of one store; strings, because the mount program uses it too and does without pathlib."""

    def __init__(self, root: str) -> None:
        """Remember the root; nothing is read."""
        self.root = root
        self.ours = os.path.join(root, "squashmount")
        self.version = os.path.join(self.ours, "version")
        self.capsules = os.path.join(self.ours, "capsules")
        self.names = os.path.join(self.ours, "names")
        self.lock = os.path.join(self.ours, "lock")
        self.staging = os.path.join(self.ours, "staging")
        self.trash = os.path.join(self.ours, "trash")
        self.overlay = os.path.join(root, "overlay")
        self.links = os.path.join(self.overlay, "l")
        self.layers = os.path.join(root, "overlay-layers")
        self.layers_json = os.path.join(self.layers, "layers.json")
        self.layers_lock = os.path.join(self.layers, "layers.lock")
        self.images = os.path.join(root, "overlay-images")
        self.images_json = os.path.join(self.images, "images.json")
        self.images_lock = os.path.join(self.images, "images.lock")

    def capsule(self, image: ImageId) -> str:
        """Return the directory of one image; it exists only complete."""
        return os.path.join(self.capsules, image)

    def squash(self, image: ImageId, name: str = SQUASH) -> str:
        """Return the squash file of one image; its capsule knows the name."""
        return os.path.join(self.capsules, image, name)

    def capsule_json(self, image: ImageId) -> str:
        """Return the description of one image."""
        return os.path.join(self.capsules, image, "capsule.json")

    def profile(self, image: ImageId) -> str:
        """Return the recorded profile of one image; it need not exist."""
        return os.path.join(self.capsules, image, PROFILE)

    def capsule_data(self, image: ImageId) -> str:
        """Return the directory with Podman's big data files."""
        return os.path.join(self.capsules, image, "data")

    def layer(self, layer: LayerId) -> str:
        """Return the directory of a layer."""
        return os.path.join(self.overlay, layer)

    def diff(self, layer: LayerId) -> str:
        """Return the (empty) content directory of a layer: its mode becomes the mode of the container's `/`."""
        return os.path.join(self.overlay, layer, "diff")

    def link(self, link: LinkId) -> str:
        """Return the short link to a layer's diff."""
        return os.path.join(self.links, link)

    def link_squash(self, link: LinkId) -> str:
        """Return the name under which squash mount programs look for the squash of a layer."""
        return os.path.join(self.links, f"{link}.squash")

    def image(self, image: ImageId) -> str:
        """Return the directory with the big data Podman reads."""
        return os.path.join(self.images, image)
