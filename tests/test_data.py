"""Images reach training unchanged, once an epoch, from any source; what is wrong with data is said before."""

import io
import itertools
import os
import subprocess
import time
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.training.images import decode
from trilemma.training.images.batches import FLIP, ORDER, Order, batches
from trilemma.training.images.decode import to_pixels
from trilemma.training.images.image_set import HELD_OUT, hold_out, load_images, to_float, to_uint8
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import DataConfig
from trilemma.training.run import read_data, with_validation_size

CLASSES = ("airplane", "bird", "cat")


@pytest.fixture
def configure(tmp_path):
    """DataConfig with its cache in the test's own folder."""
    return lambda **options: DataConfig(cache_dir=str(tmp_path / "cache"), **options)


def noise(seed=0, count=12, shape=(8, 8)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def table(pixels=None, labels=None, label_type=None, **columns):
    """A `datasets.Dataset` of grey or colour PNGs (bytes are taken as they are), with any further columns."""
    pixels = noise() if pixels is None else pixels
    content = {"image": [{"bytes": p if isinstance(p, bytes) else png(p), "path": None} for p in pixels]}
    features = {"image": datasets.Image()}
    if labels is not None:
        content["label"], features["label"] = labels, label_type or datasets.ClassLabel(names=list(CLASSES))
    for name, (values, feature) in columns.items():
        content[name], features[name] = values, feature
    # Through Arrow, since `from_dict` would check (and refuse) the labels that the tests want to be wrong.
    features = datasets.Features(features)
    import pyarrow as pa

    return datasets.Dataset(pa.Table.from_pydict(content, features.arrow_schema))


def save(folder, **splits):
    """A folder in the Hub's format."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def image_folder(root, classes=CLASSES, per_class=3):
    """Class folders of PNGs; -> pixels and labels in the order of the file names."""
    pixels = noise(count=len(classes) * per_class, shape=(8, 8, 3))
    labels = np.repeat(np.arange(len(classes)), per_class)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (root / classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / classes[label] / f"{index:02d}.png")
    return pixels, labels


def everything(images):
    pixels, labels = images.__getitems__(range(len(images)))
    return pixels.numpy(), None if labels is None else labels.numpy()


# The two conversions


def test_every_grey_level_survives_the_round_trip():
    grey = torch.arange(256, dtype=torch.uint8)
    floats = to_float(grey)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[-1] == 1
    torch.testing.assert_close(to_uint8((floats + 1) / 2), grey)


def test_to_uint8_rounds_to_nearest_and_clips():
    levels = torch.arange(255) / 255
    # A little below the next level is the next level: `(x * 255).byte()` would give the one below.
    nearly = levels + 0.99 / 255
    torch.testing.assert_close(to_uint8(nearly), torch.arange(1, 256, dtype=torch.uint8))
    assert not torch.equal((nearly * 255).byte(), to_uint8(nearly))
    torch.testing.assert_close(to_uint8(torch.tensor([-0.5, 1.5])), torch.tensor([0, 255], dtype=torch.uint8))
    uniform = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs((to_uint8(uniform).double() - uniform * 255).mean()) < 0.01  # truncation has a bias of -0.5


# Sources


def test_embedded_digits(configure):
    images = load_images(configure(dataset_name="digits"))
    assert (len(images), images.channels, images.resolution, images.name) == (1797, 1, 8, "digits")
    assert images.class_names == tuple("0123456789")
    pixels, labels = everything(images)
    levels = [int(np.floor(v * 255 / 16 + 0.5)) for v in range(17)]
    assert sorted(np.unique(pixels)) == levels
    np.testing.assert_array_equal(labels, images.labels)
    assert np.bincount(labels).min() > 150


def test_embedded_digits_at_another_size(configure):
    images = load_images(configure(dataset_name="digits", resolution=16, channels=3, max_train_images=5))
    pixels, _ = everything(images)
    assert pixels.shape == (5, 3, 16, 16)
    np.testing.assert_array_equal(pixels[:, 0], pixels[:, 2])


def test_class_folders(tmp_path, configure):
    pixels, labels = image_folder(tmp_path / "data")
    images = load_images(configure(train_data_dir=str(tmp_path / "data")))
    assert images.class_names == CLASSES
    assert images.name == "data"
    found, found_labels = everything(images)
    np.testing.assert_array_equal(found, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found_labels, labels)


def test_flat_folder_has_no_labels(tmp_path, configure):
    image_folder(tmp_path, classes=("flat",))
    images = load_images(configure(train_data_dir=str(tmp_path / "flat")))
    assert images.labels is None
    assert images.class_names is None
    assert everything(images)[1] is None


def test_hub_format_folder_and_its_splits(tmp_path, configure):
    train, test = noise(0), noise(1, count=5)
    folder = save(tmp_path / "hub", train=table(train, [0, 1, 2] * 4), test=table(test, [2, 1, 0, 0, 1]))
    config = configure(train_data_dir=folder)
    np.testing.assert_array_equal(everything(load_images(config))[0][:, 0], train)
    pixels, labels = everything(load_images(config, "test"))
    np.testing.assert_array_equal(pixels[:, 0], test)
    np.testing.assert_array_equal(labels, [2, 1, 0, 0, 1])
    with pytest.raises(ValueError, match=r"no split 'tests'.*it has train, test\. Did you mean test"):
        load_images(config, "tests")


def test_folder_of_parquet_files_without_metadata(tmp_path, configure):
    import pyarrow.parquet as pq

    folder = tmp_path / "parquet"
    folder.mkdir()
    for index in range(2):
        plain = table(
            noise(index), [4, 1, 0] * 4, datasets.Value("int64")
        ).data.table.replace_schema_metadata(None)
        pq.write_table(plain, folder / f"part-{index}.parquet")
    images = load_images(configure(train_data_dir=str(folder)))
    pixels, labels = everything(images)
    np.testing.assert_array_equal(pixels[:, 0], np.concatenate([noise(0), noise(1)]))
    np.testing.assert_array_equal(labels, [2, 1, 0] * 8)
    assert images.class_names == ("0", "1", "4")


def test_hub_id_with_configuration_and_revision(tmp_path, configure, monkeypatch):
    folder = save(tmp_path / "hub", train=table(labels=[0, 1, 2] * 4))
    asked, load = [], datasets.load_dataset

    def from_hub(path, name, *, revision, **options):
        asked.append((path, name, revision))
        return load(folder, **options)

    config = configure(dataset_name="user/data", dataset_config_name="small", dataset_revision="v1")
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", from_hub)
        assert load_images(config).name == "user/data"
    assert asked == [("user/data", "small", "v1")]
    # A local folder replaces the Hub's data; configuration and revision are the Hub's.
    assert load_images(replace(config, train_data_dir=folder)).name == "hub"


def test_what_cannot_be_loaded_names_the_option(tmp_path, configure, monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("cannot reach the Hub")

    with pytest.raises(ValueError, match=r"pass --dataset_name .* or --train_data_dir"):
        load_images(configure())
    with pytest.raises(ValueError, match=r"--train_data_dir '.*nowhere' does not exist"):
        load_images(configure(train_data_dir=str(tmp_path / "nowhere")))
    (tmp_path / "text").mkdir()
    with pytest.raises(ValueError, match="has no images and no parquet files; it has nothing"):
        load_images(configure(train_data_dir=str(tmp_path / "text")))
    (tmp_path / "text" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"it has notes\.txt"):
        load_images(configure(train_data_dir=str(tmp_path / "text")))
    (tmp_path / "text" / "broken.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"--train_data_dir .* could not be loaded"):
        load_images(configure(train_data_dir=str(tmp_path / "text")))
    with pytest.raises(ValueError, match="digits has no split 'test'"):
        load_images(configure(dataset_name="digits"), "test")
    empty = save(tmp_path / "empty", train=table(noise(count=0)), test=table())
    with pytest.raises(ValueError, match=r"--train_data_dir .*empty' could not be loaded: .*no data"):
        load_images(configure(train_data_dir=empty))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"--dataset_name 'a/b' could not be loaded.*cannot reach the Hub"):
        load_images(configure(dataset_name="a/b"))
    with pytest.raises(ValueError, match=r"--dataset_name '/no/such place': there is no such folder"):
        load_images(configure(dataset_name="/no/such place"))


def test_a_class_that_is_named_like_a_split_does_not_hide_the_others(tmp_path, configure):
    image_folder(tmp_path / "vehicles", classes=("car", "train"))
    with pytest.raises(ValueError, match=r"6 image files, but only 3 .*named like a split"):
        load_images(configure(train_data_dir=str(tmp_path / "vehicles")))


def test_first_images_only_of_the_training_split(tmp_path, configure):
    config = configure(
        train_data_dir=save(tmp_path / "hub", train=table(), test=table(noise(1))), max_train_images=7
    )
    np.testing.assert_array_equal(everything(load_images(config))[0][:, 0], noise()[:7])
    assert len(load_images(config, "test")) == 12


# Columns and labels


def test_columns_are_found_by_type_and_overridden_by_name(tmp_path, configure):
    fine, coarse = datasets.ClassLabel(names=list("abcd")), datasets.ClassLabel(names=["x", "y"])
    rows = table(
        small=([{"bytes": png(p), "path": None} for p in noise(5)], datasets.Image()),
        fine_label=([0, 1, 2, 3] * 3, fine),
        coarse_label=([0, 1] * 6, coarse),
        size=([8] * 12, datasets.Value("int32")),
    )
    config = configure(train_data_dir=save(tmp_path / "hub", train=rows))
    with pytest.raises(
        ValueError, match=r"several image columns \(image, small\).*--image_column.*columns: image"
    ):
        load_images(config)
    config = replace(config, image_column="small")
    with pytest.raises(
        ValueError, match=r"several label columns \(fine_label, coarse_label\).*--label_column"
    ):
        load_images(config)
    images = load_images(replace(config, label_column="coarse_label"))
    np.testing.assert_array_equal(everything(images)[0][:, 0], noise(5))
    assert images.class_names == ("x", "y")
    sizes = load_images(replace(config, label_column="size"))
    np.testing.assert_array_equal(sizes.labels, [0] * 12)
    assert sizes.class_names == ("8",)
    assert load_images(replace(config, label_column="none")).labels is None
    with pytest.raises(
        ValueError, match=r"--label_column 'fine_lable' is not in hub; columns: .*Did you mean fine_label"
    ):
        load_images(replace(config, label_column="fine_lable"))
    with pytest.raises(ValueError, match="--image_column 'size' of hub does not hold images; columns"):
        load_images(replace(config, image_column="size"))
    with pytest.raises(ValueError, match="--label_column 'image' of hub does not hold integer labels"):
        load_images(replace(config, label_column="image"))


def test_integers_are_labels_only_where_their_name_says_so(tmp_path, configure):
    rows = table(width=([8] * 12, datasets.Value("int64")))
    assert load_images(configure(train_data_dir=save(tmp_path / "hub", train=rows))).labels is None


def test_no_image_column_lists_the_columns(tmp_path, configure):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"no image column; .*--image_column; columns: text .*label"):
        load_images(configure(train_data_dir=save(tmp_path / "hub", train=rows)))


@pytest.mark.parametrize("wrong", [-1, 3, None])
def test_label_out_of_range(tmp_path, configure, wrong):
    config = configure(train_data_dir=save(tmp_path / "hub", train=table(labels=[0, 1, 2, wrong] * 3)))
    shown = -1 if wrong is None else wrong
    with pytest.raises(
        ValueError, match=rf"'label' .* 3 labels out of range: row 3 has {shown} .*3 classes are 0\.\.2"
    ):
        load_images(config)
    assert load_images(replace(config, label_column="none")).labels is None


def test_a_split_without_any_label_is_unlabelled(tmp_path, configure):
    splits = {"train": table(labels=[0, 1, 2] * 4), "test": table(labels=[-1] * 12), "validation": table()}
    config = configure(train_data_dir=save(tmp_path / "hub", **splits))
    assert load_images(config).labels is not None
    assert load_images(config, "test").labels is None
    assert load_images(config, "validation").labels is None


def test_classes_keep_some_labels_and_renumber_them(tmp_path, configure):
    labels = np.array([0, 1, 2, 2, 1, 0, 2, 1, 0, 0, 0, 0])
    config = configure(train_data_dir=save(tmp_path / "hub", train=table(labels=labels.tolist())))
    for classes in [("cat", "airplane"), ("0", "2"), ("airplane", "2", "cat")]:
        images = load_images(replace(config, classes=classes))
        kept = labels != 1
        assert images.class_names == ("airplane", "cat")
        np.testing.assert_array_equal(images.labels, labels[kept] // 2)
        np.testing.assert_array_equal(everything(images)[0][:, 0], noise()[kept])
    with pytest.raises(
        ValueError, match=r"--classes must be among airplane, bird, cat .*got 'airplan'\. Did you mean airp"
    ):
        load_images(replace(config, classes=("airplan",)))
    absent = configure(train_data_dir=save(tmp_path / "few", train=table(labels=[0] * 12)), classes=("bird",))
    with pytest.raises(ValueError, match="split 'train' of few has no rows of the --classes bird"):
        load_images(absent)
    unlabelled = configure(train_data_dir=save(tmp_path / "none", train=table()), classes=("cat",))
    with pytest.raises(ValueError, match="--classes needs labels"):
        load_images(unlabelled)


# Pictures of every kind


def picture(mode, size=(8, 8), seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode) if mode == "CMYK" else Image.fromarray(pixels)


def saved(image, **options):
    """As a file of that mode gives it back."""
    file = io.BytesIO()
    image.save(file, "tiff" if image.mode == "CMYK" else "png", **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_are_laid_on_white(mode):
    image = picture(mode)
    pixels = np.asarray(image).astype(float)
    colour, alpha = pixels[..., :-1], pixels[..., -1:] / 255
    expected = (alpha * colour + (1 - alpha) * 255).transpose(2, 0, 1)
    found = to_pixels(saved(image), 3 if mode == "RGBA" else 1, 8)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("bits", [1, 8])
def test_palettes(bits):
    colours = np.array([[250, 10, 20], [0, 200, 100], [7, 8, 9], [90, 60, 30]], np.uint8)
    index = np.random.default_rng(0).integers(0, 2 if bits == 1 else 4, (8, 8), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.flatten().tolist())
    np.testing.assert_array_equal(to_pixels(saved(image, bits=bits), 3, 8), colours[index].transpose(2, 0, 1))
    see_through = colours.copy()
    see_through[1] = 255
    found = to_pixels(saved(image, transparency=1), 3, 8)
    np.testing.assert_array_equal(found, see_through[index].transpose(2, 0, 1))


def test_transparent_colour_of_a_picture_without_alpha():
    image = Image.fromarray(np.array([[10, 20], [20, 30]], np.uint8))
    np.testing.assert_array_equal(to_pixels(saved(image, transparency=20), 1, 2)[0], [[10, 255], [255, 30]])


def test_16_bits_are_rounded_to_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257)
    found = to_pixels(saved(Image.fromarray(values)), 1, 256)
    np.testing.assert_array_equal(found[0], expected)
    assert (found[0] != values >> 8).any()  # what truncation gives
    np.testing.assert_array_equal(to_pixels(Image.fromarray(values.astype(np.int32)), 3, 256)[2], expected)


def test_1_bit_and_cmyk():
    black_and_white = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(bool)
    np.testing.assert_array_equal(
        to_pixels(saved(Image.fromarray(black_and_white)), 1, 8)[0], black_and_white * 255
    )
    image = picture("CMYK")
    ink = np.asarray(image).astype(float) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    np.testing.assert_allclose(to_pixels(saved(image), 3, 8), expected.transpose(2, 0, 1), atol=1.5)


def test_pixels_without_a_known_range_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        to_pixels(Image.fromarray(np.zeros((8, 8), np.float32)), 1, 8)
    with pytest.raises(ValueError, match="exceed 16 bits"):
        to_pixels(Image.fromarray(np.full((8, 8), 70000, np.int32)), 1, 8)


def test_grey_and_colour_follow_the_model():
    grey, colour = picture("L"), picture("RGB")
    np.testing.assert_array_equal(to_pixels(grey, 3, 8), np.stack([np.asarray(grey)] * 3))
    luma = np.asarray(colour) @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    np.testing.assert_allclose(to_pixels(colour, 1, 8)[0], luma, atol=1)


def test_pictures_at_size_are_not_resampled():
    wide = picture("RGB", (12, 8))
    np.testing.assert_array_equal(to_pixels(wide, 3, 8), np.asarray(wide)[:, 2:10].transpose(2, 0, 1))
    tall = picture("L", (8, 13))
    np.testing.assert_array_equal(to_pixels(tall, 1, 8)[0], np.asarray(tall)[2:10])


def test_resize_is_antialiased_and_keeps_the_aspect():
    checkers = Image.fromarray((np.indices((64, 128)).sum(0) % 2 * 255).astype(np.uint8))
    found = to_pixels(checkers, 1, 8)  # a filter that looks at single pixels would give 0 or 255
    np.testing.assert_allclose(found, 127.5, atol=8)
    stripe = np.zeros((64, 128), np.uint8)
    stripe[:, 32:96] = 255  # the middle square, which is all that is left
    np.testing.assert_array_equal(to_pixels(Image.fromarray(stripe), 1, 8)[0, :, 1:-1], 255)


def test_exif_orientation():
    image = picture("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(
        to_pixels(saved(image, exif=exif), 1, 8)[0], np.rot90(np.asarray(image), -1)
    )


def test_own_size_needs_squares_of_one_size(tmp_path, configure):
    for shape in [(8, 9), (9, 9)]:
        pixels = [*noise(count=3), np.zeros(shape, np.uint8)]
        config = configure(train_data_dir=save(tmp_path / f"{shape[0]}", train=table(pixels)))
        with pytest.raises(ValueError, match=rf"8x8, .* {shape[1]}x{shape[0]}, such as row 3.*--resolution"):
            load_images(config)
        assert load_images(replace(config, resolution=8)).resolution == 8


def test_odd_ones_out_beyond_the_first_look(tmp_path, configure):
    pixels = list(noise(count=200))
    pixels[2] = np.zeros((9, 9), np.uint8)
    with pytest.raises(ValueError, match=r"row 2 is 9x9 and others are 8x8; pass --resolution"):
        load_images(configure(train_data_dir=save(tmp_path / "size", train=table(pixels))))
    pixels[2] = np.zeros((8, 8, 3), np.uint8)
    config = configure(train_data_dir=save(tmp_path / "colour", train=table(pixels)))
    with pytest.raises(ValueError, match="row 2 is in colour and others are grey; pass --channels"):
        load_images(config)
    assert load_images(replace(config, channels=3)).channels == 3


def test_one_picture_in_colour_makes_the_data_colour(tmp_path, configure):
    pixels = [*noise(count=3), noise(shape=(8, 8, 3))[0]]
    assert load_images(configure(train_data_dir=save(tmp_path / "hub", train=table(pixels)))).channels == 3


# Bad images


def bad_folder(root):
    pixels, labels = image_folder(root)
    truncated = root / "bird" / "04.png"
    truncated.write_bytes(truncated.read_bytes()[:150])
    (root / "cat" / "07.png").write_bytes(b"not a picture")
    return pixels, labels, np.array([0, 1, 2, 3, 5, 6, 8])


def test_bad_images_are_reported_together_by_row_and_file(tmp_path, configure):
    bad_folder(tmp_path / "data")
    config = configure(train_data_dir=str(tmp_path / "data"))
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(ValueError, match=r"(?s)2 of 9 images .*--skip_bad_images") as error:
            load_images(config)
        assert "row 4 (" in str(error.value)
        assert "bird/04.png): " in str(error.value)
        assert "cat/07.png): not an image that Pillow can read" in str(error.value)


def test_bad_images_are_skipped_and_counted(tmp_path, configure, caplog):
    pixels, labels, good = bad_folder(tmp_path / "data")
    images = load_images(configure(train_data_dir=str(tmp_path / "data"), skip_bad_images=True))
    assert images.skipped == 2
    assert "04.png" in caplog.text
    np.testing.assert_array_equal(everything(images)[0], pixels[good].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(everything(images)[1], labels[good])


def test_a_mended_image_is_read_again(tmp_path, configure):
    pixels, _, _ = bad_folder(tmp_path / "data")
    config = configure(train_data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(config)
    Image.fromarray(pixels[4]).save(tmp_path / "data" / "bird" / "04.png")
    Image.fromarray(pixels[7]).save(tmp_path / "data" / "cat" / "07.png")
    np.testing.assert_array_equal(everything(load_images(config))[0], pixels.transpose(0, 3, 1, 2))


def test_many_bad_images_are_not_all_listed(tmp_path, configure):
    pixels = [*noise(count=10), *[b"junk"] * 30]
    config = configure(train_data_dir=save(tmp_path / "hub", train=table(pixels)))
    with pytest.raises(ValueError, match="30 of 40 images") as error:
        load_images(config)
    assert str(error.value).count("row ") == 20
    assert "and 10 more" in str(error.value)
    with pytest.raises(ValueError, match="none of the 3 images"):
        load_images(
            configure(train_data_dir=save(tmp_path / "all", train=table([b"junk"] * 3)), skip_bad_images=True)
        )


# The cache and the fingerprint


def test_images_are_decoded_once_and_opened_read_only(tmp_path, configure, monkeypatch):
    config = configure(train_data_dir=save(tmp_path / "hub", train=table(labels=[0, 1, 2] * 4)))
    first = load_images(config)
    monkeypatch.setattr(decode, "to_pixels", None)  # calling it would raise
    second = load_images(config)
    np.testing.assert_array_equal(everything(first)[0], everything(second)[0])
    assert first.fingerprint == second.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        second.pixels.array[0] = 0


def test_everything_that_changes_the_pixels_has_its_own_cache(tmp_path, configure):
    config = configure(train_data_dir=save(tmp_path / "hub", train=table(labels=[0, 1, 2] * 4), test=table()))
    variants = [{}, {"resolution": 4}, {"channels": 3}, {"classes": ("cat",)}, {"max_train_images": 3}]
    made = [load_images(replace(config, **variant)) for variant in variants] + [load_images(config, "test")]
    assert len({images.pixels.path for images in made}) == 6
    assert load_images(replace(config, random_flip=True)).pixels.path == made[0].pixels.path


def test_fingerprint_is_that_of_pixels_and_labels_wherever_they_lie(tmp_path, configure):
    labels = [0, 1, 2] * 4

    def fingerprint(name, **options):
        return load_images(
            configure(train_data_dir=save(tmp_path / name, train=table(**options)))
        ).fingerprint

    reference = fingerprint("one", labels=labels)
    elsewhere = fingerprint("other", labels=labels, note=(["x"] * 12, datasets.Value("string")))
    changed = noise()
    changed[3, 4, 5] ^= 1
    assert reference == elsewhere
    assert (
        len(
            {
                reference,
                fingerprint("p", pixels=changed, labels=labels),
                fingerprint("l", labels=labels[::-1]),
            }
        )
        == 3
    )
    assert fingerprint("none") != reference
    part = fingerprint("part", pixels=noise()[2:5], labels=labels[2:5])
    assert load_images(configure(train_data_dir=str(tmp_path / "one"))).subset([2, 3, 4]).fingerprint == part


def test_a_decode_that_dies_leaves_nothing_that_is_taken_for_data(tmp_path, configure, monkeypatch):
    config = configure(train_data_dir=save(tmp_path / "hub", train=table()))

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode, "to_pixels", die)
        with pytest.raises(KeyboardInterrupt):
            load_images(config)
    cache = tmp_path / "cache" / "images"
    assert list(cache.iterdir()) == []
    folder = load_images(config).pixels.path.parent
    # As SIGKILL leaves it: half written, under another name.
    left = [cache / f"{folder.name}.{name}.part" for name in ("old", "new")]
    for path in left:
        path.mkdir()
        (path / "images.uint8").write_bytes(b"half")
    os.utime(left[0], times=(0, time.time() - 2 * decode.STALE_SECONDS))
    folder.rename(tmp_path / "gone")
    np.testing.assert_array_equal(everything(load_images(config))[0][:, 0], noise())
    assert not left[0].exists()
    assert left[1].exists()  # another process may be at work there


def test_two_processes_that_race_agree(tmp_path, configure, monkeypatch):
    config = configure(train_data_dir=save(tmp_path / "hub", train=table()))
    decode_all, faster = decode._decode_all, []

    def overtaken(*args):
        monkeypatch.setattr(decode, "_decode_all", decode_all)
        decode_all(*args)
        faster.append(load_images(config))

    monkeypatch.setattr(decode, "_decode_all", overtaken)
    images = load_images(config)
    assert images.pixels.path == faster[0].pixels.path
    np.testing.assert_array_equal(everything(images)[0], everything(faster[0])[0])
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written.*--cache_dir .*TRILEMMA_CACHE"):
        load_images(DataConfig(dataset_name="digits", cache_dir=str(tmp_path / "file")))


def test_cache_folder_by_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path))
    assert load_images(DataConfig(dataset_name="digits")).pixels.path.is_relative_to(tmp_path)


def test_too_large_for_the_cache_is_decoded_on_access(tmp_path, configure, monkeypatch, caplog):
    pixels, _, good = bad_folder(tmp_path / "data")
    stored = load_images(configure(train_data_dir=str(tmp_path / "data"), skip_bad_images=True))
    monkeypatch.setattr(decode, "MAX_CACHED_BYTES", 100)
    config = DataConfig(cache_dir=str(tmp_path / "other"), train_data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="2 of 9 images"):
        load_images(config)
    images = load_images(replace(config, skip_bad_images=True))
    assert "too much for the cache" in caplog.text
    assert not list((tmp_path / "other" / "images").glob("*/images.uint8"))
    np.testing.assert_array_equal(everything(images)[0], pixels[good].transpose(0, 3, 1, 2))
    assert images.fingerprint == stored.fingerprint
    streams = [batches(source, Order(4, 1), device="cpu") for source in (images, stored)]
    for _ in range(3):
        torch.testing.assert_close(next(streams[0])[0], next(streams[1])[0], rtol=0, atol=0)


def test_large_pictures_by_several_threads_in_order(tmp_path, configure, monkeypatch):
    monkeypatch.setattr(decode, "THREADS_FROM_PIXELS", 1)
    monkeypatch.setattr(decode, "CHUNK_BYTES", 2 * 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    pixels = noise(count=99)
    images = load_images(configure(train_data_dir=save(tmp_path / "hub", train=table(pixels))))
    np.testing.assert_array_equal(everything(images)[0][:, 0], pixels)


# Batches


@pytest.fixture
def numbered(tmp_path, configure):
    """11 images; image i has grey level 10 * i + its column, and label i."""
    pixels = (10 * np.arange(11)[:, None, None] + np.arange(4)).repeat(4, axis=1).astype(np.uint8)
    names = datasets.ClassLabel(names=[f"number {i}" for i in range(11)])
    return load_images(
        configure(train_data_dir=save(tmp_path / "numbered", train=table(pixels, list(range(11)), names)))
    )


def taken(stream, count):
    return list(itertools.islice(stream, count))


def order(stream, count):
    return torch.cat([labels for _, labels in taken(stream, count)]).tolist()


def test_a_batch_is_floats_with_their_labels(numbered):
    x0, labels = next(batches(numbered, Order(4, 0), device="cpu"))
    assert (x0.dtype, x0.shape, labels.dtype, labels.shape) == (
        torch.float32,
        (4, 1, 4, 4),
        torch.int64,
        (4,),
    )
    pixels, _ = numbered.__getitems__(labels)
    torch.testing.assert_close(x0, pixels.float() / 127.5 - 1)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 30])
def test_every_image_once_an_epoch_and_none_dropped(numbered, batch_size):
    seen = order(batches(numbered, Order(batch_size, 3), device="cpu"), 11)
    epochs = [seen[start : start + 11] for start in range(0, 11 * batch_size, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_seed_decides_the_order(numbered):
    one, again, other = (order(batches(numbered, Order(5, s), device="cpu"), 9) for s in (0, 0, 1))
    assert one == again != other


def test_ranks_share_what_one_process_would_see(numbered):
    alone = taken(batches(numbered, Order(6, 0), device="cpu"), 9)
    ranks = [taken(batches(numbered, Order(2, 0, rank=r, world=3), device="cpu"), 9) for r in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        torch.testing.assert_close(torch.cat([x0 for x0, _ in parts]), whole[0])
        assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


@pytest.mark.parametrize("start", [1, 4, 17])
def test_start_goes_on_as_if_never_cut(numbered, start):
    order, options = Order(4, 2, rank=1, world=2), {"device": "cpu", "random_flip": True}
    uncut = taken(batches(numbered, order, **options), start + 6)[start:]
    cut = taken(batches(numbered, replace(order, start=start), **options), 6)
    for (x0, labels), (expected, expected_labels) in zip(cut, uncut, strict=True):
        assert torch.equal(x0, expected)
        assert torch.equal(labels, expected_labels)


def test_flips_are_drawn_for_each_image(numbered):
    flipped = []
    for x0, labels in taken(batches(numbered, Order(11, 0), device="cpu", random_flip=True), 60):
        pixels = to_float(numbered.__getitems__(labels)[0])
        same, turned = ((x0 == other).flatten(1).all(1) for other in (pixels, pixels.flip(-1)))
        assert (same ^ turned).all()
        flipped.append(turned)
    flipped = torch.stack(flipped).double()
    assert 0.45 < flipped.mean() < 0.55  # 660 draws: 2.6 standard deviations
    assert (flipped.std(1) > 0).all()  # by image, not by batch


def test_torchs_own_generator_is_left_alone(numbered):
    before = torch.get_rng_state()
    taken(batches(numbered, Order(4, 0), device="cpu", random_flip=True), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_lie_on_the_device_give_the_same_batches(numbered, monkeypatch):
    order, options = Order(4, 5, rank=1, world=2, start=3), {"device": "cpu", "random_flip": True}
    expected = taken(batches(numbered, order, **options), 8)
    monkeypatch.setattr("trilemma.training.images.batches.fits", lambda *_: True)
    monkeypatch.setattr("trilemma.training.images.batches.AT_ONCE", 3)
    for batch, other in zip(taken(batches(numbered, order, **options), 8), expected, strict=True):
        assert all(map(torch.equal, batch, other))


def test_reader_processes_give_the_same_batches(numbered):
    order, options = Order(4, 0, start=3), {"device": "cpu", "random_flip": True}
    stream = batches(numbered, order, **options, num_workers=2)
    for batch, expected in zip(taken(stream, 6), taken(batches(numbered, order, **options), 6), strict=True):
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[1], expected[1])


def test_images_travel_to_reader_processes_without_their_pixels(configure):
    import pickle

    images = load_images(configure(dataset_name="digits"))
    assert len(pickle.dumps(images.pixels)) < 1000
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(everything(copy)[0], everything(images)[0])


def test_impossible_batches_are_refused_at_the_call(numbered):
    with pytest.raises(ValueError, match="--train_batch_size must be at least 1; got 0"):
        batches(numbered, Order(0, 0), device="cpu")
    with pytest.raises(ValueError, match="no images"):
        batches(numbered.subset([]), Order(1, 0), device="cpu")
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1"):
        batches(numbered, Order(1, 0, rank=2, world=2), device="cpu")


# Subsets


def test_subset_keeps_order_labels_and_names(numbered):
    part = numbered.subset([7, 2]).subset([1, 0, 0])
    pixels, labels = everything(part)
    np.testing.assert_array_equal(labels, [2, 7, 7])
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [20, 70, 70])
    assert part.class_names == numbered.class_names


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--validation_split", "test"], 5),
        (["--validation_split", "test", "--validation_size", "3"], 3),
        (["--validation_split", "test", "--validation_size", "30"], 5),
        (["--validation_size", "2"], 2),
        (["--validation_size", "0"], 0),
        ([], 0),
    ],
)
def test_a_validation_split_alone_is_taken_whole(tmp_path, flags, size):
    for split, count in {"train": 8, "test": 5}.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / "data" / split / f"{k}.png")
    places = ["--train_data_dir", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]
    config = parse("unconditional", "", [*places, *flags])
    images, held_out = read_data(config)
    assert len(held_out or ()) == size
    assert len(images) == 8 - (size if "--validation_split" not in flags else 0)
    resolved = with_validation_size(config, held_out).data.validation_size
    assert resolved == (30 if "30" in flags else size)  # what is typed stays, for runs to resume


def test_hold_out_splits_by_seed(numbered):
    rest, held = hold_out(numbered, 4, seed=0)
    assert len(held) == 4
    assert sorted([*rest.labels, *held.labels]) == list(range(11))
    assert hold_out(numbered, 4, seed=0)[1].fingerprint == held.fingerprint
    assert len({tuple(hold_out(numbered, 4, seed=seed)[1].labels) for seed in range(5)}) > 1
    for count in (0, 11):
        with pytest.raises(ValueError, match=rf"--validation_size must be in 1\.\.10 .*got {count}"):
            hold_out(numbered, count, seed=0)


def test_uses_of_randomness_do_not_share_a_stream():
    """SeedSequence takes [a, b] and [a, b, 0] for one seed, so the use must come first."""
    assert len({ORDER, FLIP, HELD_OUT}) == 3
    first = np.random.default_rng([ORDER, 5, 2]).random(4)
    assert not np.array_equal(first, np.random.default_rng([FLIP, 5, 2, 0]).random(4))


def test_readers_leave_the_process_group_so_that_stop_signals_miss_them():
    images = load_images(DataConfig(dataset_name="digits"))
    stream = batches(images, Order(4, 0), device="cpu", num_workers=1)
    next(stream)
    listed = subprocess.run(
        ["ps", "-o", "pid=,pgid=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    groups = [line.split() for line in listed.stdout.splitlines()]
    assert any(pid == group for pid, group in groups)
