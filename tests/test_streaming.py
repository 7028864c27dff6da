"""Shards that are read while a model trains: each image once an epoch on one process, resumed exactly."""

import io
import itertools
import json
import random
import re
import signal
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from entry import run, start
from PIL import Image
from test_data import png, table
from test_distributed import reports
from test_train_unconditional import SCRIPT, assert_same, weights

from trilemma import load_images as load_for_a_script
from trilemma.training.images.batches import Order
from trilemma.training.images.image_set import load_images, to_float
from trilemma.training.images.shards.batches import MOST_BAD, Place, ShardReader, shard_batches
from trilemma.training.images.shards.source import open_shards
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import DataConfig

SIZES = (5, 1, 4, 3, 2)
"""Images of each shard."""
KINDS = ("tar", "parquet")


def picture(number):
    """8x8 grey, another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


def write(folder, kind, sizes=SIZES, split="train", first=0, image=lambda number: png(picture(number))):
    """Shards of pictures first, first + 1, ..., the label of each its number modulo 3."""
    folder.mkdir(exist_ok=True)
    numbers = itertools.count(first)
    for shard, size in enumerate(sizes):
        mine = list(itertools.islice(numbers, size))
        path = folder / f"{split}-{shard:05d}.{kind}"
        if kind == "tar":
            named = [(f"{n:06d}.{end}", n, end) for n in mine for end in ("png", "cls")]
            tar(path, {name: image(n) if end == "png" else b"%d" % (n % 3) for name, n, end in named})
        else:
            table([image(n) for n in mine], [n % 3 for n in mine]).to_parquet(path)
    return folder


@pytest.fixture
def configure(tmp_path):
    """DataConfig of a stream of `write`'s folder, with its cache in the test's own folder."""

    def make(folder, **options):
        options = {"num_classes": 3 if list(folder.glob("*.tar")) else None, **options}
        return DataConfig(
            train_data_dir=str(folder), cache_dir=str(tmp_path / "cache"), streaming=True, **options
        )

    return make


def reader(config, order, place=None):
    return ShardReader(config, load_images(config), order, place or Place())


def numbers(pixels):
    """Which pictures these are."""
    known = {picture(number).tobytes(): number for number in range(sum(SIZES))}
    return [known[image.numpy().tobytes()] for image in pixels[:, 0]]


def epochs(config, rank=0, world=1, seed=0, wanted=2):
    """The pictures of the first epochs of a process, in order, one list an epoch; labels are checked."""
    lists = [[] for _ in range(wanted)]
    for pixels, labels, (epoch, *_) in reader(config, Order(1, seed, rank, world)):
        if epoch == wanted:
            return lists
        (number,) = numbers(pixels)
        assert labels.tolist() == [number % 3]
        lists[epoch].append(number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_image_is_on_one_process_in_every_epoch(tmp_path, configure, kind, world):
    config = configure(write(tmp_path / "shards", kind), shuffle_buffer=4)
    of_all = [epochs(config, rank, world) for rank in range(world)]
    for epoch in range(2):
        seen = [number for lists in of_all for number in lists[epoch]]
        assert sorted(seen) == list(range(sum(SIZES)))
    assert of_all[0][0] != of_all[0][1]


def test_order_is_a_function_of_the_seed_and_blocks_are_of_consecutive_images(tmp_path, configure):
    folder = write(tmp_path / "shards", "tar")
    as_they_lie, shuffled = (configure(folder, shuffle_buffer=size) for size in (1, 100))
    (plain,), (mixed,) = epochs(as_they_lie, wanted=1), epochs(shuffled, wanted=1)
    firsts = np.cumsum((0, *SIZES[:-1]))
    shards = [list(range(first, first + size)) for first, size in zip(firsts, SIZES, strict=True)]
    order = [
        next(s for s in range(len(SIZES)) if shards[s][0] == number) for number in plain if number in firsts
    ]
    assert plain == [number for s in order for number in shards[s]]
    assert sorted(mixed) == sorted(plain)
    assert mixed != plain
    assert epochs(shuffled, wanted=1) == [mixed]
    assert epochs(shuffled, seed=1, wanted=1) != [mixed]
    (blocks,) = epochs(configure(folder, shuffle_buffer=4), wanted=1)
    for start_of_block in range(0, len(plain), 4):
        block = slice(start_of_block, start_of_block + 4)
        assert sorted(blocks[block]) == sorted(plain[block])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_where_it_was(tmp_path, configure, kind):
    config = configure(write(tmp_path / "shards", kind), shuffle_buffer=4, random_flip=True)
    images, order = load_images(config), Order(3, 7, 1, 2)

    def batches(place, start=0):
        return shard_batches(config, images, order, place, torch.device("cpu"))(start)

    place, uncut, places = Place(), [], []
    for x0, labels in itertools.islice(batches(place), 12):
        uncut.append((x0, labels))
        places.append(place.state())
    assert places[-1][0] > 1
    for k in range(1, 11):
        resumed = Place()
        resumed.go_to(json.loads(json.dumps(places[k - 1])))
        for (x0, labels), (again, labels_again) in zip(uncut[k:], batches(resumed, k), strict=False):
            assert torch.equal(x0, again)
            assert torch.equal(labels, labels_again)
        assert resumed.state() in places
    with pytest.raises(ValueError, match="is not a position in a stream"):
        Place().go_to([1, 2, -3, 4])


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_that_read_give_the_same_batches(tmp_path, configure, workers):
    folder = write(tmp_path / "shards", "tar")
    images, order, seen = load_images(configure(folder)), Order(4, 0), []
    for number in (0, workers):
        config, place = configure(folder, shuffle_buffer=6, dataloader_num_workers=number), Place()
        stream = shard_batches(config, images, order, place, torch.device("cpu"))(0)
        seen.append(
            [(x0.sum().item(), labels.tolist(), place.state()) for x0, labels in itertools.islice(stream, 6)]
        )
    assert seen[0] == seen[1]


def test_first_images_stand_for_a_stream(tmp_path, configure):
    folder = write(tmp_path / "shards", "parquet")
    head = load_images(configure(folder, stream_head=7))
    assert (len(head), head.channels, head.resolution, head.whole) == (7, 1, 8, False)
    assert head.class_names == ("airplane", "bird", "cat")
    assert head.labels.tolist() == [n % 3 for n in range(7)]
    assert numbers(head.__getitems__(range(7))[0]) == list(range(7))
    tars = load_images(configure(write(tmp_path / "tars", "tar"), resolution=4, channels=3))
    assert (len(tars), tars.channels, tars.resolution) == (sum(SIZES), 3, 4)
    assert tars.class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="--streaming has no images to load"):
        load_for_a_script(str(folder), streaming=True)


def test_a_data_set_of_the_hub_is_streamed(tmp_path, monkeypatch):
    asked = {}

    def load_dataset(name, config_name, **options):
        asked.update(options, name=name, config_name=config_name)
        return {"train": table([picture(n) for n in range(8)], [0, 1] * 4).to_iterable_dataset(num_shards=4)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(
        dataset_name="user/data", dataset_config_name="small", dataset_revision="v1", streaming=True
    )
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path))
    images = load_images(config)
    assert asked == {
        "name": "user/data", "config_name": "small", "revision": "v1", "streaming": True, "cache_dir": None,
        "keep_in_memory": False,
    }  # fmt: skip
    batches = itertools.islice(ShardReader(config, images, Order(4, 0), Place()), 2)
    assert sorted(n for pixels, *_ in batches for n in numbers(pixels)) == list(range(8))


def test_another_head_is_other_data(tmp_path, configure):
    one, other = (write(tmp_path / name, "tar", first=first) for name, first in (("a", 0), ("b", 1)))
    assert load_images(configure(one)).fingerprint != load_images(configure(other)).fingerprint
    assert load_images(configure(one)).fingerprint == load_images(configure(one)).fingerprint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_epochs 3", "--streaming needs --max_train_steps"),
        ("--classes 1", "--classes is not offered with --streaming"),
        ("--max_train_images 5", "--max_train_images is not offered with --streaming"),
        ("--save_images_epochs 1", "--save_images_epochs is not offered .* give --sample_steps"),
        ("--save_model_epochs 1", "--save_model_epochs is not offered with --streaming"),
        ("--minutes 1", "--minutes is not offered with --streaming"),
        ("--validation_size 4", "--validation_size 4 would be taken from images that --streaming trains on"),
        ("--validation_split x --validation_size 4 --stream_head 3", "must be at most --stream_head, 3"),
    ],
)
def test_what_needs_all_images_is_refused(tmp_path, capsys, flags, message):
    length = [] if "epochs 3" in flags else ["--max_train_steps", "9"]
    with pytest.raises(SystemExit):
        parse(
            "unconditional", "", ["--train_data_dir", str(tmp_path), "--streaming", *length, *flags.split()]
        )
    assert re.search(message, capsys.readouterr().err)


def test_flags_of_streams_need_streaming(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("unconditional", "", ["--train_data_dir", str(tmp_path), "--shuffle_buffer", "5"])
    assert "--shuffle_buffer has no effect without --streaming" in capsys.readouterr().err


def test_data_that_cannot_be_streamed_name_the_remedy(tmp_path, configure):
    folder = write(tmp_path / "shards", "tar")
    with pytest.raises(ValueError, match="--streaming needs --num_classes: the labels of shards"):
        load_images(configure(folder, num_classes=None))
    assert load_images(configure(folder, num_classes=None, label_column="none")).labels is None
    with pytest.raises(
        ValueError, match=r"needs at least one shard for each process: .* has 5, .* 6 processes"
    ):
        reader(configure(folder), Order(1, 0, 0, 6))
    with pytest.raises(ValueError, match=r"--num_classes must be 3, as parquet says, or be left out; got 4"):
        load_images(configure(write(tmp_path / "parquet", "parquet"), num_classes=4))
    with pytest.raises(ValueError, match=r"no split 'test' .* it has train"):
        load_images(configure(folder, train_split="test"))
    with pytest.raises(ValueError, match="digits is embedded"):
        load_images(DataConfig(dataset_name="digits", streaming=True))
    (tmp_path / "files").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "files" / "0.png")
    with pytest.raises(ValueError, match=r"has no parquet, Arrow or \.tar files"):
        load_images(configure(tmp_path / "files"))
    (tmp_path / "named").mkdir()
    columns = pyarrow.Table.from_pylist([{"image": {"bytes": None, "path": "0.png"}}])
    pyarrow.parquet.write_table(columns, tmp_path / "named" / "x.parquet")
    with pytest.raises(ValueError, match=r"names a file, '0\.png': leave out --streaming"):
        load_images(configure(tmp_path / "named"))
    tar(folder / "train-00001.tar", {"a.png": png(picture(0))})
    (tmp_path / "shards" / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds both tables and archives"):
        load_images(configure(folder))


def after_the_head(config, batch=1):
    """What reading an epoch gives, where the head is the first two images."""
    return list(itertools.islice(reader(config, Order(batch, 0)), sum(SIZES)))


def test_bad_images_and_labels_are_named(tmp_path, configure, caplog):
    def image(number):
        return b"junk" if number == 7 else png(picture(number))

    folder = write(tmp_path / "shards", "tar", image=image)
    problem = after_the_head(configure(folder, stream_head=2))[-1]
    assert isinstance(problem, ValueError)
    assert "shards, split 'train', 000007.png: not an image" in str(problem)
    assert "--skip_bad_images" in str(problem)
    (seen,) = epochs(configure(folder, stream_head=2, skip_bad_images=True), wanted=1)
    assert sorted(seen) == [n for n in range(sum(SIZES)) if n != 7]
    assert "000007.png: not an image" in caplog.text
    assert MOST_BAD > 1
    wrong = configure(folder, stream_head=2, num_classes=2, skip_bad_images=True)
    assert "has the label 2, and the classes are 0..1" in str(after_the_head(wrong)[-1])


def test_an_image_of_another_size_is_named(tmp_path, configure):
    def image(number):
        return png(picture(number)[: 8 - number // 10, : 8 - number // 10])

    folder = write(tmp_path / "shards", "tar", image=image)
    problem = after_the_head(configure(folder, stream_head=2))[-1]
    assert "is 7x7 and others are 8x8; pass --resolution" in str(problem)
    assert len(after_the_head(configure(folder, stream_head=2, resolution=8))) == sum(SIZES)


def test_a_damaged_shard_ends_the_stream_with_one_line(tmp_path, configure):
    folder = write(tmp_path / "shards", "parquet")
    config = configure(folder, stream_head=2)
    reading = reader(config, Order(1, 0))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    problem = list(itertools.islice(reading, 5))[-1]
    assert "shards could not be read any further: " in str(problem)
    assert "run the same command again" in str(problem)


@pytest.mark.parametrize("left", [700, 600, 0])
def test_an_archive_that_is_cut_is_refused_before_it_is_read(tmp_path, configure, left):
    """Also between two files, where readers take what is left for a whole archive."""
    folder = write(tmp_path / "shards", "tar")
    first = next(iter(sorted(folder.iterdir())))
    with tarfile.open(first) as archive:
        second = archive.getmembers()[1].offset
    first.write_bytes(first.read_bytes()[: second + left])
    with pytest.raises(ValueError, match=f"'{first.name}' is cut: its end is missing; copy it again"):
        open_shards(configure(folder), "train")


def flags_of(folder, tiny):
    write(folder, "tar")
    write(folder, "tar", (6,), "validation", 100)
    return [
        *tiny, "--train_data_dir", str(folder), "--streaming", "--num_classes", "3", "--shuffle_buffer", "4",
        "--validation_split", "validation", "--validation_size", "5", "--stream_head", "6",
        "--lr_scheduler", "constant", "--lr_warmup_steps", "0",
    ]  # fmt: skip


@pytest.mark.long
def test_a_training_that_is_killed_ends_with_the_same_weights(tmp_path, tiny):
    flags = flags_of(tmp_path / "shards", tiny)
    flags += ["--max_train_steps", "12", "--checkpointing_steps", "3", "--random_flip"]
    flags += ["--gradient_accumulation_steps", "2", "--train_batch_size", "3"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut = tmp_path / "cut"
    step = random.Random(0).randrange(4, 12)
    killed = start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(step, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    resumed = run(SCRIPT, *flags, "--output_dir", str(cut))
    assert "Resuming from" in resumed.output
    assert "a stream of shards (8x8 grey)" in resumed.output
    assert_same(weights(tmp_path / "uncut"), weights(cut))
    assert parse("unconditional", "", ["--config", str(cut / "config.yaml")]).data.streaming


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_share_an_epoch_and_resume_in_it(tmp_path, tiny, configure):
    folder = tmp_path / "shards"
    flags = [*flags_of(folder, tiny), "--train_batch_size", "1", "--checkpointing_steps", "100"]
    first = reports(tmp_path, 2, *flags, "--max_train_steps", "4")
    second = reports(tmp_path, 2, *flags, "--max_train_steps", "11")
    assert second[0]["weights"] == second[1]["weights"]
    config = configure(folder, shuffle_buffer=4)
    for rank in range(2):
        expected = list(itertools.islice(reader(config, Order(1, 0, rank, 2)), 11))
        sums = [float(to_float(pixels).double().sum()) for pixels, *_ in expected]
        assert first[rank]["x0"] + second[rank]["x0"] == sums
    assert not set(first[0]["x0"]) & set(first[1]["x0"])
