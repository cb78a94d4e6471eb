"""What checkpoints say about their data becomes the records that travel with the model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesmith.errors import ModelError
from edgesmith.frontends.preprocessing import image_preprocessing, read_json, text_preprocessing

BERT = SimpleNamespace(max_position_embeddings=512, model_type="bert", pad_token_id=0)


def text(directory: Path, config: Any = BERT, **settings: object) -> Any:
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return text_preprocessing(directory, config, ("input_ids",), next_token=False)[0]


def test_texts_are_cut_to_the_shortest_limit(tmp_path: Path) -> None:
    assert text(tmp_path).max_length == 512
    assert text(tmp_path, model_max_length=128).max_length == 128
    assert text(tmp_path, model_max_length=1e30).max_length == 512
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert text(tmp_path, model_max_length=128).max_length == 64


def test_positions_behind_the_padding_index_do_not_count(tmp_path: Path) -> None:
    roberta = SimpleNamespace(max_position_embeddings=130, model_type="roberta", pad_token_id=1)
    assert text(tmp_path, roberta).max_length == 128
    assert text(tmp_path, SimpleNamespace(model_type="bloom")).max_length == 512


@pytest.mark.parametrize("token", ["<pad>", {"content": "<pad>", "lstrip": False}])
def test_the_padding_token_is_found_in_both_forms(tmp_path: Path, token: object) -> None:
    assert text(tmp_path, pad_token=token).pad_token == "<pad>"
    assert text(tmp_path, pad_token=None).pad_token == ""


def test_without_a_tokenizer_there_is_no_text_preprocessing(tmp_path: Path) -> None:
    assert text_preprocessing(tmp_path, BERT, ("input_ids",), next_token=True) == (None, {})


def test_a_language_model_predicts_the_next_token(tmp_path: Path) -> None:
    text(tmp_path)
    record, assets = text_preprocessing(tmp_path, BERT, ("input_ids",), next_token=True)
    assert record is not None and record.next_token
    assert assets == {"tokenizer.json": b"{}"}


def test_images_keep_their_aspect_or_are_stretched_as_the_checkpoint_says() -> None:
    stretched = image_preprocessing({"size": {"height": 224, "width": 192}})
    assert stretched is not None
    assert (stretched.keep_aspect, stretched.crop) == (False, (224, 192))
    cropped = image_preprocessing({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}})
    assert cropped is not None
    assert (cropped.keep_aspect, cropped.resize, cropped.crop) == (True, 256, (224, 224))
    old = image_preprocessing({"size": 224, "resample": 2})
    assert old is not None
    assert (old.keep_aspect, old.resize, old.crop, old.interpolation) == (False, 224, (224, 224), "bilinear")


def test_switched_off_parts_do_nothing() -> None:
    record = image_preprocessing({"size": 8, "do_normalize": False, "image_mean": [1, 1, 1], "do_rescale": False})
    assert record is not None
    assert (record.mean, record.std, record.scale) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
    assert image_preprocessing({"do_resize": False, "size": 8}) is None
    assert image_preprocessing({"size": {"longest_edge": 8}}) is None


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_broken_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="cannot be read"):
        read_json(tmp_path / "a.json")
    assert read_json(tmp_path / "missing.json") == {}
