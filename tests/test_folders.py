"""Folders of images: names are literal, every image is read or named, what is not data is passed over."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from entry import ROOT
from PIL import Image

from trilemma.eval.scoring.file_images import open_images
from trilemma.training.images.batches import Order, batches
from trilemma.training.images.folders import image_suffixes
from trilemma.training.images.image_set import hold_out, load_images
from trilemma.training.images.pixels import open_picture, to_pixels
from trilemma.training.options.groups import DataConfig


@pytest.fixture
def load(tmp_path):
    """load(folder) -> the images of a folder, with a cache of the test's own."""

    def load_folder(folder, split=None, **options):
        config = DataConfig(train_data_dir=str(folder), cache_dir=str(tmp_path / "the-cache"), **options)
        return load_images(config, split)

    return load_folder


def grey(folder, *levels, suffix=".png", size=(8, 8)):
    """Pictures 0.png, 1.png ... of one grey level each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, level in enumerate(levels):
        Image.new("L", size, level).save(folder / f"{index}{suffix}")
    return folder


def picture(path, level, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), level if mode == "L" else (level,) * 3).save(path)


def parquet(path, levels, labels=None):
    """A parquet file of grey pictures, perhaps with integer labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for level in levels:
        file = io.BytesIO()
        Image.new("L", (8, 8), level).save(file, "png")
        images.append({"bytes": file.getvalue(), "path": None})
    content, features = {"image": images}, {"image": datasets.Image()}
    if labels is not None:
        content["label"], features["label"] = labels, datasets.Value("int64")
    schema = datasets.Features(features).arrow_schema
    with path.open("wb") as out:
        datasets.Dataset(pa.Table.from_pydict(content, schema)).to_parquet(out)


def levels(images):
    """The grey level of each picture, which is of one level up to the losses of its coding."""
    pixels, _ = images.__getitems__(range(len(images)))
    return [round(float(p.float().mean())) for p in pixels]


# Names are literal


NAMES = [
    ("photos[1]", "photos1"),
    ("a*b", "axb"),
    ("what?", "whatx"),
    ("[p]/photos", "p/photos"),
    ("a**", "ab"),
    ("[!x]", "y"),
    ("a::b", "b"),
    ("50%20off#1", "50 off"),
    ("~nobody", "nobody"),
    (" white  space ", "white"),
    ("{a,b}", "a"),
    (".hidden", "hidden"),
    ("__special", "special"),
    ("büro", "buro"),
]


@pytest.mark.parametrize(("name", "other"), NAMES)
@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_a_folder_s_name_is_not_a_pattern(tmp_path, load, name, other, kind):
    for folder, shades in ((name, (10, 20)), (other, (200, 210, 220))):
        if kind == "images":
            grey(tmp_path / folder, *shades)
        else:
            parquet(tmp_path / folder / "data.parquet", shades)
    if kind == "parquet" and "::" in name:  # which `datasets` takes for a chain of file systems
        with pytest.raises(ValueError, match="rename the folder or file"):
            load(tmp_path / name)
        return
    images = load(tmp_path / name)
    assert levels(images) == [10, 20]
    assert images.name == name.split("/")[-1]


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_relative_paths_and_links(tmp_path, load, monkeypatch, kind):
    grey(tmp_path / "p", 1, 2) if kind == "images" else parquet(tmp_path / "p" / "data.parquet", [1, 2])
    (tmp_path / "p" / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "p")
    expected = load(tmp_path / "p").fingerprint
    monkeypatch.chdir(tmp_path / "p")
    for spelling in (".", "./", "../p", "sub/..", "../link", "../link/"):
        images = load(spelling)
        assert levels(images) == [1, 2], spelling
        assert images.fingerprint == expected
        assert images.name == "p"
    monkeypatch.chdir(tmp_path)
    assert levels(load("p/")) == [1, 2]


def test_names_inside_are_literal(tmp_path, load):
    for name, level in (("[a]", 1), ("*", 2), ("?", 3), ("a::b", 4)):
        picture(tmp_path / "p" / name / "x[1].png", level)
    images = load(tmp_path / "p")
    assert images.class_names == ("*", "?", "[a]", "a::b")
    assert levels(images) == [2, 3, 1, 4]


def test_a_local_folder_by_dataset_name(tmp_path, monkeypatch):
    grey(tmp_path / "photos[1]", 7)
    grey(tmp_path / "photos1", 8)
    config = DataConfig(dataset_name=str(tmp_path / "photos[1]"), cache_dir=str(tmp_path / "cache"))
    assert levels(load_images(config)) == [7]


