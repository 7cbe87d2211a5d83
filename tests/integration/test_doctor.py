"""One cause, one id: each way to break an account or its rights is produced for real, and the doctor names it.

The user, her ranges and nsswitch.conf are those of the lab's private /etc; programs are changed by bind mounts that
only her process sees; limits are those of a user namespace around it.
"""

import json
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import User, make_user, run
from seccomp_filter import UNSHARE, refused
from squashmount.storage_conf.ids import libsubid

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_podman]

UID, START = 70020, 2_000_000_000
MINE = {f"U{number:02}" for number in (*range(1, 16), *range(20, 25), 30, 31)}
FILES = ("/etc/subuid", "/etc/subgid", "/etc/nsswitch.conf")
NEWUIDMAP = "/usr/bin/newuidmap"


@pytest.fixture(scope="module")
def dora(lab: Path) -> User:
    return make_user(lab, "dora", UID, subids=None)


@pytest.fixture(autouse=True)
def _etc(dora: User) -> Iterator[None]:  # noqa: ARG001 - she is made before the files are kept
    """Give dora a range, and after the test the files back as they were."""
    before = [(path, Path(path).read_bytes(), os.stat(path).st_mode) for path in FILES]
    give(f"dora:{START}:65536")
    yield
    for path, data, mode in before:
        Path(path).unlink(missing_ok=True)
        Path(path).write_bytes(data)
        os.chmod(path, mode)


def give(*lines: str, files: tuple[str, ...] = FILES[:2], end: str = "\n") -> None:
    """Make these dora's lines."""
    for path in files:
        kept = [line for line in Path(path).read_text().splitlines() if not line.casefold().startswith("dora")]
        Path(path).write_text("".join(f"{line}\n" for line in kept) + "".join(line + end for line in lines))


def nsswitch(line: str) -> None:
    kept = [one for one in Path(FILES[2]).read_text().splitlines() if not one.startswith("subid:")]
    Path(FILES[2]).write_text("\n".join([*kept, line, ""]))


class Said:
    """What the doctor said."""

    def __init__(self, out: str, code: int) -> None:
        self.data, self.code = json.loads(out), code
        self.errors = {one["id"] for one in self.data["findings"] if one["severity"] == "error"}
        # a seccomp filter around the whole lab (info U23) is not what is looked for
        told = [one for one in self.data["findings"] if (one["id"], one["severity"]) != ("U23", "info")]
        self.mine = {one["id"] for one in told if one["id"] in MINE}

    def one(self, name: str) -> dict[str, str]:
        return next(one for one in self.data["findings"] if one["id"] == name)


Doctor = Callable[..., Said]


@pytest.fixture
def doctor(product: Path, dora: User) -> Doctor:
    def ask(
        *around: str,
        ids: tuple[int, int] = (UID, UID),
        drop: str = "",
        env: dict[str, str] | None = None,
        cwd: str = str(dora.home),
    ) -> Said:
        environ = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(dora.home), "USER": "dora"}
        environ |= {"XDG_RUNTIME_DIR": f"/run/user/{UID}", "LANG": "C.UTF-8", **(env or {})}
        groups = ["--clear-groups"] if ids != (UID, UID) else ["--init-groups"]
        become = ["setpriv", "--reuid", str(ids[0]), "--regid", str(ids[1]), *groups, *(drop.split())]
        words = [f"{key}={value}" for key, value in environ.items()]
        command = [str(product / "bin/squashmount-conf"), "doctor", "--json"]
        done = run(*around, *become, "env", "-i", *words, *command, cwd=cwd)
        assert done.out, done.err
        return Said(done.out, done.code)

    return ask


def files_below(*folders: str) -> set[str]:
    return set(run("find", *folders, "-type", "f").ok().splitlines())


def test_a_healthy_user_hears_nothing_and_finds_nothing_new(doctor: Doctor, dora: User) -> None:
    before = files_below(str(dora.home), f"/run/user/{UID}")
    said = doctor()
    assert (said.mine, said.errors) == (set(), set())
    assert set(said.data["checked"]) >= MINE
    assert said.data["user"] == "dora"
    assert said.data["facts"]["subuid"] == f"{START}:65536"
    assert files_below(str(dora.home), f"/run/user/{UID}") == before
    assert run("pgrep", "-u", str(UID)).out == "", "the pause process of the question is gone"


def test_a_runtime_directory_whose_name_is_as_long_as_podman_takes(doctor: Doctor) -> None:
    runtime = f"/run/user/{UID}/".ljust(39, "x")
    os.mkdir(runtime, 0o700)
    os.chown(runtime, UID, UID)
    try:
        assert doctor(env={"XDG_RUNTIME_DIR": runtime}).mine == set()
    finally:
        run("rm", "-rf", runtime).ok()


