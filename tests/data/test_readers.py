"""Rows come out of every format whole; what cannot be read is counted by file and line, and the rest goes on."""

import bz2
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import lzma
import re
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from hfgpt.data.readers import MARKUP, RowErrors, SourceConfig, decode_page, in_test_part, read_rows, split_files


COMPRESSORS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
# Both are refused by a UTF-8 decoder; the second is a surrogate, which Python's own encoder refuses as well.
NOT_UTF8 = [b"\xff", b"\xed\xa0\x80"]


def read(limit=None, **source):
    """All rows, and what was malformed."""
    errors = RowErrors(limit)
    return list(read_rows(SourceConfig(**source), errors)), errors


def texts(**source):
    """The texts of a source in which nothing is malformed."""
    rows, errors = read(**source)
    assert errors.examples == []
    return [row["text"] for row in rows]


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_zip(path: Path, **files: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("document", ["one\ntwo\n\n \nthree 한국어"]),
        ("paragraph", ["one\ntwo", "three 한국어"]),
        ("line", ["one", "two", "three 한국어"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_text_is_read_by_document_paragraph_or_line(write, sample_by, expected, newline):
    path = write("a.txt", "one\ntwo\n\n \nthree 한국어\n".replace("\n", newline))
    assert texts(path=path, sample_by=sample_by) == expected


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_only_line_feeds_end_a_line_of_text(write, sample_by):
    text = "form\x0cfeed\u2028separator\x85next\x1cfile"
    assert texts(path=write("a.txt", text), sample_by=sample_by) == [text]


def test_jsonl_keeps_every_field_and_passes_over_empty_lines(write):
    rows = [
        {"text": "line\nfeed \u2028 한국어 😀", "stars": 4, "tags": ["a"], "none": None},
        {"text": "two", "stars": 1},
    ]
    assert read(path=write("a.jsonl", jsonl(rows[0]) + "\n  \n" + jsonl(rows[1])))[0] == rows


def test_csv_keeps_quoted_newlines_commas_and_quotes(write):
    path = write("a.csv", 'id,text\n1,"first\nline, ""quoted"""\n\n2,plain\n3,"carriage\r\nreturn"\n')
    assert read(path=path)[0] == [
        {"id": "1", "text": 'first\nline, "quoted"'},
        {"id": "2", "text": "plain"},
        {"id": "3", "text": "carriage\r\nreturn"},
    ]


def test_csv_field_may_be_longer_than_the_limit_of_the_csv_module(write):
    book = "word " * 40_000
    assert texts(path=write("a.csv", f'id,text\n1,"{book}"\n')) == [book]


def test_tsv_is_separated_by_tabs(write):
    assert read(path=write("a.tsv", "id\ttext\n1\tone, two\n"))[0] == [{"id": "1", "text": "one, two"}]


def test_separator_is_taken_from_the_ending_of_the_file_alone(write, tmp_path):
    assert texts(path=write("set.tsv.d/a.csv", "id,text\n1,one\n")) == ["one"]
    archive = write_zip(tmp_path / "all.tsv.zip", a_csv=b"id,text\n1,one\n")
    assert texts(path=f"zip://a.csv::{archive}") == ["one"]


def test_header_of_a_csv_is_its_first_line_with_anything_on_it(write):
    assert texts(path=write("a.csv", "\nid,text\n1,one\n")) == ["one"]


def test_parquet_keeps_types(tmp_path):
    rows = [{"text": f"text {number}", "stars": number, "tags": ["a"]} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(path=str(tmp_path / "a.parquet"))[0] == rows


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", jsonl({"text": "한국어"})), ("b.csv", "id,text\n1,한국어\n"), ("c.txt", "한국어")],
)
def test_compressed_file_is_read_by_its_ending(write, name, content, ending):
    assert texts(path=write(name + ending, COMPRESSORS[ending](content.encode()))) == ["한국어"]


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_file_of_several_streams_is_read_to_its_end(write, ending):
    """Files compressed in parallel, or joined by `cat`, are such."""
    rows = [{"text": f"text {number} {hashlib.sha256(b'%d' % number).hexdigest()}"} for number in range(1500)]
    parts = [jsonl(*rows[start : start + 500]).encode() for start in (0, 500, 1000)]
    path = write("a.jsonl" + ending, b"".join(map(COMPRESSORS[ending], parts)))
    assert read(path=path)[0] == rows


def test_file_inside_a_zip_is_read_in_place(tmp_path):
    archive = write_zip(tmp_path / "a.whl", inside__a_jsonl=jsonl({"text": "one"}).encode())
    assert texts(path=f"zip://inside/a.jsonl::{archive}") == ["one"]


def test_compressed_csv_inside_a_zip_is_read_in_place(tmp_path):
    archive = write_zip(tmp_path / "a.zip", a_csv_bz2=bz2.compress(b'id,text\n1,"one,\ntwo"\n'))
    assert texts(path=f"zip://a.csv.bz2::{archive}") == ["one,\ntwo"]


def test_parquet_inside_a_zip_is_read_in_place(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    archive = write_zip(tmp_path / "a.zip", a_parquet=(tmp_path / "a.parquet").read_bytes())
    assert texts(path=f"zip://a.parquet::{archive}") == ["one", "two"]


def test_hub_dataset_is_streamed(write, tmp_path):
    """A local folder stands for a Hub dataset: `datasets` reads both in the same way."""
    write("set/train.jsonl", jsonl({"text": "one"}, {"text": None}, {"text": "three"}))
    write("set/test.jsonl", jsonl({"text": "four"}))
    rows, errors = read(dataset=str(tmp_path / "set"))
    assert [row["text"] for row in rows] == ["one", "three"]
    assert errors.examples == [f"{tmp_path / 'set'}[train]:2: field `text` must be text, got NoneType"]
    assert texts(dataset=str(tmp_path / "set"), dataset_split="test") == ["four"]


def test_missing_dataset_is_named(tmp_path):
    with pytest.raises(ValueError, match="Cannot load `dataset: ") as caught:
        read(dataset=str(tmp_path / "no/such/set"))
    assert str(tmp_path / "no/such/set") in str(caught.value)


def test_glob_reads_its_files_in_order_of_name(write, tmp_path):
    for number in (3, 1, 2):
        write(f"part-{number}.txt", f"text {number}")
    write("other.txt", "other")
    assert texts(path=str(tmp_path / "part-*.txt")) == ["text 1", "text 2", "text 3"]


def test_list_of_paths_is_read_as_given(write, tmp_path):
    b, a = write("b.jsonl", jsonl({"text": "b"})), write("a.txt", "a")
    write("sub/c.txt", "c")
    assert texts(path=[b, a, str(tmp_path / "sub/*.txt")]) == ["b", "a", "c"]


def test_glob_passes_over_folders(write, tmp_path):
    write("tree/a.txt", "a")
    write("tree/sub/b.txt", "b")
    assert texts(path=str(tmp_path / "tree/**")) == ["a", "b"]


def test_file_whose_name_has_brackets_is_no_glob(write):
    assert texts(path=write("report[1].txt", "text")) == ["text"]


def test_glob_expands_on_other_file_systems(tmp_path):
    memory = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}"
    try:
        for name in "ba":
            memory.pipe(f"{folder}/{name}.txt", f"text {name}".encode())
        assert texts(path=f"memory:/{folder}/*.txt") == ["text a", "text b"]
    finally:
        memory.rm(folder, recursive=True)


@pytest.mark.parametrize("pattern", ["absent-*.txt", "absent/*.jsonl", "[0-9].txt"])
def test_glob_that_matches_nothing_is_named(write, tmp_path, pattern):
    write("a.txt", "text")
    with pytest.raises(ValueError, match="No file matches") as caught:
        read(path=str(tmp_path / pattern))
    assert pattern in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "text"), ("a.jsonl", '{"text": "text"}'), ("a.csv", "text,id\ntext,1\n")]
)
def test_byte_order_mark_is_not_part_of_the_text(write, name, content):
    assert texts(path=write(name, b"\xef\xbb\xbf" + content.encode())) == ["text"]


