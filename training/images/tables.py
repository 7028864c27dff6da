"""Tables of the Hub, or of a local folder: parquet and Arrow files, and metadata files beside images.

What `datasets` would look up by pattern is given to it as a list of files, so that names are taken literally,
and with the size, the times and the inode of each file, so that its cache never serves rows of a file that
has been replaced.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trilemma.pipelines.files.names import below
from trilemma.pipelines.files.reading import FileError, parse_yaml, read_text
from trilemma.training.images.columns import is_image
from trilemma.training.images.folders import TABLES, Listing, file_mark, splits_of, suffix_of
from trilemma.training.options.groups import DataConfig

logger = logging.getLogger(__name__)

ARCHIVE = ".tar"
BUILDERS = {**TABLES, ARCHIVE: "webdataset"}
"""Suffix of a file of rows -> the reader of `datasets`."""

Tables = Mapping[str, Any]
"""Split -> `datasets.Dataset`."""


def innermost(error: BaseException) -> str:
    """What the first error of a chain says, on one line; `datasets` often says only that something failed."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def load_hub(config: DataConfig, streaming: bool = False) -> Tables:
    """Split -> table of the data set of the Hub of `--dataset_name`; streaming: as in `load_tables`."""
    import datasets
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = config.dataset_name
    try:
        validate_repo_id(name)
    except HFValidationError:
        if not Path(name).exists():
            what = "there is no such folder, and an id of the Hub is owner/name"
            raise ValueError(f"--dataset_name '{name}': {what}") from None
    try:
        # A table in memory has no cache file that would identify its contents.
        return datasets.load_dataset(
            name,
            config.dataset_config_name,
            revision=config.dataset_revision,
            cache_dir=config.cache_dir,
            keep_in_memory=False,
            streaming=streaming,
        )
    except Exception as error:  # whatever its readers and the network raise
        hint = "(see also --dataset_config_name and --dataset_revision)"
        raise ValueError(f"--dataset_name '{name}' could not be loaded {hint}: {innermost(error)}") from error


def load_tables(
    listing: Listing,
    splits: Mapping[str, Sequence[str]],
    features,
    place: str,
    cache_dir: str | None,
    streaming: bool = False,
) -> Tables:
    """Split -> table of the rows of its parquet or Arrow files; features: None for those of the files.

    streaming: split -> `datasets.IterableDataset`, also of WebDataset archives.
    """
    import datasets

    paths = [path for part in splits.values() for path in part]
    builders = sorted({BUILDERS[suffix_of(path)] for path in paths})
    if len(builders) > 1:
        raise ValueError(f"{place} holds both {' and '.join(builders)} files; put one kind elsewhere")
    root = listing.folder.resolve()
    if "::" in str(root) + "".join(paths):
        raise ValueError(
            f"{place}: `datasets` reads no tables from paths with '::'; rename the folder or file"
        )
    files = {
        split: datasets.data_files.DataFilesList(
            [(root / path).as_posix() for path in part], [(file_mark(root / path),) for path in part]
        )
        for split, part in splits.items()
    }
    try:
        return datasets.load_dataset(
            builders[0],
            data_files=files,
            features=features,
            cache_dir=cache_dir,
            keep_in_memory=False,
            streaming=streaming,
        )
    except Exception as error:  # whatever its readers raise
        bad = _unreadable(root, [path for path in paths if suffix_of(path) in TABLES])
        where = f"; the file is '{bad}'" if bad else ""
        raise ValueError(f"{place} could not be loaded: {innermost(error)}{where}") from error


def _unreadable(root: Path, paths: Sequence[str]) -> str | None:
    """The first file that has no schema, or other columns than the first file."""
    first = None
    for path in paths:
        try:
            names = set(_schema(root / path).names)
        except Exception:  # whatever Arrow raises for a damaged file
            return path
        if names != (first := first or names):
            return path
    return None


