"""Layers, stores and capsules for the tests of the migrate folder; no Podman needed."""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from squashmount.migrate import publish
from squashmount.migrate.capsule import Capsule
from squashmount.migrate.store import Store

from squashmount import layout
from squashmount.ids import ImageId


def entry(name: str, **attributes: object) -> tarfile.TarInfo:
    """Return a tar header; `data` is the contents."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def directory(name: str, **attributes: object) -> tarfile.TarInfo:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **attributes})


def layer(path: Path, entries: Iterable[tarfile.TarInfo], *, fmt: int = tarfile.PAX_FORMAT) -> str:
    """Write the tar-split record of a layer with these entries, split as vbatts/tar-split splits: contents left out."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=fmt, encoding="utf-8", errors="surrogateescape") as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(b"x" * info.size) if info.size else None)
    data = stream.getvalue()
    lines, at = [], 0
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            lines.append({"type": 2, "payload": base64.b64encode(data[at : info.offset_data]).decode()})
            size = info.size if info.isreg() else 0
            lines.append({"type": 1, "name": "?", "payload": None} | ({"size": size} if size else {}))
            at = info.offset_data + size
    lines.append({"type": 2, "payload": base64.b64encode(data[at:]).decode()})
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({**line, "position": number}) + "\n" for number, line in enumerate(lines))
    return str(path)


def image_id(seed: str) -> ImageId:
    return ImageId(hashlib.sha256(seed.encode()).hexdigest())


def squash_file(path: Path) -> bytes:
    """Return a small real squash file, made once per directory."""
    made = path / "small.squashfs"
    if not made.exists():
        tree = path / "small"
        tree.mkdir()
        (tree / "file").write_text("contents\n")
        program = shutil.which("mksquashfs")
        assert program, "these tests need mksquashfs"
        subprocess.run([program, tree, made, "-noappend", "-no-progress", "-quiet"], check=True, capture_output=True)
    return made.read_bytes()


def staged(
    store: Store, seed: str, *, squash: bytes, token: str, diff_ids: tuple[str, ...] = ()
) -> tuple[Capsule, str]:
    """Fill a staging directory as `mig` does after squashing."""
    image = image_id(seed)
    manifest = json.dumps({"seed": seed}).encode()
    digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    keys = ("manifest", f"manifest-{digest}", f"sha256:{image}")
    record = {
        "id": image,
        "digest": digest,
        "created": "2026-01-02T03:04:05.678Z",
        "metadata": "{}",
        "big-data-names": list(keys),
        "big-data-sizes": dict.fromkeys(keys, len(manifest)),
        "big-data-digests": dict.fromkeys(keys, digest),
    }
    directory = os.path.join(store.layout.staging, token)
    os.makedirs(os.path.join(directory, "data"))
    for key in keys:
        Path(directory, "data", layout.big_data_name(key)).write_bytes(manifest)
    Path(directory, "image.squashfs").write_bytes(squash)
    one = Capsule(
        image=image,
        record=record,
        diff_ids=diff_ids or (f"sha256:{image}",),
        size=len(squash),
        sha256=hashlib.sha256(squash).hexdigest(),
        tree_bytes=9,
        entries=2,
        root_mode=0o755,
        compressor="gzip",
        level=9,
        block=131072,
        squashed=f"2026-01-02T03:04:05.{len(seed):06d}Z",
        made_by="tester",
    )
    Path(directory, "capsule.json").write_text(one.to_json())
    return one, directory


def put(store: Store, seed: str, names: Iterable[str], squash: bytes) -> ImageId:
    """Publish an image."""
    with store.lock(doing="test", name=f"image-{image_id(seed)}") as mine:
        one, directory = staged(store, seed, squash=squash, token=mine.holder.token)
        with store.lock(doing="test") as held:
            publish.add(store, publish.begin(store, held), one, directory, held, names=names)
    return one.image


def shown(store: Store) -> dict[str, list[str]]:
    """Return what Podman sees: names by image."""
    records = json.loads(Path(store.layout.images_json).read_text())
    return {record["id"]: record.get("names", []) for record in records}


def assert_valid(store: Store) -> None:
    """Check what containers-storage requires of a read-only store (field.md 0.3 and 2.1)."""
    paths = store.layout
    images = json.loads(Path(paths.images_json).read_text())
    layers = {record["id"]: record for record in json.loads(Path(paths.layers_json).read_text())}
    names = [name for record in images for name in record.get("names", [])]
    assert len(names) == len(set(names)), "a tag on two images"
    assert Path(paths.images_lock).stat().st_size == Path(paths.layers_lock).stat().st_size == 64
    for record in images:
        layer_id = record["layer"]
        assert layer_id in layers
        assert layers[layer_id]["diff-digest"].startswith("sha256:")
        link = Path(paths.layer(layer_id), "link").read_text()
        assert Path(paths.link(link)).resolve() == Path(paths.diff(layer_id)).resolve()
        for name in ("diff", "merged", "work", "empty"):
            assert Path(paths.layer(layer_id), name).is_dir()
        squash = Path(paths.link_squash(link)).resolve(strict=True)
        assert squash.read_bytes()[:4] == b"hsqs"
        for key, size in record["big-data-sizes"].items():
            data = Path(paths.image(record["id"]), layout.big_data_name(key)).read_bytes()
            assert len(data) == size
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == record["big-data-digests"][key]