def test_names_that_are_no_utf8(tmp_path, load):
    for name, level in ((b"caf\xe9", 5), (b"tea", 6)):
        folder = os.path.join(os.fsencode(tmp_path / "p"), name)
        os.makedirs(folder)
        file = io.BytesIO()
        Image.new("L", (8, 8), level).save(file, "png")
        with open(os.path.join(folder, b"\xff.png"), "wb") as out:
            out.write(file.getvalue())
    images = load(tmp_path / "p")
    assert levels(images) == [5, 6]
    assert images.class_names == ("caf\\xe9", "tea")


def test_what_it_reads_does_not_depend_on_the_locale(tmp_path):
    for name, level in (("äpfel", 1), ("Zebra", 2), ("birne", 3)):
        picture(tmp_path / "p" / name / "ö.png", level)
    picture(tmp_path / "m" / "a.png", 4)
    (tmp_path / "m" / "metadata.csv").write_bytes("file_name,größe\na.png,ß\n".encode())
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from trilemma.training.images.folders import classes_of, list_folder, splits_of\n"
        "from trilemma.training.images.pixels import open_picture\n"
        "from trilemma.training.images.tables import metadata_tables\n"
        "p, m = (list_folder(Path(sys.argv[1]) / name) for name in 'pm')\n"
        "encoded = [{'bytes': None, 'path': str(p.folder / path)} for path in p.images]\n"
        "table = metadata_tables(splits_of(m.images, m.metadata), m, '')['train']\n"
        "grey = [open_picture(image).getpixel((0, 0)) for image in encoded]\n"
        "print(json.dumps([grey, classes_of(splits_of(p.images))[1], table['gr\\xf6\\xdfe'][0]]))\n"
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == [[2, 3, 1], ["Zebra", "birne", "äpfel"], "ß"]


# Every image, or an error that names one


def savable():
    """Endings of formats that this Pillow can write, and read."""
    Image.init()
    return sorted(
        suffix for suffix, name in Image.registered_extensions().items()
        if name in Image.SAVE and suffix in image_suffixes() and name not in ("WMF", "EPS")
    )  # fmt: skip


@pytest.mark.parametrize("suffix", savable())
def test_every_format_that_pillow_reads(tmp_path, load, suffix):
    file = tmp_path / "p" / "deep" / f"a{suffix.upper()}"
    file.parent.mkdir(parents=True)
    for mode in ("L", "RGB", "P", "1"):  # the first that the format takes
        try:
            Image.new("RGB", (16, 16), "white").convert(mode).save(file)
            break
        except (OSError, ValueError, KeyError):
            file.unlink(missing_ok=True)
    grey(tmp_path / "p", 0, size=(16, 16))
    images = load(tmp_path / "p", resolution=16)
    dark, light = levels(images)
    assert dark == 0
    assert light >= 253


def test_captions_and_other_files_beside_images(tmp_path, load):
    grey(tmp_path / "p", 1, 2, 3)
    expected = load(tmp_path / "p").fingerprint
    beside = {
        "txt": "a cat", "json": '{"a": 1}', "xml": "<a/>", "csv": "1,2", "caption": "x", "md": "# x",
        "npy": "", "h5": "x", "toml": "a = 1", "mp4": "x", "PNG.bak": "x",
    }  # fmt: skip
    for suffix, text in beside.items():
        for index in range(3):
            (tmp_path / "p" / f"{index}.{suffix}").write_text(text)
        assert load(tmp_path / "p").fingerprint == expected, suffix
    for name in ("train.txt", "test.json", "README.md", "config.yaml", "task.toml", "x.eval", "Thumbs.db"):
        (tmp_path / "p" / name).write_text("a: 1\n")
        assert load(tmp_path / "p").fingerprint == expected, name
    pa.parquet.write_table(pa.table({"box": [1, 2]}), tmp_path / "p" / "boxes.parquet")
    assert load(tmp_path / "p").fingerprint == expected


