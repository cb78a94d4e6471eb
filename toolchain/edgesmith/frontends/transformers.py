"""The frontend for Hugging Face `transformers` models: a local directory or a hub id.

Weights come from safetensors only, code only from the installed `transformers`. Attention is exported in its plain
("eager") form: two products and a softmax, a fifth fewer nodes than the fused form writes, and what runtimes fuse.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import ModelError
from edgesmith.files import hash_file
from edgesmith.frontends.normalize import normalize_with_remarks
from edgesmith.frontends.preprocessing import image_preprocessing, read_json, text_preprocessing
from edgesmith.frontends.torch_export import Signature, call_module, export_module, name_outputs, quiet
from edgesmith.frontends.torch_module import prove_export
from edgesmith.host.interfaces import Frontend
from edgesmith.measure.machine import library_versions
from edgesmith.model import METADATA_FILE, Model, Provenance
from edgesmith.serialization import check_weights
from edgesmith.task import Task

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_DEFAULT_IMAGE_SIZE = 224
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is read from a model directory, and all that is fetched from the hub."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How a class of architectures is loaded and used."""

    auto_class: str
    kind: str
    metric: str = ""


_FAMILIES = {
    "ForSequenceClassification": _Family("AutoModelForSequenceClassification", "text-classification", "accuracy"),
    "ForImageClassification": _Family("AutoModelForImageClassification", "image-classification", "accuracy"),
    "ForCausalLM": _Family("AutoModelForCausalLM", "causal-lm", "perplexity"),
    "LMHeadModel": _Family("AutoModelForCausalLM", "causal-lm", "perplexity"),
    "ForMaskedLM": _Family("AutoModelForMaskedLM", "masked-lm"),
    "ForTokenClassification": _Family("AutoModelForTokenClassification", "token-classification"),
    "Model": _Family("AutoModel", "feature-extraction"),
}


