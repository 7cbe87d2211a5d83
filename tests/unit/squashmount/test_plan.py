"""What is mounted for which request: pure decisions, no mounts."""

import pytest

from squashmount.config import Config
from squashmount.errors import HostError, UsageError
from squashmount.host import Host
from squashmount.idmap import IdRange
from squashmount.lowers import Lower
from squashmount.plan import FUSE, KERNEL, MountPlan, Shift, plan_mount
from squashmount.request import parse_request

HOST = Host((6, 1), userns=True, single_id=False, fuse_overlayfs="/f", squashfuse_ll="/s")
RW = "lowerdir=x,upperdir=/u,workdir=/w"
KEEP_ID = ",uidmapping=0:1:5,gidmapping=0:1:5"
IMAGE = Lower("l/A", "/s/overlay/a/diff", "/s/a.squashfs")
PLAIN = Lower("l/B", "/g/overlay/b/diff")


def plan(
    options: str = RW,
    lowers: tuple[Lower, ...] = (IMAGE,),
    host: Host = HOST,
    config: Config | None = None,
    *,
    whiteouts: bool = False,
    earlier: str = "",
) -> MountPlan:
    request = parse_request(options, "/t")
    return plan_mount(request, lowers, host, config or Config(), whiteouts=lambda _path: whiteouts, earlier=earlier)


def test_an_image_that_is_not_squashed_keeps_all_its_layers() -> None:
    other = Lower("l/O", "/g/overlay/o/diff")
    got = plan(lowers=(PLAIN, other))
    assert (got.overlay, got.squash, got.above) == (KERNEL, "", (PLAIN.path, other.path))
    assert "2 unpacked layers" in got.describe()
    assert plan(lowers=(PLAIN, other), whiteouts=True).overlay == FUSE
    assert plan(RW + ",volatile" + KEEP_ID, lowers=(PLAIN,)).overlay == FUSE


def test_squash_gets_kernel_overlay_and_the_wire_engine() -> None:
    got = plan()
    assert (got.overlay, got.squash, got.above, got.engine) == (KERNEL, "/s/a.squashfs", (), "wire")
    assert got.shift == Shift()


def test_layers_above_stay_and_layers_below_are_dropped() -> None:
    top = Lower("l/T", "/g/overlay/t/diff")
    got = plan(lowers=(top, IMAGE, PLAIN))
    assert got.above == ("/g/overlay/t/diff",)
    assert got.overlay == KERNEL


def test_the_topmost_of_several_squashes_holds_the_others() -> None:
    got = plan(lowers=(IMAGE, Lower("l/O", "/s/overlay/o/diff", "/s/o.squashfs")))
    assert (got.squash, got.above) == ("/s/a.squashfs", ())


def test_whiteout_files_need_fuse_overlayfs() -> None:
    got = plan(lowers=(PLAIN, IMAGE), whiteouts=True)
    assert got.overlay == FUSE
    assert ".wh." in got.reason


def test_whiteouts_are_only_looked_for_above_the_squash() -> None:
    assert plan(lowers=(IMAGE, PLAIN), whiteouts=True).overlay == KERNEL


def test_keep_id_of_a_removed_container_is_shifted_by_the_server() -> None:
    got = plan(RW + ",volatile" + KEEP_ID)
    assert got.overlay == KERNEL
    assert got.shift == Shift((IdRange(0, 1, 5),), (IdRange(0, 1, 5),))


def test_keep_id_of_a_kept_container_is_shifted_by_fuse_overlayfs() -> None:
    got = plan(RW + KEEP_ID)
    assert got.overlay == FUSE
    assert got.shift == Shift()


def test_keep_id_with_layers_above_is_shifted_by_fuse_overlayfs() -> None:
    assert plan(RW + ",volatile" + KEEP_ID, lowers=(PLAIN, IMAGE)).overlay == FUSE


def test_read_only_keep_id_is_shifted_by_the_server() -> None:
    assert plan("lowerdir=x,ro" + KEEP_ID).overlay == KERNEL


def test_squash_to_one_id() -> None:
    assert plan(RW + ",volatile,squash_to_uid=3,squash_to_gid=4").shift == Shift(single_uid=3, single_gid=4)


@pytest.mark.parametrize("overlay", ["kernel", "fuse"])
def test_single_id_map_shows_everything_as_the_one_id(overlay: str) -> None:
    got = plan(host=HOST._replace(single_id=True), config=Config(overlay=overlay))
    assert got.shift == Shift(single_uid=0, single_gid=0)


def test_old_kernels_use_fuse_overlayfs_in_user_namespaces_only() -> None:
    old = HOST._replace(kernel=(4, 18))
    assert plan(host=old).overlay == FUSE
    assert plan(host=old._replace(userns=False)).overlay == KERNEL


def test_unknown_options_reach_fuse_overlayfs_instead_of_being_dropped() -> None:
    got = plan(RW + ",xattr_permissions=2")
    assert got.overlay == FUSE
    assert "xattr_permissions" in got.reason


def test_forced_kernel_overlay_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="xattr_permissions"):
        plan(RW + ",xattr_permissions=2", config=Config(overlay="kernel"))


def test_a_restarted_container_keeps_its_overlay() -> None:
    assert plan(earlier="fuse").overlay == FUSE
    assert plan(earlier="kernel", config=Config(overlay="fuse")).overlay == KERNEL


def test_configured_engine() -> None:
    chosen = Config(engine="squashfuse_ll")
    assert plan(config=chosen).engine == "squashfuse_ll"
    # it cannot change ids
    assert plan(RW + ",volatile" + KEEP_ID, config=chosen).engine == "wire"
    with pytest.raises(HostError, match="squashfuse_ll"):
        plan(config=chosen, host=HOST._replace(squashfuse_ll=None))


def test_what_kernel_overlay_has_no_use_for_is_said() -> None:
    text = plan(RW + ",fsync=0,timeout=5").describe()
    assert "without use for fsync=0, timeout=5" in text
    assert plan(RW + ",fsync=0", config=Config(overlay="fuse")).ignored == ()


def test_description_names_kind_reason_and_file() -> None:
    text = plan(RW + ",volatile" + KEEP_ID).describe()
    assert "kernel overlay" in text
    assert "/s/a.squashfs" in text
    assert "shifted" in text