LINES = {
    "no range": ("U07", []),
    "CRLF": ("U06", [f"dora:{START}:65536\r"]),
    "trailing comment": ("U06", [f"dora:{START}:65536 # dora"]),
    "capital": ("U06", [f"Dora:{START}:65536"]),
    "four fields": ("U06", [f"dora:{START}:65536:x"]),
    "octal": ("U06", ["dora:020000000000:65536"]),
    "hexadecimal": ("U06", [f"dora:{START:#x}:65536"]),
    "no id": ("U06", [f"dora:{START}:0"]),
    "2^64": ("U07", [f"dora:{2**64}:65536"]),
    "negative": ("U06", ["dora:-5:65536"]),
    "999 ids": ("U09", [f"dora:{START}:999"]),
    "the same line again": ("U10", [f"dora:{START}:65536"] * 2),
    "overlap": ("U10", [f"dora:{START}:65536", f"dora:{START + 65535}:65536"]),
    "own uid inside": ("U11", ["dora:70000:65536"]),
    "too many": ("U12", [f"dora:{START + 1000 * number}:999" for number in range(400)]),
    "overflow": ("U13", ["dora:4294950000:65536"]),
    "root inside": ("U13", ["dora:0:65536"]),
}


@pytest.mark.parametrize("name", list(LINES))
def test_lines(doctor: Doctor, name: str) -> None:
    expected, lines = LINES[name]
    if name == "overflow" and libsubid.abi() == 6:
        expected = "U07"  # shadow 4.20 does not give such a range at all
    give(*lines)
    said = doctor()
    assert (said.mine, said.errors, said.code) == ({expected}, {expected}, 11)


def test_no_files_at_all(doctor: Doctor) -> None:
    for path in FILES[:2]:
        os.unlink(path)
    said = doctor()
    assert (said.mine, said.errors) == ({"U07"}, {"U07"})


def test_the_exact_line_is_named(doctor: Doctor) -> None:
    give(f"dora:{START}:65536\r")
    number = len(Path(FILES[0]).read_text().splitlines())
    assert f"/etc/subuid:{number}: dora:{START}:65536\\r" in doctor().one("U06")["evidence"]


def test_a_thousand_ids_are_few(doctor: Doctor) -> None:
    give(f"dora:{START}:1000")
    said = doctor()
    assert said.mine == {"U09"}
    assert said.one("U09")["severity"] == "warning"


def test_no_subgids(doctor: Doctor) -> None:
    give(files=("/etc/subgid",))
    said = doctor()
    assert (said.mine, said.errors) == ({"U07"}, {"U07"})
    assert "no subgid range" in said.one("U07")["what"]
    assert ">> /etc/subgid" in said.one("U07")["fix"]


def test_other_subgids(doctor: Doctor) -> None:
    give(f"dora:{START + 65536}:65536", files=("/etc/subgid",))
    said = doctor()
    assert (said.mine, said.code) == ({"U14"}, 0)
    assert said.one("U14")["severity"] == "info"


def test_somebody_elses_line_is_a_warning(doctor: Doctor) -> None:
    for path in FILES[:2]:
        with open(path, "a") as file:
            file.write("erin:100000\n")
    said = doctor()
    assert (said.mine, said.errors) == ({"U06"}, set())


def test_somebody_elses_line_that_grants_every_id_is_an_error(doctor: Doctor) -> None:
    for path in FILES[:2]:
        with open(path, "a") as file:
            file.write("erin:0:0\n")
    said = doctor()
    assert (said.mine, said.errors, said.code) == ({"U06"}, {"U06"}, 11)
    assert "root's and yours too" in said.one("U06")["why"]


def test_a_fifo_in_the_place_of_a_file(doctor: Doctor) -> None:
    os.unlink("/etc/subuid")
    os.mkfifo("/etc/subuid", 0o644)
    said = doctor()
    assert "U06" in said.errors
    assert said.one("U06")["what"] == "/etc/subuid is no regular file."
    assert said.mine <= {"U06", "U07", "U08"}, "newuidmap gives nothing, or waits"


@pytest.mark.parametrize(("mode", "owner"), [(0o600, 0), (0o666, 0), (0o644, UID)])
def test_rights_of_the_file(doctor: Doctor, mode: int, owner: int) -> None:
    os.chmod("/etc/subuid", mode)
    os.chown("/etc/subuid", owner, 0)
    said = doctor()
    assert (said.mine, said.errors) == ({"U06"}, {"U06"})


def test_several_words_of_nsswitch(doctor: Doctor) -> None:
    nsswitch("subid: files sss")
    said = doctor()
    assert (said.mine, said.errors) == ({"U04"}, set())
    give()
    said = doctor()
    assert (said.mine, said.errors) == ({"U04"}, {"U04"})


