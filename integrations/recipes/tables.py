"""Local files of examples (TSV, CSV, JSON, Parquet), and the checks that need no model."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from platon_prune.integrations.recipes.files import (
    existing_file,
    lines_of,
    parse_json,
    shown,
    shown_names,
    shown_path,
)

FORMATS = ".tsv, .csv, .json, .jsonl or .parquet"
_WHOLE = re.compile(r"[+-]?\d+\.0*")  # 1.0, which pandas writes where a value was missing


class Table:
    """The columns of a file, each read when it is asked for.

    A column that nobody asks for is never turned into anything, so its types do not matter.

    Args:
        num_rows: How many rows there are.
        columns: Name to a function that reads the values of that column.
    """

    def __init__(self, num_rows: int, columns: Mapping[str, Callable[[], list[Any]]]) -> None:
        self._num_rows = num_rows
        self._columns = columns

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, in the file's order."""
        return list(self._columns)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]()


def read_table(flag: str, file: str) -> Table:
    """Read a file of examples; its ending says how.

    Args:
        flag: The flag that names the file, for errors.
        file: TSV without quoting (as GLUE's own), CSV, JSON (an object a line, or one array of
            objects), or Parquet; UTF-8, with column names.

    Returns:
        Its columns, of which those of TSV and CSV are text.

    Raises:
        ValueError: If it is missing, empty, of another kind, or broken; in one short sentence with
            the line or the row.
    """
    path = existing_file(flag, file)
    readers = {
        ".tsv": _read_tsv,
        ".csv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_json,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{flag} must end with {FORMATS}, got {shown_path(path.name)!r}: rename or convert it"
        )
    try:
        table = readers[path.suffix.lower()](path)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{flag} must be a readable {path.suffix} file, got {shown_path(file)!r}: "
            f"{reason[:170]}"
        ) from error
    if not table.column_names or not len(table):
        raise ValueError(
            f"{flag} must have column names and at least one row, got {shown_path(file)!r}"
        )
    return table


def _read_tsv(path: Path) -> Table:
    return _read_lines(lines_of(path), delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_csv(path: Path) -> Table:
    lines = lines_of(path)
    header = next(lines, "")
    # Spreadsheets of many countries separate by semicolons, as their numbers have commas.
    delimiter = ";" if ";" in header and "," not in header else ","
    return _read_lines(itertools.chain([header], lines), delimiter=delimiter)


def _read_lines(lines: Iterator[str], **dialect: Any) -> Table:
    # A field may be longer than the csv module's limit of 128 KiB.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines, **dialect)
    names = next(reader, [])
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise ValueError(f"its columns must have different names, got {shown_names(names)}")
    rows, first_line = [], reader.line_num + 1
    for row in reader:
        if row and len(row) != len(names):
            # An unclosed quote swallows what follows, so the row's first line is what to look at.
            raise ValueError(f"line {first_line} must have {len(names)} fields, got {len(row)}")
        if row:
            rows.append(row)
        first_line = reader.line_num + 1

    def values_of(column: int) -> Callable[[], list[Any]]:
        return lambda: [row[column] for row in rows]

    return Table(len(rows), {name: values_of(column) for column, name in enumerate(names)})


def _read_json(path: Path) -> Table:
    lines = lines_of(path)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("["):
        rows = _rows_of_array(first + "".join(lines))
    else:
        rows = list(_rows_of_lines(path))
    names = dict.fromkeys(name for row in rows for name in row)

    def reader(name: str) -> Callable[[], list[Any]]:
        return lambda: [row.get(name) for row in rows]

    return Table(len(rows), {name: reader(name) for name in names})


def _rows_of_array(text: str) -> list[dict[str, Any]]:
    rows = parse_json(text)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"line 1 must be an object {{...}}, got {shown(text.strip())[1:-1]}, an array "
                f"whose item {number} is none"
            )
    return list(rows)


