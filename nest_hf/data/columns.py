"""Sources that have columns already (parquet, saved, Hub): from their columns to those of the schema."""

import hashlib

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Value

from .manifests import ALIASES, PATH_KEYS, RESERVED, SCHEMA, WORD_SEPARATOR, Origin, made_id


def undecoded(
    dataset: datasets.Dataset | datasets.IterableDataset, *, source: str
) -> datasets.Dataset | datasets.IterableDataset:
    """The same rows with the column `audio` as bytes and path, whatever decoding the features ask for."""
    if dataset.features is None:
        raise ValueError(f"`{source}` does not tell its columns when streamed; load it without `streaming`.")
    key = next((key for key in ("audio", *PATH_KEYS) if key in dataset.features), None)
    if key is None:
        raise ValueError(f"`{source}` has no column `audio`, only {', '.join(dataset.features)}; rename one.")
    if key != "audio":
        dataset = dataset.rename_column(key, "audio")
    return dataset.cast_column("audio", Audio(decode=False))


def extra_columns(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Simple columns beyond the schema, which are kept; `keywords` also where they are lists."""
    scalars = [key for key, kind in dataset.features.items() if isinstance(kind, Value) and "binary" not in kind.dtype]
    if isinstance(dataset.features.get("keywords"), datasets.List):
        scalars.append("keywords")
    return [key for key in scalars if key not in RESERVED]


def schema_columns(table: pa.Table, origin: Origin) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Every column of the schema but `audio`, from what a table has, and `keywords` as text where they are lists."""
    source = origin.source
    columns = {"source": pa.repeat(pa.scalar(source), table.num_rows)}
    for key in ("id", "offset", "duration", "text", "speaker", "domain"):
        dtype = SCHEMA.arrow_schema.field(key).type
        found = next((alias for alias in ALIASES.get(key, (key,)) if alias in table.column_names), None)
        try:
            columns[key] = table.column(found).cast(dtype) if found else pa.nulls(table.num_rows, dtype)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = table.column(found).type
            raise ValueError(f"`{source}`: column `{found}` is {kind} where {dtype} is due; convert it.") from error
    columns["offset"] = pc.fill_null(columns["offset"], 0.0)
    if "keywords" in table.column_names and pa.types.is_list(table.schema.field("keywords").type):
        columns["keywords"] = pc.binary_join(table.column("keywords").cast(pa.list_(pa.string())), WORD_SEPARATOR)
    if origin.domain is not None:
        columns["domain"] = pc.fill_null(columns["domain"], origin.domain)
    if columns["id"].null_count:
        columns["id"] = pa.array(
            made_id(_name_of(audio), offset.as_py(), origin.prefix) if given is None else given
            for given, audio, offset in zip(
                columns["id"].to_pylist(), table.column("audio"), columns["offset"], strict=True
            )
        )
    for key in ("offset", "duration"):
        good = pc.fill_null(pc.and_(pc.greater_equal(columns[key], 0.0), pc.is_finite(columns[key])), True)
        if not pc.all(good, min_count=0).as_py():
            bad = pc.index(good, False).as_py()
            raise ValueError(
                f"`{source}`: row `{columns['id'][bad]}` has `{key}` {columns[key][bad]} where seconds, 0 or more, "
                f"are due; correct or delete it."
            )
    return columns


def to_schema(table: pa.Table, *, extras: list[str], origin: Origin) -> pa.Table:
    """A batch of a streamed source in the schema; `extras` stay as they are."""
    columns = schema_columns(table, origin) | {"audio": table.column("audio")}
    return pa.table(
        {key: columns[key] for key in SCHEMA} | {key: columns.get(key, table.column(key)) for key in extras}
    )


def _name_of(audio: pa.StructScalar) -> str:
    """The path, or where audio has none, a hash of its bytes: the same in any order and on any worker."""
    if audio["path"].is_valid:
        return audio["path"].as_py()
    return hashlib.blake2b(audio["bytes"].as_buffer(), digest_size=8).hexdigest()
