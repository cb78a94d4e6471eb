"""Folders of images: labels, preprocessing and damaged files."""

import numpy as np
import pytest
from PIL import Image

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.image_encoder import encode_image
from edgesmith_calibration.preprocessing import ImagePreprocessing
from edgesmith_calibration.sources import ImageFolderSource

SMALL = ImagePreprocessing(resize=8, crop=(6, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IDENTITY = ImagePreprocessing(resize=8, crop=(8, 8), scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def write(path, colour=(255, 0, 0), size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_pixels_are_scaled_and_normalised_per_channel(tmp_path):
    pixels = encode_image(write(tmp_path / "red.png"), SMALL)
    assert pixels.shape == (3, 6, 4)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(pixels[1:], -1.0, atol=1e-6)


def test_channels_last(tmp_path):
    path = write(tmp_path / "red.png")
    last = encode_image(path, SMALL.model_copy(update={"layout": "NHWC"}))
    np.testing.assert_array_equal(last.transpose(2, 0, 1), encode_image(path, SMALL))


def test_one_mean_makes_grey(tmp_path):
    grey = ImagePreprocessing(resize=8, crop=(8, 8), scale=1.0, mean=(0,), std=(1,))
    assert (
        encode_image(write(tmp_path / "white.png", (255, 255, 255)), grey).tolist()
        == np.full((1, 8, 8), 255.0).tolist()
    )


def test_the_crop_is_the_centre_of_the_short_side_resize(tmp_path):
    # A wide image in three equal stripes: the centre crop of a square sees only the middle one.
    stripes = np.repeat(np.array([[0, 100, 200]], np.uint8), 8, axis=0).repeat(8, axis=1)
    Image.fromarray(np.dstack([stripes] * 3)).save(tmp_path / "stripes.png")
    nearest = IDENTITY.model_copy(update={"interpolation": "nearest"})
    np.testing.assert_array_equal(encode_image(tmp_path / "stripes.png", nearest), 100.0)


@pytest.mark.parametrize("size", [(61, 40), (40, 63), (37, 37), (90, 41)])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_pixels_are_those_of_transformers(tmp_path, size, keep_aspect):
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "noise.png")
    target = {"shortest_edge": 32} if keep_aspect else {"height": 27, "width": 24}
    crop = {"height": 27, "width": 24}
    processor = processors.CLIPImageProcessorPil(size=target, crop_size=crop, do_center_crop=keep_aspect)
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    record = ImagePreprocessing(
        resize=32,
        crop=(27, 24),
        keep_aspect=keep_aspect,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation="bicubic",
    )
    np.testing.assert_allclose(encode_image(tmp_path / "noise.png", record), expected, atol=1e-5)


def test_without_aspect_the_whole_image_is_stretched(tmp_path):
    stripes = np.repeat(np.array([[0, 200]], np.uint8), 8, axis=0).repeat(8, axis=1)
    Image.fromarray(np.dstack([stripes] * 3)).save(tmp_path / "stripes.png")
    stretched = IDENTITY.model_copy(update={"interpolation": "nearest", "keep_aspect": False})
    assert encode_image(tmp_path / "stripes.png", stretched)[0, 0].tolist() == [0] * 4 + [200] * 4


def test_a_crop_larger_than_the_image_is_filled_with_black(tmp_path):
    wide = IDENTITY.model_copy(update={"crop": (10, 8)})
    pixels = encode_image(write(tmp_path / "white.png", (255, 255, 255), (8, 8)), wide)
    assert pixels[0, :, 0].tolist() == [0.0] + [255.0] * 8 + [0.0]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_every_colour_mode_is_read(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(tmp_path / f"image.{suffix}")
    np.testing.assert_array_equal(encode_image(tmp_path / f"image.{suffix}", IDENTITY), 255.0)


def test_labels_from_subfolders(tmp_path):
    for name in ("cat/a.png", "cat/b.png", "ant/c.png", "dog/deep/d.png"):
        write(tmp_path / name)
    with pytest.raises(DataError, match="which output is which") as caught:
        ImageFolderSource(tmp_path, SMALL)
    assert caught.value.fix.endswith('["ant", "cat", "dog"]')
    assert ImageFolderSource(tmp_path, SMALL, classes=("dog", "cat", "ant")).labels().tolist() == [2, 1, 1, 0]
    with pytest.raises(DataError, match=r"the label 'ant' .* is not a class"):
        ImageFolderSource(tmp_path, SMALL, classes=("dog", "cat"))


def test_integer_subfolders_are_class_indices(tmp_path):
    for name in ("7/a.png", "12/b.png"):
        write(tmp_path / name)
    assert ImageFolderSource(tmp_path, SMALL).labels().tolist() == [12, 7]


@pytest.mark.parametrize(
    ("pattern", "labels"), [(r"^\d+", [230, 4]), (r"_(n\d+)\.", [1, 0]), (r"_n0*(\d+)", [2105855, 2124075])]
)
def test_labels_from_file_names(tmp_path, pattern, labels):
    for name in ("0230_n02105855.jpg", "0004_n02124075.jpg"):
        write(tmp_path / name)
    # Files are read in the order of their names: 0004 first.
    source = ImageFolderSource(tmp_path, SMALL, pattern, classes=("n02124075", "n02105855"))
    assert source.labels().tolist() == labels[::-1]


def test_without_folders_or_pattern_there_are_no_labels(tmp_path):
    write(tmp_path / "b.png", (0, 255, 0))
    write(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not an image")
    write(tmp_path / ".hidden" / "c.png")
    source = ImageFolderSource(tmp_path, SMALL)
    batch = next(source.batches(5))
    assert (len(source), source.has_labels, batch.labels) == (2, False, None)
    assert batch.inputs["pixel_values"][0, 0, 0, 0] == pytest.approx(1.0)


def test_images_are_decoded_only_when_their_batch_is_read(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"damaged")
    batches = ImageFolderSource(tmp_path, SMALL).batches(2)
    assert next(batches).size == 2
    with pytest.raises(DataError, match=r"c\.png cannot be decoded"):
        next(batches)


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_truncated_images_are_refused(tmp_path, keep):
    path = write(tmp_path / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be decoded") as error:
        encode_image(path, SMALL)
    assert all((error.value.expected, error.value.why, error.value.fix))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="exceeds limit"):
        encode_image(write(tmp_path / "a.png"), SMALL)


def test_the_fingerprint_follows_files_names_and_preprocessing(tmp_path):
    write(tmp_path / "1" / "a.png")
    write(tmp_path / "2" / "b.png", (0, 0, 255))
    first = ImageFolderSource(tmp_path, SMALL).fingerprint
    assert ImageFolderSource(tmp_path, SMALL).fingerprint == first
    assert ImageFolderSource(tmp_path, IDENTITY).fingerprint != first
    (tmp_path / "2").rename(tmp_path / "3")
    relabelled = ImageFolderSource(tmp_path, SMALL).fingerprint
    write(tmp_path / "3" / "b.png", (0, 0, 254))
    assert len({first, relabelled, ImageFolderSource(tmp_path, SMALL).fingerprint}) == 3


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ImageFolderSource(tmp_path / "none", SMALL)
    with pytest.raises(DataError, match="no samples"):
        ImageFolderSource(tmp_path, SMALL)
    write(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not a folder"):
        ImageFolderSource(tmp_path / "a.png", SMALL)
    with pytest.raises(DataError, match=r"finds no label in the file name a\.png"):
        ImageFolderSource(tmp_path, SMALL, r"^\d+")
    with pytest.raises(DataError, match="not a regular expression"):
        ImageFolderSource(tmp_path, SMALL, "(")
    write(tmp_path / "class" / "b.png")
    with pytest.raises(DataError, match="some in its subfolders"):
        ImageFolderSource(tmp_path, SMALL)


@pytest.mark.parametrize("changes", [{"mean": (0.5, 0.5)}, {"std": (1.0,)}, {"std": (1.0, 0.0, 1.0)}])
def test_impossible_preprocessing_is_refused(tmp_path, changes):
    with pytest.raises(DataError, match="image preprocessing with"):
        encode_image(write(tmp_path / "a.png"), SMALL.model_copy(update=changes))