def test_a_plugin_that_is_not_there(doctor: Doctor) -> None:
    nsswitch("subid: nope")
    said = doctor()
    assert (said.mine, said.errors) == ({"U05"}, {"U05"})
    assert "libsubid_nope.so" in said.one("U05")["evidence"]


PLUGIN = """
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct subid_range { unsigned long start, count; };
int shadow_subid_has_range(const char *o, unsigned long s, unsigned long n, int t, bool *r)
{ *r = s >= START && s + n <= START + 65536ul; return 0; }
int shadow_subid_list_owner_ranges(const char *o, int t, struct subid_range **r, int *n)
{ usleep(WAIT); *n = 0; if (strcmp(o, "dora")) return 0;
  *r = malloc(sizeof **r); (*r)->start = START; (*r)->count = 65536; *n = 1; return 0; }
int shadow_subid_find_subid_owners(unsigned long i, int t, uid_t **u, int *n) { *n = 0; return 0; }
void shadow_subid_free(void *p) { free(p); }
"""


def compile_library(path: Path, source: str, **values: int) -> None:
    code = path.with_suffix(".c")
    code.write_text(source)
    options = [f"-D{name}={value}" for name, value in values.items()]
    run("gcc", "-shared", "-fPIC", *options, "-o", str(path), str(code)).ok()


@pytest.fixture
def libraries(lab: Path) -> Iterator[Path]:
    """A directory of libraries that the loader knows, for setuid programs too."""
    folder = lab / "subid-plugins"
    folder.mkdir()
    conf = Path("/etc/ld.so.conf.d/00-doctor.conf")
    conf.write_text(f"{folder}\n")
    yield folder
    conf.unlink()
    shutil.rmtree(folder)
    run("ldconfig").ok()


def test_a_plugin_that_answers_is_healthy_and_a_slow_one_is_named(doctor: Doctor, libraries: Path) -> None:
    compile_library(libraries / "libsubid_lab.so", PLUGIN, START=START, WAIT=0)
    run("ldconfig").ok()
    give()
    nsswitch("subid: lab")
    said = doctor()
    assert (said.mine, said.errors) == (set(), set())
    compile_library(libraries / "libsubid_lab.so", PLUGIN, START=START, WAIT=600_000)
    said = doctor()
    assert (said.mine, said.errors) == ({"U08"}, set())


def test_a_plugin_that_hangs(doctor: Doctor, libraries: Path) -> None:
    compile_library(libraries / "libsubid_lab.so", PLUGIN, START=START, WAIT=60_000_000)
    run("ldconfig").ok()
    nsswitch("subid: lab")
    began = time.monotonic()
    said = doctor()
    assert time.monotonic() - began < 30  # 60 s for each lookup where it is waited for
    assert (said.mine, said.errors) == ({"U08"}, {"U08"})
    assert "did not answer" in said.one("U08")["what"]


STATIC = """
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
struct subid_range { unsigned long start, count; };
static int files(struct subid_range **r) { *r = malloc(sizeof **r); (*r)->start = START; (*r)->count = 2000; return 1; }
bool subid_init(const char *name, FILE *log) { return true; }
bool libsubid_init(const char *name, FILE *log) { return true; }
int subid_get_uid_ranges(const char *o, struct subid_range **r) { return files(r); }
int subid_get_gid_ranges(const char *o, struct subid_range **r) { return files(r); }
void subid_free(void *p) { free(p); }
"""


def test_a_podman_with_a_source_of_its_own(doctor: Doctor, lab: Path) -> None:
    """A podman without libsubid is played by the real one with another libsubid: it sees other ranges than the node."""
    folder = lab / "static-podman"
    folder.mkdir()
    compile_library(folder / f"libsubid.so.{libsubid.abi()}", STATIC, START=START)
    wrapper = folder / "podman"
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={folder} exec /usr/bin/podman "$@"\n')
    wrapper.chmod(0o755)
    said = doctor(env={"PATH": f"{folder}:/usr/bin:/bin:/usr/sbin"})
    assert (said.mine, said.errors) == ({"U15"}, {"U15"})
    assert f"{START} (2000)" in said.one("U15")["evidence"]
    assert "without libsubid" in said.one("U15")["why"]


