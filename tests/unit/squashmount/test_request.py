"""Every spelling of Podman's option string seen in the field notes and in containers-storage's source."""

import pytest

from squashmount import linux
from squashmount.errors import UsageError
from squashmount.idmap import IdRange
from squashmount.request import parse_request, split_lowers, split_options

RW = "lowerdir=/s/overlay/l/ABC,upperdir=/g/overlay/c/diff,workdir=/g/overlay/c/work"


def test_run_rm_with_the_empty_option() -> None:
    request = parse_request(RW + ",,volatile", "/g/overlay/c/merged")
    assert request.lowers == ("/s/overlay/l/ABC",)
    assert (request.upper, request.work) == ("/g/overlay/c/diff", "/g/overlay/c/work")
    assert request.volatile
    assert request.target == "/g/overlay/c/merged"
    assert not request.shifted
    assert request.fuse_only == ()


def test_kept_container_has_a_trailing_comma() -> None:
    request = parse_request(RW + ",", "/t")
    assert not request.volatile
    assert request.fuse_only == ()


def test_keep_id_mapping_with_a_leading_colon() -> None:
    mapping = ":0:1:1001:1001:0:1:1002:1002:64535"
    request = parse_request(f"{RW},uidmapping={mapping},gidmapping={mapping}", "/t")
    expected = (IdRange(0, 1, 1001), IdRange(1001, 0, 1), IdRange(1002, 1002, 64535))
    assert request.uid_map == expected
    assert request.gid_map == expected
    assert request.shifted


def test_mapping_without_the_leading_colon() -> None:
    assert parse_request(f"{RW},uidmapping=0:100:5", "/t").uid_map == (IdRange(0, 100, 5),)


def test_read_only_mount_names_diff_and_has_no_upper() -> None:
    request = parse_request("lowerdir=/s/overlay/ID/diff:/s/overlay/ID/empty", "/s/overlay/ID/merged")
    assert request.lowers == ("/s/overlay/ID/diff", "/s/overlay/ID/empty")
    assert request.upper is None
    assert request.work is None


def test_image_mount_of_podman_5_is_read_only_with_a_mapping() -> None:
    request = parse_request("lowerdir=ID/diff:ID/diff,ro,uidmapping=0:1000:1:1:100000:65536", "/r/merged")
    assert request.lowers == ("ID/diff", "ID/diff")
    assert request.flags == linux.MS_RDONLY
    assert len(request.uid_map) == 2


def test_single_id_squash() -> None:
    request = parse_request(f"{RW},squash_to_uid=7,squash_to_gid=8", "/t")
    assert (request.squash_uid, request.squash_gid) == (7, 8)
    assert request.shifted


def test_selinux_context_with_commas_in_quotes() -> None:
    request = parse_request(f'{RW},context="system_u:object_r:container_file_t:s0:c1,c2",volatile', "/t")
    assert request.context == '"system_u:object_r:container_file_t:s0:c1,c2"'
    assert request.volatile


def test_escaped_separators() -> None:
    request = parse_request(r"lowerdir=/a\:b:/c\,d:/e\\f,upperdir=/u\,1,workdir=/w\:2", "/t")
    assert request.lowers == ("/a:b", "/c,d", "/e\\f")
    assert request.upper == "/u,1"
    assert request.work == "/w:2"


def test_known_options_are_sorted_by_who_understands_them() -> None:
    request = parse_request(f"{RW},nodev,nosuid,metacopy=on,fsync=0,xattr_permissions=2,brand_new=1", "/t")
    assert request.flags == linux.MS_NODEV | linux.MS_NOSUID
    assert request.kernel_options == ("metacopy=on",)
    assert request.hints == ("fsync=0",)
    assert request.fuse_only == ("xattr_permissions=2", "brand_new=1")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("upperdir=/u,workdir=/w", "no lowerdir"),
        ("lowerdir=", "empty"),
        ("lowerdir=/a,upperdir=/u", "go together"),
        (f"{RW},uidmapping=0:1", "triples"),
        (f"{RW},uidmapping=0:x:1", "not an id"),
        (f"{RW},uidmapping=0:-1:1", "not an id"),
        (f"{RW},squash_to_uid=4294967296", "not an id"),
    ],
)
def test_impossible_options_are_refused_with_a_sentence(options: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_request(options, "/t")
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_split_keeps_escapes_and_drops_empty_pieces() -> None:
    assert split_options(r"a,,b\,c,") == ["a", r"b\,c"]
    assert split_lowers("a::b") == ["a", "b"]


def test_our_own_option_reaches_nobody_else() -> None:
    request = parse_request(r"lowerdir=/a\,b,upperdir=/u,workdir=/w,no-prefetch,,volatile", "/t")
    assert not request.prefetch
    assert request.raw == r"lowerdir=/a\,b,upperdir=/u,workdir=/w,volatile"
    assert request.fuse_only == ()
    assert parse_request("lowerdir=/a,no-prefetch=1", "/t").fuse_only == ("no-prefetch=1",)
