"""Checks of the ranges themselves, over all users of a site: A01 to A08, A10 and A14."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain

from ..finding import error, info, warning
from .ranges import ENOUGH, IDS_END, KINDS, Kind, Overlap, Range, holders, overlaps
from .reserved import WINDOWS
from .site import Formula, Site
from .verdict import Verdict, about, number

_COMPUTED = 200000
"""Where sssd's window for Active Directory begins: it counts only where sssd computes ids (_mapped_by_sssd)."""

_NESTED = {"root", "lxd", "incus", "containers", "kubelet"}
"""Owners that are programs: their ranges are in the files of a node, also where LDAP has those of the users."""


def entries(site: Site) -> Iterator[Verdict]:
    """A01: every line or entry says what it means."""
    groups = defaultdict(list)
    for flaw in site.inventory.flaws:
        groups[flaw.code].append(flaw)
    everything = groups.pop("everything", [])
    yield from about(
        error,
        "A01",
        f"{number(len(everything), 'line')} of {site.inventory.source} with 0:0, every id before shadow 4.20.",
        "newuidmap lets its owner map any id, root's included: he can become root of the host, and read all files.",
        "remove the line at once, on every node; then look at what its owner did",
        (f"{flaw.where}: {flaw.what}" for flaw in everything),
    )
    for flaws in groups.values():
        many = len(flaws)
        unit = number(many, "line", "lines") if site.inventory.kind == "files" else number(many, "entry", "entries")
        yield from about(
            error,
            "A01",
            f"{unit} of {site.inventory.source} cannot be right; the first {flaws[0].what}.",
            "Such a line or entry gives nobody the range it was meant to give, or another one.",
            "correct it; for files see `man 5 subuid`",
            (f"{flaw.where}: {flaw.what}" for flaw in flaws),
        )


def overlapping(site: Site) -> Iterator[Verdict]:
    """A02: no two ranges have ids in common, those of uids and those of gids each among themselves."""
    for kind in KINDS:
        pairs = list(overlaps(site.inventory.of(kind)))
        own = [pair for pair in pairs if _same_owner(site, pair)]
        others = [pair for pair in pairs if not _same_owner(site, pair)]
        yield from about(
            error,
            "A02",
            f"{number(len(others), 'range')} of sub{kind}s overlap with one of another user.",
            "newuidmap allows it, and each can then read and change the other's files and processes.",
            "give the newer of each pair a range of its own; its files must be moved: `squashmount-conf ids baseline`",
            map(_pair, others),
        )
        yield from about(
            error,
            "A02",
            f"{number(len(own), 'range')} of sub{kind}s overlap with one of the same user.",
            "The kernel refuses a map with an id in it twice: Podman fails with "
            f"`write to {kind}_map failed: Invalid argument`.",
            "remove the copy",
            map(_pair, own),
        )


def _same_owner(site: Site, pair: Overlap) -> bool:
    first, second = pair.first.owner, pair.second.owner
    return first == second or site.owners.name(first) == site.owners.name(second)


def _pair(pair: Overlap) -> str:
    return f"{pair.first} and {pair.second} have {pair.start}-{pair.end - 1} in common"


def real_ids(site: Site) -> Iterator[Verdict]:
    """A03: no range holds the uid or gid of a real user or group, be it of LDAP or of this node."""
    sources = (site.inventory, site.local) if site.local is not site.inventory else (site.inventory,)
    accounts = list(chain.from_iterable(source.accounts for source in sources))
    groups = list(chain.from_iterable(source.groups for source in sources))
    real: dict[Kind, list[tuple[int, str]]] = {
        "uid": [(item.uid, f"user {item.name}") for item in accounts],
        "gid": [(item.gid, f"group {item.name}") for item in groups]
        + [(item.gid, f"the primary group of {item.name}") for item in accounts],
    }
    for kind in KINDS:
        ids = dict(sorted(real[kind], reverse=True))  # of one id, the first by name
        names = sorted(ids.items())
        found = holders(site.inventory.of(kind), [value for value, _ in names])
        hits = [f"{names[index][1]} ({kind} {names[index][0]}) in {item}" for index, item in found]
        yield from about(
            error,
            "A03",
            f"{number(len(hits), f'real {kind}')} inside ranges of subordinate ids.",
            "Who owns the range can read and change every file of that user or group: newuidmap does not ask whose id "
            "it maps, and neither does NFS.",
            "move the range out of the ids of people now; look at what its owner has done with it",
            hits,
        )


