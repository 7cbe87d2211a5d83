"""A plan and the volumes of a container: neither hides the other, and nothing is made in a directory of the user's."""

from pathlib import Path
from typing import Any

import pytest
from squashmount.oci_hooks import volumes
from squashmount.oci_hooks.plan import Copy, Mount, Plan
from squashmount.oci_hooks.tree import DirectoryTree

ID = "ab" * 32
USERDATA = f"/run/user/1/containers/overlay-containers/{ID}/userdata"
# what Podman 4.3 and 5.4 mount by themselves, rootless, with namespaces of the host
PODMANS = [
    {"destination": "/proc", "type": "bind", "source": "/proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/sys", "type": "bind", "source": "/sys"},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
    {"destination": "/dev/mqueue", "type": "bind", "source": "/dev/mqueue"},
    {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"},
    {"destination": "/run/.containerenv", "type": "bind", "source": f"{USERDATA}/.containerenv"},
    {"destination": "/run/secrets", "type": "bind", "source": f"{USERDATA}/run/secrets"},
    {"destination": "/etc/hosts", "type": "bind", "source": f"{USERDATA}/hosts"},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
]


@pytest.fixture
def image(tmp_path: Path) -> DirectoryTree:
    for name in ("opt/real", "etc", "run", "home/me"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "alias").symlink_to("/opt/real")
    return DirectoryTree(str(tmp_path))


def said(image: DirectoryTree, plan: Plan, *mounts: dict[str, Any]) -> list[str]:
    return volumes.conflicts({"mounts": [*PODMANS, *mounts]}, plan, image)


def volume(source: str, destination: str, **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rw", "rbind"], **more}


PLAN = Plan(mounts=(Mount("/site/lib", "/opt/real/lib"),), copies=(Copy("/site/conf", "/etc/app/conf"),))
MOUNT = "'/site/lib' cannot be mounted on '/opt/real/lib'"
COPY = "'/site/conf' cannot be copied to '/etc/app/conf'"


@pytest.mark.parametrize(
    ("mount", "error"),
    [
        (volume("/mine", "/opt/real/lib"), f"{MOUNT}: the container has '/mine' there"),
        (volume("/mine", "/opt/real/"), f"{MOUNT}: '/opt/real' is a volume of the container ('/mine')"),
        (volume("/mine", "/alias"), f"{MOUNT}: '/opt/real' is a volume of the container ('/mine')"),
        (volume("overlay", "/opt", type="overlay"), f"{MOUNT}: '/opt' is a volume of the container ('overlay')"),
        (
            volume("/mine", "/alias/lib/deep/er"),
            f"{MOUNT}: it would hide '/opt/real/lib/deep/er', a volume of the container ('/mine')",
        ),
        (volume("/mine", "/etc/app/conf"), f"{COPY}: the container has '/mine' there"),
        (volume("/mine", "/etc"), f"{COPY}: '/etc' is a volume of the container ('/mine')"),
        (volume("tmpfs", "/etc/app", type="tmpfs"), f"{COPY}: '/etc/app' is a volume of the container ('tmpfs')"),
    ],
)
def test_what_would_hide_or_be_hidden_is_an_error(image: DirectoryTree, mount: dict[str, Any], error: str) -> None:
    assert said(image, PLAN, mount) == [error]


@pytest.mark.parametrize(
    "mount",
    [
        volume("/mine", "/opt/real/library"),
        volume("/mine", "/opt/real/li"),
        volume("/site/lib", "/opt/real/lib"),
        volume("/site/lib/deep", "/opt/real/lib/deep"),  # what the plan's mount has there anyway
        volume("tmpfs", "/opt/real", type="tmpfs"),  # nobody's files, and the links of the image at most
        volume("tmpfs", "/etc/app", type="tmpfs", options=["tmpcopyup"]),
    ],
)
def test_what_both_can_have(image: DirectoryTree, mount: dict[str, Any]) -> None:
    assert said(image, PLAN, mount) == []


def test_what_podman_mounts_is_no_volume(image: DirectoryTree) -> None:
    places = ("/run/squashmount/lib/liba.so", "/dev/infiniband", "/run/munge", "/run/secrets/x", "/etc/hosts.d")
    assert said(image, Plan(mounts=tuple(Mount("/site/x", place) for place in places))) == []


def test_directories_at_the_same_path_as_on_the_host(image: DirectoryTree) -> None:
    home = Plan(mounts=(Mount("/home/me", "/home/me", ("rw",)), Mount("/tmp/pmix_7", "/tmp/pmix_7", ("rw",))))
    assert said(image, home, volume("/home/me/work", "/home/me/work"), volume("/tmp", "/tmp")) == []
    (error,) = said(image, home, volume("/home/me/work", "/home/me/work", options=["ro", "rbind"]))
    assert "would hide '/home/me/work'" in error


def test_a_container_that_was_edited_before(image: DirectoryTree) -> None:
    plan = Plan(mounts=(Mount("/site", "/opt/a"), Mount("/other", "/opt/a/b")))
    assert said(image, plan, volume("/site", "/opt/a"), volume("/other", "/opt/a/b")) == []
    assert volumes.conflicts({"mounts": None}, plan, image) == []
