"""Line plots as SVG, with linear or logarithmic axes, error bars, and names beside the lines instead of a legend."""

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


def line_plot(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Draw series, the first of them the boldest. Points outside of the axes are left out."""
    drawn = [s for s in series if s.points]
    x_scale = _Scale(x, [p[0] for s in drawn for p in s.points], LEFT, WIDTH - RIGHT)
    y_values = [v for s in drawn for v in (*(p[1] for p in s.points), *(v for pair in s.ranges for v in pair))]
    y_scale = _Scale(y, y_values, HEIGHT - BOTTOM - INSET, TOP + INSET)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_grid(x_scale, y_scale),
        *_axis_labels(x, y),
    ]
    ends = list[tuple[float, float, str, str]]()
    for number, s in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        inside = [(px, py) for px, py in s.points if x_scale.holds(px) and y_scale.holds(py)]
        parts += _line(s, inside, x_scale, y_scale, colour, width=3 if number == 0 else 1.8)
        if inside:
            ends.append((y_scale.at(inside[-1][1]), x_scale.at(inside[-1][0]), s.name, colour))
    return "\n".join([*parts, *_names(ends), "</svg>", ""])


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


def _grid(x: _Scale, y: _Scale) -> Iterator[str]:
    for tick in x.ticks():
        at = x.at(tick)
        yield f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e6e6e6"/>'
        yield f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_shown(tick)}</text>'
    for tick in y.ticks():
        at = y.at(tick)
        yield f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e6e6e6"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_shown(tick)}</text>'
    yield f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>'


def _axis_labels(x: Axis, y: Axis) -> Iterator[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x.label)}</text>'
    yield (
        f'<text x="18" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 18 {middle:.0f})">'
        f"{escape(y.label)}</text>"
    )


def _line(
    series: Series, inside: Sequence[tuple[float, float]], x: _Scale, y: _Scale, colour: str, *, width: float
) -> Iterator[str]:
    places = [(x.at(px), y.at(py)) for px, py in inside]
    yield (
        f'<polyline points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in places)}" fill="none" stroke="{colour}"'
        f' stroke-width="{width}" stroke-linejoin="round"/>'
    )
    for px, py in places:
        yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{width:.1f}" fill="{colour}"/>'
    for (px, _), (low, high) in zip(series.points, series.ranges, strict=False):
        if x.holds(px) and y.holds(low) and y.holds(high):
            yield f'<path d="M{x.at(px):.1f} {y.at(low):.1f}V{y.at(high):.1f}" stroke="{colour}" stroke-width="1.2"/>'


def _names(ends: Sequence[tuple[float, float, str, str]]) -> Iterator[str]:
    """Write each line's name at the right of its end, moved down where two would touch."""
    lowest = -math.inf
    room = HEIGHT - BOTTOM
    places = []
    for end_y, end_x, name, colour in sorted(ends):
        lowest = max(end_y, lowest + LINE_HEIGHT)
        places.append((lowest, end_x, end_y, name, colour))
    excess = max(0.0, lowest - room)
    at = WIDTH - RIGHT + 12
    for place, end_x, end_y, name, colour in places:
        line = place - excess
        yield f'<path d="M{end_x + 3:.1f} {end_y:.1f}L{at - 2} {line:.1f}" stroke="{colour}" stroke-width="0.7" opacity="0.6"/>'
        yield f'<text x="{at}" y="{line + 4:.1f}" fill="{colour}" font-weight="bold">{escape(name)}</text>'


def _shown(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:.4g}"