def reserved(site: Site) -> Iterator[Verdict]:
    """A04: ranges keep out of windows that somebody else takes ids from; the large ones are only told."""
    for kind in KINDS:
        ranges = site.inventory.of(kind)
        for window in WINDOWS:
            if window.start in {_COMPUTED, IDS_END}:  # what reaches 2^32-1 is a fault of its line: A01
                continue
            make = error if window.hard else info  # sites must be in one of the large ones: told, and no fault
            inside = [item for item in ranges if item.count > 0 and window.meets(item.start, item.end)]
            yield from about(
                make,
                "A04",
                f"{number(len(inside), 'range')} of sub{kind}s in {window.start}-{window.end - 1}.",
                f"{window.name[0].upper()}{window.name[1:]} ({window.source}).",
                "choose ranges elsewhere" if window.hard else "nothing, if no such program runs on these nodes",
                # nobody wants a list of all users for what is no fault
                inside if window.hard else _extent(inside),
            )
        yield from _mapped_by_sssd(site, ranges, kind)
        yield from _nested(site, ranges, kind)


def _extent(ranges: list[Range]) -> list[str]:
    return [f"ids {min(item.start for item in ranges)}-{max(item.end for item in ranges) - 1}"] if ranges else []


def _mapped_by_sssd(site: Site, ranges: Iterable[Range], kind: Kind) -> Iterator[Verdict]:
    for section, options in site.sssd.items():
        provider = options.get("id_provider", "")
        mapping = options.get("ldap_id_mapping", "true" if provider == "ad" else "false").lower() == "true"
        if not section.startswith("domain/") or not mapping:
            continue
        try:
            start = int(options.get("ldap_idmap_range_min", "200000"))
            end = int(options.get("ldap_idmap_range_max", "2000200000"))
        except ValueError:
            continue
        yield from about(
            error,
            "A04",
            f"Ranges of sub{kind}s in {start}-{end - 1}, from which sssd computes ids of Active Directory ({section}).",
            "sssd gives these ids to real users (sssd-ad(5), ID mapping), whose files the owner of the range can read.",
            "put the ranges above ldap_idmap_range_max, for instance at 2147483648",
            [item for item in ranges if item.start < end and item.end > start],
        )


def _nested(site: Site, ranges: list[Range], kind: Kind) -> Iterator[Verdict]:
    if site.local is site.inventory:
        return
    programs = [item for item in site.local.of(kind) if item.owner in _NESTED]
    marked = {(item.owner, item.source, item.line) for item in programs}
    pairs = [
        pair
        for pair in overlaps([*ranges, *programs])
        if ((pair.first.owner, pair.first.source, pair.first.line) in marked)
        != ((pair.second.owner, pair.second.source, pair.second.line) in marked)
    ]
    yield from about(
        error,
        "A04",
        f"{number(len(pairs), 'range')} of sub{kind}s overlap with those of programs in /etc/sub{kind}.",
        "LXC, Kubernetes and others run their containers with ids of the lines of root, lxd, containers or kubelet.",
        f"move these lines of /etc/sub{kind} on the nodes, or remove the programs",
        map(_pair, pairs),
    )


