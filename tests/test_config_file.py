"""`--config`: every value is read as if it had been typed, and what is written reads back the same."""

import random
import string
import time
import types
from dataclasses import replace

import pytest

from trilemma.pipelines.files.reading import read_yaml
from trilemma.training import families
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import dump, flatten, to_yaml
from trilemma.training.options.parser import Parser


@pytest.fixture
def config(tmp_path):
    """Parse a file of this text."""

    def read(text, *flags, family="class_conditional"):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return types.SimpleNamespace(**flatten(parse(family, "", ["--config", str(path), *flags])))

    return read


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("train_batch_size: 010", "train_batch_size", 10),
        ("train_batch_size: 1_000", "train_batch_size", 1000),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 1.0e-04", "learning_rate", 1e-4),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("dataset_name: a/b\ndataset_revision: 0123456", "dataset_revision", "0123456"),
        ("dataset_name: a/b\ndataset_revision: 2024-01-01", "dataset_revision", "2024-01-01"),
        ("dataset_name: a/b\ndataset_revision: 1e5", "dataset_revision", "1e5"),
        ("dataset_name: a/b\ndataset_config_name: 1:30", "dataset_config_name", "1:30"),
        ("push_to_hub: true\nhub_tag: 1.10", "hub_tag", "1.10"),
        ("dataset_name: 0o17", "dataset_name", "0o17"),
        ("dataset_name: no", "dataset_name", "no"),
        ("dataset_name: 'null'", "dataset_name", "null"),
        ("dataset_name: null\ntrain_data_dir: p", "dataset_name", None),
        ("dataset_name:\ntrain_data_dir: p", "dataset_name", None),
        ("classes: [01, no, yes, on, null, 1.10, 007]", "classes",
         ("01", "no", "yes", "on", "null", "1.10", "007")),
        ("classes:\n- 'a b'\n- größe", "classes", ("a b", "größe")),
        ("lr_scheduler: multistep\nlr_milestones: [010, 20]", "lr_milestones", (10, 20)),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("random_flip: yes", "random_flip", True),
        ("random_flip: True", "random_flip", True),
        ("use_ema: off", "use_ema", False),
        ("channels: 3", "channels", 3),
    ],
)  # fmt: skip
def test_values_are_what_they_would_be_on_a_command_line(config, text, name, value):
    read = getattr(config(text), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_train_steps: 2.7", ["max_train_steps must be int", "'2.7'"]),
        ("max_train_steps: 2.0", ["max_train_steps must be int"]),
        ("max_train_steps: 1:30", ["max_train_steps must be int", "'1:30'"]),
        ("max_train_steps: yes", ["max_train_steps must be int", "'yes'"]),
        ("max_train_steps: 0x10", ["max_train_steps must be int"]),
        ("max_train_steps: [5]", ["max_train_steps must be int", "['5']"]),
        ("seed: null", ["seed must be int", "null"]),
        ("learning_rate: .nan", ["learning_rate must be float"]),
        ("learning_rate: nan", ["learning_rate", "finite"]),
        ("random_flip: 1", ["random_flip must be bool", "'1'"]),
        ("random_flip:", ["random_flip must be bool", "null"]),
        ("classes: cat", ["classes must be a list of str", "'cat'"]),
        ("classes: []", ["classes must be a list of str"]),
        ("classes: [[a]]", ["line 1", "a value must be"]),
        ("classes: {a: b}", ["line 1", "a value must be"]),
        ("mixed_precision: false", ["mixed_precision must be one of no, fp16, bf16", "'false'"]),
        ("learning_rate: 1e-4\nseed: 1\nlearning_rate: 1e-3", ["'learning_rate' twice, in lines 1 and 3"]),
        ("'seed': 1\nseed: 1", ["'seed' twice"]),
        ("seed: !!int '3'", ["tags are not supported"]),
        ("seed: !!python/object/apply:os.system [echo]", ["must be int"]),
        ("? [a]\n: 1", ["a value must be"]),
        ("no: 3", ["unknown option 'no'"]),
        ("learning_rats: 3", ["Did you mean learning_rate?"]),
        ("", ["must map option names to values", "nothing"]),
        ("- a", ["must map option names to values", "a list"]),
        ("a: 1\n---\nb: 2", ["one document"]),
        ("seed: &a 1\nmax_train_steps: *a", ["a value must be"]),
        ("<<: {seed: 1}", ["a value must be"]),
        ("a: [1", ["cannot be read"]),
        ("seed: 1\n\tx: 2", ["cannot be read", "line 2"]),
        (b"dataset_name: \xff\xfe", ["is not text in UTF-8"]),
        ("seed: 1\n# " + "x" * 1_100_000, ["cannot be read", "1,000,000 bytes"]),
        ("classes: " + "[" * 200_000, ["a value must be"]),
        ("".join(f"{' ' * i}a:\n" for i in range(900)), ["a value must be"]),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)),
         ["a value must be"]),
    ],
)  # fmt: skip
def test_what_no_command_line_would_accept_is_refused_in_one_line(config, capsys, text, words):
    began = time.perf_counter()
    with pytest.raises(SystemExit) as end:
        config(text)
    assert time.perf_counter() - began < 20
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message