class TransformersFrontend(Frontend):
    """Exports a `transformers` model with dynamic batch (and sequence) axes, and its preprocessing with it."""

    def accepts(self, source: object) -> bool:
        """Return whether `source` is a directory without a saved Model, or looks like a hub id."""
        if not isinstance(source, str | Path):
            return False
        path = Path(source)
        if path.is_dir():
            return not (path / METADATA_FILE).is_file()
        return not path.exists() and path.suffix != ".onnx" and _HUB_ID.fullmatch(str(source)) is not None

    def load(self, source: object, *, example_inputs: object = None) -> Model:
        """Return the Model of a directory or hub id.

        Outputs carry the names that `transformers` gives them ("logits", "last_hidden_state"). A cache of keys and
        values is not part of the graph.

        Raises:
            ModelError: The directory is no model of a supported kind, or its weights are missing or no safetensors;
                the hub id is not in the local cache and cannot be fetched; or the graph differs from the model.
            UnsupportedOperatorError: An operator has no ONNX form.
        """
        name = str(source)
        directory = _resolve(name)
        family, module, remarks = _load_module(directory, name)
        inputs = _example_inputs(module, name)
        axes = {key: {0: "batch", 1: "sequence"} if value.ndim == 2 else {0: "batch"} for key, value in inputs.items()}
        signature = Signature(inputs, positional=False, dynamic_axes=axes)
        graph = export_module(module, signature, list(_outputs(module, signature, name)), name)
        check_weights(graph, name)
        normalized = normalize_with_remarks(graph)
        cases = [_example_inputs(module, name, rows, length) for rows, length in ((2, 8), (3, 5), (1, 3))]
        prove_export(module, signature, cases, normalized.model, name)
        task, assets = _describe(directory, module.config, family, tuple(inputs))
        if task.preprocessing is None:
            remarks += ("No preprocessing was found beside the model, so data must hold the graph's own inputs.",)
        provenance = Provenance(
            name,
            "transformers",
            self.fingerprint(source),
            versions=library_versions(("transformers", "torch", "onnxscript", "onnx_ir", "onnx")),
            remarks=remarks + normalized.remarks,
        )
        return Model(normalized.model, task, provenance, assets)

    def fingerprint(self, source: object, *, example_inputs: object = None) -> str:
        """Return a hash of the configuration, tokenizer and weight files."""
        import hashlib

        directory = _resolve(str(source))
        files = sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})
        lines = [f"{len(file.name)}:{file.name}:{hash_file(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _resolve(source: str) -> Path:
    """Return the local directory of a source, fetching it from the hub when it is not in the cache."""
    directory = Path(source)
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"The directory `{source}` holds no `config.json`.",
                expected="a directory that `save_pretrained` or Edgesmith wrote",
                why="The configuration says which network the weights belong to.",
                fix="Name the right directory, or an .onnx file.",
            )
        return directory
    if "/" not in source and not _is_cached(source):
        raise _no_such_path(source)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with quiet():
            return Path(huggingface_hub.snapshot_download(source, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"`{source}` is neither a directory nor a model that can be had from the Hugging Face hub.",
            expected="a local directory, or a hub id that is public, cached or reachable",
            why=f"The hub answered: {' '.join(str(error).split())[:200]}",
            fix="Check the spelling and the network, or download the model elsewhere and name its directory.",
        ) from error


def _is_cached(name: str) -> bool:
    """Return whether the local cache holds the hub model `name`. A few old ones have names without an owner."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _no_such_path(source: str) -> ModelError:
    """Return the error for a name that is no directory here. The hub is not asked: its ids have an owner in front."""
    return ModelError(
        f"There is no directory `{source}`.",
        expected="a directory that exists, an .onnx file, or a hub id with its owner, as in `owner/name`",
        why="The name has no `/`, so the Hugging Face hub was not asked for it.",
        fix="Check the spelling and the working directory; for an old hub model, name its owner too.",
    )


def _family_of(architectures: list[str]) -> _Family:
    for suffix, family in _FAMILIES.items():
        if architectures and architectures[0].endswith(suffix):
            return family
    return _FAMILIES["Model"] if not architectures else _Family(architectures[0], "generic")


def _load_module(directory: Path, name: str) -> tuple[_Family, Any, tuple[str, ...]]:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"`{name}` is a Hugging Face model and `transformers` is not installed.",
            expected="torch and transformers",
            why="They hold the code of the network that is to be exported.",
            fix="Run `pip install edgesmith[torch]`.",
        ) from error
    with quiet(), _without_progress_bars():
        config = _call(transformers.AutoConfig.from_pretrained, name, directory, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise _unsupported(name, "is an encoder-decoder model, which takes two graphs")
        family = _family_of(list(config.architectures or ()))
        auto_class = getattr(transformers, family.auto_class, None)
        if auto_class is None:
            raise _unsupported(name, f"has the architecture {family.auto_class}, which transformers does not have")
        config.use_cache = False
        module, missing = _read_weights(auto_class, directory, config, name)
        remarks: tuple[str, ...] = ()
        if missing and all(key.startswith("pooler.") for key in missing):
            module, missing = _read_weights(auto_class, directory, config, name, add_pooling_layer=False)
            remarks = ("The checkpoint has no weights for the pooler, so the graph has no pooled output.",)
        if missing:
            raise ModelError(
                f"The checkpoint `{name}` lacks weights: {', '.join(sorted(missing)[:5])}"
                + (f" and {len(missing) - 5} more." if len(missing) > 5 else "."),
                expected=f"all weights of {type(module).__name__}",
                why="They would be random, and so would every result.",
                fix="Fine-tune and save the whole model, or correct `architectures` in its config.json.",
            )
    return family, module.eval(), remarks


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_weights(auto_class: Any, directory: Path, config: Any, name: str, **options: object) -> tuple[Any, set[str]]:
    import torch

    module, report = _call(
        auto_class.from_pretrained,
        name,
        directory,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    return module, set(report["missing_keys"])


def _call(function: Any, name: str, directory: Path, **options: object) -> Any:
    """Call a `from_pretrained`, with its refusals in our words."""
    from safetensors import SafetensorError

    try:
        return function(directory, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs Python code from its own repository, which is never run here"
        raise ModelError(
            f"`{name}` cannot be loaded by transformers: {reason[:300]}",
            expected="a model whose code is in transformers and whose weights are whole safetensors files",
            why="Weights in other formats can run code when they are read.",
            fix="Load it yourself and call `save_pretrained(directory)`, or pass the module with example inputs.",
        ) from error


def _example_inputs(module: Any, name: str, rows: int = 2, length: int = 6) -> dict[str, "torch.Tensor"]:
    """Return inputs for `rows` examples. Texts are padded to different lengths, so that masks matter."""
    import inspect

    import torch

    config = module.config
    generator = torch.Generator().manual_seed(rows)
    if module.main_input_name == "pixel_values":
        shape = (rows, getattr(config, "num_channels", 3), *_image_size(config))
        return {"pixel_values": torch.randn(shape, generator=generator)}
    if module.main_input_name != "input_ids":
        raise _unsupported(name, f"takes `{module.main_input_name}`; text and images are supported")
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    takes_types = "token_type_ids" in inspect.signature(module.forward).parameters
    if takes_types and getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.randint(0, 2, (rows, length), generator=generator)
    return inputs


def _image_size(config: Any) -> tuple[int, int]:
    """Return height and width of the images. Purely convolutional networks take any and often name none."""
    size = getattr(config, "image_size", None) or _DEFAULT_IMAGE_SIZE
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _outputs(module: Any, signature: Signature, name: str) -> Mapping[str, "torch.Tensor"]:
    try:
        return name_outputs(call_module(module, signature, signature.inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _unsupported(name, f"does not run on {sorted(signature.inputs)}: {error}") from error


def _describe(directory: Path, config: Any, family: _Family, inputs: tuple[str, ...]) -> tuple[Task, dict[str, bytes]]:
    labels: tuple[str, ...] = ()
    if family.kind in ("text-classification", "image-classification", "token-classification"):
        labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
    if "pixel_values" in inputs:
        settings = read_json(directory / "preprocessor_config.json")
        preprocessing = image_preprocessing(settings) if settings else None
        return Task(kind=family.kind, metric=family.metric, labels=labels, preprocessing=preprocessing), {}
    text, assets = text_preprocessing(directory, config, inputs, next_token=family.kind == "causal-lm")
    return Task(kind=family.kind, metric=family.metric, labels=labels, preprocessing=text), assets


def _unsupported(name: str, why: str) -> ModelError:
    return ModelError(
        f"`{name}` {' '.join(why.split())[:300]}.",
        expected="an encoder, classifier or causal language model over text, or a model over images",
        why="The frontend has to know the inputs to trace the network.",
        fix="Load it yourself and call `edgesmith.compile(module, example_inputs=...)`.",
    )
