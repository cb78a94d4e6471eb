"""Sources other than ONNX files with arrays: modules, Hugging Face directories, images and texts in files."""

import csv
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import edgesmith
from edgesmith.api import Settings
from edgesmith.measure.runner import LatencyPlan
from tests.pipeline.conftest import Job

QUICK = LatencyPlan(warmup_runs=2, min_rounds=3, max_rounds=3)
WORDS = ("red", "green", "blue", "small", "large", "round", "flat", "old")


def quick(folder: Path) -> Settings:
    return Settings(threads=1, store=folder / "store", latency_plan=QUICK)


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        self.head = torch.nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


def test_a_module_compiles_with_example_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier().eval()
    images = torch.randn(24, 3, 16, 16)
    np.savez(tmp_path / "images.npz", image=images.numpy())
    artifact = edgesmith.compile(
        module,
        example_inputs=(images[:2],),
        data=tmp_path / "images.npz",
        out=tmp_path / "artifact",
        settings=quick(tmp_path),
    )
    session = onnxruntime.InferenceSession(str(artifact.entry), providers=["CPUExecutionProvider"])
    compiled = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.inference_mode():
        original = module(images).numpy()
    # Stack traces and module paths of the exporter stay behind.
    assert b"test_sources.py" not in artifact.entry.read_bytes()
    assert not any(node.metadata_props for node in onnx.load(artifact.entry).graph.node)
    noise = np.linalg.norm(compiled - original) / np.linalg.norm(original)
    assert 0 < noise < 0.1
    # The bare file was cut in two parts that share no sample.
    counts = [int(words.split()[0]) for words in artifact.ledger.data.values()]
    assert sum(counts) == 24 and min(counts) > 0


@pytest.fixture
def text_classifier(tmp_path: Path) -> Path:
    """A tiny BERT with a tokenizer of its own, as a Hugging Face directory."""
    torch.manual_seed(0)
    directory = tmp_path / "model"
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    BertForSequenceClassification(config).eval().save_pretrained(directory)
    return directory


def write_texts(path: Path, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "text"))
        for index in range(count):
            words = generator.choice(WORDS, size=generator.integers(2, 20))
            writer.writerow((("cat", "dog")[index % 2], " ".join(words)))


def test_a_hugging_face_directory_compiles_with_texts(text_classifier: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.csv", 60, seed=0)
    artifact = edgesmith.compile(
        text_classifier, data=tmp_path / "texts.csv", out=tmp_path / "artifact", settings=quick(tmp_path)
    )
    final = artifact.ledger.rows[-1]
    assert artifact.ledger.metric == "accuracy" and final.metric
    assert min(error.sqnr_db for error in final.errors) > 15
    # The tokenizer and the labels travel with the artifact.
    assert (artifact.directory / "assets" / "tokenizer.json").is_file()
    assert '"cat"' in (artifact.directory / "task.json").read_text()
    assert {layer.layer for layer in final.layers} >= {"block 0 / output", "block 1 / output"}

    # They come back with it: the same texts score the artifact as a source.
    again = edgesmith.compile(
        artifact.directory,
        recipe="float",
        data=tmp_path / "texts.csv",
        out=tmp_path / "again",
        settings=quick(tmp_path),
    )
    assert again.ledger.metric == "accuracy"
    assert again.ledger.rows[0].metric == final.metric
    (artifact.directory / "task.json").write_text("{")
    with pytest.raises(edgesmith.EdgesmithError, match=r"its task\.json cannot be read"):
        edgesmith.compile(artifact.directory, recipe="float", out=tmp_path / "third", settings=quick(tmp_path))


def test_an_onnx_file_takes_images_when_the_description_says_how(job: Job) -> None:
    generator = np.random.default_rng(0)
    for index in range(40):
        folder = job.folder / "photos" / str(index % 4)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    description = {
        "calibration": {"kind": "images", "path": "photos"},
        "evaluation": {"kind": "images", "path": "photos"},
    }
    job.data.write_text(yaml.safe_dump(description))
    with pytest.raises(edgesmith.EdgesmithError, match="does not say how images"):
        edgesmith.compile(job.model, data=job.data, out=job.folder / "artifact", settings=quick(job.folder))
    description["preprocessing"] = {"kind": "image", "input": "image", "resize": 18, "crop": [16, 16]}
    job.data.write_text(yaml.safe_dump(description))
    artifact = edgesmith.compile(job.model, data=job.data, out=job.folder / "artifact", settings=quick(job.folder))
    assert artifact.ledger.metric == "accuracy"
    assert '"crop"' in (artifact.directory / "task.json").read_text()


def test_external_data_of_the_source_ends_up_in_the_artifact(job: Job) -> None:
    model = onnx.load(job.model)
    onnx.save(model, job.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    edgesmith.compile(job.model, recipe="float", data=job.data, out=job.folder / "artifact", settings=quick(job.folder))
    (job.folder / "weights.bin").unlink()
    (job.folder / "store").rename(job.folder / "elsewhere")
    moved = (job.folder / "artifact").rename(job.folder / "moved")
    session = onnxruntime.InferenceSession(str(moved / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((2, 3, 16, 16), np.float32)})[0].shape == (2, 4)