def test_files_are_utf_8_with_or_without_a_byte_order_mark(config):
    for text in ("dataset_name: größe/日本", "\ufeffdataset_name: größe/日本"):
        assert config(text.encode()).dataset_name == "größe/日本"


def test_the_command_line_wins(config):
    assert config("seed: 3\ndataset_name: a/b", "--seed", "5").seed == 5


WORDS = (
    "no", "null", "~", "1.10", "0123456", "01", "1:30", "1e5", ".inf", "true", "größe", "日本 🙂", "a: b",
    "# x", "- x", "'", '"', " a", "a ", "two  spaces " * 20, "line\nbreak", "\t", "&a", "*a", "!a", "{a}",
    "=", "<<", "2024-01-01", "0o7", "\\", "%", "@", "\udcc3", "",
)  # fmt: skip


def random_value(flag, source):
    """A value that the flag can have."""
    if flag.many:
        one = replace(flag, many=False)
        return tuple(random_value(one, source) for _ in range(source.randint(1, 4)))
    if flag.choices:
        return source.choice(flag.choices)
    if flag.kind is bool:
        return source.random() < 0.5
    if flag.kind is int:
        return source.choice((0, 1, source.randint(1, 2**40)))
    if flag.kind is float:
        return source.choice((0.1, 1e-300, 1e22, 10.0 ** source.randint(-20, 20) * source.random()))
    letters = string.printable + "äß日🙂"
    return source.choice((*WORDS, "".join(source.choices(letters, k=source.randint(1, 30)))))


@pytest.mark.parametrize("family", families.names())
def test_every_value_of_every_option_reads_back_the_same(tmp_path, family):
    """Also by the reader of our own files, which takes YAML's types."""
    source, path = random.Random(family), tmp_path / "config.yaml"
    parser = Parser(families.family(family).config, "")
    for _ in range(12):
        values = {name: random_value(flag, source) for name, flag in parser.flags.items()}
        unset = [name for name, flag in parser.flags.items() if flag.field.default is None]
        values |= dict.fromkeys(source.sample(unset, 3))
        path.write_text(dump(values), encoding="utf-8")
        assert parser.read_file(str(path)) == values
        types_of_yaml = {k: tuple(v) if isinstance(v, list) else v for k, v in read_yaml(path).items()}
        assert types_of_yaml == values


@pytest.mark.parametrize("family", families.names())
def test_the_resolved_configuration_of_every_preset_reads_back_the_same(tmp_path, family):
    for name in families.family(family).presets:
        resolved = parse(family, "", ["--preset", name])
        (tmp_path / "c.yaml").write_text(to_yaml(resolved), encoding="utf-8")
        assert parse(family, "", ["--config", str(tmp_path / "c.yaml")]) == resolved


def test_a_file_of_an_earlier_version_reads_as_it_did(config):
    text = """
dataset_name: null
train_data_dir: /data/photos
classes:
- '0'
- cat
random_flip: true
lr_warmup_steps: 5000
learning_rate: 0.0002
adam_epsilon: 1.0e-08
mixed_precision: 'no'
max_train_steps: null
eval_metrics:
- fd
"""
    read = config(text)
    assert (read.dataset_name, read.train_data_dir, read.classes) == (None, "/data/photos", ("0", "cat"))
    assert (read.random_flip, read.lr_warmup_steps, read.adam_epsilon) == (True, 5000, 1e-8)
    assert (read.mixed_precision, read.max_train_steps, read.eval_metrics) == ("no", None, ("fd",))
