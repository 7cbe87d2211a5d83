import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from squash_images import mksquash, noise
from squashmount.migrate import mksquashfs, survey
from squashmount.migrate.mksquashfs import Format, Mksquashfs, Run

from squashmount.errors import ToolError, UsageError
from squashmount.squashfs.image import SquashImage

ODD_NAMES = [
    b"plain",
    b"sp ace",
    b" lead",
    b"trail ",
    b"back\\slash",
    b"\\",
    b'quo"te',
    b"new\nline",
    b"many\n\nlines\\\n",
    b"tab\there",
    b"cr\rvt\x0bff\x0c",
    b"#hash",
    b"\xff\xfe",
    b"colon:c,omma",
    b"-dash",
    b"star*[x]?",
    b"$(x)`y`;'",
    b"d ir/in ner",
]


def squash(tree: Path, output: Path, **options: object) -> str:
    binary = mksquashfs.probe()
    run = Run(str(tree), str(output), Format(), 1_700_000_000, **options)  # type: ignore[arg-type]
    return subprocess.run(mksquashfs.command(binary, run), check=True, capture_output=True, text=True).stdout


def test_pseudo_definitions_reach_every_name(tmp_path: Path) -> None:
    tree = os.fsencode(tmp_path / "tree")
    for name in ODD_NAMES:
        os.makedirs(os.path.dirname(os.path.join(tree, name)), exist_ok=True)
        Path(os.fsdecode(os.path.join(tree, name))).touch()
    wanted = {path: (1000 + number, 2000 + number) for number, (path, _) in enumerate(survey.walk(tree)) if path}
    text, words = mksquashfs.split_definitions(
        mksquashfs.modify(path, 0o4710, *owner) for path, owner in wanted.items()
    )
    assert len(words) == 2, "names with a newline go on the command line"
    pseudo = tmp_path / "pseudo"
    pseudo.write_bytes(text)
    squash(
        tmp_path / "tree",
        tmp_path / "o",
        pseudo_file=str(pseudo),
        pseudo_definitions=words,
        root_owner=(0o700, 7, 8),
    )
    from squashmount.squashfs.image import SquashImage

    with SquashImage.open(str(tmp_path / "o")) as image:
        for path, owner in wanted.items():
            inode = image.find(path)
            assert inode is not None, path
            assert (inode.uid, inode.gid, inode.mode & 0o7777) == (*owner, 0o4710), path
        root = image.inode(image.root_ref)
        assert (root.uid, root.gid, root.mode & 0o7777, root.mtime) == (7, 8, 0o700, 1_700_000_000)


def test_pseudo_keeps_symlinks_and_hard_links(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    os.link(tree / "file", tree / "hard")
    (tree / "ln").symlink_to("file")
    pseudo = tmp_path / "pseudo"
    definitions = [
        mksquashfs.modify(path, mode, 5, 6) for path, mode in ((b"file", 0o600), (b"hard", 0o600), (b"ln", 0o777))
    ]
    pseudo.write_bytes(mksquashfs.split_definitions(definitions)[0])
    squash(tree, tmp_path / "o", pseudo_file=str(pseudo))
    from squashmount.squashfs.image import SquashImage

    with SquashImage.open(str(tmp_path / "o")) as image:
        file, hard, link = (image.find(name) for name in (b"file", b"hard", b"ln"))
        assert file
        assert hard
        assert link
        assert file.number == hard.number
        assert (file.uid, file.gid, file.nlink) == (5, 6, 2)
        assert (link.uid, image.readlink(link)) == (5, b"file")


def test_same_tree_same_bytes_whatever_the_root_mtime(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tree = tmp_path / name
        tree.mkdir()
        for number in range(50):
            (tree / f"file{number}").write_text(str(number) * 5000)
            os.utime(tree / f"file{number}", (0, 1_600_000_000))
        os.utime(tree, (0, 1_600_000_000 + len(name) + ord(name)))
        squash(tree, tmp_path / f"{name}.squashfs")
    assert (tmp_path / "a.squashfs").read_bytes() == (tmp_path / "b.squashfs").read_bytes()


def test_progress_is_shown_by_the_real_binary(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(os.urandom(3 << 20))
    # on a busy machine it may end before its last tick
    shown = mksquashfs.parse_progress(squash(tree, tmp_path / "o"))
    assert shown is not None
    assert 0 < shown <= 100


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("[====/     ] 123/456  27%\r[=====|    ] 200/456  44%", 44),
        ("[] 1/1 100%\n", 100),
        ("Parallel mksquashfs", None),
    ],
)
def test_progress_is_parsed(text: str, percent: int | None) -> None:
    assert mksquashfs.parse_progress(text) == percent


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("mksquashfs version 4.5.1 (2022/03/17)", (4, 5, 1)),
        ("mksquashfs version 4.4 (2019/08/29)", (4, 4)),
        ("mksquashfs version 4.6.1-abc (2023/03/25)", (4, 6, 1)),
        ("mksquashfs version 4.4-git.1 (2019/08/29)", (4, 4)),
        ("something else", None),
    ],
)
def test_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert mksquashfs.parse_version(text) == version


def test_the_real_binary_is_known() -> None:
    binary = mksquashfs.probe()
    assert binary.version >= (4, 4)
    assert {"gzip", "xz", "zstd"} <= binary.compressors
    assert "lzma" not in binary.compressors or "gzip" in binary.compressors


