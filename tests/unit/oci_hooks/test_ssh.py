"""The module ssh without containers: ports, names, quoting, keys made by several at once, what sshd asks for."""

import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from squashmount.oci_hooks import log, module, policy, ssh_files, ssh_keys, ssh_passwd, ssh_place, ssh_start
from squashmount.oci_hooks.planning import Image, Site, make_plan
from squashmount.oci_hooks.policy import Policy
from squashmount.oci_hooks.tree import DirectoryTree

from squashmount.errors import HostError, SquashmountError, UsageError

PORTS = Policy().ssh_ports
needs_ssh = pytest.mark.skipif(
    not shutil.which("sshd", path="/usr/sbin") or not shutil.which("ssh"), reason="needs sshd and ssh"
)

# -- ports and names --


@given(st.integers(0, 2**40))
def test_neighbouring_jobs_have_ports_of_their_own(job: int) -> None:
    places = (PORTS[1] - PORTS[0] + 1) // ssh_keys.PER_NODE
    firsts = {ssh_keys.first_port(str(job + ahead), PORTS) for ahead in range(places)}
    assert len(firsts) == places
    assert min(firsts) == PORTS[0]
    assert max(firsts) + ssh_keys.PER_NODE - 1 <= PORTS[1]


def test_a_name_with_letters_has_a_port_and_a_requeued_job_another_than_before() -> None:
    names = ("12.server", "12-1", "12", "f3Kx", "12.server2")
    assert len({ssh_keys.first_port(name, PORTS) for name in names}) == len(names)


@pytest.mark.parametrize("ports", [(), (20000,), (20000, 20062), (20000, 70000), (80, 4000), (1, 2, 3)])
def test_a_range_that_is_none(ports: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="no range for ssh"):
        ssh_keys.first_port("1", ports)


