"""Reading data files and evaluation prompts, drawing rows, and refusing files with too many invalid rows."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sacpo.data.prompts import Prompt, read_prompts
from sacpo.data.rows import check_invalid_fraction, draw
from sacpo.data.sources import read_rows
from sacpo.data.stored_rows import Rows
from sacpo.errors import DataError

ROWS = [{"prompt": "Hi?", "chosen": "Hello", "rejected": "No"}, {"prompt": "Ü?", "chosen": "a\u2028b", "rejected": "c"}]


def read(path: Path | str, split: str = "train", revision: str | None = None) -> list[dict[str, Any]]:
    return list(read_rows(str(path), split=split, revision=revision))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.csv.gz", "r.parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if ".csv" in name:
        plain = tmp_path / "plain"
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
        raw = plain.read_bytes()
    elif ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        raw = path.read_bytes()
    else:
        raw = lines(ROWS) if "jsonl" in name else json.dumps(ROWS).encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert read(path) == ROWS


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:1]) + b"\n  \n" + lines(ROWS[1:]))
    assert read(path) == ROWS


@pytest.mark.parametrize(("name", "compress"), [("r.jsonl", gzip.compress), ("r.jsonl.gz", bytes)])
def test_the_content_says_whether_a_file_is_compressed(tmp_path: Path, name: str, compress: Any) -> None:
    """Browsers and download tools unpack files and keep their names."""
    (tmp_path / name).write_bytes(compress(lines(ROWS)))
    assert read(tmp_path / name) == ROWS


def test_windows_line_ends_and_a_byte_order_mark_change_no_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n\r\n"))
    assert read(path) == ROWS
    path = tmp_path / "r.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,chosen,rejected\r\nHi?,Hello,No\r\n")
    assert read(path) == ROWS[:1]


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_texts_of_any_arrow_type_are_read(tmp_path: Path, kind: str) -> None:
    types = {
        "large_string": pa.large_string(),
        "string_view": pa.string_view(),
        "dictionary": pa.dictionary(pa.int8(), pa.string()),
    }
    columns = {name: pa.array([row[name] for row in ROWS]).cast(types[kind]) for name in ROWS[0]}
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet") == ROWS


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Readers take the last one without a word."""
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected,chosen\na,b,c,d\n")
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "chosen": "b", "chosen": "d"}\n')
    (tmp_path / "r.json").write_text('[{"prompt": "a", "chosen": "b", "chosen": "d"}]')
    pq.write_table(pa.table([["a"], ["b"], ["d"]], names=["prompt", "chosen", "chosen"]), tmp_path / "r.parquet")
    for name, message in {
        "r.csv": "has several columns chosen",
        "r.jsonl": "line 1: the key 'chosen' is there twice",
        "r.json": "the key 'chosen' is there twice",
        "r.parquet": "has several columns chosen",
    }.items():
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def test_csv_gives_flags_and_ids_their_types_and_leaves_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("prompt,better_response_id,is_response_0_safe,label\n1,1,True,safe\nTrue,x,no,false\n")
    assert read(path) == [
        {"prompt": "1", "better_response_id": 1, "is_response_0_safe": True, "label": "safe"},
        {"prompt": "True", "better_response_id": "x", "is_response_0_safe": "no", "label": False},
    ]


def test_datasets_folder(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "one") == ROWS
    assert read(tmp_path / "splits", "test") == ROWS[:1]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read(tmp_path / "splits", "dev")
    with pytest.raises(DataError, match="split 'test' would have no effect"):
        read(tmp_path / "one", "test")
    with pytest.raises(DataError, match="is not a folder of"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("r.jsonl", b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at byte offset 15"),
        ("r.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("r.jsonl", b'{"a": 1}\n[1]\n', "line 2 is a list"),
        ("r.json", b'{"a": 1}\n{"a": 2}', "is not JSON .* \\.jsonl"),
        ("r.json", b'{"a": 1}', "holds a dict"),
        ("r.json", b"[1]", "row 1 is a int"),
        ("r.txt", b"hello", "unknown suffix '.txt'; allowed are .jsonl, .json, .csv, .parquet"),
        ("r.jsonl", b"", "has no rows"),
        ("r.json", b"", "has no rows"),
        ("r.csv", b"prompt,chosen\n", "has no rows"),
        ("r.csv", b"a,b\n1,2\n1,2,3\n", "row that ends at line 3 does not have the header's 2 cells"),
        ("r.csv", b"a,b\n1\n", "row that ends at line 2"),
        ("r.csv", b'a,b\n1,"2\n', "is not CSV"),
        ("r.parquet", b"PAR1 it is not", "is not Parquet"),
        ("r.jsonl.gz", b"not gzip", "line 1 is not JSON"),
        ("r.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-12], "cannot be read"),
    ],
)
def test_unusable_files_are_refused_with_the_reason(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_settings_without_effect_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(ROWS))
    with pytest.raises(DataError, match="no split 'test'"):
        read(path, "test")
    with pytest.raises(DataError, match="revision 'abc' would have no effect"):
        read(path, revision="abc")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.jsonl")


def test_draw_and_check_invalid_fraction() -> None:
    rows = Rows.of([{"n": n} for n in range(50)])
    drawn = list(draw(rows, 20, seed=1))
    assert drawn == list(draw(rows, 20, seed=1)) != list(draw(rows, 20, seed=2))
    assert drawn == sorted(drawn, key=lambda r: r["n"])
    assert len({r["n"] for r in drawn}) == 20
    assert list(draw(rows, None, seed=1)) == list(draw(rows, 50, seed=1)) == list(rows)
    with pytest.raises(DataError, match="limit 51 is more than the 50 rows"):
        draw(rows, 51, seed=1)
    check_invalid_fraction(Counter({"x": 29}), 100, 0.29, "f")
    check_invalid_fraction(Counter(), 100, 0.0, "f")
    with pytest.raises(
        DataError, match=r"f: 3 of 100 rows are invalid \(3.00%; .* 1.00%\): x: 2, y: 1; .*raise max_inv"
    ):
        check_invalid_fraction(Counter({"y": 1, "x": 2}), 100, 0.01, "f")


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("id,prompt,type\n1,Hello,greeting\n2,Bye,parting\n")
    first, second = read_prompts(str(path), None)
    assert first == Prompt("185f8db32271", "Hello", "greeting")
    assert second.category == "parting"
    assert read_prompts(str(path), 1) == [first]
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"prompt": "Hello", "category": "c", "type": "t"}, {"prompt": "Bye"}]))
    assert [p.category for p in read_prompts(str(path), None)] == ["c", ""]


@pytest.mark.parametrize(
    ("rows", "limit", "message"),
    [
        ([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}], None, "rows 1 and 3 hold the same prompt"),
        ([{"prompt": "a"}, {"prompt": " "}], None, "row 2"),
        ([{"text": "a"}], None, "row 1"),
        ([{"prompt": "a", "category": 3}], None, "category 3"),
        ([{"prompt": "a"}], 2, "limit 2 is more than its 1"),
    ],
)
def test_unusable_prompts_are_refused(tmp_path: Path, rows: list[Any], limit: int | None, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_prompts(str(path), limit)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(str(tmp_path / "absent.json"), None)