def test_files_that_programs_leave_are_not_data(tmp_path, load):
    for name in ("cat", "dog"):
        grey(tmp_path / "p" / name, 1, 2)
    expected = load(tmp_path / "p").fingerprint
    (tmp_path / "p" / "cat" / "._0.png").write_bytes(b"Mac OS")
    picture(tmp_path / "p" / ".ipynb_checkpoints" / "0-checkpoint.png", 9)
    picture(tmp_path / "p" / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", 9)
    picture(tmp_path / "p" / "__MACOSX" / "cat" / "0.png", 9)
    picture(tmp_path / "p" / "@eaDir" / "0.png", 9)
    picture(tmp_path / "p" / ".thumbnail.png", 9)
    (tmp_path / "p" / ".DS_Store").write_bytes(b"")
    images = load(tmp_path / "p")
    assert images.fingerprint == expected
    assert images.class_names == ("cat", "dog")
    (tmp_path / "only" / "__MACOSX").mkdir(parents=True)
    picture(tmp_path / "only" / "__MACOSX" / "0.png", 9)
    with pytest.raises(ValueError, match="has no images and no parquet files"):
        load(tmp_path / "only")


def test_links_to_folders_and_files_are_followed(tmp_path, load):
    grey(tmp_path / "elsewhere", 1, 2)
    grey(tmp_path / "p" / "cat", 3)
    (tmp_path / "p" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p" / "dog" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    images = load(tmp_path / "p")
    assert levels(images) == [3, 1, 1, 2]
    assert images.class_names == ("cat", "dog")
    (tmp_path / "p" / "cat" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1 of 5 images(?s:.*)cat/lost.png"):
        load(tmp_path / "p")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.heic", "no codec for HEIC"),
        ("a.HEIF", "no codec for HEIF"),
        ("a.jxl", "no codec for JPEG XL"),
        ("a.cr2", "a raw file of a camera"),
        ("a.png", "not an image that Pillow can read"),
    ],
)
def test_what_cannot_be_decoded_is_named(tmp_path, load, name, words):
    grey(tmp_path / "p", 1)
    (tmp_path / "p" / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ValueError, match=rf"1 of 2 images(?s:.*){name}.*{words}"):
        load(tmp_path / "p")
    assert levels(load(tmp_path / "p", skip_bad_images=True)) == [1]
    grey(tmp_path / "p", 1).joinpath("0.png").unlink()
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "p", resolution=8)


def test_a_codec_that_this_pillow_lacks_is_named(tmp_path, load, monkeypatch):
    grey(tmp_path / "p", 1)
    Image.new("L", (8, 8), 2).save(tmp_path / "p" / "a.avif")
    for table in (Image.OPEN, Image.EXTENSION):
        for key in [k for k, v in table.items() if "AVIF" in (k, v)]:
            monkeypatch.delitem(table, key)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    image_suffixes.cache_clear()
    with pytest.raises(ValueError, match=r"a\.avif.*no codec for AVIF"):
        load(tmp_path / "p")
    image_suffixes.cache_clear()


def test_images_and_tables_of_images_are_not_mixed(tmp_path, load):
    grey(tmp_path / "p", 1, 2)
    parquet(tmp_path / "p" / "data.parquet", [3])
    with pytest.raises(ValueError, match=r"image files, such as 0\.png, and tables .*data\.parquet"):
        load(tmp_path / "p")
    (tmp_path / "p" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n"
    )
    assert levels(load(tmp_path / "p")) == [3]  # the pictures illustrate the README


def test_archives_are_said_not_to_be_read(tmp_path, load, caplog):
    grey(tmp_path / "p", 1)
    (tmp_path / "p" / "more.zip").write_bytes(b"")
    assert levels(load(tmp_path / "p")) == [1]
    assert "archives are not read, such as more.zip (1 in all)" in caplog.text


def test_further_pictures_of_a_file_are_said(tmp_path, load, caplog):
    frames = [Image.new("L", (8, 8), level) for level in (1, 2, 3)]
    (tmp_path / "p").mkdir()
    frames[0].save(tmp_path / "p" / "a.tif", save_all=True, append_images=frames[1:])
    assert levels(load(tmp_path / "p")) == [1]
    assert "several pictures, such as row 0" in caplog.text


# Splits and classes are those of `datasets`