@pytest.mark.parametrize("name", ["a.dat", "a", "a.dat.gz", ".jsonl", "a.csv.zip"])
def test_unknown_ending_asks_for_the_format(write, name):
    path = write(name, "text")
    with pytest.raises(ValueError, match="set `format` to text, jsonl, csv or parquet") as caught:
        read(path=path)
    assert path in str(caught.value)


def test_format_overrides_the_ending(write):
    assert texts(path=write("a.dat", jsonl({"text": "one"})), format="jsonl") == ["one"]
    assert texts(path=write("b.jsonl", "not JSON"), format="text") == ["not JSON"]


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl.gz", "absent.parquet", "absent/a.csv", "a.txt/b.txt"])
def test_missing_file_is_named(write, tmp_path, name):
    write("a.txt", "text")
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match="No such file") as caught:
        read(path=path)
    assert path in str(caught.value)


def test_missing_archive_or_file_inside_it_is_named(tmp_path):
    archive = write_zip(tmp_path / "a.zip", a_txt=b"text")
    for path in (f"zip://b.txt::{archive}", f"zip://a.txt::{tmp_path}/absent.zip"):
        with pytest.raises(ValueError, match="No such file") as caught:
            read(path=path)
        assert path in str(caught.value)


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("damage", ["cut short", "not compressed"])
def test_damaged_compressed_file_is_named(write, ending, damage):
    content = jsonl(*({"text": f"text {number}"} for number in range(100))).encode()
    path = write("a.jsonl" + ending, COMPRESSORS[ending](content)[:-15] if damage == "cut short" else content)
    with pytest.raises(ValueError) as caught:
        read(path=path)
    assert path in str(caught.value)


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("cut", [1, 20, 5000])
def test_file_cut_short_in_its_last_stream_does_not_pass_for_a_shorter_one(write, ending, cut):
    """As an interrupted download is; fsspec's own reader stops there without a word."""
    streams = [
        COMPRESSORS[ending](jsonl(*({"text": hashlib.sha256(b"%d" % n).hexdigest()} for n in part)).encode())
        for part in (range(500), range(500, 1000))
    ]
    path = write("a.jsonl" + ending, b"".join(streams)[:-cut])
    with pytest.raises(ValueError) as caught:
        read(path=path)
    assert path in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "zip://a.txt::a.zip"])
def test_damaged_parquet_or_zip_is_named(write, tmp_path, name):
    path = name.replace("a.zip", str(tmp_path / "a.zip")) if "zip" in name else str(tmp_path / name)
    write("a.zip", "neither")
    write("a.parquet", "neither")
    with pytest.raises(ValueError) as caught:
        read(path=path)
    assert path in str(caught.value)


@pytest.mark.parametrize("content", ['[{"text": "one"}, {"text": "two"}]', '[\n  {"text": "one"}\n]\n'])
def test_json_array_is_refused_as_a_whole(write, content):
    """Its lines are not malformed rows: the file is of another kind."""
    path = write("a.json", content)
    with pytest.raises(ValueError, match="JSON array") as caught:
        read(path=path)
    assert path in str(caught.value)


