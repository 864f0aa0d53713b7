"""Figures as inline SVG: real text, no scripts, colours from the page's style sheet.

Every figure draws a table: labels (or positions on an axis) against series of estimates; the table
is included for those who cannot see the figure. A series is identified by its colour, by the shape
of its marks and, in curves, by the dashes of its line; bars stand in the order of the legend. So no
figure needs colour to be read.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from ravqa.metrics.statistics.intervals import Estimate

WIDTH = 380
"""Width in units; text is 12 units high, so that it is readable on a phone 390 pixels wide."""
STYLES = 6
"""Number of styles of series, counted from 0; the style sheet has a colour for each."""

_LINE = 15  # height of a line of text
_MARK = 4.0  # half the width of a mark
_LETTERS = 54  # in one line of a label: with these, wide fonts stay within the figure


@dataclass(frozen=True, slots=True)
class Series:
    """One value or None per label. `style` selects colour and mark."""

    name: str
    style: int
    values: Sequence[Estimate | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A table with its drawing.

    Attributes:
        caption: a sentence that says what is shown.
        legend: names and styles of the series; empty if there is only one.
        bars: whether the series are bars, not marks.
        header, rows: the table, as text.
    """

    title: str
    caption: str
    svg: Markup
    legend: Sequence[tuple[str, int]]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """The axis of values: its name, its smallest range, and the format of its numbers."""

    name: str
    low: float = 0.0
    high: float = 0.0
    decimals: int = 1


PERCENT = Axis("%", high=100.0)


def curves(
    title: str,
    caption: str,
    xs: Sequence[int],
    series: Sequence[Series],
    *,
    x_name: str,
    ticks: Sequence[int],
    axis: Axis = PERCENT,
    logarithmic: bool = True,
) -> Figure:
    """Draw lines with their intervals as bands.

    Args:
        xs: positions on the axis, at least 1, ascending; one per value of a series.
        ticks: positions that are labelled on the axis and marked on the lines.
        logarithmic: whether the axis of positions is logarithmic, from 1; else it begins at 0.
    """
    left, right, top, height = 38.0, WIDTH - 12.0, 10.0, 220.0
    drawing = _Drawing(title, caption, height + top + 40)
    low, high, steps = _range(axis, _ends(series))

    def place(x: float) -> float:
        return math.log(x) if logarithmic else x

    widest = place(max(xs[-1], 2))

    def across(x: float) -> float:
        return left + (right - left) * place(x) / widest

    def down(value: float) -> float:
        return top + height * (high - value) / (high - low)

    _horizontal_grid(drawing, steps, down, left, right, axis)
    for tick in ticks:
        drawing.text(across(tick), top + height + 16, str(tick), "middle")
    drawing.text((left + right) / 2, top + height + 34, x_name, "middle", "dim")
    for one in series:
        points = [(x, v) for x, v in zip(xs, one.values, strict=True) if v is not None]
        bounds = [(x, v.low, v.high) for x, v in points if v.low is not None and v.high is not None]
        if len(bounds) > 1:
            edge = [(across(x), down(top_)) for x, _, top_ in bounds]
            edge += [(across(x), down(bottom)) for x, bottom, _ in reversed(bounds)]
            drawing.add("polygon", _style("band", one), points=_places(edge))
    for one in series:
        points = [(x, v) for x, v in zip(xs, one.values, strict=True) if v is not None]
        line = [(across(x), down(v.value)) for x, v in points]
        drawing.add("polyline", _style("line", one), points=_places(line))
        for x, value in points:
            if x in ticks:
                name = f"{one.name}, {x_name} {x}: {value.text(axis.decimals)}"
                drawing.mark(across(x), down(value.value), one, name)
    return drawing.figure([str(x) for x in xs], series, x_name, axis.decimals)


