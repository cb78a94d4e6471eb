"""Random networks for the coupling tests."""

import onnx_ir as ir
from hypothesis import strategies as st

from edgesmith.testing.builder import GraphBuilder

SIDE = 4


class RandomNetwork:
    """Draws a network of convolutions, gates, joins and splits; every value so far may be read again."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.builder = GraphBuilder(x=("n", 4, SIDE, SIDE), seed=draw(st.integers(0, 99)))
        self.values = self.conv("x", 4, "stem")

    def grow(self) -> None:
        source, channels = self.draw(st.sampled_from(self.values[-4:]))
        kinds = ["conv", "norm", "unary", "add", "gate", "concat", "slice", "depthwise", "grouped", "shuffle", "split"]
        made = getattr(self, self.draw(st.sampled_from(kinds)))(source, channels)
        self.values.extend(made)

    def name(self) -> str:
        return f"w{len(self.values)}"

    def conv(self, source: str, channels: int, name: str = "") -> list[tuple[str, int]]:
        width = self.draw(st.sampled_from([3, 4, 6, 8]))
        return [(self.builder.conv(source, name or self.name(), channels, width), width)]

    def norm(self, source: str, channels: int) -> list[tuple[str, int]]:
        return [(self.builder.norm(source, self.name(), channels), channels)]

    def unary(self, source: str, channels: int) -> list[tuple[str, int]]:
        return [(self.builder.add(self.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "Neg"])), source), channels)]

    def add(self, source: str, channels: int) -> list[tuple[str, int]]:
        other = self.draw(st.sampled_from([name for name, width in self.values if width == channels]))
        return [(self.builder.add("Add", source, other), channels)]

    def gate(self, source: str, channels: int) -> list[tuple[str, int]]:
        squeezed = self.builder.add("ReduceMean", source, self.builder.integers(2, 3))
        excited = self.builder.conv(squeezed, self.name(), channels, channels)
        return [(self.builder.add("Mul", source, self.builder.add("Sigmoid", excited)), channels)]

    def concat(self, source: str, channels: int) -> list[tuple[str, int]]:
        other, width = self.draw(st.sampled_from(self.values))
        return [(self.builder.add("Concat", source, other, axis=1), channels + width)]

    def slice(self, source: str, channels: int) -> list[tuple[str, int]]:
        start = self.draw(st.integers(0, channels - 2))
        step = self.draw(st.sampled_from([1, 2]))
        width = len(range(start, channels, step))
        bounds = [self.builder.integers(number) for number in (start, channels, 1, step)]
        return [(self.builder.add("Slice", source, *bounds), width)] if width > 1 else []

    def depthwise(self, source: str, channels: int) -> list[tuple[str, int]]:
        return [(self.builder.conv(source, self.name(), channels, 2 * channels, group=channels), 2 * channels)]

    def grouped(self, source: str, channels: int) -> list[tuple[str, int]]:
        return [] if channels % 2 else [(self.builder.conv(source, self.name(), channels, 4, group=2), 4)]

    def shuffle(self, source: str, channels: int) -> list[tuple[str, int]]:
        if channels % 2:
            return []
        shapes = [(0, 2, channels // 2, SIDE, SIDE), (0, channels, SIDE, SIDE)]
        apart = self.builder.add("Reshape", source, self.builder.integers(*shapes[0]))
        crossed = self.builder.add("Transpose", apart, perm=[0, 2, 1, 3, 4])
        return [(self.builder.add("Reshape", crossed, self.builder.integers(*shapes[1])), channels)]

    def split(self, source: str, channels: int) -> list[tuple[str, int]]:
        first = self.draw(st.integers(1, channels - 1))
        sizes = (first, channels - first)
        parts = self.builder.add_many("Split", source, self.builder.integers(*sizes), outputs=2, axis=1)
        return [(part, size) for part, size in zip(parts, sizes, strict=True) if size > 1]

    def finish(self) -> ir.Model:
        """Read the last values with a classifier, so that channels have somewhere to go."""
        joined = [self.builder.conv(name, f"head{i}", width, 3) for i, (name, width) in enumerate(self.values[-3:])]
        total = joined[0]
        for each in joined[1:]:
            total = self.builder.add("Add", total, each)
        return self.builder.finish(total)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    network = RandomNetwork(draw)
    for _ in range(draw(st.integers(3, 14))):
        network.grow()
    return network.finish()