MALFORMED = {
    "broken JSON": ("a.jsonl", b'{"text": "before"}\n{"text": \n{"text": "after"}\n', 2, "not JSON"),
    "JSON too deep": ("a.jsonl", b'{"text": "before"}\n%s\n{"text": "after"}\n' % (b"[" * 100_000), 2, "not JSON"),
    "JSON array": ("a.jsonl", b'{"text": "before"}\n["text"]\n{"text": "after"}\n', 2, "a JSON object, got list"),
    "JSON string": ("a.jsonl", b'{"text": "before"}\n"text"\n{"text": "after"}\n', 2, "a JSON object, got str"),
    "field missing": (
        "a.jsonl",
        b'{"text": "before"}\n\n{"body": "x", "id": 1}\n{"text": "after"}\n',
        3,
        "no field `text`; the fields are body, id",
    ),
    "no fields": (
        "a.jsonl",
        b'{"text": "before"}\n{}\n{"text": "after"}\n',
        2,
        "no field `text`; the fields are (none)",
    ),
    "null": ("a.jsonl", b'{"text": "before"}\n{"text": null}\n{"text": "after"}\n', 2, "must be text, got NoneType"),
    "number": ("a.jsonl", b'{"text": "before"}\n{"text": 3}\n{"text": "after"}\n', 2, "must be text, got int"),
    "list": ("a.jsonl", b'{"text": "before"}\n{"text": ["a"]}\n{"text": "after"}\n', 2, "must be text, got list"),
    "escaped surrogate": (
        "a.jsonl",
        b'{"text": "before"}\n{"text": "\\ud800"}\n{"text": "after"}\n',
        2,
        "not valid UTF-8",
    ),
    "too few cells": ("a.csv", b"id,text\n1,before\n2\n3,after\n", 3, "1 cells where the header has 2"),
    "too many cells": ("a.csv", b"id,text\n1,before\n2,a,b\n3,after\n", 3, "3 cells where the header has 2"),
    "cells after quoted newlines": ("a.csv", b'id,text\n1,before\n2,"a\n\nb",c\n3,after\n', 3, "3 cells"),
    "cells of a TSV": ("a.tsv", b"id\ttext\n1\tbefore\n2,a\n3\tafter\n", 3, "1 cells where the header has 2"),
}
for number, data in enumerate(NOT_UTF8):
    MALFORMED |= {
        f"not UTF-8 in JSON, {number}": (
            "a.jsonl",
            b'{"text": "before"}\n{"text": "a%s"}\n{"text": "after"}\n' % data,
            2,
            "not valid UTF-8",
        ),
        f"not UTF-8 in CSV, {number}": (
            "a.csv",
            b"id,text\n1,before\n2,a%sb\n3,after\n" % data,
            3,
            "not valid UTF-8",
        ),
        f"not UTF-8 in text, {number}": ("a.txt", b"before\na%sb\nafter\n" % data, 2, "not valid UTF-8"),
    }


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_row_is_counted_by_file_and_line_and_the_others_survive(write, kind):
    name, content, line, reason = MALFORMED[kind]
    path = write(name, content)
    rows, errors = read(path=path, sample_by="line")
    assert [row["text"] for row in rows] == ["before", "after"]
    assert errors.count == len(errors.examples) == 1
    assert errors.examples[0].startswith(f"{path}:{line}: ")
    assert reason in errors.examples[0]


def test_line_numbers_are_right_after_quoted_newlines(write):
    path = write("a.csv", 'id,text\n1,"a\n\nb"\nbad\n2,"c\r\nd"\n\nworse\n')
    assert [example.split(": ")[0] for example in read(path=path)[1].examples] == [f"{path}:5", f"{path}:9"]


def test_text_after_a_closing_quote_is_malformed_and_line_numbers_go_on(write):
    path = write("a.csv", 'id,text\n1,before\n2,"a\nb" c\n3,after\nbad\n')
    rows, errors = read(path=path)
    assert [row["text"] for row in rows] == ["before", "after"]
    assert [example.split(": ")[0] for example in errors.examples] == [f"{path}:{line}" for line in (3, 4, 6)]


def test_line_numbers_count_empty_lines_of_jsonl_and_paragraphs(write):
    path = write("a.jsonl", '\n\n{"text": "a"}\n\nbad\n')
    assert read(path=path)[1].examples[0].startswith(f"{path}:5: ")
    path = write("a.txt", b"one\none\n\n\ntwo\n\xff\n\nthree\n")
    rows, errors = read(path=path, sample_by="paragraph")
    assert [row["text"] for row in rows] == ["one\none", "three"]
    assert errors.examples == [f"{path}:5: not valid UTF-8"]


def test_malformed_row_of_parquet_is_counted_by_its_number(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["before", None, "after"]}), path)
    rows, errors = read(path=path)
    assert [row["text"] for row in rows] == ["before", "after"]
    assert errors.examples == [f"{path}:2: field `text` must be text, got NoneType"]


def test_row_of_parquet_that_is_not_utf8_is_counted_and_the_others_survive(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([b"before", b"\xff", b"after"]).view(pa.string())}), path)
    rows, errors = read(path=path)
    assert [row["text"] for row in rows] == ["before", "after"]
    assert [example.split(": ")[0] for example in errors.examples] == [f"{path}:2"]


def test_quote_that_never_closes_does_not_swallow_the_rows_after_it(write):
    """Read as CSV it is one long field to the end of the file."""
    path = write("a.csv", 'id,text\n1,before\n2,"never closed\n3,after\n4,after\n')
    rows, errors = read(path=path)
    assert rows == [{"id": id, "text": text} for id, text in (("1", "before"), ("3", "after"), ("4", "after"))]
    assert errors.count == 1 and errors.examples[0].startswith(f"{path}:3: not CSV")


