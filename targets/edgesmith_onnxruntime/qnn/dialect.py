"""The quantized form that Qualcomm's tensor processor takes.

Pairs stand on the inputs and on the output of every quantized operator: a product whose output is float runs in
float16, with its weights dequantized on the processor. Activations are unsigned with a zero point, weights of
convolutions and products are signed with one scale per channel, biases are int32 with the scale of the products (QNN
execution provider, supported data types and mixed precision; each form was run in the simulator of 2.7.0).
"""

from edgesmith.host.dialect import Dialect, TensorFormat
from edgesmith.profile import Profile

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


def dialect_of(profile: Profile) -> Dialect:
    """Return the dialect of the QNN provider on the device of `profile`."""
    return Dialect(
        name=profile.name,
        opset=profile.opset,
        activation=TensorFormat("uint8", symmetric=False),
        wide_activation=TensorFormat("uint16", symmetric=False),
        weight=TensorFormat("int8", symmetric=True, granularity="channel"),
        operators=PRODUCTS,
        bias="int32",
        quantize_outputs=PRODUCTS,
        carried=frozenset(
            {
                "Add", "Sub", "Mul", "Div", "Concat", "Clip", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu",
                "HardSwish", "HardSigmoid", "AveragePool", "GlobalAveragePool", "ReduceMean", "MaxPool",
            }
        ),
        attention_products=True,
        fixed_shapes=True,
        refusals={name.removesuffix("-weights"): reason for name, reason in profile.formats.absent.items()},
    )  # fmt: skip
