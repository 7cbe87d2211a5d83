"""squashmount-mount, the mount program's quick start, where it cannot be quick; under Podman: test_mount_program."""

import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
QUICK = TOP / "squashmount/squashmount-mount"


def test_an_editable_install_is_found() -> None:
    program = Path(sys.executable).parent / QUICK.name
    done = subprocess.run([program, "-o", "x"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("squashmount: Expected: squashmount -o OPTIONS TARGET.")


def test_outside_of_a_virtual_environment_it_is_squashmount(tmp_path: Path) -> None:
    quick = tmp_path / "bin" / QUICK.name
    quick.parent.mkdir()
    shutil.copy(QUICK, quick)
    ordinary = quick.parent / "squashmount"
    ordinary.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"; exit 7\n")
    ordinary.chmod(0o755)
    done = subprocess.run([quick, "-o", "a b,$c", "d"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "<-o><a b,$c><d>")


def test_packages_of_the_system_are_seen_where_the_environment_asks_for_them(tmp_path: Path) -> None:
    package = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages/squashmount"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\n\n\ndef main():\n    return 3 + ('site' in sys.modules)\n")
    (tmp_path / "bin").mkdir()
    shutil.copy(QUICK, tmp_path / "bin")
    (tmp_path / "bin/python3").symlink_to(Path(sys.executable).resolve())
    for answer, code in (("false", 3), ("true", 4)):
        (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = {answer}\n")
        assert subprocess.run([tmp_path / "bin" / QUICK.name], check=False).returncode == code
