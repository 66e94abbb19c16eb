"""Message catalogs give a row for each translation; what is damaged is named by file and entry."""

import gettext
import io
import struct
import zipfile

import pytest

from hfgpt.data.readers import RowErrors, SourceConfig, local_files, read_rows, split_files


HEADER = "Content-Type: text/plain; charset={}\nPlural-Forms: nplurals=2; plural=(n != 1);\n"


def catalog(messages, charset="utf-8", order="<"):
    """A compiled catalog of messages and translations, with a header if there is a charset."""
    entries = {"": HEADER.format(charset), **messages} if charset else messages
    pairs = sorted(
        [part if isinstance(part, bytes) else part.encode(charset or "utf-8") for part in pair]
        for pair in entries.items()
    )
    tables, texts = [b"", b""], b""
    start = 28 + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack(f"{order}2I", len(pair[side]), start + len(texts))
            texts += pair[side] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 28)
    return head + tables[0] + tables[1] + texts


def read(path, **source):
    errors = RowErrors()
    rows = list(read_rows(SourceConfig(path=str(path), **{"text_field": "target", **source}), errors))
    return [(row["source"], row["target"], row["context"]) for row in rows], errors


MESSAGES = {"Open": "열기", "menu\4Open": "열기 메뉴", "Save %1\nnow": "지금 %1 저장", "Unknown": "", "Blank": "  "}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_messages_come_with_their_translation_and_context(tmp_path, order):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog(MESSAGES, order=order))
    rows, errors = read(path)
    assert sorted(rows) == [
        ("Open", "열기", ""),
        ("Open", "열기 메뉴", "menu"),
        ("Save %1\nnow", "지금 %1 저장", ""),
    ]
    assert errors.count == 0 and errors.passed_over == {"header": 1, "not translated": 2}
    assert read(path, text_field="text")[1].count == 0
    assert ["Open", "열기"] in [
        row["text"].split("\n") for row in read_rows(SourceConfig(path=str(path)), RowErrors())
    ]
    # The file is one that others read, too.
    assert gettext.GNUTranslations(io.BytesIO(path.read_bytes())).gettext("Open") == "열기"


def test_each_plural_form_is_a_row_of_its_own_source(tmp_path):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog({"%1 cell\0%1 cells": "%1 cellule\0%1 cellules", "git\4a file\0files": "un\0\0trois"}))
    rows, errors = read(path)
    assert rows == [
        ("%1 cell", "%1 cellule", ""),
        ("%1 cells", "%1 cellules", ""),
        ("a file", "un", "git"),
        ("files", "trois", "git"),
    ]
    assert errors.passed_over == {"header": 1, "not translated": 1}


def test_a_language_without_plurals_has_one_form_for_both(tmp_path):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog({"%1 cell\0%1 cells": "셀 %1개"}))
    assert read(path)[0] == [("%1 cell", "셀 %1개", ""), ("%1 cells", "셀 %1개", "")]


@pytest.mark.parametrize(("charset", "text"), [("euc-kr", "열기"), ("iso-8859-1", "fermé"), ("", "열기")])
def test_texts_are_in_the_charset_of_the_header(tmp_path, charset, text):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog({"Open": text}, charset=charset))
    assert read(path)[0] == [("Open", text, "")]


def test_an_entry_that_is_not_in_its_charset_is_counted_by_its_number(tmp_path):
    path = tmp_path / "a.mo"
    path.write_bytes(catalog({"a": "하나", "b": b"\xff\xfe", "c": "셋"}))
    rows, errors = read(path)
    assert [row[0] for row in rows] == ["a", "c"]
    assert errors.examples == [f"{path}:3: not valid utf-8"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-5],
        lambda data: data[:40],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: b"x" + data,
    ],
    ids=["texts cut", "tables cut", "header cut", "empty", "another format"],
)
def test_a_damaged_catalog_is_named(tmp_path, damage):
    path = tmp_path / "a.mo"
    path.write_bytes(damage(catalog(MESSAGES)))
    with pytest.raises(ValueError, match=r"damaged, or no compiled gettext catalog") as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "pack.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ba":
            archive.writestr(f"pack/locale/ko_KR/{name}.mo", catalog({name: f"뜻 {name}", "shared": "같음"}))
        archive.writestr("pack/locale/ko_KR/a.json", "{}")
    return path


def test_catalogs_inside_a_wheel_are_read_in_place_by_a_glob(wheel):
    path = f"zip://pack/locale/*/*.mo::{wheel}"
    rows, errors = read(path)
    assert [row[0] for row in rows] == ["a", "shared", "b", "shared"]
    assert errors.count == 0
    source = SourceConfig(path=path, text_field="target")
    files = [f"zip://pack/locale/ko_KR/{name}.mo::{wheel}" for name in "ab"]
    assert split_files(source, target_bytes=1) == [[file] for file in files]
    # What a pipeline compares with its last run: the archive.
    assert [name for name, *_ in local_files(source)] == files
    with pytest.raises(ValueError, match="No file matches"):
        read(f"zip://pack/*.mo::{wheel}")
    with pytest.raises(ValueError, match="No such file"):
        read(f"zip://pack/*.mo::{wheel}.absent")
    with pytest.raises(ValueError, match="Cannot read"):
        read(f"zip://pack/*.mo::{__file__}")


def test_a_source_text_is_never_in_two_parts(wheel):
    train, test = (
        read(f"zip://pack/locale/*/*.mo::{wheel}", group_by="source", test_fraction=0.5, part=part, split_seed=1)[0]
        for part in ("train", "test")
    )
    assert train and test and len(train) + len(test) == 4
    assert not {row[0] for row in train} & {row[0] for row in test}
