"""The plots of the page: what each stage trades, and where in the graph the error arises."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgesmith.ledger import LayerError, Ledger, LedgerRow
from edgesmith.report.format import capitalize, format_bytes, format_decibels, format_number, format_value, shorten
from edgesmith.report.svg import CHARACTER_WIDTH, Drawing, Scale

_WIDTH, _HEIGHT = 420.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 14.0, 44.0
_FONT = 11.0
_LABEL_LENGTH = 22
_WORST_LABELLED = 3
_ALL_LABELLED = 12
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Point:
    """One stage in a trade-off plot."""

    row: LedgerRow
    x: float
    y: float
    x_spread: tuple[float, float] | None = None
    y_spread: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Axes:
    """Names of both axes, and a budget's limit to draw."""

    title: str
    x: str
    y: str
    x_limit: float | None = None


def latency_plot(ledger: Ledger) -> Markup | None:
    """Return the metric against latency, or None when fewer than two stages have both."""
    points = [
        Point(row, row.latency_ms.value, row.metric.value, _spread(row.latency_ms), _interval(row, ledger))
        for row in ledger.rows
        if row.latency_ms and row.metric
    ]
    axes = Axes("Metric against latency", "Latency in ms", _metric_axis(ledger), ledger.budget.get("max_latency_ms"))
    return _trade_off(points, ledger, axes)


def size_plot(ledger: Ledger) -> Markup | None:
    """Return the metric against size, or None when fewer than two stages have both."""
    points = [
        Point(row, row.size_bytes.value / _MEGABYTE, row.metric.value, None, _interval(row, ledger))
        for row in ledger.rows
        if row.size_bytes and row.metric
    ]
    limit = ledger.budget.get("max_size_bytes")
    axes = Axes("Metric against size", "Size in MB", _metric_axis(ledger), limit / _MEGABYTE if limit else None)
    return _trade_off(points, ledger, axes)


def layer_plot(row: LedgerRow) -> Markup | None:
    """Return the error of each value in graph order, or None when fewer than two values differ."""
    finite = [(index, one) for index, one in enumerate(row.layers) if math.isfinite(one.sqnr_db)]
    if len(finite) < 2:
        return None
    width, height, left, bottom = 900.0, 260.0, 52.0, 40.0
    worst = sorted(finite, key=lambda item: item[1].sqnr_db)
    drawing = Drawing(
        width,
        height,
        title=f"Error inside the graph after {row.stage}",
        description=f"{len(row.layers)} values; worst {worst[0][1].layer} at {format_decibels(worst[0][1].sqnr_db)}.",
    )
    x = Scale([0, len(row.layers) - 1], left, width - _RIGHT, padding=0.015)
    y = Scale([one.sqnr_db for _, one in finite], height - bottom, _TOP, padding=0.14)
    for tick, text in y.ticks(5):
        drawing.line((left, y(tick)), (width - _RIGHT, y(tick)), "grid")
        drawing.text((left - 7, y(tick) + 4), text, "tick end")
    drawing.text((14, (height - bottom) / 2), "SQNR in dB", "axis middle", turned=True)
    drawing.text((left, height - 8), "input", "axis start")
    drawing.text((width - _RIGHT, height - 8), "output", "axis end")
    drawing.text(((left + width) / 2, height - 8), "values in graph order", "axis middle")
    drawing.path([(x(index), y(one.sqnr_db)) for index, one in finite], "series")
    shown = {index for index, _ in worst[:_WORST_LABELLED]}
    labels = _Labels((left, 0.0, width, height - bottom))
    spots = {index: (x(index), y(one.sqnr_db)) for index, one in finite}
    for spot in spots.values():
        labels.reserve(spot, 3)
    for index, one in finite:
        tip = f"{one.layer}\n{one.value}\n{format_decibels(one.sqnr_db)}"
        drawing.circle(spots[index], 4.5 if index in shown else 2.6, "worst" if index in shown else "dot", tip)
    for index, one in worst[:_WORST_LABELLED]:
        _write_label(drawing, labels, spots[index], shorten(one.layer or one.value, 34), "label strong", below=True)
    return drawing.markup()


