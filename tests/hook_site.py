"""A site of one directory for tests of the hook program: modules, a policy, a root file system, a runtime directory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from squashmount.oci_hooks import log
from test_architecture import HEAVY

HOOK = os.path.join(os.path.dirname(sys.executable), "squashmount-hook")
ID = "ab" * 32
HOOK_PATH = HEAVY | {"json", "re", "enum", "typing", "functools", "collections", "contextlib", "hashlib", "ctypes"}
"""What no hook loads that has nothing to do, or only waits."""


class Site:
    """Modules, a policy and a root file system below one directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.modules, self.state, self.root = top / "modules", top / "run", top / "root"
        for path in (self.modules, self.state, self.root / "usr"):
            path.mkdir(mode=0o755, parents=True)
        self.policy = top / "hooks.toml"
        self.rules(missing_required="error")
        (top / "lib.so").write_text("host")

    def rules(self, **rules: str) -> None:
        lines = [
            f'modules = ["{self.modules}"]',
            "shipped = false",
            *(f'{key} = "{value}"' for key, value in rules.items()),
        ]
        self.policy.write_text("\n".join(lines))

    def module(self, name: str, text: str) -> None:
        (self.modules / f"{name}.toml").write_text(text)

    def config(self, **annotations: str) -> dict[str, Any]:
        mounts = [{"destination": "/run/.containerenv", "source": f"/r/overlay-containers/{ID}/userdata/.containerenv"}]
        keys = {f"squashmount.{key}": value for key, value in annotations.items()}
        return {"root": {"path": str(self.root)}, "process": {"env": []}, "mounts": mounts, "annotations": keys}

    def environ(self, **more: str) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": str(self.state), "HOME": str(self.top), **more}

    def run(self, config: object, **environ: str) -> subprocess.CompletedProcess[bytes]:
        data = config if isinstance(config, bytes) else json.dumps(config, indent=1).encode()
        argv = [HOOK, "apply", "--policy", str(self.policy)]
        return subprocess.run(
            argv, check=False, input=data, capture_output=True, timeout=30, env=self.environ(**environ), cwd="/"
        )

    def log(self) -> str:
        return log.read(str(self.state / "squashmount"), ID[:12])
