"""The classes that records name. A plugin subclasses these; the host calls them and checks their results."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from edgesmith.errors import TargetError
from edgesmith.host.context import Context, OptionsT
from edgesmith.host.dialect import Dialect
from edgesmith.host.verdict import Verdict

if TYPE_CHECKING:
    from edgesmith.engine import EngineReport
    from edgesmith.model import Model
    from edgesmith.profile import Profile


class Method(ABC, Generic[OptionsT]):
    """Rewrites a Model. Stateless: everything it needs is in the context."""

    @abstractmethod
    def check(self, model: "Model", context: Context[OptionsT]) -> Verdict:
        """Return whether this method applies to `model`, with the reason. Total: never raises on a valid model."""

    @abstractmethod
    def apply(self, model: "Model", context: Context[OptionsT]) -> "Model":
        """Return a new Model. Never edits `model`; start from `model.clone()`."""


@dataclass(frozen=True, slots=True)
class Build:
    """What `Target.build` wrote into the artifact directory."""

    entry: str
    """File name that a runner opens, relative to the directory."""
    recipe: Mapping[str, object] = field(default_factory=dict)
    """How the runtime's own files were or are to be built (flags, versions).

    `runtime: onnxruntime` says that users load the entry in ONNX Runtime as it comes; see `Target.for_onnx_runtime`.
    """


class Target(ABC):
    """One device and its runtime: checks, lowers and builds a graph for it.

    Args:
        profile: Facts of the device, where the target's record names a profile.
    """

    dialect: Dialect
    for_onnx_runtime: bool = False
    """Whether users load the entry in ONNX Runtime as it comes, and each `Build.recipe` says `runtime: onnxruntime`.

    Any other graph is for another runtime: where ONNX Runtime stands in for it, it runs the graph as it is written.
    """

    def __init__(self, profile: "Profile | None" = None) -> None:
        self.profile = profile

    @abstractmethod
    def check(self, model: "Model") -> Verdict:
        """Return whether the runtime takes this graph, with the reason and nodes when it does not."""

    @abstractmethod
    def lower(self, model: "Model", context: Context[None]) -> "Model":
        """Return the graph in the form that the runtime executes best. Never edits `model`."""

    @abstractmethod
    def build(self, model: "Model", directory: Path) -> Build:
        """Write the runtime's files for the lowered `model` into the existing, empty `directory`."""

    def finish(self, directory: Path) -> Mapping[str, object]:
        """Add to `directory`, which `build` filled and which ships, what takes long; return facts for the manifest.

        Called once, for the artifact. By default there is nothing to add.
        """
        return {}

    def read_engine(self, model: "Model", layers: str, times: str = "") -> "EngineReport":
        """Return what the runtime built of the lowered `model`, from its own description of layers and their times.

        Raises:
            TargetError: The texts cannot be read, or this runtime describes no engines.
        """
        raise TargetError(
            f"{type(self).__name__} describes no engines.",
            expected="a target whose runtime builds an engine and tells its layers",
            why="There is nothing to read for other runtimes.",
            fix="Leave the description of the engine out, or name the target that it was built for.",
        )


class Frontend(ABC):
    """Turns a source, such as a file or a module, into a Model."""

    @abstractmethod
    def accepts(self, source: object) -> bool:
        """Return whether `source` is of the kind this frontend reads. Cheap: imports nothing heavy."""

    @abstractmethod
    def load(self, source: object, *, example_inputs: object = None) -> "Model":
        """Return the Model read from `source`, cleaned and proven equal to it."""

    @abstractmethod
    def fingerprint(self, source: object, *, example_inputs: object = None) -> str:
        """Return a hash of the content of `source`, without loading it as a model if that can be avoided."""