def worst_layers(row: LedgerRow, count: int) -> Sequence[LayerError]:
    """Return the `count` values of `row` with the lowest ratio, worst first."""
    return sorted(row.layers, key=lambda one: one.sqnr_db)[:count]


def _trade_off(points: Sequence[Point], ledger: Ledger, axes: Axes) -> Markup | None:
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(points) < 2:
        return None
    chosen = next((point for point in points if point.row.index == ledger.chosen), points[0])
    drawing = Drawing(
        _WIDTH,
        _HEIGHT,
        title=axes.title,
        description=f"{len(points)} stages. {points[0].row.stage}: {_reading(points[0], ledger, axes)}. "
        f"Chosen, {chosen.row.stage}: {_reading(chosen, ledger, axes)}.",
    )
    x_values = [value for point in points for value in (point.x, *(point.x_spread or ()))]
    y_values = [value for point in points for value in (point.y, *(point.y_spread or ()))]
    limits = [axes.x_limit] if axes.x_limit is not None and axes.x_limit < 3 * max(x_values) else []
    x = Scale([*x_values, *limits], _LEFT, _WIDTH - _RIGHT, may_be_logarithmic=True)
    y = Scale(y_values, _HEIGHT - _BOTTOM, _TOP)
    _draw_axes(drawing, x, y, axes)
    labels = _Labels((_LEFT, 0.0, _WIDTH, _HEIGHT - _BOTTOM))
    if limits:
        _draw_limit(drawing, labels, x(limits[0]), f"budget {format_number(limits[0])}")
    _draw_spreads(drawing, points, (x, y))
    spots = {point.row.index: (x(point.x), y(point.y)) for point in points}
    for point in sorted(points, key=lambda point: point.row.index == ledger.chosen):
        is_chosen = point.row.index == ledger.chosen
        style = "chosen" if is_chosen else "stage" if point.row.status == "ok" else "undone"
        tip = f"{point.row.stage} ({point.row.status})\n{_reading(point, ledger, axes)}"
        drawing.circle(spots[point.row.index], 6 if is_chosen else 4.5, style, tip)
        labels.reserve(spots[point.row.index], 5)
    for point in _labelled(points, ledger):
        strong = " strong" if point.row.index == ledger.chosen else ""
        text = shorten(point.row.stage, _LABEL_LENGTH)
        placed = _write_label(drawing, labels, spots[point.row.index], text, f"label{strong}")
        if strong and not placed:
            _write_label(drawing, labels, spots[point.row.index], "chosen", "label strong")
    return drawing.markup()


def _labelled(points: Sequence[Point], ledger: Ledger) -> list[Point]:
    """Return the points to name, the most important first: all of a few, of many those that no other beats."""
    first = [point for point in points if point.row.index == ledger.chosen]
    first += [point for point in points if point.row.index == ledger.rows[0].index and point not in first]
    others = [point for point in points if point not in first]
    if len(points) > _ALL_LABELLED:
        sign = 1 if ledger.metric_higher_is_better else -1
        others = [
            point
            for point in others
            if not any(one.x <= point.x and sign * one.y >= sign * point.y and one != point for one in points)
        ]
    return first + others


def _draw_axes(drawing: Drawing, x: Scale, y: Scale, axes: Axes) -> None:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick, text in y.ticks(5):
        drawing.line((_LEFT, y(tick)), (right, y(tick)), "grid")
        drawing.text((_LEFT - 7, y(tick) + 4), text, "tick end")
    for tick, text in x.ticks(6):
        drawing.line((x(tick), bottom), (x(tick), bottom + 4), "frame")
        drawing.text((x(tick), bottom + 17), text, "tick middle")
    drawing.line((_LEFT, bottom), (right, bottom), "frame")
    scale = ", logarithmic" if x.logarithmic else ""
    drawing.text(((_LEFT + right) / 2, _HEIGHT - 6), f"{axes.x}{scale}", "axis middle")
    drawing.text((12, (_TOP + bottom) / 2), axes.y, "axis middle", turned=True)