def _rows_of_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(
                f"line {number} must be JSON on its own ({error}): write one object per line or "
                "one array"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} must be an object {{...}}, got {shown(row)}")
        yield row


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pq.read_schema(path)

    def reader(name: str) -> Callable[[], list[Any]]:
        return lambda: list(pq.read_table(path, columns=[name])[name].to_pylist())

    return Table(
        pq.read_metadata(path).num_rows, {str(name): reader(str(name)) for name in schema.names}
    )


def name_columns(
    flag: str, table: Table | datasets.Dataset, columns: Sequence[str], labelled: bool
) -> datasets.Dataset:
    """Keep the text columns, under the task's own names, and the label.

    ``sentence`` and ``sentence1, sentence2`` stand for the task's own columns.

    Args:
        flag: For errors.
        table: A file, or a data set of the Hub.
        columns: The task's own names.
        labelled: Whether there has to be a label.

    Raises:
        ValueError: If a column is missing or holds something else than text.
    """
    general = ("sentence",) if len(columns) == 1 else ("sentence1", "sentence2")
    found = next((n for n in (tuple(columns), general) if set(n) <= set(table.column_names)), None)
    if found is None or (labelled and "label" not in table.column_names):
        wanted = " or ".join(dict.fromkeys((", ".join(columns), ", ".join(general))))
        raise ValueError(
            f"{flag} must have the columns {wanted}{', and label' if labelled else ''}, got "
            f"{shown_names(table.column_names)}: rename them"
        )
    kept = {new: texts_in(flag, old, table[old]) for old, new in zip(found, columns, strict=True)}
    if "label" in table.column_names:
        kept["label"] = _of_one_type(table["label"])
    return datasets.Dataset.from_dict(kept)


def texts_in(flag: str, column: str, values: Sequence[Any]) -> list[str]:
    """The values of a text column.

    Raises:
        ValueError: If one is no text; names the first such row.
    """
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise ValueError(
                f"{flag}: {column} must be text, got {shown(value)} in row {row}: remove or "
                "correct it"
            )
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # half of a pair, which JSON may spell
                raise ValueError(
                    f"{flag}: {column} must be text, got {shown(value)} in row {row}, which is no "
                    "Unicode: remove or correct it"
                ) from None
    return list(values)


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """Labels as they are if they are all of one type, else as text: a column needs one type."""
    if len({type(value) for value in values}) == 1 and isinstance(values[0], (str, int, float)):
        return list(values)
    return [value if value is None else str(value) for value in values]


def class_numbers(flag: str, values: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """Labels as numbers of classes.

    Args:
        flag: For errors.
        values: Numbers from 0, also as text and also as 1.0, or names of classes.
        classes: Their names, by number.

    Raises:
        ValueError: If a label is neither; names the first such row.
    """
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name.lower(): number for number, name in enumerate(classes)}
    found = []
    for row, value in enumerate(values, start=1):
        text = label_text(value)
        number = numbers.get(text.lower())
        if number is None:
            hint = "; -1 marks an example without a label" if text == "-1" else ""
            raise ValueError(
                f"{flag}: label must be one of 0 to {len(classes) - 1} or {shown_names(classes)}, "
                f"got {shown(value)} in row {row}{hint}"
            )
        found.append(number)
    return found


def label_text(value: Any) -> str:
    """A label as text that is the same from every kind of file: 1, 1.0 and "1.0" are "1"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return text.split(".")[0] if _WHOLE.fullmatch(text) else text


def numbers_in(flag: str, values: Sequence[Any], low: float, high: float) -> list[float]:
    """Labels as numbers in a range.

    Raises:
        ValueError: If a label is no number, or out of range; names the first such row.
    """
    found = []
    for row, value in enumerate(values, start=1):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(
                f"{flag}: label must be a number from {low:g} to {high:g}, got {shown(value)} in "
                f"row {row}"
            )
        found.append(number)
    return found