def missing_or_stale(site: Site) -> Iterator[Verdict]:
    """A05: every account that can log in has a range, and every range has somebody."""
    accounts = site.inventory.accounts
    if not accounts:
        return
    lowest = site.number("UID_MIN", 1000)
    for kind in KINDS:
        ranges = site.inventory.of(kind)
        owners = {site.owners.uid(item.owner) for item in ranges if item.count > 0}
        without = [
            f"{item.name} (uid {item.uid})"
            for item in accounts
            if item.uid not in owners and item.login and item.uid >= lowest and item.uid not in {65534, 65535}
        ]
        if ranges:  # without any see A16: nobody wants a list of all users
            yield from about(
                warning,
                "A05",
                f"{number(len(without), 'user')} without a range of sub{kind}s.",
                "Podman maps a single id for them, and most images cannot be unpacked.",
                "squashmount-conf ids plan",
                sorted(without),
            )
        stale = [item for item in ranges if site.owners.account(item.owner) is None and item.owner not in _NESTED]
        if site.inventory.kind in {"files", "nss"}:  # in a directory the owner is a DN: A01
            yield from about(
                warning,
                "A05",
                f"{number(len(stale), 'range')} of sub{kind}s of nobody.",
                "The user is gone or renamed. Whoever gets the range later gets the files that are left, too.",
                "keep the range as retired in the baseline; never give it to somebody else before a purge of the files",
                stale,
            )


def sizes(site: Site) -> Iterator[Verdict]:
    """A06: every user has 65,536 ids, and ranges lie on one grid."""
    for kind in KINDS:
        ranges = [item for item in site.inventory.of(kind) if item.count > 0]
        total: Counter[str] = Counter()
        for item in ranges:
            total[site.owners.name(item.owner)] += item.count
        yield from about(
            warning,
            "A06",
            f"{number(sum(many < ENOUGH for many in total.values()), 'user')} with less than {ENOUGH} sub{kind}s.",
            "An image with a file of nobody (65534) or of a user that is not mapped cannot be unpacked: "
            "`potentially insufficient UIDs or GIDs available in user namespace`.",
            f"give each {ENOUGH}; a range may grow at its end, it must not move",
            sorted(f"{owner}: {many} sub{kind}s" for owner, many in total.items() if many < ENOUGH),
        )
        if not ranges:
            continue
        step = Counter(item.count for item in ranges).most_common(1)[0][0]
        usual = Counter(item.start % step for item in ranges).most_common(1)[0][0]
        yield from about(
            info,
            "A06",
            f"Ranges of sub{kind}s that do not lie on the grid of the others.",
            f"Most start at a multiple of {step}{f' plus {usual}' if usual else ''}; others leave useless gaps.",
            "nothing for ranges that are in use; plan new ones with `squashmount-conf ids plan`",
            [item for item in ranges if item.start % step != usual],
        )


def several(site: Site) -> Iterator[Verdict]:
    """A07: one range for each user where sssd answers, which takes the first one only."""
    if not site.from_directory:
        return
    for kind in KINDS:
        groups = defaultdict(list)
        for item in site.inventory.of(kind):
            groups[item.owner].append(item)
        many = [f"{owner}: {', '.join(item.where for item in own)}" for owner, own in groups.items() if len(own) > 1]
        yield from about(
            error,
            "A07",
            f"{number(len(many), 'user')} with more than one range of sub{kind}s.",
            "sssd uses the first one it is given (`Multiple subid ranges, only first will be processed`), and which "
            "that is, is up to the server: files of the other ranges are lost.",
            "keep the one that is in use, and join neighbours to one range",
            sorted(many),
        )


def unequal(site: Site) -> Iterator[Verdict]:
    """A08: subuids and subgids of a user are the same numbers."""
    by_owner: dict[str, dict[Kind, set[tuple[int, int]]]] = defaultdict(lambda: {"uid": set(), "gid": set()})
    for item in site.inventory.ranges:
        by_owner[site.owners.name(item.owner)][item.kind].add((item.start, item.count))
    yield from about(
        info,
        "A08",
        "Users whose subuids and subgids are different numbers.",
        "It works, but every listing of files is harder to read, and two plans have to be kept.",
        "nothing for ranges that are in use",
        sorted(owner for owner, own in by_owner.items() if own["uid"] and own["gid"] and own["uid"] != own["gid"]),
    )