def columns(
    title: str,
    caption: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_name: str,
    counts: Sequence[int] | None = None,
    axis: Axis = PERCENT,
) -> Figure:
    """Draw vertical bars side by side, with their intervals as whiskers.

    Args:
        counts: number of questions per label, written below it.
    """
    left, right, top, height = 38.0, WIDTH - 8.0, 10.0, 190.0
    lines = 2 if counts is None else 3
    drawing = _Drawing(title, caption, top + height + 8 + lines * _LINE)
    low, high, steps = _range(axis, _ends(series))

    def down(value: float) -> float:
        return top + height * (high - value) / (high - low)

    _horizontal_grid(drawing, steps, down, left, right, axis)
    slot = (right - left) / max(1, len(labels))
    width = min(34.0, 0.8 * slot / max(1, len(series)))
    for i, label in enumerate(labels):
        middle = left + slot * (i + 0.5)
        below = top + height + _LINE
        drawing.text(middle, below, label, "middle")
        if counts is not None:
            drawing.text(middle, below + _LINE, f"n={counts[i]:,}", "middle", "dim")
        for j, one in enumerate(series):
            value = one.values[i]
            if value is None:
                continue
            x = middle + width * (j - len(series) / 2)
            base, end = down(max(low, 0.0)), down(value.value)
            bar = drawing.add(
                "rect",
                _style("bar", one),
                x=x + 1,
                y=min(base, end),
                width=width - 2,
                height=abs(base - end),
            )
            _titled(bar, f"{one.name}, {label}: {value.text(axis.decimals)}")
            if value.low is not None and value.high is not None:
                center = x + width / 2
                drawing.line(center, down(value.low), center, down(value.high), "whisker")
    drawing.text((left + right) / 2, top + height + lines * _LINE, x_name, "middle", "dim")
    return drawing.figure(labels, series, x_name, axis.decimals, counts, bars=True)