def test_the_name_of_a_job() -> None:
    assert ssh_keys.job_name({"SLURM_JOB_ID": "7"}, {}) == "7"
    assert ssh_keys.job_name({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, {}) == "7"
    assert ssh_keys.job_name({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, {}) == "7-2"
    assert ssh_keys.job_name({"SLURM_JOB_ID": "8", "SLURM_HET_JOB_ID": "7"}, {}) == "7"
    assert ssh_keys.job_name({"PBS_JOBID": "7[1].server"}, {}) == "7[1].server"
    assert ssh_keys.job_name({"SLURM_JOB_ID": "7"}, {"squashmount.ssh.job": "mine"}) == "mine"
    with pytest.raises(UsageError, match="no job"):
        ssh_keys.job_name({"HOME": "/"}, {})
    for name in ("../7", ".", "..", "a/b", "a\nb", "x" * 200, ".tmp-1"):
        with pytest.raises(UsageError, match="cannot be one of a directory"):
            ssh_keys.job_name({"SLURM_JOB_ID": name}, {})


def test_the_number_on_a_node() -> None:
    assert ssh_keys.index_on_node({}, {}) == 0
    assert ssh_keys.index_on_node({"SLURM_LOCALID": "3"}, {}) == 3
    assert ssh_keys.index_on_node({"SLURM_LOCALID": "3"}, {"squashmount.ssh.index": "5"}) == 5
    for text in ("-1", "x", "64", "99999999", "٣"):
        with pytest.raises(UsageError, match="not the number"):
            ssh_keys.index_on_node({"SLURM_LOCALID": text}, {})


# -- the environment --

VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = VALUES.filter(lambda name: name != "" and "=" not in name)


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
def test_every_environment_arrives(shell: str) -> None:
    found = shutil.which(shell)
    if not found:
        pytest.skip(f"needs {shell}")
    argv = [found, "sh"] if shell == "busybox" else [found]

    @given(st.dictionaries(NAMES, VALUES, max_size=6))
    def arrives(environ: dict[str, str]) -> None:
        words = ssh_files.assignments(f"{name}={value}" for name, value in environ.items())
        script = f"exec env -i -- {words} env -0"
        done = subprocess.run([*argv, "-c", script], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
        entries = done.stdout.decode().split("\0")[:-1]
        assert dict(entry.partition("=")[::2] for entry in entries) == environ

    arrives()


def test_what_is_no_assignment_is_left_out() -> None:
    assert ssh_files.assignments(["=x", "plain", "A=b\0c", "A="]) == "'A='"


# -- keys --


@needs_ssh
def test_all_nodes_of_a_job_get_the_same_keys(tmp_path: Path) -> None:
    directory = tmp_path / "home" / "ssh"
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: ssh_keys.job_keys(str(directory), "7"), range(16)))
    assert len(keys) == 1
    (one,) = keys
    assert one.id.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert one.host_public.startswith("ssh-ed25519 ")
    assert one.id != one.host
    assert os.listdir(directory) == ["7"], "what the losers made is gone"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert ssh_keys.job_keys(str(directory), "7") == one
    assert ssh_keys.job_keys(str(directory), "7-1") != one


@needs_ssh
def test_keys_that_others_can_read_or_made_are_refused(tmp_path: Path) -> None:
    ssh_keys.job_keys(str(tmp_path), "7")
    for path, mode in ((tmp_path / "7/id", 0o640), (tmp_path / "7", 0o750)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(HostError, match="that only you can read"):
            ssh_keys.job_keys(str(tmp_path), "7")
        path.chmod(before)
    (tmp_path / "link").symlink_to("7")
    with pytest.raises(HostError, match="not a directory"):
        ssh_keys.job_keys(str(tmp_path), "link")
    (tmp_path / "7/id").unlink()
    (tmp_path / "7/id").symlink_to("host")
    with pytest.raises(SquashmountError, match="cannot be made or read"):
        ssh_keys.job_keys(str(tmp_path), "7")


@needs_ssh
def test_keys_of_old_jobs_go(tmp_path: Path) -> None:
    for job in ("1", "2"):
        ssh_keys.job_keys(str(tmp_path), job)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    for name in ("1", "mine"):
        os.utime(tmp_path / name, (1, 1))
    ssh_keys.job_keys(str(tmp_path), "3")
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "mine"]


# -- what the image must have --


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    for name in ("bin/sh", "etc/passwd", "etc/shadow", "bin/busybox"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/:/bin/zsh")
    (root / "etc/shadow").write_text("bin:!:1::::::\nroot:!locked::0:99999:7:::\n")
    return root


@pytest.fixture
def tree(image: Path) -> Iterator[DirectoryTree]:
    with DirectoryTree(str(image)) as tree:
        yield tree


def plan(image: Path, **more: Any) -> Any:
    one = module.load(os.path.join(policy.SHIPPED_DIR, "ssh.toml"))
    with DirectoryTree("/") as host, DirectoryTree(str(image)) as root:
        return make_plan(Site({"ssh": one}, Policy(), host, {}, **more), Image(root, {}, {"squashmount.ssh": "on"}))


@needs_ssh
def test_the_plan_brings_programs_with_everything_they_need(image: Path) -> None:
    made = plan(image)
    assert not made.errors
    inside = {os.path.basename(mount.target): mount.source for mount in made.mounts}
    assert {"sshd", "ssh", "env", "sftp-server", "ld", "libc.so.6", "libcrypto.so.3"} <= inside.keys()
    listed = subprocess.run(["ldd", "/usr/sbin/sshd"], check=True, capture_output=True, text=True).stdout
    needed = {os.path.basename(line.split()[0]) for line in listed.splitlines() if "=>" in line or "ld-linux" in line}
    assert needed <= inside.keys()
    assert all(os.path.realpath(source) == source for source in inside.values())
    # no job is needed to plan, and the plan of one task is that of all
    assert made.hash == plan(image).hash


def test_an_image_without_a_shell(image: Path) -> None:
    (image / "bin/sh").unlink()
    assert "the image has no /bin/sh" in plan(image).errors[0]


def test_root_s_sshd_gets_its_user_and_an_unlocked_root(image: Path, tree: DirectoryTree) -> None:
    lines = ssh_passwd.for_root({}, tree)
    assert len(lines) == 2
    assert (image / "etc/passwd").read_text().splitlines()[2].startswith("sshd:x:65534:65534:")
    assert (image / "etc/shadow").read_text() == "bin:!:1::::::\nroot:*::0:99999:7:::\n"
    assert ssh_passwd.for_root({}, tree) == [], "the second start finds it done"


def test_passwd_of_podman_is_the_one_that_counts(image: Path, tree: DirectoryTree, tmp_path: Path) -> None:
    mounted = tmp_path / "overlay-containers/1/userdata/passwd"
    mounted.parent.mkdir(parents=True)
    mounted.write_text("root:x:0:0:root:/root:/bin/sh\nalice:*:2001:2001::/:/bin/sh\n")
    config = {"mounts": [{"destination": "/etc/passwd", "source": str(mounted)}]}
    before = (image / "etc/passwd").read_text()
    ssh_passwd.check_shell(config, tree, 2001)
    ssh_passwd.for_root(config, tree)
    assert "\nsshd:" in mounted.read_text()
    assert (image / "etc/passwd").read_text() == before
    own = tmp_path / "passwd"
    own.write_text("root:x:0:0:root:/root:/bin/sh\n")
    with pytest.raises(UsageError, match="is mounted on /etc/passwd"):
        ssh_passwd.for_root({"mounts": [{"destination": "/etc/passwd", "source": str(own)}]}, tree)
    assert own.read_text() == "root:x:0:0:root:/root:/bin/sh\n"


def test_a_file_that_is_too_long_is_refused_and_not_cut(image: Path, tree: DirectoryTree) -> None:
    for name, needed in (("shadow", "root:!:1::::::\n"), ("passwd", "root:x:0:0::/:/bin/sh\n")):
        file = image / "etc" / name
        text = needed + "x" * (1 << 20)
        file.write_text(text)
        with pytest.raises(UsageError, match=f"/etc/{name} in the image has more than 1 MiB"):
            ssh_passwd.for_root({}, tree)
        assert file.read_text() == text


def test_what_is_not_a_file_is_not_even_opened(image: Path, tree: DirectoryTree) -> None:
    """For root's Podman it may be a device, whose opening does something; here the kernel says who opened the place."""
    passwd = image / "etc/passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(passwd), 0x20) > 0  # IN_OPEN
        with pytest.raises(UsageError, match="/etc/passwd in the image is not a file"):
            ssh_passwd.check_shell({}, tree, 0)
        with pytest.raises(UsageError, match="/etc/passwd in the image is not a file"):
            ssh_passwd.check_shell({"mounts": [{"destination": "/etc/passwd", "source": str(passwd)}]}, tree, 0)
        with pytest.raises(BlockingIOError):
            os.read(watch, 100)
        os.close(os.open(passwd, os.O_RDONLY | os.O_NONBLOCK))
        assert os.read(watch, 100), "the kernel would have said so"
    finally:
        os.close(watch)


def test_a_user_whom_sshd_would_not_let_in(image: Path, tree: DirectoryTree) -> None:
    with pytest.raises(UsageError, match="The shell /bin/zsh of the user www is not in the image"):
        ssh_passwd.check_shell({}, tree, 33)
    with pytest.raises(UsageError, match="knows no user 34"):
        ssh_passwd.check_shell({}, tree, 34)
    (image / "etc/passwd").unlink()
    os.mkfifo(image / "etc/passwd")
    with pytest.raises(UsageError, match=r"is not a file|cannot be read"):
        ssh_passwd.check_shell({}, tree, 0)
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to("/../../../../../../etc/passwd")
    with pytest.raises(UsageError, match="cannot be read"):
        ssh_passwd.check_shell({}, tree, 0)


# -- precreate --


def config(**annotations: str) -> dict[str, Any]:
    return {
        "process": {"args": ["a b", "--c"], "env": ["A=1"], "user": {"uid": 0, "gid": 0}},
        "annotations": {f"squashmount.ssh.{key}": value for key, value in annotations.items()},
        "mounts": [{"destination": "/proc"}, {"destination": "/run/squashmount/ssh/lib/ld"}],
    }


@needs_ssh
def test_the_configuration_that_comes_out(image: Path, tree: DirectoryTree, tmp_path: Path) -> None:
    (image / "etc/ssh").mkdir()
    (image / "etc/ssh/ssh_config").write_text("Host *\n")
    state = tmp_path / "state"
    environ = {"HOME": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_LOCALID": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    start = ssh_start.Start(config(), {"programs": "env ssh sshd", "chroot": "/run/sshd", "argv0": ""}, "ab")
    with socket.socket() as own:  # a network namespace of its own: what listens in ours does not count
        own.bind(("127.0.0.1", 0))
        start.config["linux"] = {"namespaces": [{"type": "network"}]}
        ssh_start.prepare(start, tree, Policy(), environ, str(state))
    for _ in range(2):
        ssh_start.edit(start, "/x/squashmount-hook", {log.STATE: str(state), "SECRET": "x"})
    made = start.config
    port = ssh_keys.first_port("7", PORTS)
    assert made["process"]["args"] == ["/bin/sh", "/run/squashmount/ssh/start", "a b", "--c"]
    assert made["process"]["env"] == ["A=1", f"SQUASHMOUNT_SSH_PORT={port}"]
    places = [mount["destination"] for mount in made["mounts"]]
    assert places == ["/proc", "/run/squashmount/ssh", "/run/squashmount/ssh/lib/ld", "/run/sshd"]
    (hook,) = made["hooks"]["createContainer"]
    handed = json.loads(Path(hook["args"][2]).read_text())
    assert hook["env"] == [f"{log.STATE}={state}"]
    assert os.stat(hook["args"][2]).st_mode & 0o777 == 0o600
    assert (handed["port"], handed["owner"], handed["strict"]) == (port + 2, [0, 0], True)
    texts = {file.name: file for file in ssh_place.files(handed, ["A=1"])}
    assert texts["image_ssh_config"].text == "Host *\n"
    assert texts["ssh_config"].text.startswith("Host n1 n2 n1.* n2.* localhost ")
    for none in ("", "n[1"):
        without = {file.name: file for file in ssh_place.files({**handed, "nodes": none}, [])}
        assert without["ssh_config"].text.startswith("Host *\n")
    assert f"  Port {port}\n" in texts["ssh_config"].text
    assert f"Port {port + 2}\n" in texts["sshd_config"].text
    assert {name for name, file in texts.items() if file.mine} == {"start", "session", "id", "host"}
    assert all(file.mode == 0o600 for file in texts.values() if file.mine)


def test_a_port_that_is_taken_in_the_host_s_network(tree: DirectoryTree, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        low = port - port % ssh_keys.PER_NODE
        rules = Policy()._replace(ssh_ports=(low, low + ssh_keys.PER_NODE - 1))
        start = ssh_start.Start(config(job="7", index=str(port - low)), {"programs": "", "chroot": "/run/sshd"}, "ab")
        with pytest.raises(HostError, match=f"Port {port}, .* is in use"):
            ssh_start.prepare(start, tree, rules, {"HOME": str(tmp_path)}, str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_root_needs_the_rights_of_one(tree: DirectoryTree, tmp_path: Path) -> None:
    start = ssh_start.Start(config(job="7"), {"programs": "", "chroot": "/run/sshd"}, "ab")
    start.config["process"]["capabilities"] = {"bounding": ["CAP_SETUID"]}
    start.config["linux"] = {"namespaces": [{"type": "network"}]}
    with pytest.raises(UsageError, match="cannot run as root") as caught:
        ssh_start.prepare(start, tree, Policy(), {"HOME": str(tmp_path)}, str(tmp_path / "state"))
    assert "CAP_SETGID, CAP_SYS_CHROOT" in caught.value.details
    start.config["process"]["capabilities"] = {}
    with pytest.raises(UsageError, match="cannot run as root"):
        ssh_start.prepare(start, tree, Policy(), {"HOME": str(tmp_path)}, str(tmp_path / "state"))


@pytest.mark.parametrize("directory", ["$NONE/ssh", "relative", "/a/../b", "$HOME/$NONE"])
def test_a_directory_for_keys_that_is_none(tree: DirectoryTree, tmp_path: Path, directory: str) -> None:
    start = ssh_start.Start(config(job="7"), {"programs": "", "chroot": "/run/sshd"}, "ab")
    start.config["linux"] = {"namespaces": [{"type": "network"}]}
    rules = Policy()._replace(ssh_directory=directory)
    with pytest.raises(UsageError, match="is no absolute path"):
        ssh_start.prepare(start, tree, rules, {"HOME": str(tmp_path)}, str(tmp_path / "state"))