def _draw_limit(drawing: Drawing, labels: "_Labels", position: float, text: str) -> None:
    drawing.line((position, _TOP), (position, _HEIGHT - _BOTTOM), "limit")
    at_right = position > _WIDTH * 0.7
    place = (position - 5, _TOP + 8) if at_right else (position + 5, _TOP + 8)
    labels.reserve_text(place, text, "end" if at_right else "start")
    drawing.text(place, text, f"limit-text {'end' if at_right else 'start'}")


def _draw_spreads(drawing: Drawing, points: Sequence[Point], scales: tuple[Scale, Scale]) -> None:
    x, y = scales
    kept = [point for point in points if point.row.status == "ok"]
    if 1 < len(kept) <= _ALL_LABELLED:
        drawing.path([(x(point.x), y(point.y)) for point in kept], "trail")
    for point in points:
        if point.x_spread:
            drawing.line((x(point.x_spread[0]), y(point.y)), (x(point.x_spread[1]), y(point.y)), "spread")
        if point.y_spread:
            drawing.line((x(point.x), y(point.y_spread[0])), (x(point.x), y(point.y_spread[1])), "spread")


class _Labels:
    """Finds room for labels beside their points, without overlap."""

    def __init__(self, bounds: tuple[float, float, float, float]) -> None:
        self._bounds = bounds
        self._taken: list[tuple[float, float, float, float]] = []

    def reserve(self, centre: tuple[float, float], radius: float) -> None:
        """Keep labels off a point."""
        x, y = centre
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def reserve_text(self, at: tuple[float, float], text: str, anchor: str) -> None:
        """Keep labels off a text that is drawn anyway."""
        self._taken.append(_text_box(at, text, anchor))

    def place(self, spot: tuple[float, float], text: str, *, below: bool = False) -> tuple[float, float, str] | None:
        """Return the position and anchor of `text` beside or first `below` `spot`, or None when there is no room."""
        x, y = spot
        beside = [(x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x, y - 10, "middle")]
        under = [(x, y + 18, "middle"), (x + 4, y + 18, "end"), (x - 4, y + 18, "start")]
        for at_x, at_y, anchor in under + beside if below else beside + under:
            box = _text_box((at_x, at_y), text, anchor)
            if self._inside(box) and not any(_overlap(box, other) for other in self._taken):
                self._taken.append(box)
                return at_x, at_y, anchor
        return None

    def _inside(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = self._bounds
        return box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom


def _write_label(
    drawing: Drawing, labels: _Labels, spot: tuple[float, float], text: str, style: str, *, below: bool = False
) -> bool:
    place = labels.place(spot, text, below=below)
    if place:
        drawing.text(place[:2], text, f"{style} {place[2]}")
    return place is not None


def _text_box(at: tuple[float, float], text: str, anchor: str) -> tuple[float, float, float, float]:
    width = len(text) * _FONT * CHARACTER_WIDTH + 2
    left = {"start": at[0], "end": at[0] - width, "middle": at[0] - width / 2}[anchor]
    return left, at[1] - _FONT, left + width, at[1] + 3


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _spread(measurement: object) -> tuple[float, float] | None:
    low, high = getattr(measurement, "low", None), getattr(measurement, "high", None)
    return (low, high) if low is not None and high is not None else None


def _interval(row: LedgerRow, ledger: Ledger) -> tuple[float, float] | None:
    """Return where the metric may lie given the interval of its change against the source."""
    source, spread = ledger.rows[0].metric, _spread(row.metric_change)
    return (source.value + spread[0], source.value + spread[1]) if source and spread else None


def _metric_axis(ledger: Ledger) -> str:
    unit = next((row.metric.unit for row in ledger.rows if row.metric), "")
    return f"{capitalize(ledger.metric or 'metric')}{f' in {unit}' if unit else ''}"


def _reading(point: Point, ledger: Ledger, axes: Axes) -> str:
    unit = point.row.metric.unit if point.row.metric else ""
    x = format_bytes(point.x * _MEGABYTE) if axes.x.startswith("Size") else f"{format_number(point.x)} ms"
    return f"{ledger.metric or 'metric'} {format_value(point.y, unit)} at {x}"
