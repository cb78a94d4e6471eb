"""Batches as messages."""

from edgesmith.isolation.channel import Message
from edgesmith_calibration.sources import Batch

_LABELS = "labels"
_INPUT = "input "


def pack(batch: Batch | None) -> Message:
    """Return the message for a batch; None says that there is none left."""
    if batch is None:
        return Message({"end": True})
    inputs = {f"{_INPUT}{name}": array for name, array in batch.inputs.items()}
    return Message({"end": False}, inputs if batch.labels is None else {**inputs, _LABELS: batch.labels})


def unpack(message: Message) -> Batch | None:
    """Return the batch in a message."""
    if message.content["end"]:
        return None
    inputs = {name.removeprefix(_INPUT): one for name, one in message.arrays.items() if name != _LABELS}
    return Batch(inputs, message.arrays.get(_LABELS))
