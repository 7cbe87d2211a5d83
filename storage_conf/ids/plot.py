"""A picture of the ids of a site: the whole 32-bit space, and enlarged the parts where ranges lie.

The same ranges give the same file. matplotlib is imported inside (extra `plot`).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from squashmount.atomic import replacing
from squashmount.errors import ToolError

from .ranges import ENOUGH, IDS_END, Account, Kind, Range, by_start, overlaps
from .reserved import WINDOWS

ROWS = 8
"""Parts that are enlarged, at most."""

CELLS = 600
"""Pieces a line is drawn of, about one for each pixel: 20,000 ranges make no larger file than 3."""

LINES = 16
"""Lines of the map of all ids."""

_SPACE = 1 << 32
_LEVELS = ("#a8c5da", "#5b8fb5", "#1d3557")  # a part of a piece is used, most of it, all of it
_ALTERNATE = ("#1d3557", "#457b9d")
_CLASH, _REAL, _HARD, _FREE, _INK, _FAINT = "#d00000", "#f08a24", "#9a8c98", "#f1eee6", "#22223b", "#8d8d96"
_SOFT = ("#c9a227", "#5a9367", "#8e6bbf")  # as many as there are soft windows


@dataclass(frozen=True)
class Span:
    """Half-open ids that are drawn together."""

    start: int
    end: int


@dataclass(frozen=True)
class Picture:
    """What there is to draw, of one kind of ids."""

    kind: Kind
    ranges: tuple[Range, ...]
    clashes: tuple[Span, ...]
    real: tuple[int, ...]
    parts: tuple[Span, ...]

    @property
    def used(self) -> int:
        """How many ids are in any range."""
        return sum(span.end - span.start for span in union(self.ranges))


def union(ranges: Iterable[Range]) -> list[Span]:
    """Return the ids of all ranges as spans without common ids."""
    made: list[Span] = []
    for one in by_start(ranges):
        start, end = max(0, one.start), min(one.end, _SPACE)
        if made and start <= made[-1].end:
            made[-1] = Span(made[-1].start, max(made[-1].end, end))
        elif start < end:
            made.append(Span(start, end))
    return made


def arranged(ranges: Iterable[Range], accounts: Iterable[Account], kind: Kind) -> Picture:
    """Decide what is drawn and which parts are enlarged."""
    chosen = tuple(by_start(one for one in ranges if one.kind == kind and one.count > 0))
    clashes = tuple(Span(one.start, one.end) for one in overlaps(chosen))
    real = tuple(sorted({one.uid if kind == "uid" else one.gid for one in accounts}))
    return Picture(kind, chosen, clashes, real, tuple(_parts(union(chosen))))


def _parts(spans: Sequence[Span]) -> list[Span]:
    """Cut at the widest gaps, so that each part is full enough to be seen; evenly scattered ranges are one part."""
    wide = []
    begin = 0
    for index in range(1, len(spans)):
        gap = spans[index].start - spans[index - 1].end
        if gap > max(4 * (spans[index].end - spans[index].start), spans[index - 1].end - spans[begin].start):
            wide.append((gap, index))
            begin = index
    wide.sort(key=lambda one: (-one[0], one[1]))
    if len(wide) >= ROWS:
        falls = [wide[number - 1][0] / wide[number][0] for number in range(1, ROWS)]
        steepest = max(range(len(falls)), key=falls.__getitem__)
        wide = wide[: steepest + 1] if falls[steepest] >= 2 else []
    cuts = [0, *sorted(index for _gap, index in wide), len(spans)]
    return [_framed(spans[first].start, spans[last - 1].end) for first, last in pairwise(cuts) if first < last]


def _framed(start: int, end: int) -> Span:
    edge = max(1, (end - start) // 40)
    return Span(max(0, start - edge), min(_SPACE, end + edge))


def pieces(spans: Sequence[Span], line: Span, cells: int = CELLS) -> list[float]:
    """Return how much of each of the equal pieces of a line is used, 0 to 1."""
    width = (line.end - line.start) / cells
    filled = [0.0] * cells
    first = max(0, bisect_right(spans, line.start, key=lambda one: one.start) - 1)
    for one in spans[first : bisect_left(spans, line.end, key=lambda one: one.start)]:
        left = (max(one.start, line.start) - line.start) / width
        right = (min(one.end, line.end) - line.start) / width
        for cell in range(int(max(0.0, left)), min(cells, int(right) + 1)):
            filled[cell] += max(0.0, min(right, cell + 1) - max(left, cell))
    return filled


def free_places(spans: Sequence[Span], line: Span, size: int = ENOUGH) -> int:
    """Return how many ranges of `size` ids still fit into the gaps of a line, outside hard windows and the last id."""
    hard = [Span(window.start, window.end) for window in WINDOWS if window.hard]
    found, place = 0, line.start
    for one in sorted([*spans, *hard], key=lambda span: span.start):
        if one.start >= line.end:
            break
        found += max(0, one.start - place) // size
        place = max(place, one.end)
    return found + max(0, min(line.end, IDS_END) - place) // size


def plot(picture: Picture, path: str, *, title: str = "", names: Sequence[str] = ()) -> None:
    """Write the picture as SVG. ToolError without matplotlib; OSError where `path` cannot be written."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and half a second
        from matplotlib.figure import Figure  # noqa: PLC0415 - the same
    except ImportError as err:
        raise ToolError("matplotlib is missing.", hint="pip install 'squashmount[plot]'") from err
    settings: dict[Any, Any] = {"svg.hashsalt": "squashmount", "svg.fonttype": "none", "font.family": "DejaVu Sans"}
    with mpl.rc_context():
        mpl.rcParams.update(settings)
        height = 2.2 + 0.3 * LINES + 1.0 * len(picture.parts) + 0.2 * min(5, len(picture.clashes))
        figure = Figure(figsize=(13, height))
        sheet = _Sheet(figure.add_axes((0, 0, 1, 1)), height)
        spans = union(picture.ranges)
        _head(sheet, picture, title, names)
        _map(sheet, picture, spans)
        _legend(sheet)
        for number, part in enumerate(picture.parts):
            _enlarged(sheet, picture, part, chr(ord("A") + number))
        _foot(sheet, picture)
        with replacing(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")


_LEFT, _RIGHT = 0.115, 0.9
"""Where lines begin and end, in parts of the width."""


@dataclass
class _Sheet:
    """A page in inches from its top; `y` is where the next thing goes."""

    axes: Any
    height: float
    y: float = 0.0

    def __post_init__(self) -> None:
        self.axes.set_axis_off()
        self.axes.set_xlim(0, 1)
        self.axes.set_ylim(self.height, 0)

    def text(self, x: float, y: float, text: str, size: float = 8, colour: str = _INK, **more: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, color=colour, va="center", clip_on=True, **more)

    def bars(self, bars: Iterable[tuple[float, float]], y: float, height: float, colour: str) -> None:
        """Draw bars given by their begin and end on a line, 0 to 1."""
        wide = _RIGHT - _LEFT
        boxes = [(_LEFT + left * wide, (right - left) * wide) for left, right in bars]
        if boxes:
            self.axes.broken_barh(boxes, (y, height), facecolors=colour, linewidth=0)


def _place(number: int, line: Span) -> float:
    return min(1.0, max(0.0, (number - line.start) / (line.end - line.start)))


def _runs(values: Sequence[int]) -> Iterable[tuple[int, float, float]]:
    """Yield each run of equal values but 0: the value, its begin and its end, 0 to 1."""
    begin = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[begin]:
            if values[begin]:
                yield values[begin], begin / len(values), index / len(values)
            begin = index


def _head(sheet: _Sheet, picture: Picture, title: str, names: Sequence[str]) -> None:
    used, free = picture.used, free_places(union(picture.ranges), Span(0, _SPACE))
    sheet.text(_LEFT, 0.35, title or f"Subordinate {picture.kind}s", 15, weight="bold")
    facts = f"{len(picture.ranges):,} ranges hold {used:,} of {_SPACE:,} ids ({100 * used / _SPACE:.2g} %)"
    facts += f"; room for {free:,} more of {ENOUGH:,}"
    clashes = f"{len(picture.clashes):,} overlaps" if picture.clashes else "no overlaps"
    sheet.text(_LEFT, 0.68, ". ".join([facts, clashes[0].upper() + clashes[1:], *names]) + ".", 9)
    sheet.text(_LEFT, 1.0, f"All ids, {_SPACE // LINES:,} on a line", 9, weight="bold")
    sheet.text(0.99, 1.0, f"room for\nranges of {ENOUGH:,}", 7, _FAINT, ha="right")
    sheet.y = 1.22


def _map(sheet: _Sheet, picture: Picture, spans: Sequence[Span]) -> None:
    step = _SPACE // LINES
    for number in range(LINES):
        line = Span(number * step, (number + 1) * step)
        top, size = sheet.y, 0.17
        sheet.bars([(0, 1)], top, size, _FREE)
        _strip(sheet, picture, spans, line, top, size)
        _lanes(sheet, line, top + size)
        sheet.text(_LEFT - 0.006, top + size / 2, f"{line.start:,}", 7, ha="right", family="DejaVu Sans Mono")
        free = free_places(spans, line)
        sheet.text(0.99, top + size / 2, f"{free:,}", 7, _INK if free else _CLASH, ha="right")
        for index, part in enumerate(picture.parts):
            place = part.start + (part.end - part.start) // 42  # where its frame ends
            if line.start <= place < line.end:
                x = _LEFT + _place(place, line) * (_RIGHT - _LEFT)
                sheet.text(x, top - 0.045, chr(ord("A") + index), 7.5, _CLASH, ha="center", weight="bold")
        sheet.y += 0.3


def _lanes(sheet: _Sheet, line: Span, top: float) -> None:
    for lane, window in enumerate(window for window in WINDOWS if not window.hard):
        if window.meets(line.start, line.end):
            bar = (_place(window.start, line), _place(window.end, line))
            sheet.bars([bar], top + 0.012 + 0.028 * lane, 0.02, _SOFT[lane])


def _strip(  # noqa: PLR0917 - where, and what
    sheet: _Sheet,
    picture: Picture,
    spans: Sequence[Span],
    line: Span,
    top: float,
    size: float,
    *,
    alternate: bool = False,
) -> None:
    """Draw what is on a line; what is smaller than a piece is drawn as large as one."""
    hard = [Span(window.start, window.end) for window in WINDOWS if window.hard]
    sheet.bars(_marked(hard, line), top, size, _HARD)
    if alternate:
        inside = _inside(picture.ranges, line)
        for colour in (0, 1):
            bars = [(_place(one.start, line), _place(one.end, line)) for one in inside[colour::2]]
            sheet.bars(bars, top, size, _ALTERNATE[colour])
    else:
        levels = [0 if part <= 0 else 1 if part < 0.4 else 2 if part < 0.999 else 3 for part in pieces(spans, line)]
        for level in (1, 2, 3):
            bars = [(left, right) for value, left, right in _runs(levels) if value == level]
            sheet.bars(bars, top, size, _LEVELS[level - 1])
    sheet.bars(_marked(picture.clashes, line), top, size, _CLASH)
    people = [Span(number, number + 1) for number in picture.real]
    sheet.bars(_marked(people, line), top, 0.3 * size, _REAL)


def _marked(spans: Iterable[Span], line: Span) -> list[tuple[float, float]]:
    """Return the pieces of a line that have anything of the spans, as bars."""
    marks = [0] * CELLS
    for one in spans:
        if one.start < line.end and line.start < one.end:
            first = int(_place(one.start, line) * CELLS)
            last = max(first + 1, int(_place(one.end, line) * CELLS))
            marks[first:last] = [1] * (min(last, CELLS) - first)
    return [(left, right) for _value, left, right in _runs(marks)]


def _inside(ranges: Sequence[Range], line: Span) -> Sequence[Range]:
    return [one for one in ranges if one.start < line.end and line.start < one.end]


def _legend(sheet: _Sheet) -> None:
    sheet.y += 0.08
    entries = [(_LEVELS[2], "in ranges"), (_LEVELS[0], "partly"), (_CLASH, "in two ranges"), (_REAL, "real ids")]
    entries += [(_HARD, "reserved: no range may lie there"), (_FREE, "free")]
    _key(sheet, entries)
    _key(sheet, list(zip(_SOFT, [window.name for window in WINDOWS if not window.hard], strict=True)))
    sheet.y += 0.22


def _key(sheet: _Sheet, entries: Sequence[tuple[str, str]]) -> None:
    x = _LEFT
    for colour, name in entries:
        sheet.axes.broken_barh([(x, 0.012)], (sheet.y - 0.05, 0.1), facecolors=colour, edgecolor=_FAINT, linewidth=0.4)
        sheet.text(x + 0.017, sheet.y, name, 7.5)
        x += 0.035 + 0.0056 * len(name)
    sheet.y += 0.19


def _enlarged(sheet: _Sheet, picture: Picture, part: Span, letter: str) -> None:
    inside = _inside(picture.ranges, part)
    first, last = inside[0], inside[-1]
    owners = f"{first.owner} … {last.owner}" if len(inside) > 2 else ", ".join(one.owner for one in inside)
    size = sum(span.end - span.start for span in union(inside))
    clashes = sum(part.start <= one.start < part.end for one in picture.clashes)
    text = f"{len(inside):,} range{'s' * (len(inside) > 1)}, {size:,} ids: {owners}"
    people = bisect_left(picture.real, part.end) - bisect_left(picture.real, part.start)
    text += f"; {people:,} real ids" if people else ""
    sheet.text(_LEFT - 0.03, sheet.y + 0.3, letter, 15, _CLASH, weight="bold")
    sheet.text(_LEFT, sheet.y, text, 8.5, weight="bold")
    if clashes:
        sheet.text(_RIGHT, sheet.y, f"{clashes:,} overlaps", 8.5, _CLASH, ha="right", weight="bold")
    top, height = sheet.y + 0.13, 0.36
    sheet.bars([(0, 1)], top, height, _FREE)
    _strip(sheet, picture, union(inside), part, top, height, alternate=len(inside) <= CELLS // 4)
    _lanes(sheet, part, top + height)
    for one in inside if len(inside) <= 30 else ():
        wide = _place(one.end, part) - _place(one.start, part)
        if wide * 130 > len(one.owner) + 1:
            x = _LEFT + (_place(one.start, part) + wide / 2) * (_RIGHT - _LEFT)
            sheet.text(x, top + height / 2 + 0.03, one.owner, 7.5, "white", ha="center")
    for tick in range(5):
        number = part.start + (part.end - part.start) * tick // 4
        x = _LEFT + tick / 4 * (_RIGHT - _LEFT)
        sheet.axes.plot([x, x], [top + height, top + height + 0.1], color=_FAINT, linewidth=0.7)
        align = "left" if tick == 0 else "right" if tick == 4 else "center"
        sheet.text(x, top + height + 0.17, f"{number:,}", 7, ha=align, family="DejaVu Sans Mono")
    sheet.y += 1.0


def _foot(sheet: _Sheet, picture: Picture) -> None:
    for one in picture.clashes[:5]:
        owners = [item.owner for item in _inside(picture.ranges, one)]
        names = ", ".join(dict.fromkeys(owners[:5])) + (" …" if len(owners) > 5 else "")
        sheet.text(_LEFT, sheet.y, f"in two ranges: {one.start:,}-{one.end - 1:,} ({names})", 8, _CLASH)
        sheet.y += 0.2
