"""Stores as other squash programs make them: podman-hpc itself, from PyPI, and parallax's layout made by hand.

podman-hpc wants a static mksquashfs of 4.6 or later (it runs it inside a container of the image); distributions have
none, so one is built from Debian's source package, once, and kept in CACHE.
"""

import base64
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import CACHE, TOP, Node, run

PODMAN_HPC = "1.2.2"
SOURCE_RELEASE = "trixie"
"""The Debian release whose squashfs-tools is built: 4.6.1. Debian 12's 4.5.1 lacks -xattrs-exclude."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Makefile of squashfs-tools; XATTR_DEFAULT and COMP_DEFAULT as Debian sets them
_BUILD = (
    *("make", "CONFIG=1", "GZIP_SUPPORT=1", "XZ_SUPPORT=1", "ZSTD_SUPPORT=1", "LZ4_SUPPORT=1", "XATTR_SUPPORT=1"),
    *("XATTR_DEFAULT=1", "COMP_DEFAULT=gzip", "LDFLAGS=-static", "mksquashfs"),
)


def lacks_for_static_mksquashfs() -> str:
    """Return why the static mksquashfs can be neither found nor built, "" when it can."""
    if _cached().exists() or shutil.which("mksquashfs.static"):
        return ""
    missing = [program for program in ("apt-get", "dpkg-source", "gcc", "make") if not shutil.which(program)]
    return f"needs mksquashfs.static, or {', '.join(missing)} to build it" if missing else ""


def _cached() -> Path:
    return CACHE / f"mksquashfs-{SOURCE_RELEASE}.static"


def static_mksquashfs() -> Path:
    """Return a static mksquashfs: the one on PATH, else our own build. AssertionError with the log when it fails."""
    if found := shutil.which("mksquashfs.static"):
        return Path(found)
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _cached().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _cached().exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as directory:
                built = _build_mksquashfs(Path(directory))
                built.chmod(0o755)
                built.rename(_cached())
    return _cached()


def _build_mksquashfs(work: Path) -> Path:
    run(
        *private_apt(work, "deb-src", SOURCE_RELEASE), "source", "--download-only", "squashfs-tools", cwd=str(work)
    ).ok()
    (description,) = work.glob("*.dsc")
    run("dpkg-source", "--no-check", "-x", str(description), str(work / "source")).ok()
    tools = work / "source/squashfs-tools"
    run(*_BUILD, cwd=str(tools)).ok()
    return tools / "mksquashfs"


def private_apt(work: Path, kind: str, release: str) -> list[str]:
    """Return apt-get for `kind` (deb or deb-src) of one release, with every list and cache of its own below `work`.

    The machine's sources and package status stay as they are: to this apt-get nothing is installed.
    """
    for path in ("lists/partial", "cache/archives/partial"):
        (work / path).mkdir(parents=True)
    sources = work / "sources.list"
    sources.write_text(f"{kind} [signed-by={KEYRING}] {_mirror()} {release} main\n")
    (work / "status").touch()
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    run(*apt, "update").ok()
    return apt


def _mirror() -> str:
    # apt-get(8), indextargets: one line per index this machine uses, whatever form its source lists have
    ask = ("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Identifier: Packages")
    if not (listed := run(*ask).ok()):
        run("apt-get", "-q", "update").ok()
        listed = run(*ask).ok()
    sites = [line.split()[0] for line in listed.splitlines() if not line.endswith("-security") and " " in line]
    debian = [site for site in sites if site.rstrip("/").endswith("/debian")] or sites
    assert debian, f"apt knows no mirror here:\n{listed}"
    return debian[0]


class PodmanHpc:
    """podman-hpc in a virtual environment of its own, used by the user of a node on that node's graphroot."""

    def __init__(self, lab: Path, python: str) -> None:
        """Install it, with the mksquashfs it wants beside it."""
        self.bin = lab / "podman-hpc/bin"
        run(python, "-m", "venv", "--without-pip", str(self.bin.parent)).ok()
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check")
        run(*pip, "install", "-q", f"podman-hpc=={PODMAN_HPC}", timeout=300).ok()
        shutil.copy(static_mksquashfs(), self.bin / "mksquashfs.static")

    def migrate(self, node: Node, image: str, squash_dir: Path) -> None:
        """Run `podman-hpc migrate IMAGE`. It exits 0 whatever happens: the log and the squash have to tell.

        It drops XDG_RUNTIME_DIR, so its Podman keeps its pause process in the user's own runtime directory; Podman 5
        makes that directory only when containers.conf names no other tmp_dir.
        """
        pause = Path(f"/run/user/{node.user.uid}/libpod/tmp")
        node.run("mkdir", "-p", str(pause)).ok()
        env = node.environment() | {
            "PATH": f"{self.bin}:/usr/bin:/bin:/usr/sbin:/sbin",
            "SQUASH_DIR": str(squash_dir),
            "PODMANHPC_GRAPH_ROOT": str(node.graphroot),
            "PODMANHPC_RUN_ROOT": str(node.runroot),
            "PODMANHPC_CONFIG_HOME": str(node.base / "hpc-config"),
        }
        done = node.user.run(str(self.bin / "podman-hpc"), "migrate", image, env=env)
        with suppress(FileNotFoundError):
            os.kill(int((pause / "pause.pid").read_text()), signal.SIGKILL)
        run("rm", "-rf", str(pause.parent)).ok()
        assert list(squash_dir.glob("overlay/l/*.squash")), done
        done.ok()


