"""The readers of text, JSON, YAML and arrays: the right value, or one line that names the file."""

import json
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import yaml

from trilemma.pipelines.files.arrays import open_npy, read_npz, read_safetensors, tensor_shapes
from trilemma.pipelines.files.reading import (
    LARGEST_LINE,
    FileError,
    check_types,
    fits,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
)

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(10 * ['*' + chr(97 + i)])}]\n" for i in range(8)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join(10 * [f'*a{i - 1}'])}], k{i}: 1}}\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"5", b'"x"', b"true", b"{", b'{"a": 1', b"[" * 100_000, b'{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00", '{"a": "é"}'.encode("latin-1"), '{"a": 1}'.encode("utf-16"), b"\x00" * 50,
        b'{"a": 1e999}', b'{"a": 1%s}' % (b"0" * 400), b'{"a": 1%s}' % (b"0" * 9000), b"{'a': 1}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"run\.json") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_json_with_a_byte_order_mark_and_other_shapes(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "é", "b": NaN}'.encode())
    assert read_json(path)["a"] == "é"
    path.write_text("[1, 2.5, -3]")
    assert read_json(path, list) == [1, 2.5, -3]
    with pytest.raises(FileError, match="must hold an object in JSON; it holds a list; delete it"):
        read_json(path, remedy="delete it")


def test_size_is_bounded(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 1001)
    with pytest.raises(FileError, match=r"more than 1,000 bytes"):
        read_text(tmp_path / "big", 1000)
    for place in (tmp_path, tmp_path / "none", "zero\0byte"):
        with pytest.raises(FileError, match="cannot be read"):
            read_text(place)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"a":1}{"a":2}', b" " * (LARGEST_LINE + 1)]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(FileError, match=r"lines\.jsonl, line 3 .*; delete the line$"):
        list(read_json_lines(path))
    faults = []
    if len(line) < LARGEST_LINE:
        assert dict(read_json_lines(path, damaged=faults.append)) == {1: {"a": 1}, 4: {"a": 2}}
        assert len(faults) == 1


def test_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert list(read_json_lines(path)) == []
    path.write_text('{"a": "\u2028"}\n \n{"b": 2}')
    assert dict(read_json_lines(path)) == {1: {"a": "\u2028"}, 3: {"b": 2}}


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "- a", "a", "5", "[" * 50_000, "a: [", "a: !!python/object/apply:os.system [x]",
        "a: !!timestamp x", "a: !!int ''", "a: 2001-99-99", "? [a]\n: b", LAUGHS, MERGES, "a: &a [*a]",
        'a: "\\UFFFFFFFF"', "a: b: c", "a\tb: \x07", "---\na: 1\n---\nb: 1", "a: [" + "1," * 60_000 + "]",
        "x" * 1_000_001, "seed: 1" + ":1" * 200_000, "seed: 0x" + "f" * 6000,
    ],
)  # fmt: skip
def test_what_is_no_yaml_mapping_is_named_in_time(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(FileError, match=r"config\.yaml") as error:
        read_yaml(path)
    assert time.monotonic() - began < 60
    assert "\n" not in str(error.value)


def test_yaml_with_a_few_aliases_is_read(tmp_path):
    text = "a: &x [1, 2]\nb: *x\nc: &y {d: 1}\ne: {<<: *y, f: 2}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


def zipped(path, content, compression=zipfile.ZIP_STORED, name="mu.npy"):
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open(name, "w") as file:
        for part in content:
            file.write(part)


def header(shape, descr="<f8"):
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


@pytest.mark.parametrize(
    "kind", ["promise", "bomb", "pickle", "negative", "deep", "empty", "text", "cut", "twice"]
)
def test_an_npz_that_is_none_is_named_and_takes_no_memory(tmp_path, kind):
    path = tmp_path / "stats.npz"
    if kind == "promise":
        zipped(path, [header((27_000, 27_000))])
    elif kind == "bomb":
        zeros = bytes(2**20)
        zipped(path, [header((200 * 2**17,)), *(zeros for _ in range(200))], zipfile.ZIP_DEFLATED)
    elif kind == "pickle":
        np.savez(path, mu=np.array([{}], dtype=object))
    elif kind == "negative":
        zipped(path, [header((-1, 3))])
    elif kind == "deep":
        zipped(path, [header("(" * 5000)])
    elif kind == "twice":
        zeros = bytes(2**20)
        zipped(path, [header((200 * 2**17,)), *(zeros for _ in range(200))], zipfile.ZIP_DEFLATED, name="mu")
        with zipfile.ZipFile(path, "a") as archive, archive.open("mu.npy", "w") as member:
            np.save(member, np.ones(3))
    elif kind == "empty":
        zipped(path, [b""], name="other.txt")
    else:
        np.savez(path, mu=np.ones(100))
        path.write_bytes(b"mu" if kind == "text" else path.read_bytes()[:-40])
    tracemalloc.start()
    with pytest.raises(FileError, match=r"stats\.npz") as error:
        read_npz(path, ["mu"])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_arrays_that_are_whole_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6, np.uint8), y=np.arange(3))
    assert read_npz(tmp_path / "a.npz", ["y"])["y"].tolist() == [0, 1, 2]
    assert [*read_npz(tmp_path / "a.npz")] == ["x"]
    np.save(tmp_path / "a.npy", np.arange(3))
    assert open_npy(tmp_path / "a.npy").tolist() == [0, 1, 2]
    (tmp_path / "b.npy").write_bytes(header((10**9,)) + bytes(100))
    with pytest.raises(FileError, match=r"b\.npy"):
        open_npy(tmp_path / "b.npy")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", (2**60).to_bytes(8, "little"), (2**63 + 9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]", (10**9).to_bytes(8, "little") + b"{" * 1000,
        (len(h := json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}))
         ).to_bytes(8, "little") + h.encode(),
    ],
)  # fmt: skip
def test_safetensors_with_an_absurd_header_are_named(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    for read in (read_safetensors, tensor_shapes):
        with pytest.raises(FileError, match=r"net\.safetensors"):
            read(path)


def test_types():
    pair, texts = tuple[float, float], tuple[str, ...]
    right = [(1, int), (1, float), (None, int | None), ([1, 2.0], pair), ({"a": "b"}, dict[str, str])]
    wrong = [(True, int), (True, float), (1.5, int), ("1", int), ([1], pair), ([1], texts), ("a", texts)]
    assert all(fits(value, hint) for value, hint in right)
    assert not any(fits(value, hint) for value, hint in wrong)
    with pytest.raises(ValueError, match="has n 'x', which is not an integer or null"):
        check_types({"n": "x"}, {"m": str, "n": int | None})