def _schema(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if suffix_of(path.name) == ".parquet":
        return pq.read_schema(path)
    with open(path, "rb") as file:
        try:
            return pa.ipc.open_stream(file).schema
        except (OSError, pa.ArrowInvalid):
            return pa.ipc.open_file(file).schema


def holds_images(path: Path) -> bool:
    """Whether a table has a column of images, or cannot be looked at."""
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(_schema(path))
    except Exception:  # whatever Arrow and `datasets` raise for a damaged file, which is read and named later
        return True
    return any(is_image(feature) for feature in features.values())


# What a README of the Hub's format says


def declared(
    listing: Listing, config_name: str | None, place: str
) -> tuple[dict[str, list[str]], Any] | None:
    """(split -> files, features or None) as the folder's README.md has them; None where it has none."""
    readme = listing.folder / "README.md"
    header = _header(readme)
    configs = header.get("configs") if isinstance(header.get("configs"), list) else []
    configs = [c for c in configs if isinstance(c, dict) and "config_name" in c]
    if not configs:
        return None
    names = [str(c["config_name"]) for c in configs]
    usual = [str(c["config_name"]) for c in configs if c.get("default") or c["config_name"] == "default"]
    name = config_name or (usual or names)[0]
    if name not in names or (len(names) > 1 and not (config_name or usual)):
        raise ValueError(
            f"{place} has the configurations {', '.join(names)}; choose one: pass the folder as "
            "--dataset_name, with --dataset_config_name"
        )
    try:
        splits = _files_of(configs[names.index(name)], [*listing.tables, *listing.images, *listing.metadata])
        features = _features(header, name)
    except Exception as error:  # what `datasets` makes of entries of other types
        raise FileError(readme, f"describes '{name}' wrongly: {innermost(error)}") from error
    if not splits:
        raise ValueError(f"{place}: the files that README.md names for '{name}' are not there")
    return splits, features


def _header(readme: Path) -> dict[str, Any]:
    """The YAML at the top of a README; empty where there is none, or none that can be read."""
    try:
        match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", read_text(readme), re.DOTALL)
        values = parse_yaml(match[1], readme) if match else {}
    except FileError as fault:
        if readme.exists():
            logger.warning("%s; it is passed over", fault)
        return {}
    return values if isinstance(values, dict) else {}


def _files_of(config: Mapping[str, Any], paths: Sequence[str]) -> dict[str, list[str]]:
    from datasets.data_files import sanitize_patterns
    from fsspec.utils import glob_translate

    root = str(config.get("data_dir") or "").strip("/")
    prefix = f"{root}/" if root else ""
    inside = {path.removeprefix(prefix): path for path in paths if path.startswith(prefix)}
    if config.get("data_files") is None:
        return {s: [inside[path] for path in part] for s, part in splits_of(list(inside)).items()}
    splits: dict[str, list[str]] = {}
    for split, patterns in sanitize_patterns(config["data_files"]).items():
        regexes = [re.compile(glob_translate(pattern.removeprefix("./"))) for pattern in patterns]
        part = [path for regex in regexes for path in sorted(inside) if regex.match(path)]
        if part:
            splits[split] = [inside[path] for path in dict.fromkeys(part)]
    return splits


def _features(header: Mapping[str, Any], name: str):
    from datasets.info import DatasetInfosDict

    infos = DatasetInfosDict.from_dataset_card_data(header)
    return infos[name].features if name in infos else None


# Metadata beside images


def metadata_tables(splits: Mapping[str, Sequence[str]], listing: Listing, place: str) -> Tables:
    """Split -> its images and their columns, a row for each line; image columns hold paths in the folder."""
    tables = {}
    for split, paths in splits.items():
        metadata = sorted(set(paths).intersection(listing.metadata))
        if metadata:
            parts = [_read_metadata(listing.folder, path, place) for path in metadata]
            tables[split] = _joined(parts, metadata, place)
            _check_described(tables[split], paths, metadata, listing, place)
        else:
            logger.warning("%s: split '%s' has no metadata file, and is left out", place, split)
    return tables


def _read_metadata(folder: Path, path: str, place: str):
    """One metadata file as a `datasets.Dataset`."""
    import datasets
    import pandas
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    file = folder / path
    try:
        if suffix_of(path) == ".csv":
            table = pa.Table.from_pandas(pandas.read_csv(file, encoding="utf-8-sig"), preserve_index=False)
        elif suffix_of(path) == ".jsonl":
            blocks = pa.json.ReadOptions(block_size=max(file.stat().st_size, 1) + 1)
            table = pa.json.read_json(file, blocks)
        else:
            table = pa.parquet.read_table(file)
        features = dict(datasets.Features.from_arrow_schema(table.schema))
    except Exception as error:  # whatever these readers raise for a damaged file
        raise ValueError(f"{place}: {path} cannot be read: {innermost(error)}") from error
    names = [name for name in features if name == "file_name" or name.endswith("_file_name")]
    if not names:
        raise ValueError(
            f"{place}: {path} has no column file_name, which says which image a row describes; add it, or "
            "give the file another name"
        )
    columns = {name: table.column(name) for name in features}
    for name in names:
        image = name.removesuffix("file_name").removesuffix("_") or "image"
        places = [_inside(path, value, file) for value in columns.pop(name).to_pylist()]
        rows = [None if p is None else {"bytes": None, "path": p} for p in places]
        columns[image] = pa.array(rows, datasets.Image().pa_type)
        del features[name]
        features[image] = datasets.Image()
    columns = {name: columns[name] for name in features}
    return datasets.Dataset(pa.table(columns, schema=datasets.Features(features).arrow_schema))


def _inside(metadata: str, name: str | None, file: Path) -> str | None:
    """Path in the folder of a file that a metadata file names; it must lie below that metadata file."""
    return None if name is None else below(Path(metadata).parent, str(name), file).as_posix()


def _joined(parts: Sequence, metadata: Sequence[str], place: str):
    import datasets

    for part, path in zip(parts, metadata, strict=True):
        if part.features != parts[0].features:
            raise ValueError(f"{place}: {path} and {metadata[0]} have columns of other names or types")
    return datasets.concatenate_datasets(list(parts)) if len(parts) > 1 else parts[0]


def _check_described(
    table, paths: Sequence[str], metadata: Sequence[str], listing: Listing, place: str
) -> None:
    """ValueError that names an image of the split which no metadata file describes."""
    described: set[str] = set()
    for name, feature in table.features.items():
        if is_image(feature):
            described |= {row["path"] for row in table.data.column(name).to_pylist() if row}
    images = set(paths).intersection(listing.images)
    left = sorted(images - described)
    if left:
        raise ValueError(
            f"{place}: {len(left)} of {len(images)} images, such as '{left[0]}', are in no row of "
            f"{', '.join(metadata)}; add them, move them away, or delete the file"
        )
