"""Phones: the targets `android-cpu` and `ios-coreml`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect
from edgesmith.model import Model
from edgesmith.profile import Profile, load_profile
from edgesmith.serialization import read_onnx
from edgesmith_onnxruntime.core_ml_forms import write_core_ml_forms
from edgesmith_onnxruntime.cpu import DIALECT, FILE_NAME, OnnxCpu
from edgesmith_onnxruntime.lowering import as_rewrite, lower_to_standard
from edgesmith_onnxruntime.mobile.ort_format import Style, add_ort_format
from edgesmith_onnxruntime.mobile.placement import find_placements
from edgesmith_onnxruntime.mobile.snippets import write_snippets

PACKAGE = "edgesmith_onnxruntime"


def refusals(profile: Profile) -> dict[str, str]:
    """Return a format that a device lacks to the reason, in the names that methods ask by."""
    return {name.removesuffix("-weights"): reason for name, reason in profile.formats.absent.items()}


class AndroidCpu(OnnxCpu):
    """ONNX Runtime's own kernels on 64-bit ARM: the graph of `onnx-cpu`, whose integer products run there too."""

    name: ClassVar[str] = "android-cpu"
    style: ClassVar[Style] = "Fixed"
    settings: ClassVar[Mapping[str, str]] = {}
    """Entries that a session on the phone is configured with."""
    core_ml: ClassVar[bool] = False

    def __init__(self, profile: Profile | None = None) -> None:
        super().__init__(profile)
        self.device = profile or load_profile(f"{PACKAGE}:profiles/{self.name}.toml")
        self.dialect = self._dialect()

    def _dialect(self) -> Dialect:
        return replace(
            DIALECT,
            name=self.device.name,
            opset=self.device.opset,
            weight_only=tuple(each for each in DIALECT.weight_only if each.dtype != "float8e4m3fn"),
            float8="none",
            refusals=refusals(self.device),
        )

    def finish(self, directory: Path) -> Mapping[str, object]:
        """Add the ORT format, the operators of a reduced build, and code that loads it; say what providers take."""
        model = read_onnx(directory / FILE_NAME)
        facts = add_ort_format(directory, model, self.style)
        file = str(facts["file"])
        written = write_snippets(directory, model.graph, file, self.settings, core_ml=self.core_ml)
        return {
            "ort_format": dict(facts),
            "providers": [placement.as_json() for placement in find_placements(model)],
            "snippets": list(written),
        }


class IosCoreMl(AndroidCpu):
    """Core ML through ONNX Runtime: a float graph of ONNX's own operators, since Core ML gets no others."""

    name = "ios-coreml"
    style = "Runtime"
    settings: ClassVar[Mapping[str, str]] = {"session.enable_saved_runtime_optimizations": "1"}
    core_ml = True

    def _dialect(self) -> Dialect:
        return replace(
            super()._dialect(),
            operators=frozenset(),
            bias="float",
            dynamic=False,
            quantize_outputs=frozenset(),
            carried=frozenset(),
            weight_only=(),
            # Behind open sizes Core ML takes next to nothing.
            fixed_shapes=True,
        )

    def lower(self, model: Model, context: Context[None]) -> Model:
        """Return the graph cleaned, and left in ONNX's own operators: Core ML gets none of ONNX Runtime's."""
        forms = as_rewrite(write_core_ml_forms, "Wrote {} negations and expansions in forms that Core ML takes.")
        return model.with_ir(lower_to_standard(model.ir, context, (forms,)))