LAYOUTS = {
    "flat": ["b.png", "a.png", "A.png", "10.png", "9.png"],
    "classes": ["dog/1.png", "cat/2.png", "cat/1.png", "Zebra/x.jpg"],
    "order": ["a b/1.png", "a/2.png", "a-b/1.png", "B/1.png", "a.b/3.png", "ä/1.png"],
    "nested": ["q/cat/1.png", "q/dog/2.png"],
    "depths": ["1.png", "more/2.png"],
    "split folders": ["train/cat/1.png", "train/dog/2.png", "test/cat/1.png", "val/dog/3.png"],
    "split names": ["train_1.png", "test_2.png", "train 3.png", "my-validation.4.png"],
    "words of splits": ["Training/x/1.png", "Training/y/1.png"],
    "evaluation": ["training/a/1.png", "training/b/1.png", "evaluation/a/2.png", "evaluation/b/7.png"],
    "shards": ["data/train-00000-of-00002.png", "data/train-00001-of-00002.png", "data/x-00000-of-00001.png"],
    "metadata": ["a.png", "b.png", "c.png", "metadata.csv"],
    "metadata of splits": ["train/a.png", "train/b.png", "train/metadata.jsonl", "test/c.png",
                           "test/metadata.jsonl"],
    "metadata below": ["x/a.png", "x/y/b.png", "x/metadata.csv"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_labels_are_those_of_datasets(tmp_path, load, layout):
    """Checkpoints of the time when `datasets` read folders go on: the same rows in the same order."""
    pictures = [path for path in LAYOUTS[layout] if "metadata" not in path]
    for index, path in enumerate(pictures):
        picture(tmp_path / "p" / path, 20 * index)
    for path in set(LAYOUTS[layout]).difference(pictures):
        folder = os.path.dirname(path)
        below = [p.removeprefix(f"{folder}/") for p in pictures if p.startswith(folder)]
        rows = [{"file_name": name, "label": 3 * i % 2, "note": name} for i, name in enumerate(below[::-1])]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if path.endswith("csv"):
            text = "file_name,label,note\n" + "".join(f"{r['file_name']},{r['label']},x\n" for r in rows)
        (tmp_path / "p" / path).write_text(text)
    tables = datasets.load_dataset(str(tmp_path / "p"), cache_dir=str(tmp_path / "cache-of-datasets"))
    for split, table in tables.items():
        images = load(tmp_path / "p", split)
        assert levels(images) == [round(float(np.asarray(row["image"]).mean())) for row in table]
        if "label" not in table.features:
            assert images.labels is None
            continue
        feature = table.features["label"]
        assert images.labels.tolist() == list(table["label"])
        if isinstance(feature, datasets.ClassLabel):
            assert list(images.class_names) == feature.names
    with pytest.raises(ValueError, match="has no split 'nowhere'"):
        load(tmp_path / "p", "nowhere")


def test_no_row_is_doubled(tmp_path, load):
    """`datasets` has a file once for each of its patterns that fits."""
    grey(tmp_path / "p" / "my-train" / "train" / "train-cars", 1, 2)
    assert levels(load(tmp_path / "p")) == [1, 2]


def test_split_folders_are_not_classes(tmp_path, load):
    grey(tmp_path / "p" / "train", 1, 2)
    grey(tmp_path / "p" / "test", 3)
    assert load(tmp_path / "p").labels is None
    assert load(tmp_path / "p", "test").labels is None  # one of two "classes" for `datasets`


def test_one_flat_split_does_not_take_the_classes_of_another(tmp_path, load):
    grey(tmp_path / "p" / "train" / "cat", 1)
    grey(tmp_path / "p" / "train" / "dog", 2)
    grey(tmp_path / "p" / "test", 3)
    assert load(tmp_path / "p").class_names == ("cat", "dog")
    assert load(tmp_path / "p", "test").labels is None


def test_pictures_beside_class_folders_are_said_to_hide_the_classes(tmp_path, load, caplog):
    for name in ("cat", "dog"):
        grey(tmp_path / "p" / name, 1)
    picture(tmp_path / "p" / "cover.png", 2)
    assert load(tmp_path / "p").labels is None
    assert "1 of 3 lie 0 folders deep, such as cover.png: move or delete" in caplog.text


def test_folders_at_another_depth_are_no_classes(tmp_path, load):
    for name in ("train/images/cat", "train/images/dog", "test/unsorted"):
        grey(tmp_path / "p" / name, 1)
    assert load(tmp_path / "p").class_names == ("cat", "dog")
    assert load(tmp_path / "p", "test").labels is None


def test_a_file_named_like_a_split_is_named(tmp_path, load):
    grey(tmp_path / "p", 1, 2)
    picture(tmp_path / "p" / "train station.png", 3)
    with pytest.raises(ValueError, match=r"only 1 are in its splits \(train\), and '0\.png' is not"):
        load(tmp_path / "p")


def test_folders_of_one_name_are_one_class_and_that_is_said(tmp_path, load, caplog):
    for place in ("cat/2019", "cat/2020", "dog/2019"):
        grey(tmp_path / "p" / place, 1)
    assert load(tmp_path / "p").class_names == ("2019", "2020")
    assert "cat/2019 and dog/2019 are both the class '2019'" in caplog.text


def test_fingerprints_of_ordinary_folders_are_what_they_were(tmp_path, load):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        for place in ("flat", f"classes/{'abc'[index % 3]}", f"splits/{('train', 'test')[index % 2]}/x"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / place / f"{index}.png")
    parquet(tmp_path / "table" / "data.parquet", [1, 2, 3], [0, 1, 0])
    assert {name: load(tmp_path / name).fingerprint[:16] for name in FINGERPRINTS} == FINGERPRINTS


FINGERPRINTS = {
    "flat": "5ba8219b16623865",
    "classes": "f9557b83f058123b",
    "splits": "63bb253f8e7901ee",
    "table": "88b25c4369576ed3",
}


# Metadata files


def test_metadata_must_describe_every_image(tmp_path, load):
    grey(tmp_path / "p", 1, 2, 3)
    (tmp_path / "p" / "metadata.csv").write_text("file_name,label\n0.png,1\n1.png,0\n")
    with pytest.raises(ValueError, match=r"1 of 3 images, such as '2\.png', are in no row of metadata\.csv"):
        load(tmp_path / "p")
    (tmp_path / "p" / "metadata.csv").write_text("file_name,label\n0.png,1\n1.png,0\n./2.png,0\n9.png,1\n")
    with pytest.raises(ValueError, match=r"1 of 4 images(?s:.*)row 3 \(.*9\.png\)"):
        load(tmp_path / "p")
    for name in ("../x.png", "/etc/x.png", "file:///x.png", "a/../../x.png", r"a\..\..\x.png"):
        (tmp_path / "p" / "metadata.csv").write_text(f"file_name,label\n{name},1\n")
        with pytest.raises(ValueError, match="which is not in its folder"):
            load(tmp_path / "p")
    (tmp_path / "p" / "metadata.csv").write_text("image,label\n0.png,1\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has no column file_name"):
        load(tmp_path / "p")


@pytest.mark.parametrize("path", ["../x.png", r"a\..\..\x.png", "a/../../x.png"])
def test_a_table_names_no_images_outside_its_folder(tmp_path, load, path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "p").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": None, "path": path}]}
    pa.parquet.write_table(pa.Table.from_pydict(rows, features.arrow_schema), tmp_path / "p" / "rows.parquet")
    with pytest.raises(ValueError, match="which is not in its folder"):
        load(tmp_path / "p")


def test_several_metadata_files_are_in_order(tmp_path, load):
    for folder, first in (("b", 10), ("a", 20), ("c", 30)):
        grey(tmp_path / "p" / folder, first, first + 1)
        rows = "\ufefffile_name,label\n1.png,1\n0.png,0\n"  # with a byte order mark, as spreadsheets write it
        (tmp_path / "p" / folder / "metadata.csv").write_text(rows, encoding="utf-8")
    images = load(tmp_path / "p")
    assert levels(images) == [21, 20, 11, 10, 31, 30]
    assert images.labels.tolist() == [1, 0] * 3


def test_labels_that_are_no_integers_are_said_not_to_be_used(tmp_path, load, caplog):
    grey(tmp_path / "p", 1, 2)
    (tmp_path / "p" / "metadata.csv").write_text("file_name,label\n0.png,1\n1.png,\n")
    assert load(tmp_path / "p").labels is None
    assert "the column 'label' is not used as labels: it holds float64" in caplog.text


def test_configurations_of_a_readme(tmp_path, load):
    for name, level in (("small", 1), ("large", 9)):
        parquet(tmp_path / "p" / name / "train-00000-of-00001.parquet", [level, level + 1])
        parquet(tmp_path / "p" / name / "test-00000-of-00001.parquet", [level + 2])
    entry = (
        "- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/train-*\n"
        "  - split: test\n    path: {0}/test-*\n"
    )
    readme = tmp_path / "p" / "README.md"
    readme.write_text(f"---\nconfigs:\n{entry.format('small')}{entry.format('large')}---\n# Data\n")
    with pytest.raises(ValueError, match=r"configurations small, large; choose one.*--dataset_config_name"):
        load(tmp_path / "p")
    config = DataConfig(
        dataset_name=str(tmp_path / "p"), dataset_config_name="large", cache_dir=str(tmp_path / "c")
    )
    assert levels(load_images(config)) == [9, 10]
    readme.write_text(f"---\nconfigs:\n{entry.format('small')}  default: true\n{entry.format('large')}---\n")
    assert levels(load(tmp_path / "p")) == [1, 2]
    assert levels(load(tmp_path / "p", "test")) == [3]


# Runs in the folder


def make_run(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).mkdir() if name == "checkpoints" else (folder / name).write_text("{}")
    for plot in ("samples.png", "loss.png", "best/samples.png"):
        picture(folder / plot, 255)


@pytest.mark.parametrize("second", ["run.json", "checkpoints", "model_index.json"])
def test_runs_inside_the_folder_are_not_data(tmp_path, load, caplog, second):
    grey(tmp_path / "p" / "cat", 1, 2)
    grey(tmp_path / "p" / "dog", 3)
    expected = load(tmp_path / "p").fingerprint
    make_run(tmp_path / "p" / "run1", "config.yaml", second)
    make_run(tmp_path / "p" / "outputs" / "test", "config.yaml", second)
    assert load(tmp_path / "p").fingerprint == expected
    lines = [record.getMessage() for record in caplog.records if "toolkit wrote" in record.getMessage()]
    assert len(lines) == 1
    assert "outputs/test, run1" in lines[0]


@pytest.mark.parametrize(
    ("names", "plot"),
    [(["results.jsonl", "ddpm_num_steps.md"], "ddpm_num_steps.png"), (["comparison.md"], "fd-speed.png")],
)
def test_figures_of_sweeps_and_comparisons_are_not_data(tmp_path, load, caplog, names, plot):
    grey(tmp_path / "p", 1, 2)
    expected = load(tmp_path / "p").fingerprint
    picture(tmp_path / "p" / "report" / plot, 255)
    for name in names:
        (tmp_path / "p" / "report" / name).touch()
    assert load(tmp_path / "p").fingerprint == expected
    assert "toolkit wrote it: report" in caplog.text


def test_a_cache_inside_the_folder_is_not_data(tmp_path):
    config = DataConfig(train_data_dir=str(tmp_path / "p"), cache_dir=str(tmp_path / "p" / "cache"))
    for first in (10, 110):  # of the first, the cache keeps a table
        parquet(tmp_path / "p" / "data.parquet", [first, first + 10])
        assert levels(load_images(config)) == [first, first + 10]


def test_tables_that_were_saved_as_folders_are_data(tmp_path, load):
    for split, level in (("train", 1), ("test", 9)):
        table = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8), level)]})
        table.save_to_disk(tmp_path / "p" / split)
    assert levels(load(tmp_path / "p")) == [1]
    assert levels(load(tmp_path / "p", "test")) == [9]


