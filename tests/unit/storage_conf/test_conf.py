"""The texts: golden files, and what merging must never do to a file somebody wrote."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.storage_conf.conf import GRAPHROOT, Content, StorageSettings, merged

from squashmount.errors import UsageError

SETTINGS = StorageSettings(stores=("/scratch/a", "/scratch/b"), mount_program="/opt/bin/squashmount", podman=5)

GOLDEN = """\
# containers-storage.conf(5) for rootless Podman, written by `squashmount-conf generate`.
# Edit it as you like: another run changes only its own keys and keeps the rest.

[storage]
# Without it rootless Podman may choose vfs: a full copy per container.
driver = "overlay"
# Pulled images and containers. Node-local: never NFS, Lustre, GPFS. Podman fills in $UID (not ${UID}).
graphroot = "/tmp/containers-$UID/storage"
# State that must not outlive a reboot. Node-local, at most 50 characters.
runroot = "/tmp/containers-$UID/run"

[storage.options]
# Read-only stores made by migrate2scratch. Each must exist on every node, or Podman refuses every command.
additionalimagestores = ["/scratch/a", "/scratch/b"]

[storage.options.overlay]
# Mounts the squash of an image; hands everything else to fuse-overlayfs.
mount_program = "/opt/bin/squashmount"
# Pull with a small or missing subuid range; squashes keep the true owners. A string: "true" or "false".
ignore_chown_errors = "true"
"""

ADMIN = """\
# our cluster
[storage] # main
driver = "vfs"   # why vfs
graphroot = "/local/$USER"

# more below
[storage.options]
# quota
size = "10G"
additionalimagestores = [
  "/old", # keep me
]

[storage.options.overlay]
mountopt = "nodev" # safety
mount_program = '/usr/bin/fuse-overlayfs'

