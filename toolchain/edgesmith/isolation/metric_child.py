"""The process of a metric: `python -m edgesmith.isolation.metric_child SOCKET FOLDER`. Scores what it is sent."""

import faulthandler
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.host.origin import PluginOrigin
from edgesmith.isolation.channel import Array, Channel, Message
from edgesmith.isolation.folder import REQUEST_FILE, STACK_FILE
from edgesmith.isolation.guard import end_with_the_run
from edgesmith.isolation.request import load_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgesmith_calibration.metrics import Metric

OUTPUT, REFERENCE, LABELS = "output ", "reference ", "labels"
"""How the names of arrays in a message begin."""


def main(descriptor: int, folder: Path) -> None:
    """Answer the run over the socket `descriptor` until it hangs up."""
    end_with_the_run(descriptor)
    with (folder / STACK_FILE).open("w") as stack:
        faulthandler.enable(stack, all_threads=False)
        _serve(Channel(socket.socket(fileno=descriptor), takes_arrays=True), folder)
        faulthandler.disable()


def _serve(channel: Channel, folder: Path) -> None:
    from edgesmith.isolation import faults
    from edgesmith.isolation.overheard import Overheard
    from edgesmith.measure.contained import MetricMaker

    request = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    sys.path[:] = request["import_path"]
    metrics: dict[int, Metric] = {}
    make: MetricMaker | None = None
    Overheard(folder)
    while (message := channel.receive()) is not None:
        try:
            if make is None:
                registry = load_again((PluginOrigin(**request["plugin"]),))
                make = MetricMaker(request["author"], registry.load(registry.metric(request["metric"])))
            answer = _answer(make, metrics, message)
        except Exception as error:  # noqa: BLE001  raised again in the run, where it would have been without isolation
            answer = {"error": faults.to_json(error)}
        channel.send(Message(answer))


def _answer(make: "Callable[[], Metric]", metrics: "dict[int, Metric]", message: Message) -> dict[str, Any]:
    content, arrays = message.content, message.arrays
    for number in content["left"]:
        metrics.pop(number, None)
    number = content["number"]
    if content["call"] == "make":
        metrics[number] = make()
    elif content["call"] == "update":
        metrics[number].update(_named(arrays, OUTPUT), arrays.get(LABELS), _named(arrays, REFERENCE) or None)
    else:
        return {"value": metrics[number].result()}
    return {}


def _named(arrays: Mapping[str, Array], beginning: str) -> dict[str, Array]:
    return {name.removeprefix(beginning): array for name, array in arrays.items() if name.startswith(beginning)}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