def test_a_folder_that_only_resembles_a_run_is_data(tmp_path, load):
    grey(tmp_path / "p" / "checkpoints", 1)
    grey(tmp_path / "p" / "other", 2)
    (tmp_path / "p" / "other" / "config.yaml").write_text("a: 1")
    assert load(tmp_path / "p").class_names == ("checkpoints", "other")


# Files that are replaced


def old(*paths):
    for path in paths:
        os.utime(path, (1_500_000_000, 1_500_000_000))


def test_pictures_replaced_in_place_are_seen(tmp_path, load):
    for first in (10, 110):
        grey(tmp_path / "p", first, first + 10)
        old(*(tmp_path / "p").iterdir())
        assert levels(load(tmp_path / "p")) == [first, first + 10]
    picture(tmp_path / "new.png", 200)
    old(tmp_path / "new.png")
    os.replace(tmp_path / "new.png", tmp_path / "p" / "0.png")
    assert levels(load(tmp_path / "p")) == [200, 120]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_replaced_in_place_are_seen(tmp_path, load, suffix):
    file = tmp_path / "p" / f"data.{suffix}"
    for first in (10, 110, 210):
        parquet(tmp_path / "data.parquet", [first, first + 10], [0, 1] if first < 200 else [1, 1])
        table = pa.parquet.read_table(tmp_path / "data.parquet")
        file.parent.mkdir(exist_ok=True)
        if suffix == "parquet":
            pa.parquet.write_table(table, file)
        else:
            with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
        old(file)
        images = load(tmp_path / "p")
        assert levels(images) == [first, first + 10]
        assert images.class_names == (("0", "1") if first < 200 else ("1",))


