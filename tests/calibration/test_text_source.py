"""Texts from files: encoding, columns, labels, windows for language models, and damaged files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer
from word_tokenizer import word_tokenizer

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import TextPreprocessing
from edgesmith_calibration.sources import TextColumns, TextSource, TokenWindowSource
from edgesmith_calibration.text_encoder import TextEncoder

ASSETS = {"tokenizer.json": word_tokenizer()}
ROWS = [("good film", "pos"), ("bad, bad film", "neg"), ('a "quoted"\nline', "pos")]


def encoder(assets=ASSETS, **changes) -> TextEncoder:
    return TextEncoder(TextPreprocessing(**({"max_length": 6} | changes)), assets)


def write_rows(path):
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS))
    else:
        comma = "," if path.suffix == ".csv" else "\t"
        cells = [comma.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in ROWS]
        path.write_text("\n".join([f"text{comma}label", *cells]), encoding="utf-8-sig")
    return path


def test_tokens_are_framed_padded_and_masked():
    arrays = encoder(inputs=("input_ids", "attention_mask", "token_type_ids", "position_ids")).encode(
        ["good film", "x"]
    )
    assert arrays["input_ids"].tolist() == [[1, 4, 6, 2, 7, 7], [1, 3, 2, 7, 7, 7]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert arrays["token_type_ids"].tolist() == [[0] * 6] * 2
    assert arrays["position_ids"].tolist() == [[0, 1, 2, 3, 3, 3], [0, 1, 2, 2, 2, 2]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_long_texts_are_cut_and_batches_may_pad_to_their_longest():
    arrays = encoder(pad_to="longest", inputs=("input_ids",)).encode(["good", "bad film"])
    assert arrays["input_ids"].tolist() == [[1, 4, 2, 7], [1, 5, 6, 2]]
    assert encoder(max_length=3).encode(["good good good"])["input_ids"].tolist() == [[1, 4, 2]]


def test_tokens_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_buffer(ASSETS["tokenizer.json"]), pad_token="[PAD]"
    )
    texts, pairs = ["good film", "bad " * 9, ""], ["bad", "film " * 9, "good"]
    for arguments in ((texts,), (texts, pairs)):
        expected = tokenizer(
            *arguments, padding="max_length", truncation=True, max_length=6, return_token_type_ids=True
        )
        for name, array in encoder().encode(*arguments).items():
            np.testing.assert_array_equal(array, expected[name])


def test_pairs_have_types():
    arrays = encoder().encode(["good"], ["bad"])
    assert arrays["input_ids"].tolist() == [[1, 4, 2, 5, 2, 7]]
    assert arrays["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0]]


def test_the_padding_token_is_the_named_one_then_the_tokenizers_own_then_a_usual_one():
    own = {"tokenizer.json": word_tokenizer({"pad_token": "film", "pad_id": 6, "direction": "left"})}
    assert encoder(assets=own).encode(["good"])["input_ids"].tolist() == [[6, 6, 6, 1, 4, 2]]
    assert encoder(assets=own, pad_token="bad").encode(["good"])["input_ids"].tolist() == [[5, 5, 5, 1, 4, 2]]
    assert encoder().encode(["good"])["input_ids"].tolist() == [[1, 4, 2, 7, 7, 7]]
    with pytest.raises(DataError, match="padding token 'none'"):
        encoder(pad_token="none")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_table_format_gives_the_same_samples(tmp_path, suffix):
    columns = TextColumns(classes=("neg", "pos"))
    source = TextSource(write_rows(tmp_path / f"data{suffix}"), encoder(), columns)
    reference = TextSource(write_rows(tmp_path / "reference.csv"), encoder(), columns)
    assert source.fingerprint == reference.fingerprint
    assert source.labels().tolist() == [1, 0, 1]
    batches = list(source.batches(2))
    assert [batch.size for batch in batches] == [2, 1]
    assert batches[0].inputs["input_ids"].tolist() == [[1, 4, 6, 2, 7, 7], [1, 5, 3, 5, 6, 2]]
    assert batches[1].labels.tolist() == [1]


def test_a_plain_file_has_one_text_per_line(tmp_path):
    (tmp_path / "data.txt").write_text("good film\n\n  \nbad film\r\n")
    source = TextSource(tmp_path / "data.txt", encoder())
    assert (len(source), source.has_labels) == (2, False)
    assert next(source.batches(2)).labels is None


def test_columns_can_be_named(tmp_path):
    (tmp_path / "data.csv").write_text("sentence,other,stars\ngood,bad,5\nfilm,bad,3\n")
    columns = TextColumns(text="sentence", pair="other", label="stars")
    source = TextSource(tmp_path / "data.csv", encoder(), columns)
    assert source.labels().tolist() == [5, 3]
    assert next(source.batches(1)).inputs["input_ids"].tolist() == [[1, 4, 2, 5, 2, 7]]
    assert TextSource(tmp_path / "data.csv", encoder(), TextColumns(text="sentence")).labels() is None


def test_classes_number_the_labels(tmp_path):
    path = write_rows(tmp_path / "data.csv")
    assert TextSource(path, encoder(), TextColumns(classes=("pos", "neg"))).labels().tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"the label 'pos' .* is not a class"):
        TextSource(path, encoder(), TextColumns(classes=("good", "neg")))


def test_class_names_without_an_order_are_refused_with_the_list_to_put_in_order(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\ngood,pos\nbad,no\nfilm,pos\n")
    with pytest.raises(DataError, match="which output is which") as caught:
        TextSource(path, encoder())
    assert caught.value.fix.endswith('`classes:` and these names in the order of the outputs: ["no", "pos"]')
    path.write_text("text,label\n" + "".join(f"good,c{index:03}\n" for index in range(130)))
    with pytest.raises(DataError) as caught:
        TextSource(path, encoder())
    assert caught.value.fix.endswith('"c099"] and the other 30')


def test_long_cells_are_read_up_to_a_bound(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "data.csv"
    path.write_text(f"text,label\n{'good ' * 40_000},1\n")
    source = TextSource(path, encoder())
    assert next(source.batches(1)).inputs["input_ids"].shape == (1, 6)
    path.write_text(f"text,label\n{'x' * (17 << 20)},1\n")
    with pytest.raises(DataError, match="field limit"):
        TextSource(path, encoder())
    assert csv.field_size_limit() == limit


def test_the_fingerprint_follows_texts_labels_tokenizer_and_preprocessing(tmp_path):
    path = write_rows(tmp_path / "data.csv")
    other = {"tokenizer.json": word_tokenizer({"pad_token": "film", "pad_id": 6})}
    ordered = TextColumns(classes=("neg", "pos"))
    changed = [
        TextSource(path, encoder(), ordered),
        TextSource(path, encoder(max_length=5), ordered),
        TextSource(path, encoder(assets=other), ordered),
        TextSource(path, encoder(), TextColumns(classes=("pos", "neg"))),
        TextSource(path, encoder(), replace(ordered, text="label", label="label")),
    ]
    assert len({source.fingerprint for source in changed}) == len(changed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no samples"),
        ("a.csv", b"text,label\n", "no samples"),
        ("a.txt", b"\n \n", "no samples"),
        ("a.csv", b"body,label\ngood,1\n", "no column 'text'"),
        ("a.csv", b"text,label\ngood\n", "not a valid table: line 2 has not as many cells"),
        ("a.csv", b"text,label\ngood,1,2\n", "not a valid table: line 2 has not as many cells"),
        ("a.csv", b'text,label\n"good,1\n', "not a valid table"),
        ("a.csv", b"text,label\ngood,\n", "sample 0 of .* has an empty label"),
        ("a.csv", b"text\n\xff\xfe\x00\n", "cannot be read"),
        ("a.tsv", b"text,label\ngood,1\n", "no column 'text'"),
        ("a.jsonl", b'{"text": "good"}\n{"text": ', "line 2 of .* is not a JSON object"),
        ("a.jsonl", b'["good"]', "it is a list"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is not a JSON object"),
        ("a.jsonl", b'{"text": "good", "label": 1}\n{"text": "bad"}', "sample 1 of .* has no column 'label'"),
        ("a.doc", b"good", "not a text file"),
    ],
)
def test_damaged_files_are_refused_with_all_four_parts(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        TextSource(tmp_path / name, encoder())
    assert all((error.value.expected, error.value.why, error.value.fix))


def test_a_column_of_another_name_is_to_be_named_in_the_description(tmp_path):
    (tmp_path / "a.csv").write_text("body,label\ngood,1\n")
    with pytest.raises(DataError, match="no column 'text'") as error:
        TextSource(tmp_path / "a.csv", encoder())
    assert "YAML data description: text_column" in error.value.fix


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        TextSource(tmp_path / "none.csv", encoder())


def test_a_missing_or_damaged_tokenizer_is_refused():
    with pytest.raises(DataError, match=r"has no tokenizer 'tokenizer\.json'"):
        encoder(assets={"vocab.txt": b""})
    with pytest.raises(DataError, match=r"the tokenizer 'tokenizer\.json' cannot be read"):
        encoder(assets={"tokenizer.json": b"{}"})
    with pytest.raises(DataError, match="cannot fill the input 'pixel_values'"):
        encoder(inputs=("input_ids", "pixel_values"))


def test_windows_follow_each_other_and_labels_are_the_next_tokens(tmp_path):
    (tmp_path / "book.txt").write_text("good bad film good\nbad film good bad film\n\ngood x\n")
    names = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
    source = TokenWindowSource(tmp_path / "book.txt", encoder(max_length=5, inputs=names))
    batch = next(source.batches(8))
    assert batch.inputs["input_ids"].tolist() == [[4, 5, 6, 4, 5], [6, 4, 5, 6, 4]]
    assert batch.labels.tolist() == [[5, 6, 4, 5, 6], [4, 5, 6, 4, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 5] * 2
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.inputs["token_type_ids"].tolist() == [[0] * 5] * 2
    assert (len(source), source.has_labels) == (2, True)
    assert next(source.select([1]).batches(1)).labels.tolist() == [[4, 5, 6, 4, 3]]


def test_windows_of_a_long_text_lose_nothing_between_pieces(tmp_path):
    words = np.random.default_rng(0).choice(["good", "bad", "film"], 60_000)
    (tmp_path / "book.txt").write_text("\n".join(" ".join(line) for line in words.reshape(-1, 10)))
    source = TokenWindowSource(tmp_path / "book.txt", encoder(max_length=100, inputs=("input_ids",)))
    tokens = np.concatenate([batch.inputs["input_ids"] for batch in source.batches(64)]).ravel()
    codes = {"good": 4, "bad": 5, "film": 6}
    assert tokens.tolist() == [codes[word] for word in words[: tokens.size]]
    assert len(source) == 599


def test_windows_of_a_table_join_its_texts(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ngood bad,1\nfilm good,2\n")
    source = TokenWindowSource(tmp_path / "rows.csv", encoder(max_length=3, inputs=("input_ids",)))
    assert next(source.batches(1)).inputs["input_ids"].tolist() == [[4, 5, 6]]


def test_a_text_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "book.txt").write_text("good bad film good bad film")
    with pytest.raises(DataError, match="has 6 tokens"):
        TokenWindowSource(tmp_path / "book.txt", encoder())