def dots(
    title: str,
    caption: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_name: str,
    counts: Sequence[int] | None = None,
    axis: Axis = PERCENT,
) -> Figure:
    """Draw a mark with its interval for each label and series, labels one below the other.

    Args:
        counts: number of questions per label, written after it.
    """
    left, right = 14.0, WIDTH - 14.0
    low, high, steps = _range(axis, _ends(series))

    def across(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    rows = _Rows(labels, 8 + 11.0 * len(series), counts)
    drawing = _Drawing(title, caption, rows.bottom + 2.5 * _LINE)
    rows.draw(drawing, steps, across, axis)
    for i, label in enumerate(labels):
        for j, one in enumerate(series):
            value = one.values[i]
            if value is None:
                continue
            center = rows.begins[i] + 8 + 11.0 * j
            if value.low is not None and value.high is not None:
                drawing.line(
                    across(value.low), center, across(value.high), center, _style("span", one)
                )
            name = f"{one.name}, {label}: {value.text(axis.decimals)}"
            drawing.mark(across(value.value), center, one, name)
    return drawing.figure(labels, series, x_name, axis.decimals, counts)


def scatter(
    title: str,
    caption: str,
    labels: Sequence[str],
    xs: Sequence[Estimate],
    ys: Sequence[Estimate],
    *,
    across: Axis,
    up: Axis,
) -> Figure:
    """Draw a numbered mark for each label at its two values, with both intervals.

    The numbers are explained below the drawing. The axis to the right begins at 0, the one upwards
    shows the range of the values.
    """
    left, right, top, height = 46.0, WIDTH - 24.0, 12.0, 220.0
    names = [textwrap.wrap(f"{i}: {_clean(name)}", _LETTERS) for i, name in enumerate(labels, 1)]
    below = top + height + 52
    drawing = _Drawing(title, caption, below + _LINE * sum(map(len, names)))
    mark = Series(title, 0, xs)
    ends = _ends([Series(title, 0, ys)])
    low, high, steps = _range(Axis(up.name, min(ends), max(ends), up.decimals), ends)
    first, last, ticks = _range(across, _ends([mark]))

    def right_of(value: float) -> float:
        return left + (right - left) * (value - first) / (last - first)

    def down(value: float) -> float:
        return top + height * (high - value) / (high - low)

    _horizontal_grid(drawing, steps, down, left, right, up)
    for tick in ticks:
        drawing.line(right_of(tick), top, right_of(tick), top + height, "grid")
        drawing.text(right_of(tick), top + height + 16, _tick(tick), "middle")
    drawing.text((left + right) / 2, top + height + 34, across.name, "middle", "dim")
    for i, (label, x, y) in enumerate(zip(labels, xs, ys, strict=True), 1):
        place = right_of(x.value), down(y.value)
        if x.low is not None and x.high is not None:
            ends_of_x = right_of(x.low), right_of(x.high)
            drawing.line(ends_of_x[0], place[1], ends_of_x[1], place[1], _style("span", mark))
        if y.low is not None and y.high is not None:
            drawing.line(place[0], down(y.low), place[0], down(y.high), _style("span", mark))
        name = f"{label}: {y.text(up.decimals)} at {x.text(across.decimals)} {across.name}"
        drawing.mark(*place, mark, name)
        drawing.text(place[0] + 6, place[1] - 6, str(i), "start", "label")
    for j, line in enumerate(line for lines in names for line in lines):
        drawing.text(4, below + _LINE * j, line, "start", "label")
    rows = [
        [label, x.text(across.decimals), y.text(up.decimals)]
        for label, x, y in zip(labels, xs, ys, strict=True)
    ]
    return Figure(title, caption, drawing.svg, [], ["", across.name, up.name], rows)


def shares(
    title: str,
    caption: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_name: str,
    axis: Axis,
) -> Figure:
    """Draw one horizontal bar per label, stacked from the series' values."""
    left, right = 14.0, WIDTH - 14.0
    sums = [
        sum(v.value for one in series if (v := one.values[i]) is not None)
        for i in range(len(labels))
    ]
    _, high, steps = _range(axis, sums)

    def across(value: float) -> float:
        return left + (right - left) * value / high

    rows = _Rows(labels, 34.0)
    drawing = _Drawing(title, caption, rows.bottom + 2.5 * _LINE)
    rows.draw(drawing, steps, across, axis)
    for i, label in enumerate(labels):
        x = left
        for one in series:
            value = one.values[i]
            if value is None or value.value <= 0:
                continue
            width = (right - left) * value.value / high
            bar = drawing.add(
                "rect", _style("bar", one), x=x, y=rows.begins[i] + 5, width=width, height=20.0
            )
            _titled(bar, f"{one.name}, {label}: {value.text(axis.decimals)}")
            x += width
    return drawing.figure(labels, series, x_name, axis.decimals, bars=True)


class _Rows:
    """Rows of a figure: labels, whole, each above a band for its values.

    Attributes:
        begins: where each row's band begins, from the top of the drawing.
        bottom: where the last one ends.
    """

    def __init__(self, labels: Sequence[str], band: float, counts: Sequence[int] | None = None):
        """Lay out the rows.

        Args:
            band: height of the band of each row.
            counts: number of questions per label, written after it.
        """
        self._counts = counts
        wide = _LETTERS if counts is None else _LETTERS - 10
        self._labels = [textwrap.wrap(_clean(label), wide) or [""] for label in labels]
        self._band = band
        self.begins = []
        self.bottom = 0.0
        for lines in self._labels:
            self.begins.append(self.bottom + _LINE * len(lines))
            self.bottom = self.begins[-1] + band
        self.bottom += 2

    def draw(
        self,
        drawing: _Drawing,
        steps: Sequence[float],
        across: Callable[[float], float],
        axis: Axis,
    ) -> None:
        """Draw labels, axis and grid; no line of the grid runs through a label."""
        for i, lines in enumerate(self._labels):
            end = self.begins[i] + self._band
            for step in steps:
                x = across(step)
                drawing.line(x, self.begins[i] + 3, x, end, "zero" if step == 0 else "grid")
            for j, line in enumerate(reversed(lines)):
                text = drawing.text(4, self.begins[i] - 1 - _LINE * j, line, "start", "label")
                if j == 0 and self._counts is not None:
                    count = ElementTree.SubElement(text, "tspan", {"class": "dim", "dx": "6"})
                    count.text = f"n={self._counts[i]:,}"
        for step in steps:
            drawing.text(across(step), self.bottom + _LINE, _tick(step), "middle")
        middle = across((steps[0] + steps[-1]) / 2)
        drawing.text(middle, self.bottom + 2.1 * _LINE, axis.name, "middle", "dim")


def mark_svg(style: int, bar: bool = False) -> Markup:
    """Return a series' mark alone, or a piece of its bars, for a legend that names it."""
    root = ElementTree.Element(
        "svg", {"viewBox": "0 0 14 14", "class": "key", "aria-hidden": "true"}
    )
    number = style % STYLES
    if bar:
        place = {"x": "1", "y": "1", "width": "12", "height": "12"}
        ElementTree.SubElement(root, "rect", {"class": f"bar s{number}", **place})
    else:
        ElementTree.SubElement(root, "path", {"class": f"mark s{number}", "d": _shape(7, 7, style)})
    return _markup(root)


class _Drawing:
    """An SVG element being drawn."""

    def __init__(self, title: str, caption: str, height: float):
        self._title, self._caption = title, caption
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {WIDTH} {_number(height)}",
                "role": "img",
                "class": "chart",
                "aria-label": f"{title}. {caption}",
            },
        )

    def add(self, tag: str, style: str, /, **attributes: object) -> ElementTree.Element:
        values = {
            k: _number(v) if isinstance(v, int | float) else str(v) for k, v in attributes.items()
        }
        return ElementTree.SubElement(self._root, tag, {"class": style, **values})

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(
        self, x: float, y: float, text: str, anchor: str, style: str = "tick"
    ) -> ElementTree.Element:
        element = self.add("text", style, x=x, y=y)
        element.set("text-anchor", anchor)
        element.text = _clean(text)
        return element

    def mark(self, x: float, y: float, series: Series, name: str) -> None:
        _titled(self.add("path", _style("mark", series), d=_shape(x, y, series.style)), name)

    @property
    def svg(self) -> Markup:
        return _markup(self._root)

    def figure(
        self,
        labels: Sequence[str],
        series: Sequence[Series],
        x_name: str,
        decimals: int,
        counts: Sequence[int] | None = None,
        *,
        bars: bool = False,
    ) -> Figure:
        header = [x_name, *(["questions"] if counts is not None else [])]
        header += [one.name for one in series]
        rows = []
        for i, label in enumerate(labels):
            row = [label, *([f"{counts[i]:,}"] if counts is not None else [])]
            for one in series:
                value = one.values[i]
                row.append("" if value is None else value.text(decimals))
            rows.append(row)
        legend = [(one.name, one.style) for one in series] if len(series) > 1 else []
        return Figure(self._title, self._caption, self.svg, legend, header, rows, bars)