def test_no_row_is_gone_without_a_trace_where_quotes_are_text(write):
    """TSV files of plain text, such as NSMC's, have quotes anywhere: one ends in the middle of another line."""
    texts = [
        '"좋아요 정말',
        '별로 "재미" 없다',
        "그냥",
        '"나쁘다',
        "좋다",
        '"',
        '"quoted ""well"""',
        'a "b',
        '"아"요',
        "끝",
    ]
    lines = [f"{number}\t{text}\t{number % 2}" for number, text in enumerate(texts)]
    path = write("a.tsv", "\n".join(["id\ttext\tlabel", *lines]))
    rows, errors = read(path=path)
    malformed = {int(example.removeprefix(f"{path}:").split(":")[0]) - 2 for example in errors.examples}
    assert {int(row["id"]) for row in rows} | malformed == set(range(len(texts)))
    assert len(rows) + errors.count == len(texts) and malformed == {0, 3, 5, 8}
    assert [row["text"] for row in rows] == ['별로 "재미" 없다', "그냥", "좋다", 'quoted "well"', 'a "b', "끝"]


def test_lines_and_tabs_in_a_quoted_cell_of_a_tsv_stay(write):
    path = write("a.tsv", 'id\ttext\tlabel\n1\t"if a:\n\tb\tc\n\n"\t0\n2\t"one\ntwo"\t1\n')
    rows, errors = read(path=path)
    assert [row["text"] for row in rows] == ["if a:\n\tb\tc\n\n", "one\ntwo"] and errors.count == 0
    path = write("a.tsv", 'text\n"one\ntwo"\nthree\n')
    assert texts(path=path) == ["one\ntwo", "three"]


def test_a_bad_quote_in_each_line_takes_no_longer_than_others(write):
    path = write("a.csv", "id,text\n" + "".join(f'{n},"never closed\n{n},plain\n' for n in range(20_000)))
    rows, errors = read(path=path)
    assert len(rows) == errors.count == 20_000


@pytest.mark.parametrize("data", NOT_UTF8)
def test_group_that_is_not_utf8_is_counted(write, data):
    path = write("a.jsonl", b'{"text": "a", "film": "%s"}\n{"text": "b", "film": "f"}\n' % data)
    rows, examples = [], []
    for part in ("train", "test"):
        found, errors = read(path=path, group_by="film", test_fraction=0.5, part=part)
        rows += found
        examples += errors.examples
    assert [row["text"] for row in rows] == ["b"]
    assert [example.split(": ")[0] for example in examples] == [f"{path}:1"] * 2


def test_text_without_anything_in_it_is_passed_over_and_is_no_error(write):
    assert texts(path=write("a.jsonl", jsonl({"text": ""}, {"text": " \n\t\u3000"}, {"text": " a "}))) == [" a "]


def test_text_field_names_the_field(write):
    rows, errors = read(path=write("a.jsonl", jsonl({"body": "one"}, {"text": "two"})), text_field="body")
    assert rows == [{"body": "one"}]
    assert "no field `body`; the fields are text" in errors.examples[0]


def test_text_file_puts_its_text_in_the_text_field(write):
    assert read(path=write("a.txt", "one"), text_field="body")[0] == [{"body": "one"}]


def test_more_malformed_rows_than_the_limit_raise_with_examples(write):
    path = write("a.jsonl", "{\n[]\n" + jsonl({"text": "good"}) + "3\n")
    assert read(limit=3, path=path)[1].count == 3
    with pytest.raises(ValueError, match=r"More than 2 malformed rows \(`max_bad_rows`\)") as caught:
        read(limit=2, path=path)
    assert all(f"{path}:{line}: " in str(caught.value) for line in (1, 2, 4))


def test_limit_is_shared_by_the_files_of_a_run(write):
    errors = RowErrors(limit=1)
    paths = [write("a.jsonl", "bad\n"), write("b.jsonl", "bad\n")]
    assert list(read_rows(SourceConfig(path=paths[0]), errors)) == []
    with pytest.raises(ValueError, match="max_bad_rows") as caught:
        list(read_rows(SourceConfig(path=paths[1]), errors))
    assert all(f"{path}:1: " in str(caught.value) for path in paths)


def test_examples_are_few_and_the_count_is_of_all(write):
    errors = read(path=write("a.jsonl", "bad\n" * 500))[1]
    assert errors.count == 500
    assert len(errors.examples) == errors.max_examples == 20


def test_malformed_rows_come_to_light_as_they_are_met(write):
    """A stream is not read to its end to find the first error."""
    rows = read_rows(
        SourceConfig(path=write("a.jsonl", jsonl({"text": "one"}) + "bad\n")), errors := RowErrors(limit=0)
    )
    assert next(rows)["text"] == "one"
    assert errors.count == 0
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        next(rows)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"kind": "fresh"}, ["a", "c"]),
        ({"kind": ["fresh", "stale"]}, ["a", "b", "c"]),
        ({"stars": 1}, ["a", "b"]),
        ({"stars": [2, 3], "kind": "fresh"}, ["c"]),
        ({}, ["a", "b", "c", "d"]),
        ({"kind": "absent"}, []),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_where_keeps_rows_with_these_values(write, form, where, expected):
    rows = [("a", "fresh", 1), ("b", "stale", 1), ("c", "fresh", 2), ("d", "rotten", 3)]
    content = {
        "csv": "text,kind,stars\n" + "".join(f"{text},{kind},{stars}\n" for text, kind, stars in rows),
        "jsonl": jsonl(*({"text": text, "kind": kind, "stars": stars} for text, kind, stars in rows)),
    }
    assert texts(path=write(f"a.{form}", content[form]), where=where) == expected


