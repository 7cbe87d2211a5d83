"""Libraries that a module lists: where they go, which of several, and what stops them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_files import library
from squashmount.oci_hooks import module
from squashmount.oci_hooks.plan import Contribution, Mount
from squashmount.oci_hooks.planners import Question, planner
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

PRIVATE = "/run/squashmount/lib"
OPTIONS = ("ro", "nosuid", "nodev")
Planned = Callable[..., Contribution]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "image/usr/lib").mkdir(parents=True)
    return tmp_path / "image"


@pytest.fixture
def planned(host: Path, image: Path) -> Planned:
    plan = planner("libraries")
    assert plan is not None

    def planned(*rules: dict[str, Any]) -> Contribution:
        with DirectoryTree(str(host)) as host_tree, DirectoryTree(str(image)) as image_tree:
            one = module.built({"name": "m", "libraries": list(rules)}, "test")
            return plan(Question(one, image_tree, host_tree, Policy(), {}, {}, {}))

    return planned


def mounts(part: Contribution) -> dict[str, str]:
    assert not part.missing
    assert all(mount.options == OPTIONS for mount in part.mounts)
    return {mount.target: mount.source for mount in part.mounts}


def test_the_newest_of_a_pattern_with_what_it_needs(planned: Planned, host: Path) -> None:
    deep = library(host / "usr/lib64/libdeep.so.1")
    for version in ("1.9", "1.20", "1.15.2"):
        library(host / f"opt/fabric/{version}/lib/libfabric.so.1", needs=[deep])
    part = planned({"path": "/opt/fabric/*/lib/libfabric.so.1"})
    assert mounts(part) == {
        f"{PRIVATE}/libfabric.so.1": "/opt/fabric/1.20/lib/libfabric.so.1",
        f"{PRIVATE}/libdeep.so.1": "/usr/lib64/libdeep.so.1",
    }
    assert part.env_prepend == {"LD_LIBRARY_PATH": PRIVATE}


def test_a_plugin_is_found_by_the_name_of_its_file(planned: Planned, host: Path) -> None:
    library(host / "usr/lib64/libnccl-net.so", soname="libnccl-net.so.0")
    source = "/usr/lib64/libnccl-net.so"
    assert mounts(planned({"soname": "libnccl-net.so"})) == {
        f"{PRIVATE}/libnccl-net.so.0": source,
        f"{PRIVATE}/libnccl-net.so": source,
    }


def test_a_provider_goes_beside_the_images_libfabric(planned: Planned, host: Path, image: Path) -> None:
    library(host / "usr/lib64/libgni.so.1")
    library(host / "opt/x/libgnix-fi.so", needs=[host / "usr/lib64/libgni.so.1"])
    library(image / "usr/lib/libfabric.so.1")
    rule = {"path": "/opt/x/lib*-fi.so", "role": "provider"}
    part = planned(rule)
    assert mounts(part) == {
        "/usr/lib/libfabric/libgnix-fi.so": "/opt/x/libgnix-fi.so",
        f"{PRIVATE}/libgni.so.1": "/usr/lib64/libgni.so.1",
    }
    assert not part.env_set
    (image / "usr/lib/libfabric.so.1").unlink()
    part = planned(rule)
    assert Mount("/opt/x/libgnix-fi.so", f"{PRIVATE}/libfabric/libgnix-fi.so", create="file") in part.mounts
    assert part.env_set == {"FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}


def test_a_provider_follows_a_libfabric_that_is_replaced(planned: Planned, host: Path, image: Path) -> None:
    library(host / "opt/x/libx-fi.so")
    library(host / "usr/lib64/libfabric.so.1", defines={"": ["fi_of_the_host"]})
    library(image / "usr/lib/libfabric.so.1")
    part = planned({"path": "/opt/x/libx-fi.so", "role": "provider"}, {"soname": "libfabric.so.1"})
    assert f"{PRIVATE}/libfabric/libx-fi.so" in mounts(part)
    assert part.env_set == {"FI_PROVIDER_PATH": f"{PRIVATE}/libfabric"}


def test_what_is_not_there(planned: Planned, host: Path) -> None:
    gone = library(host / "usr/lib64/libgone.so.1")
    library(host / "usr/lib64/liba.so.1", needs=[gone])
    gone.unlink()
    assert "liba.so.1: missing-dependency" in planned({"soname": "liba.so.1"}).missing[0]
    assert "libnone.so is not on this host" in planned({"soname": "libnone.so"}).missing[0].replace(
        "of the module ", ""
    )
    assert planned({"soname": "libnone.so", "optional": True}) == Contribution()


def test_symbols_that_the_image_lacks(planned: Planned, host: Path, image: Path) -> None:
    newer = library(host / "usr/lib64/libc.so.6", defines={"GLIBC_2.17": ["old"], "GLIBC_2.99": ["fresh"]})
    library(host / "usr/lib64/liba.so.1", uses=["fresh"], needs=[newer])
    library(image / "usr/lib/libc.so.6", defines={"GLIBC_2.17": ["old"]})
    part = planned({"soname": "liba.so.1"})
    assert "GLIBC_2.99" in part.missing[0]
    assert not part.mounts
