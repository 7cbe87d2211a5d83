"""What an image's manifest says under our words is not the user's: told apart, wherever containers-storage keeps it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hook_site import ID, Site
from squashmount.oci_hooks import manifest
from squashmount.oci_hooks.selection import Manifest, brought

from squashmount.errors import SquashmountError

IMAGE, LAYER = "cd" * 32, "ef" * 32


class Storage:
    """A graphroot with one container, whose image is there or in another store."""

    def __init__(self, site: Site, driver: str = "overlay") -> None:
        self.site, self.driver, self.graphroot = site, driver, site.top / "graph"
        between = {"overlay": "", "vfs": "dir/"}[driver]
        site.root = self.graphroot / driver / f"{between}{LAYER}" / ("merged" if driver == "overlay" else "")
        site.root.mkdir(parents=True)
        self.records = self.graphroot / f"{driver}-containers"
        self.records.mkdir()
        self.record("containers.json")

    def record(self, name: str) -> None:
        records = [{"id": "0" * 64, "layer": "1" * 64, "image": "2" * 64}, {"id": ID, "layer": LAYER, "image": IMAGE}]
        (self.records / name).write_text(json.dumps(records))

    def image(self, words: dict[str, str], *, store: Path | None = None, name: str = "manifest") -> Path:
        place = (store or self.graphroot) / f"{self.driver}-images" / IMAGE
        place.mkdir(parents=True, exist_ok=True)
        new = place / ".new"
        new.write_text(json.dumps({"schemaVersion": 2, "annotations": words}))
        new.rename(place / name)  # as containers-storage does
        return place / name

    def said(self, **annotations: str) -> str:
        done = self.site.run(self.site.config(**annotations))
        assert bool(done.returncode) == bool(done.stderr)
        return done.stderr.decode().partition("\n")[0]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o755)
    made = Site(tmp_path)
    made.module("a", '[env]\nset = { A = "1" }')
    made.module("b", '[when]\nalways = true\n[env]\nset = { B = "1" }')
    return made


REFUSED = (
    "squashmount-hook: The container is not started: The image cdcdcdcdcdcd carries the annotation squashmount.{0}, "
    "but only users and sites switch modules. Build it without, or type another value: --annotation squashmount.{1}."
)


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_an_image_switches_nothing(site: Site, driver: str) -> None:
    storage = Storage(site, driver)
    storage.image({"squashmount.a": "on", "squashmount.b": "off", "org.example": "x"})
    for _ in range(2):  # the second time as remembered
        assert storage.said(a="on") == REFUSED.format("a=on", "a=off, or to have it, =yes")
        assert storage.said(b="off") == REFUSED.format("b=off", "b=on")
        assert storage.said(a="yes", b="on") == ""
        assert storage.said(a="off") == ""
    assert os.listdir(site.state / "squashmount/hook-images") == [f"{IMAGE}.json"]


def test_a_remembered_answer_ends_with_the_manifest(site: Site) -> None:
    storage = Storage(site)
    storage.image({})
    assert storage.said(a="on") == ""
    storage.image({"squashmount.a": "on"})
    assert "carries the annotation squashmount.a=on" in storage.said(a="on")
    storage.image({})
    assert storage.said(a="on") == ""
    # the manifest that the image has under another digest
    storage.image({"squashmount.a": "on"}, name="=bWFuaWZlc3Qtc2hhMjU2OmFiYw==")
    assert "carries the annotation squashmount.a=on" in storage.said(a="on")


def test_a_remembered_plan_does_not_outlive_an_error_of_the_selection(site: Site) -> None:
    storage = Storage(site)
    (site.root.parent / "lower").write_text("l/X")
    (site.root.parent / "diff").mkdir()
    storage.image({})
    assert storage.said(a="on") == ""
    assert storage.said(a="on") == ""
    assert site.log().count("(remembered)") == 1
    assert "No module knows the annotation squashmount.typo" in storage.said(a="on", typo="on")
    storage.image({"squashmount.a": "on"})
    assert "carries the annotation" in storage.said(a="on")


def test_images_of_other_stores_are_found(site: Site) -> None:
    storage = Storage(site)
    assert "is in no store: it is not known whether" in storage.said(a="on")
    conf = site.top / ".config/containers/storage.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'[storage.options]\nadditionalimagestores = ["{site.top}/more"]\n')
    place = storage.image({"squashmount.a": "on"}, store=site.top / "more")
    assert "carries the annotation" in storage.said(a="on")
    place.write_text("[]")
    assert "The manifest of the image cdcdcdcdcdcd cannot be read" in storage.said(a="on")
    place.write_text("{}")
    assert storage.said(a="on") == ""
    # the same image in the graphroot, with another manifest
    storage.image({"squashmount.a": "on"})
    assert "carries the annotation" in storage.said(a="on")


def test_stores_of_the_command_line_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert manifest.given_stores({"STORAGE_OPTS": "overlay.size=1,additionalimagestore=/a"}) == ["/a"]


def test_the_record_is_found_by_the_layer(site: Site) -> None:
    storage = Storage(site)
    config: dict[str, Any] = {"root": {"path": str(site.root)}}
    assert manifest.image_of(config) == (IMAGE, str(storage.graphroot), "overlay")
    (storage.records / "containers.json").unlink()
    with pytest.raises(SquashmountError, match="its image is not known"):
        manifest.image_of(config)
    storage.record("volatile-containers.json")
    assert manifest.image_of(config) == (IMAGE, str(storage.graphroot), "overlay")
    assert manifest.image_of({"root": {"path": "/srv/overlay/rootfs"}}) is None


def test_the_mark_of_an_applied_plan_says_nothing() -> None:
    words = (("squashmount.plan", "x"), ("squashmount.a", "on"))
    (error,) = brought(dict(words), Manifest("i", words))
    assert "squashmount.a=on" in error
