"""A few SVG shapes with escaped text, and axis ticks. Colours come from the page's style sheet by class."""

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

CHARACTER_WIDTH = 0.56
"""Mean width of a character of the page's typeface, in units of its size."""


class Drawing:
    """Collects shapes and gives them out as markup. Every text is escaped."""

    def __init__(self, width: float, height: float, *, title: str, description: str) -> None:
        self._root = ElementTree.Element(
            "svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": f"{title}. {description}"}
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Add a straight line."""
        ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
        self._add("line", ends, style)

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Add an open line through `points`."""
        commands = " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
        self._add("path", {}, style).set("d", f"M{commands}")

    def circle(self, centre: tuple[float, float], radius: float, style: str, tip: str = "") -> None:
        """Add a circle with an optional hover text."""
        _set_tip(self._add("circle", {"cx": centre[0], "cy": centre[1], "r": radius}, style), tip)

    def text(self, at: tuple[float, float], content: str, style: str, *, turned: bool = False) -> None:
        """Add text whose anchor (start, middle, end) is part of `style`."""
        shape = self._add("text", {"x": at[0], "y": at[1]}, style)
        shape.text = clean(content)
        if turned:
            shape.set("transform", f"rotate(-90 {at[0]:.2f} {at[1]:.2f})")

    def markup(self) -> Markup:
        """Return the drawing for insertion into a page."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))

    def _add(self, kind: str, numbers: dict[str, float], style: str) -> ElementTree.Element:
        attributes = {name: f"{value:.2f}" for name, value in numbers.items()}
        return ElementTree.SubElement(self._root, kind, {**attributes, "class": style})


class Scale:
    """Maps values to positions: linear, or logarithmic when the values span more than a factor of 30."""

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        may_be_logarithmic: bool = False,
        padding: float = 0.08,
    ) -> None:
        low, high = min(values), max(values)
        self.logarithmic = may_be_logarithmic and low > 0 and high / low > 30
        self._start, self._end = start, end
        first, last = self._shape(low), self._shape(high)
        margin = (last - first) * padding or abs(first) * 0.05 or 1.0
        self._low, self._high = first - margin, last + margin

    def __call__(self, value: float) -> float:
        """Return the position of `value`."""
        share = (self._shape(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return about `count` round values inside the scale, with as many decimals as tell them apart."""
        if self.logarithmic:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            steps = (1, 2, 5) if len(powers) < 4 else (1,)
            candidates = [step * 10.0**power for power in powers for step in steps]
            return [(value, f"{value:g}") for value in candidates if self._low <= math.log10(value) <= self._high]
        rough = (self._high - self._low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
        indices = range(math.ceil(self._low / step), math.floor(self._high / step) + 1)
        decimals = max(0, -math.floor(math.log10(step)), 1 if step == 2.5 else 0)
        return [(index * step, f"{index * step:,.{decimals}f}".replace("-", "−")) for index in indices]

    def _shape(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def clean(text: str) -> str:
    """Return `text` without the characters that no HTML or XML document may hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def _set_tip(shape: ElementTree.Element, tip: str) -> None:
    if tip:
        ElementTree.SubElement(shape, "title").text = clean(tip)