def conflicts(site: Site) -> Iterator[Verdict]:
    """A10: files of a node do not give a user of the directory another range than the directory does."""
    if site.local is site.inventory:
        return
    for kind in KINDS:
        directory: dict[int | None, set[tuple[int, int]]] = defaultdict(set)
        for item in site.inventory.of(kind):
            directory[site.owners.uid(item.owner)].add((item.start, item.count))
        others = [
            item
            for item in site.local.of(kind)
            if (uid := site.owners.uid(item.owner)) in directory and (item.start, item.count) not in directory[uid]
        ]
        yield from about(
            error,
            "A10",
            f"{number(len(others), 'line')} of /etc/sub{kind} with another range than {site.inventory.source}.",
            "Where the plugin is missing, or a static Podman runs, the file counts: one user has two ranges, and files "
            "of one node are another's on the next.",
            f"remove these lines from /etc/sub{kind} on all nodes, or write the same ranges",
            others,
        )


def formula(site: Site) -> Iterator[Verdict]:
    """A14: ranges are those of the formula, if there is one, and there is room for new users."""
    if site.login_defs.get("UNSAFE_SUB_UID_DETERMINISTIC_WRAP", "no").lower() == "yes":
        yield from about(
            error,
            "A14",
            "login.defs says UNSAFE_SUB_UID_DETERMINISTIC_WRAP yes.",
            "Ranges that wrap around at 2^32 are those of other users, and in the end ids of the system.",
            "remove the line; allocate ranges of large uids by a counter",
            ["/etc/login.defs"],
        )
    if site.formula is not None:
        yield from _not_by(site, site.formula)
        yield from _full(site, site.formula)


def _not_by(site: Site, plan: Formula) -> Iterator[Verdict]:
    others = []
    for item in site.inventory.ranges:
        uid = site.owners.uid(item.owner)
        if uid is not None and (item.start, item.count) != (plan.start(uid), plan.count) and item.owner not in _NESTED:
            others.append(f"{item}; the formula gives {plan.start(uid)}, {plan.count} ids, to uid {uid}")
    yield from about(
        error,
        "A14",
        f"{number(len(others), 'range')} not where the formula {plan.base} + (uid - {plan.uid_min}) * {plan.count} "
        "puts them.",
        "A node that computes ranges and one that looks them up do not agree.",
        "keep the ranges that are in use, and stop computing; or move them with the files",
        others,
    )


def _full(site: Site, plan: Formula) -> Iterator[Verdict]:
    first = plan.uid_min + max(0, IDS_END - plan.base) // plan.count
    people = [item for item in site.inventory.accounts if item.login and item.uid >= site.number("UID_MIN", 1000)]
    outside = [f"{item.name} (uid {item.uid})" for item in people if not plan.uid_min <= item.uid < first]
    yield from about(
        error,
        "A14",
        f"{number(len(outside), 'user')} with uids the formula has no room for.",
        f"The first uid that does not fit any more is {first}; {plan.uid_min} is the lowest.",
        "a smaller count is no way out (65534 must be mapped): allocate by a counter, `squashmount-conf ids plan`",
        sorted(outside),
    )
    highest = max((item.uid for item in people if item.uid < first), default=plan.uid_min)
    left = first - 1 - highest
    if left * 10 < first - plan.uid_min:
        yield from about(
            warning,
            "A14",
            f"The formula has room for {number(left, 'uid')} more.",
            f"The highest uid is {highest}, and {first} does not fit any more.",
            "decide now how users after that get ranges: `squashmount-conf ids plan`",
            [f"uid {first}"],
        )