def _markup(root: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # escapes all text


def _titled(element: ElementTree.Element, text: str) -> None:
    """Add a title, which browsers show as a tooltip and screen readers read aloud."""
    ElementTree.SubElement(element, "title").text = _clean(text)


def _style(kind: str, series: Series) -> str:
    return f"{kind} s{series.style % STYLES}"


def _horizontal_grid(
    drawing: _Drawing,
    steps: Sequence[float],
    down: Callable[[float], float],
    left: float,
    right: float,
    axis: Axis,
) -> None:
    for step in steps:
        y = down(step)
        drawing.line(left, y, right, y, "zero" if step == 0 else "grid")
        unit = axis.name if axis.name == "%" else ""
        drawing.text(left - 5, y + 4, f"{_tick(step)}{unit}", "end")


def _shape(x: float, y: float, style: int) -> str:
    """Return the path of a mark: circle, square, triangle, diamond, inverted triangle, bar."""
    r = _MARK
    if style % STYLES == 0:
        return f"M{_number(x - r)} {_number(y)}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        3: [(0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)],
        4: [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        5: [(-0.5, -1.2), (0.5, -1.2), (0.5, 1.2), (-0.5, 1.2)],
    }[style % STYLES]
    return "M" + "L".join(f"{_number(x + r * a)} {_number(y + r * b)}" for a, b in corners) + "z"


def _ends(series: Iterable[Series]) -> list[float]:
    """Return every number that the axis must cover."""
    found = [value for one in series for value in one.values if value is not None]
    return [x for v in found for x in (v.value, v.low, v.high) if x is not None]


def _range(axis: Axis, values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return both ends of an axis and its steps: round numbers that cover every value."""
    ends = min([axis.low, *values]), max([axis.high, *values])
    steps = round_steps(*ends, 5, least=0.0 if axis.decimals else 1.0)
    return steps[0], steps[-1], steps


def round_steps(low: float, high: float, about: int, *, least: float = 0.0) -> list[float]:
    """Return about `about` steps of round size, at least `least`, that cover `low` to `high`."""
    if high <= low:
        high = low + 1
    rough = max(least, (high - low) / about)
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _places(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _tick(step: float) -> str:
    """Return a step of an axis, which `round_steps` has rounded, with all of its digits."""
    return f"{step:.10f}".rstrip("0").rstrip(".")


def _clean(text: str) -> str:
    """Remove the control characters that XML cannot represent."""
    return "".join(c if c >= " " else " " for c in text)