def test_row_without_a_field_of_where_or_group_by_is_malformed(write):
    path = write("a.jsonl", jsonl({"text": "one"}))
    for source in ({"where": {"kind": "fresh"}}, {"group_by": "kind"}):
        rows, errors = read(path=path, **source)
        assert rows == []
        assert errors.examples == [f"{path}:1: no field `kind`; the fields are text"]


def test_group_is_never_in_two_parts(write):
    rows = [{"text": f"review {number}", "film": f"film {number % 40}"} for number in range(160)]
    path = write("a.jsonl", jsonl(*rows))
    source = {"path": path, "group_by": "film", "test_fraction": 0.3}
    parts = {part: read(part=part, **source)[0] for part in ("train", "test", "all")}
    films = {part: {row["film"] for row in rows} for part, rows in parts.items()}
    assert len(films["train"]) > len(films["test"]) > 0
    assert not films["train"] & films["test"]
    assert sorted(parts["train"] + parts["test"], key=rows.index) == rows == parts["all"]
    assert read(part="test", **source)[0] == parts["test"]


def test_without_groups_a_repeated_text_is_never_in_two_parts(write):
    path = write("a.txt", "".join(f"text {number % 50}\n" for number in range(150)))
    train, test = (texts(path=path, sample_by="line", test_fraction=0.2, part=part) for part in ("train", "test"))
    assert len(train) > len(test) > 0
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(f"text {number % 50}" for number in range(150))


def test_texts_that_differ_in_outer_white_space_alone_are_in_one_part(write):
    """Deduplication takes them for one document, and so must the division, or the test set is trained on."""
    path = write("a.jsonl", jsonl(*({"text": f"text {n // 2}" + "\n" * (n % 2)} for n in range(200))))
    train, test = (set(map(str.strip, texts(path=path, test_fraction=0.3, part=part))) for part in ("train", "test"))
    assert not train & test
    assert len(train | test) == 100


def test_division_depends_on_its_seed_and_not_on_the_order_of_rows(write):
    rows = [{"text": f"text {number}"} for number in range(60)]
    forward, backward = write("a.jsonl", jsonl(*rows)), write("b.jsonl", jsonl(*reversed(rows)))
    drawn = [
        texts(path=path, test_fraction=0.5, part="test", split_seed=seed)
        for path, seed in itertools.product((forward, backward), (0, 1))
    ]
    assert drawn[0] == drawn[2][::-1]
    assert set(drawn[0]) != set(drawn[1])


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.9])
def test_test_part_has_the_share_asked_for(fraction):
    share = sum(in_test_part(f"key {number}", fraction, 0) for number in range(20_000)) / 20_000
    assert share == pytest.approx(fraction, abs=0.01)


def test_division_is_the_same_in_every_process_and_version():
    """Were it to change, a test set would leak into what earlier models were trained on."""
    assert "".join(key for key in "abcdefghijklmnop" if in_test_part(key, 0.5, 0)) == "abcdghjmnop"


def test_max_rows_counts_the_rows_that_are_kept(write):
    path = write("a.jsonl", "bad\n" + jsonl(*({"text": f"text {n}", "even": n % 2 == 0} for n in range(10))))
    rows, errors = read(path=path, where={"even": True}, max_rows=3)
    assert [row["text"] for row in rows] == ["text 0", "text 2", "text 4"]
    assert errors.count == 1


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (1, [1, 1.0, "1"]),
        (1.0, [1, 1.0, "1"]),
        (True, [True, "True", "true"]),
        ([1.5, False], [1.5, "1.5", False]),
        (float("inf"), [float("inf")]),
    ],
)
def test_where_takes_a_value_whatever_type_the_file_gives_it(write, wanted, taken):
    values = [1, 1.0, "1", True, "True", "true", 1.5, "1.5", False, 10, float("inf"), None]
    path = write("a.jsonl", jsonl(*({"text": f"text {n}", "is": value} for n, value in enumerate(values))))
    rows, errors = read(path=path, where={"is": wanted})
    assert [row["is"] for row in rows] == taken and list(map(type, taken)) == [type(row["is"]) for row in rows]
    assert errors.count == 0


@pytest.mark.parametrize("max_rows", [0, -1])
def test_max_rows_below_one_is_refused(max_rows):
    with pytest.raises(ValueError, match="max_rows"):
        SourceConfig(path="a.txt", max_rows=max_rows)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "mine"}, "'mine' has neither"),
        ({"path": "a.txt", "dataset": "b"}, "has both"),
        ({"path": []}, "path"),
        ({"path": "a.txt", "part": "test"}, "`part: test` needs a `test_fraction` above 0"),
        ({"path": "a.txt", "test_fraction": 1.0}, "below 1, got 1.0"),
        ({"path": "a.txt", "test_fraction": -0.1}, "at least 0"),
    ],
)
def test_settings_of_a_source_that_do_not_fit_together_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        SourceConfig(**values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"path": "data/a.jsonl"}, "a.jsonl"),
        ({"path": ["data/a-*.txt", "b.txt"]}, "a-*.txt"),
        ({"path": "zip://inside/c.csv::outer.zip"}, "c.csv"),
        ({"dataset": "org/set"}, "org/set"),
        ({"path": "a.txt", "name": "mine"}, "mine"),
    ],
)
def test_source_is_named_after_its_path_unless_it_has_a_name(values, name):
    assert SourceConfig(**values).name == name


KOREAN = "아름다운 우리말, 뙤약볕과 펲시"


def html(text, charset=None):
    head = f'<meta charset="{charset}">' if charset else ""
    return f"<!DOCTYPE html><html><head>{head}</head><body><p>{text}</p></body></html>"


