"""MountRequest + resolved lowers + Host + Config → MountPlan. Pure: the only file it looks into is handed in."""

from .config import Config
from .errors import HostError, UsageError
from .host import Host
from .idmap import IdMap
from .lean import Callable, NamedTuple
from .lowers import Lower
from .request import MountRequest

KERNEL, FUSE = "kernel", "fuse"


class Shift(NamedTuple):
    """What the server does to the ids in the squash. Empty maps and no single id: nothing."""

    uid_map: IdMap = ()
    gid_map: IdMap = ()
    single_uid: int | None = None
    single_gid: int | None = None


class MountPlan(NamedTuple):
    """What will be mounted and why.

    `overlay` is "kernel" or "fuse"; `squash` is "" for an image that is not squashed; `above` are the unpacked layers
    over the squash, topmost first; `ignored` are the options the chosen overlay has no use for.
    """

    overlay: str
    reason: str
    squash: str
    above: tuple[str, ...] = ()
    engine: str = "wire"
    shift: Shift = Shift()
    forced: bool = False
    ignored: tuple[str, ...] = ()

    def with_fuse(self, reason: str, host: Host) -> "MountPlan":
        """Return the plan with fuse-overlayfs instead of kernel overlay."""
        return self._replace(overlay=FUSE, reason=reason, ignored=(), shift=_shift_under_fuse_overlayfs(host))

    def describe(self) -> str:
        """Say in one line what is mounted and why."""
        ignored = f", without use for {', '.join(self.ignored)}" if self.ignored else ""
        if not self.squash:
            return f"{self.overlay} overlay ({self.reason}) over {len(self.above)} unpacked layers{ignored}"
        over = f" under {len(self.above)} unpacked layers" if self.above else ""
        shifted = ", ids shifted" if self.shift != Shift() else ""
        return (
            f"{self.overlay} overlay ({self.reason}) over {self.squash}{over}, engine {self.engine}{shifted}{ignored}"
        )


def plan_mount(
    request: MountRequest,
    lowers: tuple[Lower, ...],
    host: Host,
    config: Config,
    *,
    whiteouts: Callable[[str], bool],
    earlier: str = "",
) -> MountPlan:
    """Decide what to mount.

    `whiteouts` tells whether an unpacked layer holds `.wh.` files; `earlier` is the kind of overlay that wrote this
    container's upper directory before ("" for a new container).

    Raises HostError or UsageError when what was asked for (or forced by the configuration) cannot be done.
    """
    squashed = (index for index, lower in enumerate(lowers) if lower.squash)
    # A squash is the flattened image: what lies below it in the list is inside it already.
    top = next(squashed, len(lowers))
    above = tuple(lower.path for lower in lowers[:top])
    overlay, reason = _overlay(config, _kernel_obstacle(request, above, host, whiteouts), earlier)
    return MountPlan(
        overlay=overlay,
        reason=reason,
        squash=(lowers[top].squash or "") if top < len(lowers) else "",
        above=above,
        engine=_engine(request, host, config, overlay),
        shift=_shift(request, host, overlay),
        forced=config.overlay != "auto" or bool(earlier),
        ignored=request.hints if overlay == KERNEL else (),
    )


def _overlay(config: Config, obstacle: str, earlier: str) -> tuple[str, str]:
    if earlier:
        # The two write deletions differently into the upper directory: a restart must not change over.
        return earlier, "as when this container was made"
    if config.overlay == KERNEL:
        if obstacle:
            raise UsageError(
                f"Kernel overlay is forced by the configuration but cannot serve this container: {obstacle}.",
                hint='set overlay = "auto" (SQUASHMOUNT_OVERLAY=auto)',
            )
        return KERNEL, "forced by the configuration"
    if config.overlay == FUSE:
        return FUSE, "forced by the configuration"
    return (FUSE, obstacle) if obstacle else (KERNEL, "fastest")


def _kernel_obstacle(
    request: MountRequest, above: tuple[str, ...], host: Host, whiteouts: Callable[[str], bool]
) -> str:
    if not host.kernel_overlay:
        return f"Linux {host.kernel[0]}.{host.kernel[1]} has no overlay in user namespaces"
    if request.fuse_only:
        return f"option {request.fuse_only[0]} is fuse-overlayfs' own"
    if request.shifted and above:
        return "unpacked layers need their ids shifted"
    if request.shifted and request.upper is not None and not request.volatile:
        # The upper layer may be committed later, so its files must have unshifted ids on disk.
        return "the container is kept and has its own id map"
    if any(whiteouts(path) for path in above):
        return "an unpacked layer has .wh. files"
    return ""


def _engine(request: MountRequest, host: Host, config: Config, overlay: str) -> str:
    if config.engine != "squashfuse_ll":
        return "wire"
    if host.squashfuse_ll is None:
        raise HostError(
            "The configured engine squashfuse_ll is not installed.",
            hint='install squashfuse, or set engine = "auto" (SQUASHMOUNT_ENGINE=auto)',
        )
    if _shift(request, host, overlay) != Shift():
        # squashfuse 0.1.105 cannot change ids; a wrong owner is worse than another engine
        return "wire"
    return "squashfuse_ll"


def _shift_under_fuse_overlayfs(host: Host) -> Shift:
    # fuse-overlayfs gets Podman's options and shifts by itself
    return Shift(single_uid=0, single_gid=0) if host.single_id else Shift()


def _shift(request: MountRequest, host: Host, overlay: str) -> Shift:
    if overlay == FUSE or host.single_id:
        return _shift_under_fuse_overlayfs(host)
    return Shift(request.uid_map, request.gid_map, request.squash_uid, request.squash_gid)
