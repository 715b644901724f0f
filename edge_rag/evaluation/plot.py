"""Plots as SVG: lines, named points, and rows of dots, with linear or logarithmic axes and error bars.

A plot is a picture of its own (WIDE: titled, with names beside the lines), or a part of a page that is read on a phone too
(IN_PAGE: larger letters, names below). A page's stylesheet may set other colours: series have the classes s0, s1 ..., and
the lines of the grid the class grid. Series differ in colour, mark and dashes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 800, 460
LEFT, RIGHT, TOP, BOTTOM = 76, 205, 46, 54
INSET = 12  # between the lowest and highest value and the frame
LINE_HEIGHT = 15  # between two names at the right
# told apart with any colour vision (Okabe and Ito 2008); the first is for what the plot is about
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#666666", "#000000")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4")
MARKS = 12  # a line of more points has marks at some only


@dataclass(frozen=True, slots=True)
class Frame:
    """The size of a plot and what lies around it."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    font: int
    in_page: bool = False  # the page writes the title, and names stand below; else both are in the picture

    @property
    def end(self) -> int:
        return self.width - self.right

    @property
    def floor(self) -> int:
        return self.height - self.bottom


WIDE = Frame(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, 12)
IN_PAGE = Frame(480, 330, 62, 16, 12, 58, 15, in_page=True)


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = ()  # low and high for each point, drawn as error bars


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    log: bool = False
    low: float | None = None  # where it begins and ends; None: where the values do
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    name: str
    x: float
    y: float
    low: float  # of y
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    values: Sequence[tuple[float, float, float] | None]  # value, low, high of each kind


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def line_plot(title: str, x: Axis, y: Axis, series: Sequence[Series], frame: Frame = WIDE) -> str:
    """Draw series, the first of them the boldest. Points outside of the axes are left out."""
    drawn = [s for s in series if s.points]
    x_scale = _Scale(x, [p[0] for s in drawn for p in s.points], frame.left + _inset(frame), frame.end)
    y_values = [v for s in drawn for v in (*(p[1] for p in s.points), *(v for pair in s.ranges for v in pair))]
    y_scale = _Scale(y, y_values, frame.floor - INSET, frame.top + INSET)
    parts = [*_grid(x_scale, y_scale, frame), *_axis_labels(x, y, frame)]
    ends = list[tuple[float, float, str, str]]()
    for number, s in enumerate(drawn):
        inside = [(px, py) for px, py in s.points if x_scale.holds(px) and y_scale.holds(py)]
        aside = 4.0 * (number - (len(drawn) - 1) / 2) if frame.in_page and s.ranges else 0.0
        parts += _line(s, inside, x_scale, y_scale, number, aside)
        if inside:
            ends.append((y_scale.at(inside[-1][1]), x_scale.at(inside[-1][0]), s.name, _colour(number)))
    said = "; ".join(f"{s.name}: {_shown(s.points[0][1])} to {_shown(s.points[-1][1])}" for s in drawn)
    if not frame.in_page:
        return _picture(title, said, [*parts, *_names(ends)], frame, frame.height)
    legend, height = _legend([s.name for s in drawn], frame, lines=True)
    return _picture(title, said, [*parts, *legend], frame, height)


def scatter_plot(title: str, x: Axis, y: Axis, dots: Sequence[Dot], frame: Frame = IN_PAGE) -> str:
    """Draw points with their names beside them, where there is room."""
    x_scale = _Scale(x, [d.x for d in dots], frame.left + INSET, frame.end - INSET)
    y_scale = _Scale(y, [v for d in dots for v in (d.low, d.high)], frame.floor - INSET, frame.top + INSET)
    parts = [*_grid(x_scale, y_scale, frame), *_axis_labels(x, y, frame), f"<g {_style(0)}>"]
    places = [(x_scale.at(d.x), y_scale.at(d.y)) for d in dots]
    for dot, (at_x, at_y) in zip(dots, places, strict=True):
        parts.append(_bar(at_x, y_scale.at(dot.low), y_scale.at(dot.high), opacity=0.45))
        parts.append(_mark(0, at_x, at_y, 5))
    parts.append("</g>")
    said = "; ".join(f"{d.name}: {_shown(d.y)} at {_shown(d.x)}" for d in dots)
    return _picture(title, said, [*parts, *_names_near(dots, places, y_scale, frame)], frame, frame.height)


