"""Random residual networks for tests: plain, inverted and grouped blocks, strides, weights that two blocks share."""

import onnx_ir as ir
from hypothesis import strategies as st

from edgesmith.testing.builder import GraphBuilder

SIDE = 6


class RandomResidual:
    """Draws residual blocks of convolutions over a stream of images."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.builder = GraphBuilder(x=("n", 3, SIDE, SIDE), seed=draw(st.integers(0, 99)))
        self.made: set[str] = set()
        self.width = draw(st.sampled_from([4, 6]))

    def conv(self, source: str, tag: str, inner: int, outer: int, *, kernel: int = 3, **attributes: object) -> str:
        """Return a convolution whose weight is that of an earlier one of this tag, with normalization of its own."""
        groups = attributes.get("group", 1)
        weight = f"{tag}.weight"
        if weight not in self.made:
            self.made.add(weight)
            self.builder.weight(weight, outer, inner // groups, kernel, kernel)
        around = [kernel // 2] * 4
        made = self.builder.add("Conv", source, weight, pads=around, **attributes)
        norm = f"norm.{len(self.made)}.{made}"
        return self.builder.norm(made, norm, outer) if self.draw(st.booleans()) else made

    def activated(self, value: str) -> str:
        return self.builder.add(self.draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish"])), value)

    def plain(self, source: str, tag: str, hidden: int) -> str:
        wide = self.activated(self.conv(source, f"{tag}.in", self.width, hidden))
        return self.conv(wide, f"{tag}.out", hidden, self.width)

    def inverted(self, source: str, tag: str, hidden: int) -> str:
        wide = self.activated(self.conv(source, f"{tag}.in", self.width, hidden, kernel=1))
        deep = self.activated(self.conv(wide, f"{tag}.deep", hidden, hidden, group=hidden))
        return self.conv(deep, f"{tag}.out", hidden, self.width, kernel=1)

    def grouped(self, source: str, tag: str, hidden: int) -> str:
        wide = self.activated(self.conv(source, f"{tag}.in", self.width, hidden, kernel=1))
        deep = self.activated(self.conv(wide, f"{tag}.deep", hidden, hidden, group=2))
        return self.conv(deep, f"{tag}.out", hidden, self.width, kernel=1)

    def block(self, source: str, number: int) -> str:
        kind, hidden = self.draw(st.sampled_from(["plain", "inverted", "grouped"])), self.draw(st.sampled_from([4, 6]))
        # A block without a number has the weights of every other such block of its kind and width.
        tag = f"{kind}.{self.width}.{hidden}" + ("" if self.draw(st.booleans()) else f".{number}")
        return self.builder.add("Add", source, getattr(self, kind)(source, tag, hidden))

    def build(self) -> ir.Model:
        """Return one to three blocks, a strided layer among them, and a classifier."""
        stream = self.conv("x", "stem", 3, self.width)
        for number in range(self.draw(st.integers(1, 3))):
            stream = self.activated(self.block(stream, number))
            if self.draw(st.booleans()):
                before, self.width = self.width, self.draw(st.sampled_from([4, 6]))
                stream = self.conv(stream, f"stride.{number}", before, self.width, strides=[2, 2])
        pooled = self.builder.add("Flatten", self.builder.add("GlobalAveragePool", stream))
        return self.builder.finish(self.builder.linear(pooled, "head", self.width, 3))


@st.composite
def residual_networks(draw: st.DrawFn) -> ir.Model:
    return RandomResidual(draw).build()