def make_parallax_store(root: Path, node: Node, image: str) -> str:
    """Make the store `parallax --migrate` makes of an image of the node's user; return the new image id.

    One layer record over a dummy tar with one file, the flattened image in squash/LINK.squash (uncompressed data, no
    xattrs), found through a symbolic link overlay/l/LINK.squash; a config and a manifest that name the dummy layer; a
    random image id. The tar-split record is left out: only `podman save` reads it.
    """
    source, data = _image_record(node.graphroot, image)
    manifest = json.loads(data["manifest"])
    config = json.loads(data[manifest["config"]["digest"]])
    layer, link, new = secrets.token_hex(32), _random_link(), secrets.token_hex(32)
    marker = f".migrationv3-{image.replace('/', '-').replace(':', '-')}"
    text = f"{source['id']}\n".encode()
    tar = _tar(marker, text)
    diff_digest = _digest(tar)

    _make_layer(root, layer, link)
    diff = root / "overlay" / layer / "diff"
    (diff / marker).write_bytes(text)
    diff.chmod(0o555)
    now = "2026-01-02T03:04:05.678901234Z"
    record = {"id": layer, "created": now, "compressed-diff-digest": diff_digest, "compressed-size": len(tar)}
    record |= {"diff-digest": diff_digest, "diff-size": len(tar), "compression": 0, "uidset": [0], "gidset": [0]}
    _put(root / "overlay-layers/layers.json", json.dumps([record]).encode())

    config["rootfs"] = {"type": "layers", "diff_ids": [diff_digest]}
    comment = f"Flattened layers from image {source['id']}"
    config["history"] = [*config.get("history", []), {"created_by": "MV3", "comment": comment}]
    config_bytes = json.dumps(config).encode()
    kind = "application/vnd.oci.image"
    manifest_bytes = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {
                "mediaType": f"{kind}.config.v1+json",
                "digest": _digest(config_bytes),
                "size": len(config_bytes),
            },
            "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": diff_digest, "size": len(tar)}],
        }
    ).encode()
    others = {key: value for key, value in data.items() if not key.startswith("manifest")}
    _put_image(
        root,
        {"id": new, "digest": _digest(manifest_bytes), "names": [image], "layer": layer, "created": now},
        {"manifest": manifest_bytes, _digest(config_bytes): config_bytes, **others},
    )
    run("chown", "-R", "-h", f"{node.user.uid}:{node.user.gid}", str(root)).ok()
    options = "-noappend -comp zstd -Xcompression-level 1 -noD -no-xattrs -no-progress -quiet -e security.capability"
    mounted = f'root=$(podman image mount {image}) && mksquashfs "$root" {root}/squash/{link}.squash {options}'
    node.podman("unshare", "sh", "-c", f"{mounted}; code=$?; podman image unmount {image}; exit $code").ok()
    return new


def _image_record(graphroot: Path, image: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    records = json.loads((graphroot / "overlay-images/images.json").read_text())
    (record,) = [one for one in records if image in one.get("names", [])]
    folder = graphroot / "overlay-images" / record["id"]
    return record, {key: (folder / _big_data_name(key)).read_bytes() for key in record["big-data-names"]}


def _make_layer(root: Path, layer: str, link: str) -> None:
    for path in ("overlay/l", "overlay-images", "overlay-layers", "overlay-containers", "squash"):
        (root / path).mkdir(parents=True)
    for path in ("storage.lock", "userns.lock", "overlay-images/images.lock", "overlay-layers/layers.lock"):
        (root / path).touch()
    folder = root / "overlay" / layer
    # containers-storage makes these for a layer without a parent, `merged` when the layer is first mounted
    for name, mode in (("diff", 0o755), ("work", 0o700), ("empty", 0o700)):
        (folder / name).mkdir(parents=True, mode=mode)
    (folder / "link").write_text(link)
    (root / "overlay/l" / link).symlink_to(f"../{layer}/diff")
    (root / "overlay/l" / f"{link}.squash").symlink_to(f"../../squash/{link}.squash")


def _put_image(root: Path, record: dict[str, Any], data: dict[str, bytes]) -> None:
    for key, value in data.items():
        _put(root / "overlay-images" / record["id"] / _big_data_name(key), value)
    record |= {
        "big-data-names": list(data),
        "big-data-sizes": {key: len(value) for key, value in data.items()},
        "big-data-digests": {key: _digest(value) for key, value in data.items()},
    }
    _put(root / "overlay-images/images.json", json.dumps([record]).encode())


def _big_data_name(key: str) -> str:
    # containers-storage, images.go, makeBigDataBaseName
    return key if re.fullmatch(r"[a-z0-9.]+", key) else "=" + base64.b64encode(key.encode()).decode()


def _random_link() -> str:
    # drivers/overlay, generateID: 26 characters of base 32
    return base64.b32encode(secrets.token_bytes(20)).decode()[:26]


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _tar(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def top_layer(store: Path, image: str) -> str:
    """Return the id of the layer a store's image stands on."""
    record, _data = _image_record(store, image)
    return str(record["layer"])


def snapshot_script() -> str:
    """Return the program that prints a tree (tests/snapshot.py)."""
    return (TOP / "tests/snapshot.py").read_text()


def own_python() -> str:
    """Return the Python of this test run by its real name: one the test users can execute."""
    return os.path.realpath(os.path.join(os.environ.get("VIRTUAL_ENV", str(TOP / ".venv")), "bin/python"))
