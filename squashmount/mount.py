"""One call of the mount program: parse, resolve, plan, serve, overlay. Exit only when the target is mounted."""

import os
from typing import NamedTuple

from .config import Config, load_config
from .errors import HostError
from .host import Host, probe_host
from .keeper import using_server
from .lowers import Lower, resolve_lowers
from .overlay import hand_over, mount_fuse_overlayfs, mount_kernel, record_kind, recorded_kind
from .plan import FUSE, MountPlan, plan_mount
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
    host = probe_host()
    lowers = resolve_lowers(request.lowers, cwd=os.getcwd())
    if not any(lower.squash for lower in lowers):
        # Nothing of ours is involved: no state, no log, exactly what Podman would have got without us
        hand_over(request._replace(target=target), host)
    state = os.path.realpath(state_dir(config, environ))
    call = _Call(request, host, config, state, Log(state, config.log_level))
    call.log.detail(f"{request.target}: -o {options}")
    try:
        _execute(call, _planned(call, lowers))
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
