"""One call of the mount program: parse, resolve, plan, serve, overlay. Exit only when the target is mounted."""

import os

from .config import Config, load_config
from .errors import HostError
from .host import Host, probe_host
from .keeper import using_server
from .lean import NamedTuple
from .lowers import Lower, resolve_lowers
from .overlay import hand_over, mount_fuse_overlayfs, mount_kernel, record_kind, recorded_kind
from .plan import FUSE, KERNEL, MountPlan, plan_mount
from .request import MountRequest, parse_request
from .runtime import Log, remembered_whiteouts, state_dir


class _Call(NamedTuple):
    request: MountRequest
    host: Host
    config: Config
    state: str
    log: Log


def mount_for_podman(options: str, target: str) -> None:
    """Mount what Podman asks for. Raises SquashmountError; on return the target is mounted."""
    environ = dict(os.environ)
    config = load_config(environ)
    request = parse_request(options, os.path.realpath(target))
    if not request.prefetch:
        config = config._replace(prefetch_mib=0)
    host = probe_host()
    lowers = resolve_lowers(request.lowers, cwd=os.getcwd())
    try:
        state = os.path.realpath(state_dir(config, environ))
    except HostError:
        if any(lower.squash for lower in lowers):
            raise
        # An image that is not squashed needs nothing of ours: what Podman would have got without us
        hand_over(request, host)
    call = _Call(request, host, config, state, Log(state, config.log_level))
    call.log.detail(f"{request.target}: -o {options}")
    try:
        plan = _planned(call, lowers)
        _execute(call, plan) if plan.squash else _execute_unpacked(call, plan)
    except Exception as err:
        call.log.fail(f"{request.target}: {err}")
        raise


def _planned(call: _Call, lowers: tuple[Lower, ...]) -> MountPlan:
    return plan_mount(
        call.request,
        lowers,
        call.host,
        call.config,
        whiteouts=lambda path: remembered_whiteouts(call.state, path),
        earlier=recorded_kind(call.request),
    )


def _execute(call: _Call, plan: MountPlan) -> None:
    request = call.request
    call.log(f"{request.target}: {plan.describe()}")
    with using_server(call.state, plan, call.config, call.log) as place:
        # The lease comes first: a kill between the two leaves a lease without a mount, which the server clears away
        place.add_lease(request.target)
        record_kind(request, plan.overlay)
        if plan.overlay == FUSE:
            mount_fuse_overlayfs(request, plan, place.mountpoint, call.host)
            return
        try:
            mount_kernel(request, plan, place.mountpoint, place.empty, userns=call.host.userns)
            return
        except OSError as err:
            place.drop_lease(request.target)
            other = _fallback(call, plan, err)
    # The other overlay may want another server: fuse-overlayfs shifts the ids itself
    _execute(call, other)


def _execute_unpacked(call: _Call, plan: MountPlan) -> None:
    """Mount an image that is not squashed: as fast as without a mount program where that shows the same tree."""
    request = call.request
    call.log.detail(f"{request.target}: {plan.describe()}")
    record_kind(request, plan.overlay)
    if plan.overlay == KERNEL:
        empty = os.path.join(call.state, "empty")
        os.makedirs(empty, mode=0o700, exist_ok=True)
        try:
            mount_kernel(request, plan, "", empty, userns=call.host.userns)
            return
        except OSError as err:
            plan = _fallback(call, plan, err)
        call.log.detail(f"{request.target}: {plan.describe()}")
        record_kind(request, plan.overlay)
    hand_over(request, call.host)


def _fallback(call: _Call, plan: MountPlan, error: OSError) -> MountPlan:
    reason = f"the kernel refused its overlay: {error.strerror}"
    if plan.forced or call.host.fuse_overlayfs is None:
        raise HostError(
            f"Cannot mount kernel overlay on {call.request.target}.",
            details=f"{reason}\nupper directory: {call.request.upper}",
            hint="the graphroot must lie on a local file system (ext4, xfs, tmpfs); "
            'install fuse-overlayfs and set overlay = "auto" for the others',
        ) from error
    return plan.with_fuse(reason, call.host)
