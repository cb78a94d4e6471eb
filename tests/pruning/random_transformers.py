"""Random transformers for tests: any number of heads, shared keys, gated MLPs, weights that two blocks share."""

import onnx_ir as ir
from hypothesis import strategies as st

from edgesmith.testing.builder import GraphBuilder

LENGTH = 3


class RandomTransformer:
    """Draws blocks of attention and MLP over a residual stream."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.width = draw(st.sampled_from([4, 6]))
        self.builder = GraphBuilder(x=("n", LENGTH, self.width), seed=draw(st.integers(0, 99)))
        self.weights: list[str] = []

    def product(self, source: str, name: str, inner: int, outer: int, *, shared: bool = False) -> str:
        """Return a product with a weight of its own, or with that of the block before."""
        if not (shared and name in self.weights):
            # A second weight of one name replaces no first: blocks that share nothing count on.
            name = f"{name}.{len(self.weights)}" if name in self.weights else name
            self.builder.weight(name, inner, outer)
            self.weights.append(name)
        made = self.builder.add("MatMul", source, name)
        return self.builder.add("Add", made, self.bias(outer)) if self.draw(st.booleans()) else made

    def bias(self, outer: int) -> str:
        self.weights.append(f"bias.{len(self.weights)}")
        return self.builder.weight(self.weights[-1], outer)

    def heads(self, source: str, count: int, size: int) -> str:
        apart = self.builder.add("Reshape", source, self.builder.integers(0, 0, count, size))
        return self.builder.add("Transpose", apart, perm=[0, 2, 1, 3])

    def repeated(self, value: str, groups: int, times: int, size: int) -> str:
        if times == 1:
            return value
        wide = self.builder.add("Unsqueeze", value, self.builder.integers(2))
        target = self.builder.integers(1, groups, times, LENGTH, size)
        wide = self.builder.add("Expand", wide, target)
        return self.builder.add("Reshape", wide, self.builder.integers(0, groups * times, LENGTH, size))

    def attention(self, source: str) -> str:
        groups, times = self.draw(st.sampled_from([(3, 1), (2, 1), (5, 1), (3, 2), (2, 3)]))
        size, shared = self.draw(st.sampled_from([2, 3])), self.draw(st.booleans())
        count = groups * times
        tag = f"{count}.{groups}.{size}"
        query = self.heads(self.product(source, f"q.{tag}", self.width, count * size, shared=shared), count, size)
        key, value = (
            self.heads(self.product(source, f"{each}.{tag}", self.width, groups * size, shared=shared), groups, size)
            for each in "kv"
        )
        key, value = (self.repeated(each, groups, times, size) for each in (key, value))
        scores = self.builder.add("MatMul", query, self.builder.add("Transpose", key, perm=[0, 1, 3, 2]))
        mixed = self.builder.add("MatMul", self.builder.add("Softmax", scores, axis=-1), value)
        back = self.builder.add("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = self.builder.add("Reshape", back, self.builder.integers(0, 0, count * size))
        return self.product(flat, f"o.{tag}", count * size, self.width, shared=shared)

    def mlp(self, source: str) -> str:
        hidden, shared = self.draw(st.sampled_from([5, 8])), self.draw(st.booleans())
        wide = self.product(source, f"up.{hidden}", self.width, hidden, shared=shared)
        wide = self.builder.add(self.draw(st.sampled_from(["Relu", "Tanh"])), wide)
        if self.draw(st.booleans()):
            wide = self.builder.add("Mul", wide, self.product(source, f"gate.{hidden}", self.width, hidden))
        return self.product(wide, f"down.{hidden}", hidden, self.width, shared=shared)

    def build(self) -> ir.Model:
        """Return one to three blocks with a head for three classes."""
        stream = "x"
        for _ in range(self.draw(st.integers(1, 3))):
            for part in (self.attention, self.mlp):
                stream = self.builder.add("Add", stream, part(stream))
        return self.builder.finish(self.builder.linear(stream, "head", self.width, 3))


@st.composite
def transformers(draw: st.DrawFn) -> ir.Model:
    return RandomTransformer(draw).build()