def row_plot(title: str, x: Axis, kinds: Sequence[str], rows: Sequence[Row], frame: Frame = IN_PAGE) -> str:
    """Draw a row for each name, with a mark and its range for each kind."""
    pitch = 3.1 * frame.font
    floor = frame.top + pitch * len(rows) + 4
    left = frame.left // 3
    values = [v for row in rows for triple in row.values if triple for v in triple]
    scale = _Scale(x, values, left + INSET, frame.end - INSET)
    parts = list[str]()
    for tick in scale.ticks():
        at = scale.at(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {frame.top}V{floor:.1f}" stroke="#e6e6e6"/>')
        parts.append(_text(at, floor + 1.3 * frame.font, _shown(tick), "middle"))
    parts.append(_text((left + frame.end) / 2, floor + 2.7 * frame.font, x.label, "middle"))
    for number, row in enumerate(rows):
        line = frame.top + pitch * (number + 1) - 0.7 * frame.font
        parts.append(f'<path class="grid" d="M{left} {line:.1f}H{frame.end}" stroke="#e6e6e6"/>')
        parts.append(_text(left, line - 1.2 * frame.font, _clipped(row.name, frame.end - left, frame), "start"))
        for kind, triple in enumerate(row.values):
            if triple is not None:
                at, low, high = (scale.at(v) for v in triple)
                y = line + 5 * (kind - (len(kinds) - 1) / 2)  # beside each other where values are close
                parts.append(
                    f'<g {_style(kind)}><path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="currentColor" stroke-width="2"/>'
                    f"{_mark(kind, at, y, 4.5)}</g>"
                )
    said = "; ".join(
        f"{row.name}: " + ", ".join(f"{k} {_shown(v[0])}" for k, v in zip(kinds, row.values, strict=True) if v)
        for row in rows
    )
    legend, height = _legend(kinds, frame, lines=False, top=floor + 3.2 * frame.font)
    return _picture(title, said, [*parts, *legend], frame, height)


def write_plot(path: Path, title: str, x: Axis, y: Axis, series: Sequence[Series]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line_plot(title, x, y, series), encoding="utf-8")


class _Scale:
    """Turns values into places between two pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        values = [v for v in values if v > 0] if axis.log else values
        low = axis.low if axis.low is not None else min(values, default=1.0)
        high = axis.high if axis.high is not None else max(values, default=10.0)
        if low == high:
            low, high = (low / 2, high * 2) if axis.log else (low - 1, high + 1)
        self.low, self.high, self.log, self.start, self.end = low, high, axis.log, start, end

    def at(self, value: float) -> float:
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def holds(self, value: float) -> bool:
        margin = 1e-9 * abs(self.high)
        return self.low - margin <= value <= self.high + margin

    def ticks(self) -> list[float]:
        """Choose round values: 1, 2 and 5 times powers of ten, or steps of such."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            leads = (1, 2, 5) if len(decades) <= 4 else (1,)
            return [v for v in (lead * 10.0**d for d in decades for lead in leads) if self.holds(v)]
        rough = (self.high - self.low) / 6
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * lead for lead in (1, 2, 5, 10) if size * lead >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _picture(title: str, said: str, parts: Sequence[str], frame: Frame, height: float) -> str:
    """Put parts into a frame that says in words, too, what it shows."""
    size = f'viewBox="0 0 {frame.width} {height:.0f}" width="{frame.width}" height="{height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
        f' font-family="Helvetica, Arial, sans-serif" font-size="{frame.font}" color="#333" fill="currentColor">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(said)}</desc>",
    ]
    if not frame.in_page:
        lines.append(f'<rect width="{frame.width}" height="{height:.0f}" fill="white"/>')
        lines.append(f'<text x="{frame.left}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>')
    return "\n".join([*lines, *parts, "</svg>", ""])


def _inset(frame: Frame) -> int:
    return INSET if frame.in_page else 0


def _grid(x: _Scale, y: _Scale, frame: Frame) -> Iterator[str]:
    for tick in x.ticks():
        at = x.at(tick)
        yield f'<path class="grid" d="M{at:.1f} {frame.top}V{frame.floor}" stroke="#e6e6e6"/>'
        yield _text(at, frame.floor + 1.4 * frame.font, _shown(tick), "middle")
    for tick in y.ticks():
        at = y.at(tick)
        yield f'<path class="grid" d="M{frame.left} {at:.1f}H{frame.end}" stroke="#e6e6e6"/>'
        yield _text(frame.left - 8, at + 0.35 * frame.font, _shown(tick), "end")
    yield f'<path d="M{frame.left} {frame.top}V{frame.floor}H{frame.end}" fill="none" stroke="#888"/>'


def _axis_labels(x: Axis, y: Axis, frame: Frame) -> Iterator[str]:
    middle = (frame.top + frame.floor) / 2
    yield _text((frame.left + frame.end) / 2, frame.height - 14, x.label, "middle")
    yield (
        f'<text x="18" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 18 {middle:.0f})">'
        f"{escape(y.label)}</text>"
    )


def _line(
    series: Series, inside: Sequence[tuple[float, float]], x: _Scale, y: _Scale, number: int, aside: float
) -> Iterator[str]:
    """Draw a line, its marks and its error bars; these stand `aside` where lines share their places on the x axis."""
    width = 3 if number == 0 else 2
    places = [(x.at(px) + aside, y.at(py)) for px, py in inside]
    yield f"<g {_style(number)}>"
    yield (
        f'<polyline points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in places)}" fill="none" stroke="currentColor"'
        f' stroke-width="{width}" stroke-linejoin="round"{_dashes(number)}/>'
    )
    step = 1 if len(places) <= MARKS else math.ceil(len(places) / 6)
    for px, py in places[::-step]:
        yield _mark(number, px, py, width + 1.5)
    for (px, _), (low, high) in zip(series.points, series.ranges, strict=False):
        if x.holds(px) and y.holds(low) and y.holds(high):
            yield _bar(x.at(px) + aside, y.at(low), y.at(high))
    yield "</g>"