def test_metadata_replaced_in_place_is_seen(tmp_path, load):
    grey(tmp_path / "p", 1, 2)
    for labels in ("01", "10"):
        (tmp_path / "p" / "metadata.csv").write_text(
            f"file_name,label\n0.png,{labels[0]}\n1.png,{labels[1]}\n"
        )
        old(*(tmp_path / "p").iterdir())
        assert load(tmp_path / "p").labels.tolist() == [int(label) for label in labels]


def test_what_has_not_changed_is_not_decoded_again(tmp_path, load):
    grey(tmp_path / "p" / "train", 1)
    grey(tmp_path / "p" / "test", 2)
    first = load(tmp_path / "p").pixels.path
    grey(tmp_path / "p" / "test", 3)
    assert load(tmp_path / "p").pixels.path == first
    assert levels(load(tmp_path / "p", "test")) == [3]


# Labels


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_integer_labels_are_the_values_that_occur(tmp_path, load, kind):
    """Over all splits, so that a class that the test set alone has is a class."""
    splits = {"train": [1, 5, 1], "test": [9, 5]}
    for split, labels in splits.items():
        if kind == "parquet":
            parquet(tmp_path / "p" / f"{split}.parquet", range(len(labels)), labels)
        else:
            folder = grey(tmp_path / "p" / split, *range(len(labels)))
            rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
            (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    train, test = load(tmp_path / "p"), load(tmp_path / "p", "test")
    assert train.class_names == test.class_names == ("1", "5", "9")
    assert train.labels.tolist() == [0, 1, 0]
    assert test.labels.tolist() == [2, 1]
    assert load(tmp_path / "p", classes=("5",)).class_names == ("5",)
    assert len(load(tmp_path / "p", classes=("1",))) == 2  # the class named 1, not the second one
    with pytest.raises(ValueError, match=r"--classes must be among 1, 5, 9; got '0'"):
        load(tmp_path / "p", classes=("0",))


def test_a_class_without_an_image_is_named(tmp_path, load, caplog):
    for name in ("airplane", "bird", "cat"):
        grey(tmp_path / "p" / name, 1, 2)
    load(tmp_path / "p")
    assert "no image of the class" not in caplog.text
    load(tmp_path / "p", max_train_images=3)
    assert "p, split 'train': no image of the class cat" in caplog.text
    caplog.clear()
    parquet(tmp_path / "q" / "train.parquet", [1, 2], [1, 2])
    parquet(tmp_path / "q" / "test.parquet", [3], [7])
    load(tmp_path / "q")
    assert "q, split 'train': no image of the class 7" in caplog.text
    caplog.clear()
    (tmp_path / "p" / "cat" / "0.png").write_bytes(b"junk")
    (tmp_path / "p" / "cat" / "1.png").write_bytes(b"junk")
    load(tmp_path / "p", skip_bad_images=True)
    assert "no image of the class cat" in caplog.text


# Few images


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(tmp_path, load, count):
    for index in range(count):
        picture(tmp_path / "p" / "ab"[index % 2] / f"{index}.png", 10 * index)
    images = load(tmp_path / "p")
    assert len(images) == count
    stream = batches(images, Order(batch_size=8, seed=0), device="cpu", random_flip=True)
    seen = [round(float(x) * 127.5 + 127.5) for _ in range(3) for x in next(stream)[0][:, 0, 0, 0]]
    for start in range(0, 24 - count, count):
        assert sorted(seen[start : start + count]) == [10 * index for index in range(count)]
    if count == 1:
        with pytest.raises(ValueError, match="--validation_size needs 2 images or more; p has 1"):
            hold_out(images, 1, seed=0)
        return
    rest, held_out = hold_out(images, count - 1, seed=0)
    assert (len(rest), len(held_out)) == (1, count - 1)
    assert sorted(levels(rest) + levels(held_out)) == [10 * index for index in range(count)]
    assert len(next(batches(rest, Order(batch_size=4, seed=0), device="cpu"))[0]) == 4


def test_a_class_that_is_held_out_whole_is_named(tmp_path, load, caplog):
    grey(tmp_path / "p" / "cat", *range(20))
    grey(tmp_path / "p" / "dog", 1)
    hold_out(load(tmp_path / "p"), 20, seed=0)
    assert "p, left by --validation_size: no image of the class" in caplog.text


# 16 bits


def png(values, key, colour, bits=16, interlaced=False):
    """A PNG (ISO/IEC 15948) of `values` with a transparent colour, written by hand: unfiltered rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        rows = [np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes()
                for row in values]  # fmt: skip
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", key) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_transparent_colour_of_16_bit_grey():
    values = np.full((8, 8), 1000)
    values[:4] = 32767
    values[0, 0] = 1001  # the same 8 bits, and opaque
    pixels = to_pixels(Image.open(io.BytesIO(png(values, struct.pack(">H", 1000), 0))), 1, 8)[0]
    expected = np.where(values == 1000, 255, np.rint(values / 257))
    np.testing.assert_array_equal(pixels, expected)


def test_transparent_colour_of_16_bit_colour():
    values = np.zeros((8, 8, 3), int)
    values[:4] = (30000, 0, 0)
    values[4:] = (1000, 2000, 3000)
    values[7, 7] = (1000, 2000, 3001)  # the same upper bytes, and opaque
    encoded = png(values, struct.pack(">HHH", 1000, 2000, 3000), 2)
    for image in (Image.open(io.BytesIO(encoded)), open_picture({"bytes": encoded, "path": None})):
        pixels = to_pixels(image, 3, 8)
        expected = values >> 8
        expected[4:] = 255
        expected[7, 7] = (3, 7, 11)
        np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_colour_of_few_bits(bits):
    top = 2**bits - 1
    values = np.arange(64).reshape(8, 8) % (top + 1)
    pixels = to_pixels(Image.open(io.BytesIO(png(values, struct.pack(">H", 1), 0, bits))), 1, 8)[0]
    np.testing.assert_array_equal(pixels, np.where(values == 1, 255, values * 255 // top))


def test_transparent_16_bit_pictures_in_a_folder(tmp_path, load):
    values = np.zeros((8, 8, 3), int)
    values[:4] = 40000
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(png(values, struct.pack(">HHH", 0, 0, 0), 2))
    pixels, _ = load(tmp_path / "p").__getitems__([0])
    assert pixels[0, :, 0, 0].tolist() == [156] * 3
    assert pixels[0, :, 7, 7].tolist() == [255] * 3


@pytest.mark.parametrize("colour", [False, True])
def test_12_bit_data_in_16_bits_are_said(tmp_path, load, caplog, colour):
    rng = np.random.default_rng(0)
    for name, top, said in (("dark", 4096, True), ("whole", 65536, False)):
        (tmp_path / name).mkdir()
        for index in range(3):
            if colour:
                data = png(rng.integers(0, top, (8, 8, 3)), struct.pack(">HHH", 9, 9, 9), 2)
                data = data[:33] + data[51:]  # without the transparent colour
                (tmp_path / name / f"{index}.png").write_bytes(data)
            else:
                values = rng.integers(0, top, (8, 8)).astype(np.uint16)
                Image.fromarray(values).save(tmp_path / name / f"{index}.png")
        for _ in range(2):  # decoded, then from the cache
            caplog.clear()
            load(tmp_path / name)
            lines = [r.getMessage() for r in caplog.records if "16-bit pixel" in r.getMessage()]
            assert len(lines) == said
            assert all("multiply the pixels by 16" in line for line in lines)


# Errors of `datasets`


def test_a_broken_table_is_named_with_the_cause(tmp_path, load):
    parquet(tmp_path / "p" / "a.parquet", [1])
    (tmp_path / "p" / "b.parquet").write_bytes(b"no table at all")
    with pytest.raises(ValueError, match=r"could not be loaded: .*(magic bytes|footer).*'b\.parquet'"):
        load(tmp_path / "p")
    parquet(tmp_path / "p" / "b.parquet", [2], [7])
    with pytest.raises(ValueError, match=r"could not be loaded: .*label.*; the file is 'b\.parquet'"):
        load(tmp_path / "p")


def test_the_cause_of_an_error_of_the_hub_is_shown(tmp_path, monkeypatch):
    def fail(*args, **options):
        try:
            raise ConnectionResetError("the proxy hung up")
        except ConnectionResetError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"'a/b' could not be loaded .*: the proxy hung up"):
        load_images(DataConfig(dataset_name="a/b", cache_dir=str(tmp_path)))


# Images to score


def scored_levels(folder):
    images = open_images(str(folder))
    return images.read(range(len(images))).float().mean((1, 2, 3)).round().int().tolist()


def test_images_to_score_are_read_from_sub_folders(tmp_path):
    folder = tmp_path / "photos[1]"
    grey(tmp_path / "photos1", 200)
    grey(folder, 10, 20)
    grey(folder / "more" / "deep", 30, suffix=".PNG")
    for index, suffix in enumerate((".bmp", ".tif", ".pgm", ".tga", ".sgi", ".pcx", ".apng", ".dib")):
        picture(folder / "more" / f"{suffix[1:]}{suffix}", 40 + index)
    (folder / "._0.png").write_bytes(b"Mac OS")
    (folder / "0.txt").write_text("a caption")
    picture(folder / ".ipynb_checkpoints" / "0.png", 255)
    picture(folder / "__MACOSX" / "0.png", 255)
    make_run(folder / "run1", "config.yaml", "run.json")
    assert sorted(scored_levels(folder)) == [10, 20, 30, *range(40, 48)]


def test_the_order_of_images_to_score_is_that_of_their_names(tmp_path):
    grey(tmp_path / "p", *range(12))
    assert scored_levels(tmp_path / "p") == [0, 1, 10, 11, *range(2, 10)]


LOSSY = ["a.jpg", "a.jfif", "a.webp", "a.avif", "a.jp2", "deep/a.jpeg", "a.heic", "a.gif"]


@pytest.mark.parametrize("name", LOSSY)
def test_images_to_score_must_be_lossless(tmp_path, name):
    grey(tmp_path / "p", 1)
    (tmp_path / "p" / "deep").mkdir()
    if name.endswith("heic"):
        (tmp_path / "p" / name).write_bytes(b"x")
    else:
        Image.new("L", (8, 8), 2).save(tmp_path / "p" / name)
    with pytest.raises(ValueError, match=rf"{name} is .*save samples as PNG"):
        scored_levels(tmp_path / "p")


def test_lossy_coding_under_another_name_is_seen(tmp_path):
    grey(tmp_path / "p", 1)
    Image.new("L", (8, 8), 2).save(tmp_path / "p" / "a.png", "jpeg")
    with pytest.raises(ValueError, match=r"a\.png is JPEG.*save samples as PNG"):
        scored_levels(tmp_path / "p")
    (tmp_path / "p" / "a.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "a.tif", compression="jpeg")
    with pytest.raises(ValueError, match=r"a\.tif is jpeg.*save samples as PNG"):
        scored_levels(tmp_path / "p")


def test_pixels_to_score_are_8_bits_and_opaque(tmp_path):
    grey(tmp_path / "p", 1)
    deep = np.full((8, 8, 3), 40000)
    key = struct.pack(">HHH", 1, 2, 3)
    for data in (png(deep, key, 2), png(np.zeros((8, 8), int), struct.pack(">H", 0), 0, 4)):
        (tmp_path / "p" / "a.png").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.png is .*; images must be opaque 8-bit grey or RGB"):
            scored_levels(tmp_path / "p")
    frames = [Image.new("L", (8, 8), level) for level in (1, 2)]
    frames[0].save(tmp_path / "p" / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"a\.png holds several pictures"):
        scored_levels(tmp_path / "p")
