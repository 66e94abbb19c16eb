"""A prepared corpus is exactly its documents, whole or not there at all, and the same whenever it is made."""

import datetime
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hfgpt.config import from_mapping
from hfgpt.data import shards
from hfgpt.data.corpus import CorpusConfig, load_corpus_config, prepare
from hfgpt.data.packing import TokenStream, read_metadata
from hfgpt.data.tokenizer import encode_documents


RECIPES = sorted((Path(__file__).parents[2] / "recipes/corpus").glob("*.yaml"))
LINES = [f"document {number} 문서 {number % 7}" for number in range(400)]


@pytest.fixture
def prepared(tmp_path, tokenizer_folder):
    """Prepares a corpus in `tmp_path / "corpus"` of texts, or of any other recipe, with the small tokenizer."""

    def prepared(texts=None, folder="corpus", overwrite=False, **recipe):
        if texts is not None:
            path = tmp_path / "texts.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
            recipe["sources"] = [{"path": str(path), **recipe.pop("source", {})}]
        values = {"tokenizer": {"path": tokenizer_folder}, "holdout_fraction": 0.0, **recipe}
        return prepare(from_mapping(CorpusConfig, values, "recipe"), tmp_path / folder, overwrite)

    return prepared


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the reports, which say how long it took."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("report.")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def documents(folder: Path, split: str) -> list[str]:
    """Texts of a split, cut at the end-of-text id."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    stream = TokenStream(folder, split)
    found, ids = [], []
    for token in stream.read(0, len(stream)).tolist():
        if token == tokenizer.eos_token_id:
            found.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(token)
    assert ids == []
    return found


def test_token_stream_is_the_documents_joined_by_the_end_of_text_id(prepared, tmp_path, tokenizer):
    texts = ["the cat sat", "한국어 😀", "  spaces kept \n", "a<|endoftext|>b", "the end"]
    metadata = prepared(texts, shard_tokens=5)
    expected = [id for ids in encode_documents(tokenizer, texts) for id in [*ids, tokenizer.eos_token_id]]
    stream = TokenStream(tmp_path / "corpus", "train")
    assert stream.read(0, len(stream)).tolist() == expected
    assert metadata["end_of_text_token_id"] == tokenizer.eos_token_id
    assert documents(tmp_path / "corpus", "train") == texts


def test_batches_of_the_tokenizer_do_not_show_in_the_stream(prepared, tmp_path, monkeypatch):
    prepared(LINES[:50])
    monkeypatch.setattr(shards, "ENCODE_BATCH_CHARACTERS", 40)
    prepared(LINES[:50], folder="in small batches")
    assert contents(tmp_path / "in small batches") == contents(tmp_path / "corpus")


def test_sources_are_read_in_the_order_of_the_recipe(prepared, write, tmp_path):
    sources = [{"path": write("b.txt", "b")}, {"path": write("a.jsonl", '{"text": "a"}\n{"text": "c"}\n')}]
    prepared(sources=sources)
    assert documents(tmp_path / "corpus", "train") == ["b", "a", "c"]


def test_held_out_documents_are_not_in_train(prepared, tmp_path):
    prepared(LINES, holdout_fraction=0.1)
    train, held_out = (documents(tmp_path / "corpus", split) for split in ("train", "validation"))
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(LINES)
    assert 20 <= len(held_out) <= 60


def test_repeated_document_is_not_split_between_train_and_held_out(prepared, tmp_path):
    prepared(LINES + LINES, holdout_fraction=0.1, deduplicate="none")
    train, held_out = (documents(tmp_path / "corpus", split) for split in ("train", "validation"))
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 800


def test_held_out_share_is_taken_of_a_part_as_well(prepared, tmp_path):
    """The division into parts and the held-out split must be drawn apart, or one swallows the other."""
    prepared(LINES, source={"test_fraction": 0.3, "part": "train"}, holdout_fraction=0.2)
    train, held_out = (documents(tmp_path / "corpus", split) for split in ("train", "validation"))
    assert 240 <= len(train) + len(held_out) <= 320
    assert 0.1 <= len(held_out) / (len(train) + len(held_out)) <= 0.3


def test_seed_draws_other_held_out_documents(prepared, tmp_path):
    prepared(LINES, holdout_fraction=0.1)
    prepared(LINES, holdout_fraction=0.1, seed=1, folder="other")
    first, second = (set(documents(tmp_path / folder, "validation")) for folder in ("corpus", "other"))
    assert first != second


def test_no_documents_are_held_out_where_none_are_asked_for(prepared, tmp_path):
    prepared(LINES[:20], holdout_fraction=0.0)
    assert documents(tmp_path / "corpus", "train") == LINES[:20]
    assert documents(tmp_path / "corpus", "validation") == []


def test_exact_duplicates_are_dropped_and_counted_across_sources(prepared, write, tmp_path):
    first, second = write("a.txt", "one\ntwo\none\n"), write("b.txt", "two\nthree\n one \n")
    sources = [{"path": path, "sample_by": "line"} for path in (first, second)]
    metadata = prepared(sources=sources)
    assert documents(tmp_path / "corpus", "train") == ["one", "two", "three"]
    assert {name: counts["duplicates"] for name, counts in metadata["sources"].items()} == {"a.txt": 1, "b.txt": 2}
    assert {name: counts["documents"] for name, counts in metadata["sources"].items()} == {"a.txt": 2, "b.txt": 1}


def test_duplicates_stay_where_they_are_wanted(prepared, tmp_path):
    metadata = prepared(["one", "two", "one"], deduplicate="none")
    assert documents(tmp_path / "corpus", "train") == ["one", "two", "one"]
    assert metadata["sources"]["texts.jsonl"]["duplicates"] == 0


def test_metadata_counts_what_is_in_the_shards(prepared, write, tmp_path):
    sources = [
        {"name": "lines", "path": write("a.txt", "\n".join(LINES[:90])), "sample_by": "line"},
        {"name": "whole", "path": write("b.txt", "한국어")},
    ]
    metadata = prepared(sources=sources, holdout_fraction=0.2, shard_tokens=100)
    assert read_metadata(tmp_path / "corpus") == metadata
    for count in ("documents", "tokens", "bytes"):
        assert sum(source[count] for source in metadata["sources"].values()) == sum(
            split[count] for split in metadata["splits"].values()
        )
    assert metadata["sources"]["whole"]["bytes"] == len("한국어".encode())
    for name, split in metadata["splits"].items():
        texts = documents(tmp_path / "corpus", name)
        assert split["documents"] == len(texts) > 0
        assert split["bytes"] == sum(len(text.encode()) for text in texts)
        assert split["tokens"] == len(TokenStream(tmp_path / "corpus", name))
        assert all(shard["tokens"] <= 100 for shard in split["shards"])
    assert len(metadata["splits"]["train"]["shards"]) > 1


def test_malformed_rows_are_left_out_and_reported(prepared, write, tmp_path):
    path = write("a.jsonl", '{"text": "one"}\n{"text": 2}\nbad\n{"text": "four"}\n')
    metadata = prepared(sources=[{"path": path}], max_bad_rows=2)
    assert documents(tmp_path / "corpus", "train") == ["one", "four"]
    assert metadata["bad_rows"]["count"] == 2
    assert [example.split(": ")[0] for example in metadata["bad_rows"]["examples"]] == [f"{path}:2", f"{path}:3"]


def test_malformed_row_whose_fields_are_not_utf8_is_reported(prepared, write, tmp_path):
    path = write("a.jsonl", b'{"text": "one"}\n{"te\xff": "two"}\n')
    metadata = prepared(sources=[{"path": path}])
    assert metadata["bad_rows"]["count"] == 1
    assert read_metadata(tmp_path / "corpus") == metadata


def test_max_bad_rows_of_null_never_fails(prepared, write, tmp_path):
    path = write("a.jsonl", "bad\n" * 300 + '{"text": "one"}\n')
    assert prepared(sources=[{"path": path}], max_bad_rows=None)["bad_rows"]["count"] == 300
    assert documents(tmp_path / "corpus", "train") == ["one"]


@pytest.mark.parametrize("where", ["fresh", "between others", "empty folder"])
def test_failure_leaves_nothing_behind(prepared, write, tmp_path, where):
    path = write("in/a.jsonl", '{"text": "one"}\n' * 3 + "bad\n" * 4)
    if where == "empty folder":
        (tmp_path / "corpus").mkdir()
    if where == "between others":
        write("other/file", "kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"More than 3 malformed rows \(`max_bad_rows`\)"):
        prepared(sources=[{"path": path}], max_bad_rows=3)
    assert sorted(tmp_path.rglob("*")) == before


def test_same_recipe_again_reuses_the_corpus_untouched(prepared, tmp_path, capsys):
    first = prepared(LINES[:20])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    inode = (tmp_path / "corpus").stat().st_ino
    capsys.readouterr()
    assert prepared(LINES[:20]) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == files
    assert (tmp_path / "corpus").stat().st_ino == inode
    assert "from the same recipe" in capsys.readouterr().err


def test_another_folder_is_the_same_recipe(tmp_path, write, tokenizer_folder):
    """`--output` overrides `output_dir`; where a corpus is does not change what it is."""
    values = {"sources": [{"path": write("a.txt", "one")}], "tokenizer": {"path": tokenizer_folder}}
    values |= {"holdout_fraction": 0.0}
    first = prepare(from_mapping(CorpusConfig, {**values, "output_dir": str(tmp_path / "first")}, "recipe"))
    (tmp_path / "first").rename(tmp_path / "second")
    again = prepare(from_mapping(CorpusConfig, {**values, "output_dir": str(tmp_path / "second")}, "recipe"))
    assert again == first
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"shard_tokens": 9}, {"source": {"max_rows": 5}}])
def test_another_recipe_is_refused_and_the_corpus_kept(prepared, tmp_path, change):
    prepared(LINES[:20])
    before = contents(tmp_path / "corpus")
    with pytest.raises(
        ValueError, match=r"holds a corpus of another recipe or of files that have changed since: pass --overwrite"
    ) as caught:
        prepared(LINES[:20], **change)
    assert str(tmp_path / "corpus") in str(caught.value)
    assert contents(tmp_path / "corpus") == before


def test_overwrite_replaces_the_whole_corpus(prepared, tmp_path):
    prepared(LINES, shard_tokens=500, holdout_fraction=0.1)
    (tmp_path / "corpus/left-over").write_text("old")
    prepared(["new"], overwrite=True)
    assert documents(tmp_path / "corpus", "train") == ["new"]
    prepared(["new"], folder="fresh")
    assert set(contents(tmp_path / "corpus")) == set(contents(tmp_path / "fresh"))
    assert {path.name.removesuffix(".stages") for path in tmp_path.iterdir()} == {"corpus", "fresh", "texts.jsonl"}


def test_overwrite_makes_the_same_recipe_anew(prepared, tmp_path):
    prepared(["old"])
    prepared(["new"], overwrite=True)
    assert documents(tmp_path / "corpus", "train") == ["new"]


def test_failed_overwrite_keeps_the_old_corpus(prepared, write, tmp_path):
    prepared(LINES[:20])
    before = contents(tmp_path)
    path = write("texts.jsonl", before["texts.jsonl"] + b"bad\n" * 4)
    with pytest.raises(ValueError, match="max_bad_rows"):
        prepared(sources=[{"path": path}], max_bad_rows=3, overwrite=True)
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if name.startswith("corpus/")} == {
        name: data for name, data in before.items() if name.startswith("corpus/")
    }
    assert not any(name.startswith(".corpus") for name in after)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_something_else_in_it_is_never_touched(prepared, write, tmp_path, overwrite):
    write("corpus/thesis.tex", "ten years of work")
    with pytest.raises(ValueError, match="holds something else: choose another folder"):
        prepared(["one"], overwrite=overwrite)
    assert contents(tmp_path / "corpus") == {"thesis.tex": b"ten years of work"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_is_a_file_is_refused(prepared, write, tmp_path, overwrite):
    path = write("corpus", "text")
    with pytest.raises(ValueError) as caught:
        prepared(["one"], overwrite=overwrite)
    assert path in str(caught.value)
    assert Path(path).read_text() == "text"


@pytest.mark.parametrize("old", [False, True], ids=["empty", "to a corpus"])
def test_output_may_be_a_link_to_another_disk(prepared, tmp_path, old):
    (tmp_path / "disk").mkdir()
    (tmp_path / "corpus").symlink_to(tmp_path / "disk")
    if old:
        prepared(["old"], folder="made")
        (tmp_path / "disk").rmdir()
        (tmp_path / "made").rename(tmp_path / "disk")
    prepared(["new"], overwrite=old)
    assert documents(tmp_path / "corpus", "train") == ["new"]


def test_folders_above_the_output_are_made(prepared, tmp_path):
    prepared(["one"], folder="a/b/corpus")
    assert documents(tmp_path / "a/b/corpus", "train") == ["one"]


def test_no_output_at_all_is_refused(write):
    with pytest.raises(ValueError, match=r"`--output DIR` or set `output_dir`"):
        prepare(from_mapping(CorpusConfig, {"sources": [{"path": write("a.txt", "one")}]}, "recipe"))


@pytest.mark.parametrize(
    "recipe", [{"tokenizer": {"vocab_size": 258}}, {}], ids=["new tokenizer", "existing tokenizer"]
)
def test_sources_without_any_text_are_refused_by_name(prepared, write, tmp_path, recipe):
    sources = [{"path": write("a.txt", " \n\n")}, {"path": write("b.jsonl", '{"text": ""}\n{"body": "text"}\n')}]
    with pytest.raises(ValueError, match=r"No text was read from a\.txt, b\.jsonl \(1 malformed rows\)"):
        prepared(sources=sources, **recipe)
    assert not (tmp_path / "corpus").exists()


def test_source_whose_every_document_is_held_out_is_not_called_empty(prepared):
    with pytest.raises(ValueError, match="holdout_fraction"):
        prepared(["one", "two"], holdout_fraction=1 - 1e-9)


def test_one_empty_source_among_others_counts_nothing(prepared, write, tmp_path):
    metadata = prepared(sources=[{"path": write("a.txt", "")}, {"path": write("b.txt", "one")}])
    assert metadata["sources"]["a.txt"] == {"documents": 0, "tokens": 0, "bytes": 0, "duplicates": 0}
    assert documents(tmp_path / "corpus", "train") == ["one"]


def test_existing_tokenizer_is_taken_by_path(prepared, tmp_path, tokenizer):
    metadata = prepared(["the cat 한국어"])
    saved = AutoTokenizer.from_pretrained(tmp_path / "corpus/tokenizer")
    assert encode_documents(saved, LINES) == encode_documents(tokenizer, LINES)
    assert metadata["vocab_size"] == len(tokenizer)


def test_existing_tokenizer_is_taken_by_vocabulary_and_merges(prepared, tmp_path, tokenizer, gpt2_files):
    metadata = prepared(LINES[:20], tokenizer={"vocab_file": gpt2_files[0], "merges_file": gpt2_files[1]})
    prepared(LINES[:20], folder="by path")
    streams = [TokenStream(tmp_path / folder, "train") for folder in ("corpus", "by path")]
    assert streams[0].read(0, len(streams[0])).tolist() == streams[1].read(0, len(streams[1])).tolist()
    assert metadata["vocab_size"] == len(tokenizer)
    assert documents(tmp_path / "corpus", "train") == LINES[:20]


def test_new_tokenizer_is_trained_on_the_sources(prepared, tmp_path):
    metadata = prepared(LINES, tokenizer={"vocab_size": 280})
    assert metadata["vocab_size"] == 280
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "corpus/tokenizer")
    assert len(tokenizer) == 280
    assert len(encode_documents(tokenizer, ["document"])[0]) == 1
    assert documents(tmp_path / "corpus", "train") == LINES


def test_new_tokenizer_is_trained_on_no_more_than_its_sample(prepared):
    """One document of the sources is too little to fill the vocabulary that all of them fill."""
    assert prepared(LINES, tokenizer={"vocab_size": 280, "sample_bytes": 1})["vocab_size"] < 280


def test_result_is_identical_on_two_runs(prepared, tmp_path):
    recipe = {"tokenizer": {"vocab_size": 300, "sample_bytes": 5000}, "holdout_fraction": 0.1, "shard_tokens": 300}
    prepared(LINES, folder="first", **recipe)
    prepared(LINES, folder="second", **recipe)
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second")
    assert {
        "metadata.json",
        "train/texts.jsonl/00001.bin",
        "validation/texts.jsonl/00000.bin",
        "tokenizer/tokenizer.json",
    } <= set(first)


def test_date_in_where_is_a_value_like_any_other(prepared, write, tmp_path):
    """YAML makes `where: {date: 2020-01-31}` a date, which JSON does not know."""
    path = write("a.csv", "text,date\none,2020-01-31\ntwo,2021-01-31\n")
    prepared(sources=[{"path": path, "where": {"date": datetime.date(2020, 1, 31)}}])
    assert documents(tmp_path / "corpus", "train") == ["one"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sources": []}, "`sources` is empty"),
        ({"sources": [{"path": "x/a.txt"}, {"path": "y/a.txt"}]}, "same `name`: a.txt, a.txt"),
        ({"sources": [{"path": "a.txt"}], "holdout_fraction": 1.0}, "below 1, got 1.0"),
        ({"sources": [{"path": "a.txt"}], "holdout_fraction": -0.1}, "at least 0"),
        ({"sources": [{"path": "a.txt"}], "shard_tokens": 0}, "`shard_tokens` must be at least 1"),
        ({"sources": [{"path": "a.txt"}], "deduplicate": "fuzzy"}, "'exact', 'none', got 'fuzzy'"),
        ({"sources": [{"path": "a.txt", "txet_field": "b"}]}, "did you mean `text_field`"),
        ({}, "`sources` is missing"),
    ],
)
def test_recipe_that_cannot_work_is_refused_before_anything_is_read(values, reason):
    with pytest.raises(ValueError, match=reason):
        from_mapping(CorpusConfig, values, "recipe")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_project_load(path):
    assert load_corpus_config(path).output_dir


def test_recipe_file_is_named_where_it_is_wrong(write):
    path = write("recipe.yaml", "sources: [{path: a.txt}]\nholdout_fracton: 0.1\n")
    with pytest.raises(ValueError, match="did you mean `holdout_fraction`") as caught:
        load_corpus_config(path)
    assert path in str(caught.value)


def test_the_same_recipe_over_a_changed_file_is_refused(prepared, tmp_path):
    prepared(LINES[:20])
    before = contents(tmp_path / "corpus")
    with pytest.raises(ValueError, match="files that have changed since"):
        prepared(LINES[:21])
    assert contents(tmp_path / "corpus") == before
    prepared(LINES[:21], overwrite=True)
    assert contents(tmp_path / "corpus") != before