def _names(ends: Sequence[tuple[float, float, str, str]]) -> Iterator[str]:
    """Write each line's name at the right of its end, moved down where two would touch."""
    lowest = -math.inf
    places = []
    for end_y, end_x, name, colour in sorted(ends):
        lowest = max(end_y, lowest + LINE_HEIGHT)
        places.append((lowest, end_x, end_y, name, colour))
    excess = max(0.0, lowest - WIDE.floor)
    at = WIDE.end + 12
    for place, end_x, end_y, name, colour in places:
        line = place - excess
        yield f'<path d="M{end_x + 3:.1f} {end_y:.1f}L{at - 2} {line:.1f}" stroke="{colour}" stroke-width="0.7" opacity="0.6"/>'
        yield f'<text x="{at}" y="{line + 4:.1f}" fill="{colour}" font-weight="bold">{escape(name)}</text>'


def _legend(names: Sequence[str], frame: Frame, *, lines: bool, top: float | None = None) -> tuple[list[str], float]:
    """Write names below the plot, each beside a sample of its line or mark; return them and where they end."""
    at = (frame.height if top is None else top) + 2
    pitch = 1.5 * frame.font
    parts = list[str]()
    for number, name in enumerate(names):
        middle = at + pitch * (number + 0.5)
        parts.append(f"<g {_style(number)}>")
        if lines:
            parts.append(
                f'<path d="M8 {middle:.1f}H48" stroke="currentColor" stroke-width="{3 if number == 0 else 2}"{_dashes(number)}/>'
            )
        parts.append(f"{_mark(number, 28, middle, 5)}</g>")
        parts.append(_text(58, middle + 0.35 * frame.font, _clipped(name, frame.width - 62, frame), "start"))
    return parts, at + pitch * len(names) + 4


def _names_near(
    dots: Sequence[Dot], places: Sequence[tuple[float, float]], y_scale: _Scale, frame: Frame
) -> Iterator[str]:
    """Write each name near its point, where it touches no other name, point or bar; a thin line leads to one that had to move."""
    drawn = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    drawn += [
        (x - 2, y_scale.at(dot.high), x + 2, y_scale.at(dot.low)) for dot, (x, _) in zip(dots, places, strict=True)
    ]
    written = list[_Box]()
    high = frame.font
    for dot, (x, y) in zip(dots, places, strict=True):
        wide = _length(dot.name, frame)
        boxes = [
            (left, y + up - high / 2, left + wide, y + up + high / 2)
            for away in range(40)
            for up in (-away * high / 3, away * high / 3)
            for left in (x + 9 + away, x - 9 - away - wide)
        ]
        inside = [
            b for b in boxes if frame.left < b[0] and b[2] <= frame.width and frame.top <= b[1] and b[3] <= frame.floor
        ]
        apart = [box for box in inside if not any(_touch(box, other) for other in written)]
        free = [box for box in apart if not any(_touch(box, other) for other in drawn)]
        box = next(iter(free or apart or inside or boxes))
        written.append(box)
        middle = (box[1] + box[3]) / 2
        near = min(max(x, box[0]), box[2])
        if math.hypot(near - x, middle - y) > 1.5 * high:
            yield f'<path d="M{x:.1f} {y:.1f}L{near:.1f} {middle:.1f}" stroke="#888" stroke-width="0.8"/>'
        yield _text(box[0], middle + 0.35 * high, dot.name, "start")


def _touch(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(number: int, x: float, y: float, r: float) -> str:
    """Draw a disc, square, triangle, diamond, triangle on its tip, or ring."""
    s = r * 0.9
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="currentColor"/>',
        f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z",
        f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}z",
        f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {-1.3 * r:.1f}z",
        f"M{x:.1f} {y + 1.2 * r:.1f}l{1.2 * r:.1f} {-2.1 * r:.1f}h{-2.4 * r:.1f}z",
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="white" stroke="currentColor" stroke-width="2"/>',
    )
    shape = shapes[number % len(shapes)]
    return shape if shape.startswith("<") else f'<path d="{shape}" fill="currentColor"/>'


def _bar(x: float, low: float, high: float, *, opacity: float = 1) -> str:
    faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="currentColor" stroke-width="1.2"{faint}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _style(number: int) -> str:
    return f'class="s{number % len(COLOURS)}" color="{_colour(number)}"'


def _dashes(number: int) -> str:
    dashes = DASHES[number % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _length(text: str, frame: Frame) -> float:
    """Guess how long a text is when drawn; letters differ, and so do fonts."""
    return 0.58 * frame.font * len(text)


def _clipped(text: str, room: float, frame: Frame) -> str:
    most = int(room / _length("x", frame))
    return text if len(text) <= most else text[: most - 1] + "…"


def _shown(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:.4g}"
