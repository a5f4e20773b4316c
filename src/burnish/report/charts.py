"""Charts as inline SVG: drawn by matplotlib, coloured by the page's style sheet, so that they fit light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

#: Most points of a line; a longer one is thinned.
MOST_POINTS = 2000
#: Above this ratio of largest to middle value the scale is logarithmic: on a linear one the line would lie flat.
_STEEP = 20.0

#: Width and height in the SVG's own units, in which text is 10 high; the page scales a chart to its place.
SIZES = {"wide": (920, 300), "narrow": (340, 250), "third": (320, 210), "small": (210, 140), "square": (340, 280)}

#: What matplotlib draws, to what the style sheet fills in. The colours only have to differ from each other.
_TEXT, _GRID, FIRST, SECOND, WARNING = "#a10001", "#a10002", "#a10003", "#a10004", "#a10005"
_COLOURS = {
    _TEXT: "var(--muted)",
    _GRID: "var(--grid)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    WARNING: "var(--warning)",
}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.015,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        points: x and y, in order of x.
        colour: `FIRST`, `SECOND` or `WARNING`.
        look: `line`, `faint` (a thin pale line) or `dots` (a line with a dot at each point).
    """

    points: Points
    colour: str = FIRST
    look: str = "line"


def line_chart(
    name: str,
    label: str,
    series: Sequence[Series],
    *,
    size: str = "third",
    from_zero: bool = False,
    marks: Sequence[float] = (),
    ring: tuple[float, float] | None = None,
) -> Markup:
    """Return a chart of lines over the steps of the run; nothing if there is no point to draw.

    Args:
        name: unlike that of any other chart of the page.
        label: what the chart shows, for those who cannot see it.
        size: one of `SIZES`.
        from_zero: the scale begins at zero.
        marks: steps marked at the bottom.
        ring: the point that is ringed.
    """
    drawn = [Series(thin(line.points, _most(size)), line.colour, line.look) for line in series if line.points]
    if not drawn:
        return Markup("")
    with _style(name):
        figure, axes = _figure(size)
        for line in drawn:
            _draw(axes, line, small=size == "small")
        values = [y for line in drawn for _, y in line.points]
        if from_zero:
            axes.set_ylim(0, 1.08 * max(values) or 1)
        elif is_steep(values):
            axes.set_yscale("log")
        if marks:
            across = axes.get_xaxis_transform()
            axes.plot(marks, [0.02] * len(marks), "|", color=WARNING, markersize=9, transform=across)
        if ring:
            axes.plot(*ring, "o", markersize=9, markerfacecolor="none", markeredgecolor=SECOND, clip_on=False)
        _label_axes(axes, size)
        return _svg(figure, label)


def calibration_chart(name: str, label: str, points: Sequence[dict[str, Any]]) -> Markup:
    """Return a reliability diagram: how often the model is right over how sure it is, and where its answers lie.

    Args:
        name: unlike that of any other chart of the page.
        label: what the chart shows, for those who cannot see it.
        points: of each bin `confidence`, `accuracy` and `rows`.
    """
    total = sum(point["rows"] for point in points)
    with _style(name):
        figure, axes = _figure("square")
        x = [point["confidence"] for point in points]
        axes.bar(x, [point["rows"] / total for point in points], width=0.035, color=FIRST, alpha=0.22)
        axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, dashes=(4, 4))
        axes.plot(x, [point["accuracy"] for point in points], color=FIRST, linewidth=1.8, marker="o", markersize=5)
        axes.set(xlim=(-0.02, 1.03), ylim=(0, 1.05), xlabel="confidence", ylabel="accuracy")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        return _svg(figure, label)


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: the lowest and the highest of each of equal stretches, so that no spike is lost."""
    if len(points) <= most:
        return points
    width = math.ceil(len(points) / (most // 2))
    kept = []
    for start in range(0, len(points), width):
        stretch = range(start, min(start + width, len(points)))
        lowest, highest = (choose(stretch, key=lambda i: points[i][1]) for choose in (min, max))
        kept += [points[i] for i in sorted({lowest, highest})]
    return kept


def smooth(points: Points, window: int) -> Points:
    """Return each point as the mean of the `window` points around it.

    At the beginning, where a line is steep, as many points count on both sides. At the end the later ones are missing;
    leaving out the earlier ones too would end the line on a single, noisy point.
    """
    import numpy as np

    if not points:
        return points
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in points], dtype=float)])
    place = np.arange(len(points))
    before = np.minimum(place, window // 2)
    after = np.minimum(before, place[::-1])
    means = (sums[place + after + 1] - sums[place - before]) / (before + after + 1)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def is_steep(values: Sequence[float]) -> bool:
    """Return whether a linear scale would flatten the values: all are above zero, and few are far above the rest."""
    ordered = sorted(values)
    return ordered[0] > 0 and ordered[-1] > _STEEP * ordered[len(ordered) // 2]


def short(value: float) -> str:
    """Return the label of a tick: `short(15000)` is `"15k"`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}".replace("e-0", "e-")


def _most(size: str) -> int:
    return MOST_POINTS if size == "wide" else min(MOST_POINTS, 2 * SIZES[size][0])  # more than that cannot be seen


def _style(name: str) -> Any:
    import matplotlib.style

    # From the defaults, so that the user's matplotlibrc changes nothing; the salt makes ids that differ between charts.
    return matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": f"burnish {name}"}])


def _figure(size: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    width, height = SIZES[size]
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def _draw(axes: Axes, line: Series, *, small: bool) -> None:
    x, y = zip(*line.points, strict=True)
    if line.look == "faint":
        axes.plot(x, y, color=line.colour, linewidth=0.9, alpha=0.4)
    elif line.look == "dots" or len(x) == 1:
        few = len(x) <= 60
        axes.plot(x, y, color=line.colour, linewidth=1.6, marker="o" if few else "", markersize=3.2 if small else 4.2)
    else:
        axes.plot(x, y, color=line.colour, linewidth=1.8)


def _label_axes(axes: Axes, size: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    count, round_ones = {"wide": 10, "small": 3}.get(size, 5), [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(count, integer=True, min_n_ticks=1, steps=round_ones))
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3 if size == "small" else 5, steps=round_ones))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short(value))
    if size != "small":
        axes.set_xlabel("step")


def _svg(figure: Figure, label: str) -> Markup:
    """Return the figure as SVG that can stand in a page: no prologue, no ids of groups, no sizes, colours or fonts."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # so that the same run gives the same bytes
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text).group()  # type: ignore[union-attr]  (matplotlib always writes one)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group()), text)
    text = re.sub(r"#a1000\d", lambda match: _COLOURS[match.group()], text)
    text = re.sub(r"\s*\n\s*", " ", text)
    start = Markup('<svg class="chart" role="img" aria-label="{}" {}>').format(label, Markup(box))
    return start + Markup(text.strip())