@pytest.mark.parametrize(
    ("encoding", "declared", "in_page"),
    [
        ("cp949", "EUC-KR", None),
        ("cp949", "ks_c_5601-1987", "utf-8"),
        ("cp949", None, "euc-kr"),
        # What servers declare that were never set up, and what is no charset.
        ("cp949", "iso-8859-1", "euc-kr"),
        ("cp949", "none", "KS_C_5601-1987"),
        ("cp949", "utf-8", "ms949"),
        ("utf-8", None, None),
        ("utf-8", "iso-8859-1", None),
        ("utf-8", "euc-kr", "utf-8"),
        ("utf-8-sig", "euc-kr", "euc-kr"),
        ("utf-16", None, "utf-16"),
        ("utf-16", "euc-kr", None),
        ("gb18030", "gb2312", None),
        ("cp949", "hex", "rot13 "),
    ],
)
def test_page_is_decoded_by_its_header_its_own_word_or_its_bytes(encoding, declared, in_page):
    page = html(KOREAN * 20, in_page)
    assert decode_page(page.encode(encoding), declared)[0] == page


@pytest.mark.parametrize(
    ("encoding", "declared", "text"),
    [
        ("cp1252", "iso-8859-1", "“Café” – naïve"),
        ("cp932", "shift_jis", "日本語①髙"),
        ("gb18030", "gb2312", "鎔基"),
        ("cp1251", "windows-1251", "Широкая электрификация"),
        ("iso2022_jp", "iso-2022-jp", "日本語"),
        ("big5hkscs", "big5", "香港"),
    ],
)
def test_charsets_are_read_as_browsers_read_them(encoding, declared, text):
    assert decode_page(html(text).encode(encoding), declared)[0] == html(text)


def test_charset_that_nobody_declares_is_found_in_a_long_page():
    """Its sample must not end inside a character."""
    for shift in range(2):
        page = "x" * shift + html(f"<p>{KOREAN * 3}</p>" * 2000)
        assert decode_page(page.encode("cp949"))[0] == page


def test_page_cut_inside_a_character_is_read_up_to_it():
    page = html(KOREAN).partition("시")[0]
    for encoding in ("utf-8", "cp949"):
        data = (page + "시").encode(encoding)[:-1]
        assert decode_page(data, encoding, cut=True)[0] == page
        assert decode_page(data, encoding)[0] != page


@pytest.mark.parametrize("name", ["a.html", "a.HTM.xhtml", "a.htm", "a.html.gz"])
def test_html_file_is_one_page(write, name):
    page = html(KOREAN, "euc-kr")
    path = write(name, gzip.compress(page.encode("cp949")) if name.endswith(".gz") else page.encode("cp949"))
    rows, errors = read(path=path, text_field="body")
    assert rows == [{"body": page, "url": None, MARKUP: "html"}]
    assert errors.count == 0


def test_html_in_no_charset_is_malformed_and_too_large_a_page_passed_over(write, monkeypatch):
    monkeypatch.setattr("hfgpt.data.readers.MAX_PAGE_BYTES", 1000)
    bad = write("a.html", b"<html>" + bytes(range(256)) * 3)
    write("b.html", b"<html>" + b"x" * 1000)
    good = write("c.html", html("one"))
    rows, errors = read(path=str(Path(bad).parent / "*.html"))
    assert [row["text"] for row in rows] == [html("one")]
    assert errors.examples == [f"{bad}:1: not valid utf-8"]
    assert errors.passed_over == {"too large": 1}
    assert good