def test_words_of_each_version() -> None:
    run = Run("/r", "/o", Format("zstd", 3), 5, xattrs="filter", processors=2, root_owner=None)
    new = mksquashfs.command(Mksquashfs("m", (4, 6, 1)), run)
    assert new[new.index("-xattrs-exclude") + 1] == mksquashfs.UNWANTED_XATTRS
    assert new[new.index("-Xcompression-level") + 1] == "3"
    assert new[new.index("-processors") + 1] == "2"
    assert new[new.index("-mkfs-time") + 1] == new[new.index("-root-time") + 1] == "5"
    assert "-no-exports" not in new
    old = mksquashfs.command(Mksquashfs("m", (4, 4), sets_root=False), Run("/r", "/o", Format("lz4", 0), 5))
    assert "-root-time" not in old
    assert "-Xhc" not in old
    assert "-Xcompression-level" not in old


def fake(path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = path / "mksquashfs"
    usage = "Compressors available:\\n\\t\\t\\t\\tgzip (default)\\n\\t\\t\\t\\txz\\n-b <block_size>"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && {{ echo "mksquashfs version {version}"; exit 0; }}\n'
        f'printf "{usage}"\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")


def test_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "4.3-git (2014/06/09)", monkeypatch)
    with pytest.raises(ToolError, match="too old"):
        mksquashfs.probe()


def test_without_zstd_is_refused_and_says_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "4.4 (2019/08/29)", monkeypatch)
    binary = mksquashfs.probe()
    assert not binary.sets_root
    assert not binary.excludes_xattrs
    mksquashfs.require(binary, Format("xz"))
    with pytest.raises(ToolError, match="without zstd") as caught:
        mksquashfs.require(binary, Format("zstd"))
    assert "gzip, xz" in caught.value.details


def test_missing_is_refused() -> None:
    with pytest.raises(ToolError, match="not installed"):
        mksquashfs.probe("mksquashfs-of-nobody")


def test_levels() -> None:
    assert Format("lz4", 9).checked() == Format("lz4", 0)
    assert str(Format("zstd", 3)) == "zstd-3"
    assert str(Format("xz", 0)) == "xz"
    with pytest.raises(UsageError, match="1 to 9"):
        Format("gzip", 10).checked()


def test_xattrs_are_told_apart() -> None:
    whose = {
        "user.overlay.opaque": "storage",
        "trusted.overlay.origin": "storage",
        "user.fuseoverlayfs.opaque": "storage",
        "user.containers.override_stat": "storage",
        "security.selinux": "host",
        "system.posix_acl_access": "host",
        "security.capability": "image",
        "user.mine": "image",
        "user.overlayed": "image",
    }
    assert {name: survey.belongs_to(name) for name in whose} == whose


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ([], "keep"),
        (["user.mine"], "keep"),
        (["user.overlay.x"], "none"),
        (["user.overlay.x", "user.mine"], "filter"),
    ],
)
def test_survey(tmp_path: Path, given: list[str], mode: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o751)
    (tree / "a").write_bytes(b"x" * 1000)
    os.link(tree / "a", tree / "b")
    (tree / "d").mkdir()
    with open(tree / "d" / "sparse", "wb") as file:
        file.truncate(1 << 30)
    (tree / "ln").symlink_to("/nowhere")
    for name in given:
        os.setxattr(tree / "a", name, b"v")
    found = survey.survey(str(tree))
    assert (found.entries, found.size, found.root_mode, found.xattrs) == (6, 1000 + (1 << 30), 0o751, mode)
    assert found.owners == {os.getuid(), os.getgid()}
    assert sorted(path for _, path in found.candidates) == [b"a", b"b"]


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs mksquashfs")
def test_no_xattrs_leaves_them_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").touch()
    os.setxattr(tree / "a", "user.overlay.x", b"v")
    squash(tree, tmp_path / "none", xattrs="none")
    squash(tree, tmp_path / "keep", xattrs="keep")
    from squashmount.squashfs.image import SquashImage

    for name, expected in (("none", {}), ("keep", {b"user.overlay.x": b"v"})):
        with SquashImage.open(str(tmp_path / name)) as image:
            inode = image.find(b"a")
            assert inode
            assert image.xattrs(inode) == expected


def test_files_of_a_sort_list_come_first_in_its_order_whatever_their_names(tmp_path: Path) -> None:
    names = [name for name in ODD_NAMES if b"\n" not in name and b"/" not in name]
    names.reverse()
    tree = tmp_path / "t"
    (tree / "d e").mkdir(parents=True)
    paths = [b"d e/" + name for name in names]
    for number, path in enumerate([*paths, *(b"other%d" % other for other in range(40))]):
        (tree / os.fsdecode(path)).write_bytes(noise(200_000 + number))
    (tree / "d e/new\nline").write_bytes(noise(150_000))
    (tmp_path / "order").write_bytes(mksquashfs.sort_list([b"d e/new\nline", *paths]))
    squash = mksquash(tree, tmp_path / "i", "-sort", str(tmp_path / "order"), "-exit-on-error", "-no-fragments")
    with SquashImage.open(squash) as image:
        places = []
        for path in paths:
            inode = image.find(path)
            assert inode, path
            places += image.extents(inode, 0, inode.size)
        assert places[0][0] == 96, "behind the superblock"
        assert all(before[1] == after[0] for before, after in itertools.pairwise(places))


def test_a_sort_list_of_any_length() -> None:
    lines = mksquashfs.sort_list(b"f%d" % number for number in range(40_000)).splitlines()
    priorities = [int(line.split()[1]) for line in lines]
    assert priorities[:2] == [32767, 32766]
    assert priorities == sorted(priorities, reverse=True)
    assert priorities[-1] == 1