[storage.options.thinpool]
a = "b"
"""


def values(text: str) -> dict[str, Any]:
    storage: dict[str, Any] = tomllib.loads(text)["storage"]
    return storage


def test_golden_new_file_for_podman_6() -> None:
    assert merged("", StorageSettings(SETTINGS.stores, SETTINGS.mount_program, podman=6), Content.STORAGE) == GOLDEN


@pytest.mark.parametrize("podman", [4, 5])
def test_before_podman_6_rootless_storage_path_goes_with_graphroot(podman: int) -> None:
    storage = values(merged("", StorageSettings(graphroot="/local/$UID", podman=podman), Content.STORAGE))
    assert storage["rootless_storage_path"] == storage["graphroot"] == "/local/$UID"


def test_golden_containers_conf() -> None:
    text = merged("", SETTINGS, Content.CONTAINERS)
    assert tomllib.loads(text) == {
        "containers": {"cgroupns": "host"},
        "engine": {"cgroup_manager": "cgroupfs", "events_logger": "file"},
    }
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(keys) == 3
    assert all(lines[number - 1].startswith("# ") for number in keys)


@pytest.mark.parametrize("content", list(Content))
@pytest.mark.parametrize("text", ["", ADMIN])
def test_twice_is_once(text: str, content: Content) -> None:
    once = merged(text, SETTINGS, content)
    assert merged(once, SETTINGS, content) == once


def test_every_line_that_is_not_ours_survives() -> None:
    after = merged(ADMIN, SETTINGS, Content.STORAGE)
    changed = {'driver = "vfs"   # why vfs', "mount_program = '/usr/bin/fuse-overlayfs'"}
    lost = [line for line in ADMIN.splitlines() if line not in after.splitlines() and line not in changed]
    assert lost == []
    assert 'driver = "overlay"   # why vfs' in after
    assert values(after)["options"]["additionalimagestores"] == ["/scratch/a", "/scratch/b", "/old"]


def test_a_present_graphroot_stays_unless_asked() -> None:
    assert values(merged(ADMIN, SETTINGS, Content.STORAGE))["graphroot"] == "/local/$USER"
    assert values(merged(ADMIN, SETTINGS, Content.STORAGE))["rootless_storage_path"] == "/local/$USER"
    asked = StorageSettings(graphroot="/nvme/$UID")
    assert values(merged(ADMIN, asked, Content.STORAGE))["graphroot"] == "/nvme/$UID"


def test_a_present_rootless_storage_path_becomes_the_graphroot() -> None:
    after = merged('[storage]\nrootless_storage_path = "/nvme/$UID"\n', SETTINGS, Content.STORAGE)
    assert values(after)["graphroot"] == "/nvme/$UID"


def test_ignore_chown_errors_is_a_string_and_auto_keeps_it() -> None:
    text = '[storage.options.overlay]\nignore_chown_errors = "false"\n'
    assert values(merged(text, SETTINGS, Content.STORAGE))["options"]["overlay"]["ignore_chown_errors"] == "false"
    forced = StorageSettings(ignore_chown_errors=True)
    assert values(merged(text, forced, Content.STORAGE))["options"]["overlay"]["ignore_chown_errors"] == "true"


def test_the_system_file_leaves_root_alone() -> None:
    text = '[storage]\ndriver = "btrfs"\ngraphroot = "/srv/root"\nrunroot = "/run/c"\n'
    storage = values(merged(text, SETTINGS, Content.SYSTEM))
    assert storage.pop("rootless_storage_path") == GRAPHROOT
    assert storage.pop("options") == {"overlay": {"ignore_chown_errors": "true"}}
    assert storage == {"driver": "btrfs", "graphroot": "/srv/root", "runroot": "/run/c"}


@pytest.mark.parametrize(
    "text",
    [
        'storage = {driver = "vfs"}\n',
        'storage.driver = "vfs"\n',
        '[storage]\noptions = {size = "1"}\n',
        '[storage]\n[a]\nx = 1\n[storage.options]\nq = "1"',
        '[storage]\r\ndriver = "vfs"\r\n',
        '[storage.options.overlay]\nmountopt = "nodev"',
        "[storage]\n[storage.options]\nadditionalimagestores = []",
    ],
)
def test_every_way_to_write_a_table(text: str) -> None:
    storage = values(merged(text, SETTINGS, Content.STORAGE))
    assert storage["driver"] == "overlay"
    assert storage["options"]["additionalimagestores"] == ["/scratch/a", "/scratch/b"]
    assert storage["options"]["overlay"]["mount_program"] == "/opt/bin/squashmount"


@pytest.mark.parametrize("text", ["storage = 3\n", "[storage\n", "[[storage]]\n", "[storage]\noptions = true\n"])
def test_a_file_that_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be edited"):
        merged(text, SETTINGS, Content.STORAGE)


KEYS = st.sampled_from(["size", "x-y", "mountopt", "pull_options", "comment"])
SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), st.text("ab$ #", max_size=6))


@given(st.dictionaries(KEYS, SCALARS), st.dictionaries(KEYS, SCALARS), st.lists(st.sampled_from("abc"), max_size=3))
def test_unknown_keys_and_other_stores_survive(top: dict[str, Any], deep: dict[str, Any], stores: list[str]) -> None:
    def lines(table: dict[str, Any]) -> str:
        return "".join(f"{key} = {toml(value)} # c-{key}\n" for key, value in table.items())

    def toml(value: object) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    text = f"[storage]\n{lines(top)}[storage.options]\nadditionalimagestores = {stores}\n{lines(deep)}"
    after = merged(text, SETTINGS, Content.STORAGE)
    storage = values(after)
    assert {key: storage[key] for key in top} == top
    assert {key: storage["options"][key] for key in deep} == deep
    assert storage["options"]["additionalimagestores"] == ["/scratch/a", "/scratch/b", *stores]
    assert all(after.count(f"# c-{key}") == (key in top) + (key in deep) for key in {*top, *deep})
    assert merged(after, SETTINGS, Content.STORAGE) == after