def warc(*records, compress=True):
    """A WARC archive. A record is (type, URL, HTTP status, content type, payload) and more headers."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=compress)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "a test"}))
    for kind, url, status, content_type, payload, *more in records:
        http = StatusAndHeaders(status, [("Content-Type", content_type)] if content_type else [], protocol="HTTP/1.1")
        for name, value in (more or [{}])[0].get("http", {}).items():
            http.add_header(name, value)
        record = writer.create_warc_record(
            url,
            kind,
            payload=io.BytesIO(payload),
            http_headers=http if kind != "conversion" else None,
            warc_content_type=content_type if kind == "conversion" else "",
            warc_headers_dict={"WARC-Date": "2024-01-02T03:04:05Z", **(more or [{}])[0].get("warc", {})},
        )
        writer.write_record(record)
    return out.getvalue()


def response(payload, content_type="text/html", status="200 OK", url="https://a.example/", **more):
    return "response", url, status, content_type, payload, more


@pytest.mark.parametrize("compress", [True, False])
def test_warc_gives_its_pages_and_counts_the_rest(write, compress):
    chunked = b"5\r\n<html\r\n3\r\n>ab\r\n0\r\n\r\n"
    path = write(
        "a.warc.gz" if compress else "a.warc",
        warc(
            response(html(KOREAN).encode("cp949"), "text/html; charset=euc-kr", url="https://a.example/ko"),
            ("request", "https://a.example/", "GET /", "", b""),
            response(b"gone", status="404 Not Found"),
            response(b"%PDF", "application/pdf"),
            response(html("typed").encode(), "text/plain", warc={"WARC-Identified-Payload-Type": "text/html"}),
            response(html("untyped").encode(), ""),
            response(b"neither", ""),
            response(gzip.compress(html("packed").encode()), http={"Content-Encoding": "gzip"}),
            response(chunked, http={"Transfer-Encoding": "chunked"}),
            response(b"\x0b\x02\x80<\x03", http={"Content-Encoding": "br"}),
            response(b"a DNS record", "text/dns", url="dns:a.example"),
            response(html("한").encode()[:-17], warc={"WARC-Truncated": "length"}),
            response(b"<html>" + bytes(range(256)), "text/html; charset=utf-8"),
            response(html(" ").encode()),
            compress=compress,
        ),
    )
    rows, errors = read(path=path)
    assert [row["text"] for row in rows] == [
        *map(html, (KOREAN, "typed", "untyped", "packed")),
        "<html>ab",
        html("한").encode()[:-17].decode(),
        html(" "),
    ]
    assert rows[0] | {"text": ""} == {
        "text": "",
        "url": "https://a.example/ko",
        "date": "2024-01-02T03:04:05Z",
        MARKUP: "html",
    }
    assert errors.passed_over == {"not a page": 2, "HTTP status": 1, "not HTML": 2, "not HTTP": 1}
    assert errors.examples == [
        f"{path}:11: content encoding 'br' cannot be read",
        f"{path}:14: not valid utf-8",
    ]


@pytest.mark.parametrize("name", ["a.warc.wet.gz", "a.wet", "a.warc.gz"])
def test_wet_gives_plain_text(write, name):
    records = [
        ("conversion", "https://a.example/", "", "text/plain", KOREAN.encode()),
        ("conversion", "https://a.example/", "", "application/json", b"{}"),
        ("conversion", "https://a.example/", "", "text/plain", b" \n"),
        ("conversion", "https://a.example/", "", "text/plain", b"<meta charset=euc-kr> \xff"),
    ]
    path = write(name, warc(*records, compress=name.endswith(".gz")))
    rows, errors = read(path=path)
    assert rows == [{"text": KOREAN, "url": "https://a.example/", "date": "2024-01-02T03:04:05Z", MARKUP: None}]
    assert errors.passed_over == {"not a page": 1, "not plain text": 1, "empty": 1}
    assert errors.examples == [f"{path}:5: not valid utf-8"]


def record_ends(content):
    """Where each record of an archive ends."""
    if content.startswith(b"WARC"):
        starts = [match.start() for match in re.finditer(rb"WARC/1\.\d\r\n", content)]
        return [*starts[1:], len(content)]
    ends, rest = [], content
    while rest:
        member = zlib.decompressobj(31)
        member.decompress(rest)
        rest = member.unused_data
        ends.append(len(content) - len(rest))
    return ends


@pytest.mark.parametrize("compress", [True, False])
def test_archive_cut_anywhere_gives_the_pages_before_it_and_the_next_file(write, compress):
    pages = [response(html(f"page {number} {KOREAN}").encode()) for number in range(3)]
    content = warc(*pages, compress=compress)
    ends = record_ends(content)
    name = "a.warc.gz" if compress else "a.warc"
    after = write("b.jsonl", jsonl({"text": "after"}))
    for cut in range(1, len(content), 7):
        whole = [number for number in range(3) if ends[number + 1] <= cut]
        rows, errors = read(path=[write(name, content[:cut]), after])
        found = [row["text"] for row in rows]
        # A gzip stream may be cut in its checksum, and an uncompressed record in the line breaks after it.
        assert found[:-1][: len(whole)] == [html(f"page {number} {KOREAN}") for number in whole]
        assert len(found) - 1 in (len(whole), len(whole) + 1)
        assert found[-1] == "after"
        if compress and cut not in ends:
            assert errors.count == 1, cut
            assert "damaged" in errors.examples[0]
        assert errors.count <= 1


@pytest.mark.parametrize("damage", ["flipped", "not gzip", "not WARC", "no length"])
def test_damaged_archive_is_one_malformed_row_with_the_number_of_its_record(write, damage):
    pages = [response(html(hashlib.sha256(b"%d" % n).hexdigest() * 50).encode()) for n in range(3)]
    content = bytearray(warc(*pages))
    number = 1
    if damage == "flipped":
        number = 3
        content[record_ends(content)[2] - 6] ^= 0xFF  # the checksum: all else of the record is read by then
    elif damage == "not gzip":
        content[:] = b"neither"
    elif damage == "not WARC":
        content[:] = gzip.compress(html("one").encode())
    else:
        content[:] = gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n\r\nrest")
    path = write("a.warc.gz", bytes(content))
    rows, errors = read(path=path)
    assert len(rows) == (1 if damage == "flipped" else 0)
    assert errors.count == 1
    assert errors.examples[0].startswith(f"{path}:{number}: the archive is damaged")


def test_network_that_fails_does_not_pass_for_a_damaged_archive(write, monkeypatch):
    class Failing(io.BytesIO):
        def read1(self, size=-1):
            raise ConnectionResetError("the line is dead")

    path = write("a.warc", b"")
    monkeypatch.setattr(fsspec, "open", lambda *_, **__: Failing())
    with pytest.raises(ValueError, match="the line is dead"):
        read(path=path)


def dump(*pages):
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="ko"><siteinfo>'
        "<base>https://ko.wikipedia.org/wiki/위키백과:대문</base></siteinfo>" + "".join(pages) + "</mediawiki>"
    )


def article(title, text, ns=0, more="", model="wikitext"):
    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{more}<revision><id>2</id>"
        f"<timestamp>2024-01-02T03:04:05Z</timestamp><model>{model}</model>"
        f'<text xml:space="preserve">{text}</text></revision></page>\n'
    )


@pytest.mark.parametrize("name", ["a-pages-articles.xml", "a.xml.bz2", "a.xml.gz", "a-articles1.xml-p1p23.bz2"])
def test_wikipedia_dump_gives_its_articles(write, name):
    content = dump(
        article("토론:가", "talk", ns=1),
        article("세종 대왕", "'''세종''' &lt;ref&gt;"),
        article("가", "#REDIRECT [[나]]", more='<redirect title="나" />'),
        article("Module", "return", model="Scribunto"),
        article("빈", ""),
    ).encode()
    compress = {".bz2": lambda data: bz2.compress(data[:400]) + bz2.compress(data[400:]), ".gz": gzip.compress}
    path = write(name, compress.get(name[name.rindex(".") :], lambda data: data)(content))
    rows, errors = read(path=path, text_field="body")
    assert rows == [
        {
            "body": "'''세종''' <ref>",
            "url": "https://ko.wikipedia.org/wiki/%EC%84%B8%EC%A2%85_%EB%8C%80%EC%99%95",
            "title": "세종 대왕",
            "date": "2024-01-02T03:04:05Z",
            MARKUP: "wikitext",
        }
    ]
    assert errors.passed_over == {"not an article": 2, "redirect": 1, "empty": 1}


def test_wikipedia_dump_is_read_in_bounded_memory(write):
    path = write("a.xml", dump(*(article(f"Article {number}", "word " * 2000) for number in range(2000))))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(SourceConfig(path=path), RowErrors())) == 2000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", ["<feed><entry/></feed>", "no XML", dump(article("a", "text"))[:-40], ""])
def test_xml_that_is_damaged_or_no_dump_is_named(write, content):
    path = write("a.xml", content)
    with pytest.raises(ValueError, match="MediaWiki") as caught:
        read(path=path)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("extract", "markup", "expected"),
    [
        ("auto", "html", "html"),
        ("auto", None, None),
        ("none", "html", None),
        ("html", None, "html"),
        ("wikitext", None, "wikitext"),
    ],
)
def test_source_says_what_its_rows_are_taken_out_of(extract, markup, expected):
    assert SourceConfig(path="a.jsonl", extract=extract).markup_of({"text": "a", MARKUP: markup}) == expected
    assert SourceConfig(path="a.jsonl").markup_of({"text": "a"}) is None


def test_rows_left_out_are_counted_by_reason(write):
    path = write("a.jsonl", jsonl(*({"text": f"text {n}" if n else " ", "even": n % 2 == 0} for n in range(20))))
    kept = 0
    for part in ("train", "test"):
        rows, errors = read(path=path, where={"even": True}, test_fraction=0.5, part=part)
        assert errors.passed_over == {"`where`": 10, "empty": 1, "other part": 9 - len(rows)}
        kept += len(rows)
    assert kept == 9


def sized(write, **sizes):
    return [write(f"{name}.txt", name * size) for name, size in sizes.items()]


def test_files_are_grouped_in_order_by_their_size(write, tmp_path):
    sized(write, a=40, b=40, c=40, d=500, e=0, f=100, g=1)
    groups = split_files(SourceConfig(path=str(tmp_path / "*.txt")), 100)
    assert [[Path(file).stem for file in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]]


def test_groups_read_what_the_source_reads_names_with_glob_characters_too(write, tmp_path):
    for name in ("a[1].txt", "a1.txt", "b?.txt", "bx.txt", "c*.txt", "c1.txt"):
        write(name, name)
    archive = write_zip(tmp_path / "z.zip", inside_txt=b"inside")
    source = SourceConfig(
        path=[str(tmp_path / "*.txt"), f"zip://inside.txt::{archive}"], test_fraction=0.5, part="train"
    )
    rows = [
        row["text"]
        for group in split_files(source, 6)
        for row in read_rows(dataclasses.replace(source, path=group), RowErrors())
    ]
    assert rows == [row["text"] for row in read_rows(source, RowErrors())]
    whole = dataclasses.replace(source, part="all")
    texts_of_groups = [read(path=group)[0] for group in split_files(whole, 6)]
    assert [row["text"] for rows in texts_of_groups for row in rows] == [
        "a1.txt",
        "a[1].txt",
        "b?.txt",
        "bx.txt",
        "c*.txt",
        "c1.txt",
        "inside",
    ]


def test_source_with_max_rows_or_of_the_hub_is_one_group(write, tmp_path):
    files = sized(write, a=40, b=40)
    assert split_files(SourceConfig(path=str(tmp_path / "*.txt"), max_rows=3), 1) == [files]
    assert split_files(SourceConfig(dataset="org/set"), 1) == [[]]


def test_file_of_unknown_size_is_a_group_by_itself(write):
    (file,) = sized(write, a=1)
    remote = "https://a.example/a.jsonl"
    assert split_files(SourceConfig(path=[file, remote, remote, file, file]), 10) == [
        [file],
        [remote],
        [remote],
        [file, file],
    ]


@pytest.mark.parametrize("name", ["absent.txt", "absent-*.txt", "folder", "zip://a.txt::absent.zip"])
def test_file_that_is_not_there_is_named_before_anything_is_read(tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = name.replace("absent.zip", f"{tmp_path}/absent.zip") if "::" in name else str(tmp_path / name)
    with pytest.raises(ValueError, match=r"No (such )?file") as caught:
        split_files(SourceConfig(path=path), 100)
    assert path in str(caught.value)


def test_hub_dataset_that_fails_is_named_whether_at_once_or_on_the_way(monkeypatch):
    import datasets

    class Dead(Exception):
        pass

    def rows():
        yield {"text": "one"}
        raise Dead("the line is dead")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    found = read_rows(SourceConfig(dataset="org/set"), RowErrors())
    assert next(found) == {"text": "one"}
    with pytest.raises(ValueError, match=r"`dataset: org/set` failed after 1 rows \(the line is dead\)"):
        next(found)

    def load(*_, **__):
        raise Dead("no such name")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"Cannot load `dataset: org/set` \(no such name\)"):
        read(dataset="org/set")
