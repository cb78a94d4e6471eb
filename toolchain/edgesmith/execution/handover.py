"""How a graph with large weights gets to ONNX Runtime: through files that the runtime maps, linked where possible.

Given as bytes, weights would be in memory twice, and protobuf ends at 2 GiB. Weights that lie in a mapped file already
are not copied: the runtime gets a hard link to that file. It takes no symbolic link out of the model's directory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import psutil

from edgesmith.mapped import find_origin, stored_pieces
from edgesmith.serialization import tensors

_INLINE_BYTES = 1024
_USABLE_SHARE = 0.5
_CGROUP_LIMIT, _CGROUP_USE = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))


def obstacle_to_running(model: ir.Model) -> str:
    """Return why `model` is too large to be run on this machine beside what else is in memory, or an empty string.

    The limit is half of the memory that is free. Every weight counts as float32: float16 is widened by the runtime on
    processors, codes of few bits are dequantized before their products, and float32 is copied into another order.
    """
    needed = 4 * sum(tensor.size for _, tensor in tensors(model))
    usable = int(free_bytes() * _USABLE_SHARE)
    if needed <= usable:
        return ""
    return (
        f"running it may take {needed / 2**30:.1f} GiB; half of the free memory, {usable / 2**30:.1f} GiB, may be used"
    )


def write_linked(model: ir.Model, folder: Path) -> Path:
    """Write a graph to `model.onnx` in an empty folder, its weights beside it as links or copies; return the path.

    The folder may be deleted once the runtime has loaded the graph, since the runtime keeps its mappings.

    Raises:
        OSError: The folder cannot be written, or a file that holds weights is gone.
    """
    light = model.clone()
    links: dict[Path, str] = {}
    with (folder / "model.data").open("wb") as stream:
        for value, tensor in _outsourced(light):
            location = _linked(tensor, folder, links)
            if location is None:
                location = "model.data", stream.tell()
                for piece in stored_pieces(tensor):
                    stream.write(piece.data)
            value.const_value = ir.ExternalTensor(
                *location, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=str(value.name)
            )
    path = folder / "model.onnx"
    path.write_bytes(ir.to_proto(light).SerializeToString())
    return path


def _outsourced(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield what does not travel in the graph's own file: large weights, and all that lie in other files by now."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.nbytes > _INLINE_BYTES or isinstance(tensor, ir.ExternalTensor):
                yield value, tensor


def _linked(tensor: ir.TensorProtocol, folder: Path, links: dict[Path, str]) -> tuple[str, int] | None:
    """Return a link in `folder` to the file that holds a tensor, and where in it; None if it must be copied."""
    origin = find_origin(tensor)
    if origin is None:
        return None
    if origin.path not in links:
        name = f"weights-{len(links)}"
        try:
            os.link(origin.path, folder / name)
        except OSError:
            # Another file system, a file of another user, or one that was deleted.
            links[origin.path] = ""
        else:
            links[origin.path] = name if origin.is_still(folder / name) else ""
    return (links[origin.path], origin.offset) if links[origin.path] else None


def free_bytes() -> int:
    """Return the memory that this process may still take, in bytes: what is free of the machine or the container."""
    free = int(psutil.virtual_memory().available)
    try:
        # In a container the machine's memory is not all for us. Without a limit the file holds a word.
        return min(free, int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USE.read_text()))
    except (OSError, ValueError):
        return free