def test_a_uid_nobody_knows(doctor: Doctor, lab: Path) -> None:
    home, runtime = lab / "nobody-knows", Path("/run/user/70999")
    for folder in (home, runtime):
        folder.mkdir(mode=0o700)
        os.chown(folder, 70999, 70999)
    said = doctor(ids=(70999, 70999), env={"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}, cwd=str(home))
    shutil.rmtree(runtime)
    assert (said.mine, said.errors) == ({"U01"}, {"U01"})


def test_the_name_of_another(doctor: Doctor) -> None:
    said = doctor(env={"USER": "root"})
    assert (said.mine, said.errors) == ({"U02"}, {"U02"})
    assert "export USER=dora" in said.one("U02")["fix"]


def test_another_primary_group(doctor: Doctor) -> None:
    said = doctor(ids=(UID, 70021))
    assert (said.mine, said.errors) == ({"U03"}, {"U03"})


def mounted(script: str) -> list[str]:
    """Return what to put before a command to run it with mounts of its own."""
    return ["unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


TOOLS = {
    "no setuid bit": "chmod 755 $copy",
    "setuid and capabilities": "chmod 4755 $copy; setcap cap_setuid+ep $copy",
    "the wrong capability": "chmod 755 $copy; setcap cap_setgid+ep $copy",
    "not effective": "chmod 755 $copy; setcap cap_setuid+p $copy",
    "setuid of another": f"chown {UID} $copy; chmod 4755 $copy",
    "not executable": "chmod 644 $copy",
    "nosuid": "chmod 4755 $copy; nosuid=1",
}


@pytest.mark.parametrize("name", list(TOOLS))
def test_newuidmap(doctor: Doctor, lab: Path, name: str) -> None:
    copy = lab / "newuidmap"
    script = f"""
        copy={copy}; cp {NEWUIDMAP} $copy; {TOOLS[name]}
        mount --bind $copy {NEWUIDMAP}; [ -z "$nosuid" ] || mount -o remount,bind,nosuid {NEWUIDMAP}
    """
    said = doctor(*mounted(textwrap.dedent(script)))
    assert (said.mine, said.errors) == ({"U20"}, {"U20"})


def test_newuidmap_with_the_file_capability_is_healthy(doctor: Doctor, lab: Path) -> None:
    script = f"cp {NEWUIDMAP} {lab}/newuidmap; chmod 755 {lab}/newuidmap; setcap cap_setuid+ep {lab}/newuidmap"
    said = doctor(*mounted(f"{script}; mount --bind {lab}/newuidmap {NEWUIDMAP}"))
    assert (said.mine, said.errors) == (set(), set())


def test_no_new_privs(doctor: Doctor) -> None:
    said = doctor(drop="--no-new-privs")
    assert (said.mine, said.errors) == ({"U21"}, {"U21"})


def test_the_bounding_set(doctor: Doctor) -> None:
    said = doctor(drop="--bounding-set=-setuid")
    assert (said.mine, said.errors) == ({"U22"}, {"U22"})
    assert "cap_setuid" in said.one("U22")["what"]


def test_a_chroot(doctor: Doctor, lab: Path) -> None:
    (lab / "chroot").mkdir()
    script = f"mount --rbind / {lab}/chroot"
    said = doctor(*mounted(script), "chroot", str(lab / "chroot"))
    assert (said.mine, said.errors) == ({"U24"}, {"U24"})


LIMITED = """
import os, sys
from squashmount import linux
(ready, done), (go, start) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    linux.unshare(0x10000000)
    os.write(done, b".")
    os.read(go, 1)
    open(sys.argv[1], "w").write(sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
os.read(ready, 1)
for kind in ("uid", "gid"):
    open(f"/proc/{child}/{kind}_map", "w").write("0 0 4294967295")
os.write(start, b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("name", "value", "expected", "severity"),
    [
        ("max_user_namespaces", "0", "U30", "error"),
        ("max_user_namespaces", "50", "U30", "warning"),
        ("max_mnt_namespaces", "0", "U31", "error"),
    ],
)
def test_limits(doctor: Doctor, product: Path, name: str, value: str, expected: str, severity: str) -> None:
    around = (str(product / "bin/python3"), "-c", LIMITED, f"/proc/sys/user/{name}", value)
    said = doctor(*around)
    assert said.mine == {expected}
    assert said.errors == ({expected} if severity == "error" else set())


def test_a_seccomp_filter_is_an_error_where_it_forbids_namespaces(doctor: Doctor) -> None:
    said = doctor(*refused(UNSHARE))
    assert (said.mine, said.errors) == ({"U23"}, {"U23"})
    said = doctor(*refused(9999))
    assert (said.mine, said.errors) == (set(), set())
    assert said.one("U23")["severity"] == "info"


def test_text_for_people(product: Path, dora: User) -> None:
    give()
    done = dora.run(str(product / "bin/squashmount-conf"), "doctor", env={"XDG_RUNTIME_DIR": f"/run/user/{UID}"})
    assert done.code == 11
    lines = done.out.splitlines()
    assert "error U07: dora has no subuid and no subgid range." in lines
    assert any(line.startswith("  fix: ask the site for 65536 subuids") for line in lines)
    assert "dora on " in lines[-1]
    assert lines[-1].count("1 error") == 1
