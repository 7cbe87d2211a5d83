"""`squashmount-hooks plan` of images that Podman keeps unpacked: the plan the hook makes, and nothing stays mounted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Done, Node, User, run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_podman]

# only the container's users can look into /private: 33 is an id of the user's range
IMAGE = """
FROM {base}
RUN mkdir /private && ln -s /work /private/link && chown -R 33:33 /private && chmod 700 /private
LABEL site.wants=library
ENV FLAVOUR=sweet
"""
MODULE = """
[when]
label = ["site.wants"]
[[mounts]]
source = "{top}/library"
target = "/private/link/library"
"""


class Planner:
    """One node with one module and one unpacked image."""

    def __init__(self, top: Path, node: Node) -> None:
        self.top, self.node = top, node
        (top / "modules").mkdir(parents=True)
        (top / "library").write_text("host's library\n")
        (top / "modules/site.toml").write_text(MODULE.format(top=top))
        (top / "hooks.toml").write_text(f'modules = ["{top}/modules"]\n')
        install = ("install", "--dir", str(top / "hooks.d"), "--policy", str(top / "hooks.toml"))
        run(str(node.product / "bin/squashmount-hooks"), *install).ok()

    def build(self, base: str) -> str:
        context = self.top / "context"
        context.mkdir()
        (context / "Containerfile").write_text(IMAGE.format(base=base))
        self.node.podman("pull", "--tls-verify=false", base).ok()
        self.node.podman("build", "--isolation=chroot", "--network=host", "-t", "localhost/own:1", str(context)).ok()
        return "localhost/own:1"

    def plan(self, *argv: str) -> Done:
        program = str(self.node.product / "bin/squashmount-hooks")
        return self.node.run(program, "plan", "--policy", str(self.top / "hooks.toml"), *argv)

    def nothing_stays(self) -> None:
        unshare = () if self.node.user.uid == 0 else ("podman", "unshare")
        mounts = self.node.run(*unshare, "cat", "/proc/self/mounts").ok()
        assert [line for line in mounts.splitlines() if str(self.node.graphroot) in line and "/merged" in line] == []
        assert json.loads(self.node.run(*unshare, "podman", "image", "mount", "--format", "json").ok()) == []
        assert self.node.servers() == []


@pytest.fixture
def make_planner(lab: Path, make_node: Callable[..., Node], request: pytest.FixtureRequest) -> Callable[..., Planner]:
    top = lab / f"plan-{abs(hash(request.node.name))}"
    return lambda user, **options: Planner(top, make_node(user, **options))


def test_the_plan_of_an_unpacked_image_is_the_hooks(
    make_planner: Callable[..., Planner], alice: User, busybox: str
) -> None:
    planner = make_planner(alice)
    image = planner.build(busybox)
    made = json.loads(planner.plan(image, "--json").ok())
    assert [mount["target"] for mount in made["mounts"]] == ["/work/library"]
    planner.nothing_stays()
    node, podman = planner.node, ("--hooks-dir", str(planner.top / "hooks.d"))
    assert node.podman(*podman, "run", "--name", "one", image, "cat", "/work/library").ok() == "host's library"
    assert f"plan {made['hash']}" in node.run(str(node.product / "bin/squashmount-hooks"), "log", "one").ok()
    # by ID, beside the container, and in words
    found = node.podman("image", "inspect", "--format", "{{.Id}}", image).ok()
    assert "is mounted on '/work/library'" in planner.plan(found[:12]).ok()
    node.podman("rm", "--all").ok()
    node.podman("rmi", image).ok()
    done = planner.plan(image)
    assert done.code == 3
    assert f"Podman has no image {image}." in done.err
    # a file somebody else could change: seen outside of the user namespace only
    library = planner.top / "library"
    run("chown", "2002", str(library)).ok()
    done = planner.plan(busybox, "--annotation", "squashmount.site=on")
    assert done.code == 11
    assert "belongs to uid 2002" in done.out
    done = node.run("env", "PATH=/nowhere", f"{node.product}/bin/squashmount-hooks", "plan", busybox)
    assert done.code == 8
    assert "podman is not installed or not on PATH" in done.err


def test_root_plans_without_a_user_namespace(make_planner: Callable[..., Planner], root: User, busybox: str) -> None:
    planner = make_planner(root)
    # not built: Podman 5.4 raises a limit for root's builds, which not every machine allows
    planner.node.podman("pull", "--tls-verify=false", busybox).ok()
    said = planner.plan(busybox, "--annotation", "squashmount.site=on").ok()
    assert "is mounted on '/private/link/library'" in said
    planner.nothing_stays()


def test_podmans_additional_stores_are_looked_into(
    make_planner: Callable[..., Planner], alice: User, store: Path, busybox: str
) -> None:
    planner = make_planner(alice, stores=(store,))
    asked = ("--annotation", "squashmount.site=on", "--json")
    squashed = json.loads(planner.plan(busybox, "--store", str(store), *asked).ok())
    assert json.loads(planner.plan(busybox, *asked).ok())["hash"] == squashed["hash"]
    planner.nothing_stays()
    assert planner.plan("no/such", "--store", str(store)).code == 3
