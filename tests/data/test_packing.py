"""Shards keep every token; training meets every sequence once an epoch, in an order that is a pure function."""

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hfgpt.data.packing import (
    IGNORE_INDEX,
    HeldOutDataset,
    PackedDataset,
    TokenStream,
    as_dataset,
    permute,
    read_metadata,
    token_dtype,
)


def make_corpus(folder: Path, train=(), validation=(), shard_tokens=7, vocab_size=1000) -> Path:
    """A corpus of these documents, each a list of ids; a document counts ten bytes."""
    folder.mkdir(parents=True)
    dtype = token_dtype(vocab_size)
    splits = {}
    for name, documents in (("train", train), ("validation", validation)):
        ids = np.array([id for document in documents for id in document], dtype)
        shards = []
        for start in range(0, len(ids), shard_tokens):
            part = ids[start : start + shard_tokens]
            file = folder / name / f"{len(shards):05d}.bin"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(part.tobytes())
            shards.append({"file": f"{name}/{file.name}", "tokens": len(part)})
        splits[name] = {
            "documents": len(documents),
            "tokens": len(ids),
            "bytes": 10 * len(documents),
            "shards": shards,
        }
    (folder / "metadata.json").write_text(json.dumps({"dtype": dtype.str, "splits": splits}))
    return folder


def make_weighted_corpus(folder: Path, tokens, weights=None, shard_tokens=10**9, dtype="<u2", split="train") -> Path:
    """A corpus of one stream a source; the tokens of the n-th source start at 1,000 n."""
    shards, sources = [], {}
    for number, (name, size) in enumerate(tokens.items()):
        ids = 1000 * number + np.arange(size)
        own = []
        for start in range(0, size, shard_tokens):
            file = folder / split / name / f"{start // shard_tokens:05d}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            part = ids[start : start + shard_tokens].astype(dtype)
            file.write_bytes(part.tobytes())
            own.append({"file": str(file.relative_to(folder)), "tokens": len(part)})
        shards += own
        sources[name] = {"documents": 1, "tokens": size, "bytes": 3 * size, "shards": own}
    total = sum(tokens.values())
    info = {"documents": len(tokens), "tokens": total, "bytes": 3 * total, "shards": shards, "sources": sources}
    metadata = {"dtype": dtype, "splits": {split: info}, "weights": weights}
    folder.mkdir(exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


TOKENS = {"crawl": 900, "books": 203, "wiki": 50}
WEIGHTS = {"crawl": 5, "books": 3, "wiki": 2}


def source_of(sequence) -> str:
    return list(TOKENS)[sequence[0] // 1000]


def sequences(dataset) -> list[tuple[int, ...]]:
    return [tuple(sample["input_ids"].tolist()) for sample in dataset]


@pytest.mark.parametrize("shard_tokens", [1, 2, 3, 7, 16, 17, 1000])
def test_tokens_come_back_exactly_across_shard_borders(tmp_path, shard_tokens):
    documents = [range(5), [], range(5, 6), range(6, 16), [999]]
    tokens = [token for document in documents for token in document]
    stream = TokenStream(make_corpus(tmp_path / "c", documents, shard_tokens=shard_tokens), "train")
    assert len(stream) == len(tokens) == 17
    for start, stop in itertools.combinations_with_replacement(range(18), 2):
        part = stream.read(start, stop)
        assert part.tolist() == tokens[start:stop]
        assert part.dtype == np.int64


@pytest.mark.parametrize(("tokens", "sizes"), [(14, [7, 7]), (15, [7, 7, 1]), (1, [1])])
def test_shards_are_full_but_the_last_and_none_is_empty(tmp_path, tokens, sizes):
    corpus = make_corpus(tmp_path / "c", [range(tokens)], shard_tokens=7)
    assert [path.stat().st_size // 2 for path in sorted((corpus / "train").iterdir())] == sizes
    shards = read_metadata(corpus)["splits"]["train"]["shards"]
    assert [shard["tokens"] for shard in shards] == sizes
    assert all((corpus / shard["file"]).exists() for shard in shards)


def test_metadata_counts_documents_tokens_and_bytes(tmp_path):
    splits = read_metadata(make_corpus(tmp_path / "c", [[1, 2], [3]], [[4]]))["splits"]
    assert {name: (split["documents"], split["tokens"], split["bytes"]) for name, split in splits.items()} == {
        "train": (2, 3, 20),
        "validation": (1, 1, 10),
    }


@pytest.mark.parametrize(
    ("vocab_size", "bytes_per_token"), [(1000, 2), (2**16, 2), (2**16 + 1, 4)], ids=["small", "fits", "too big"]
)
def test_highest_id_of_a_vocabulary_survives_in_the_smallest_type(tmp_path, vocab_size, bytes_per_token):
    ids = [0, 255, 256, vocab_size - 1]
    corpus = make_corpus(tmp_path / "c", [ids], vocab_size=vocab_size)
    assert (corpus / "train/00000.bin").stat().st_size == bytes_per_token * len(ids)
    assert TokenStream(corpus, "train").read(0, 4).tolist() == ids


def test_shards_are_little_endian_on_every_machine(tmp_path):
    corpus = make_corpus(tmp_path / "c", [[1, 258]])
    assert (corpus / "train/00000.bin").read_bytes() == bytes([1, 0, 2, 1])


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_damaged_shard_is_named(tmp_path, damage):
    corpus = make_corpus(tmp_path / "c", [range(20)], shard_tokens=7)
    shard = corpus / "train/00001.bin"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "longer":
        shard.write_bytes(shard.read_bytes() + b"\0\0")
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=r"should have 14 bytes") as caught:
        PackedDataset(corpus, sequence_length=4, num_samples=1)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize("kind", ["absent", "empty folder", "file"])
def test_folder_that_is_no_corpus_is_named(tmp_path, kind):
    path = tmp_path / "corpus"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("text")
    with pytest.raises(ValueError, match="not a prepared corpus") as caught:
        PackedDataset(path, sequence_length=4, num_samples=1)
    assert str(path) in str(caught.value)


def test_unknown_split_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        TokenStream(make_corpus(tmp_path / "c", [[1]]), "test")


@pytest.mark.parametrize("size", [*range(1, 35), 63, 64, 65, 100, 255, 256, 257, 1000, 1023, 1024, 1025])
def test_permute_is_a_permutation(size):
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**40, 999)]:
        assert sorted(permute(index, size, seed, epoch) for index in range(size)) == list(range(size))


def test_permute_differs_between_epochs_and_seeds():
    orders = {
        tuple(permute(index, 50, seed, epoch) for index in range(50)) for seed in range(10) for epoch in range(10)
    }
    assert len(orders) == 100
    assert tuple(range(50)) not in orders


@pytest.mark.parametrize("size", [2, 3, 4])
def test_permute_draws_every_order_of_a_few(size):
    drawn = {tuple(permute(index, size, 0, epoch) for index in range(size)) for epoch in range(400)}
    assert drawn == set(itertools.permutations(range(size)))


@pytest.mark.parametrize("size", [5, 8, 33, 100])
def test_permute_sends_a_sequence_anywhere(size):
    for index in (0, size - 1):
        assert {permute(index, size, 0, epoch) for epoch in range(20 * size)} == set(range(size))


def test_permute_shuffles_far_apart():
    """Neighbours in the corpus are of one source and one subject: they must not stay neighbours."""
    order = [permute(index, 1000, 0, 0) for index in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_permute_needs_no_more_for_a_huge_corpus():
    size = 10**12 + 7
    targets = {permute(index, size, 3, 1) for index in range(size - 500, size)}
    assert len(targets) == 500
    assert all(0 <= target < size for target in targets)


def test_each_epoch_covers_every_sequence_exactly_once(tmp_path):
    corpus = make_corpus(tmp_path / "c", [range(23)], shard_tokens=5)
    every = [tuple(range(start, start + 4)) for start in range(0, 20, 4)]
    dataset = PackedDataset(corpus, sequence_length=4, num_samples=5 * 6, seed=1)
    assert dataset.sequences_per_epoch == 5
    epochs = [sequences(dataset)[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_sample_does_not_depend_on_the_length_of_the_run(tmp_path):
    corpus = make_corpus(tmp_path / "c", [range(100)])
    short = PackedDataset(corpus, sequence_length=4, num_samples=30, seed=5)
    long = PackedDataset(corpus, sequence_length=4, num_samples=1000, seed=5)
    assert sequences(short) == sequences(long)[:30]


def test_sample_does_not_depend_on_what_was_read_before(tmp_path):
    """A resumed run asks for sample 29 first."""
    corpus = make_corpus(tmp_path / "c", [range(100)])
    in_order = sequences(PackedDataset(corpus, sequence_length=4, num_samples=30))
    resumed = PackedDataset(corpus, sequence_length=4, num_samples=30)
    assert [tuple(resumed[index]["input_ids"].tolist()) for index in reversed(range(30))] == in_order[::-1]


def test_order_depends_on_the_seed(tmp_path):
    corpus = make_corpus(tmp_path / "c", [range(100)])
    first, second = (sequences(PackedDataset(corpus, 4, num_samples=25, seed=seed)) for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_packed_sample_is_labelled_with_itself(tmp_path):
    sample = PackedDataset(make_corpus(tmp_path / "c", [range(8)]), sequence_length=8, num_samples=1)[0]
    assert set(sample) == {"input_ids", "labels"}
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
    sample["input_ids"][0] = 77  # labels are a copy: changing one must not change the other
    assert sample["labels"].tolist() == list(range(8))


def test_writing_into_a_sample_leaves_the_corpus_alone(tmp_path):
    dataset = PackedDataset(make_corpus(tmp_path / "c", [range(4)]), sequence_length=4, num_samples=2)
    dataset[0]["input_ids"].fill_(9)
    assert dataset[1]["input_ids"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_the_run_is_refused(tmp_path, index):
    dataset = PackedDataset(make_corpus(tmp_path / "c", [range(8)]), sequence_length=4, num_samples=3)
    with pytest.raises(IndexError):
        dataset[index]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what a mapping was advised")
def test_the_disk_reads_no_more_than_a_random_sequence(tmp_path):
    """A corpus larger than memory is read at random: reading ahead would cost a thousand times the bytes."""
    dataset = PackedDataset(make_corpus(tmp_path / "c", [range(8)], shard_tokens=8), sequence_length=4, num_samples=1)
    (stream,) = pickle.loads(pickle.dumps(dataset))._streams.values()
    in_order = TokenStream(tmp_path / "c", "train")
    assert stream.read(0, 8).tolist() == in_order.read(0, 8).tolist()
    mappings = Path("/proc/self/smaps").read_text().split(str(tmp_path / "c/train/00000.bin"))[1:]
    flags = [next(line.split() for line in part.splitlines() if line.startswith("VmFlags")) for part in mappings]
    assert sorted("rr" in words for words in flags) == [False, True, True]


@pytest.mark.parametrize("tokens", [0, 3])
def test_split_shorter_than_a_sequence_is_refused(tmp_path, tokens):
    corpus = make_corpus(tmp_path / "c", [range(tokens)])
    with pytest.raises(ValueError, match=rf"has {tokens} tokens, less than one sequence of 4 \(`sequence_length`\)"):
        PackedDataset(corpus, sequence_length=4, num_samples=1)


def test_dataset_is_handed_to_a_worker_without_its_tokens(tmp_path):
    """Where workers are spawned, a pickled memory map would be the whole corpus, once in each of them."""
    corpus = make_corpus(tmp_path / "c", [range(1000)] * 50, shard_tokens=20_000)
    dataset = PackedDataset(corpus, sequence_length=8, num_samples=20)
    pickled = pickle.dumps(dataset)
    assert sequences(pickle.loads(pickled)) == sequences(dataset)
    assert len(pickled) < 10_000  # the tokens are 100,000 bytes


def test_loader_batches_samples_in_order(tmp_path):
    dataset = PackedDataset(make_corpus(tmp_path / "c", [range(40)]), sequence_length=4, num_samples=6)
    batches = [batch["input_ids"] for batch in DataLoader(dataset, batch_size=3)]
    assert [tuple(row.tolist()) for batch in batches for row in batch] == sequences(dataset)


def test_the_order_without_weights_never_changes(tmp_path):
    """A run that an earlier version began goes on in its order."""
    expected = [0, 7, 10, 2, 21, 24, 4, 9, 11, 12, 18, 22, 8, 16, 19, 14, 3, 17, 20, 15, 1, 13, 5, 6, 23]
    expected += [23, 5, 1, 18, 4, 13, 8, 10, 14, 15, 22, 6, 19, 7, 2, 9, 21, 3, 0, 16, 12, 11, 20, 17, 24]
    one_stream = make_corpus(tmp_path / "old", [range(100)])
    by_source = make_weighted_corpus(tmp_path / "new", {"all": 60, "of": 30, "it": 10}, shard_tokens=7)
    for corpus in (one_stream, by_source):
        dataset = PackedDataset(corpus, sequence_length=4, num_samples=50, seed=7)
        assert [dataset.locate(index)[2] for index in range(50)] == expected
    stream = np.concatenate([np.arange(60), 1000 + np.arange(30), 2000 + np.arange(10)]).reshape(25, 4)
    assert sequences(dataset) == [tuple(stream[place]) for place in expected]


@pytest.mark.parametrize("shard_tokens", [7, 10**9])
def test_a_source_is_a_stream_of_its_own(tmp_path, shard_tokens):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, shard_tokens=shard_tokens)
    for number, (source, size) in enumerate(TOKENS.items()):
        stream = TokenStream(corpus, "train", source)
        assert len(stream) == stream.info["tokens"] == size
        assert stream.read(0, size).tolist() == list(range(1000 * number, 1000 * number + size))
    whole = TokenStream(corpus, "train")
    assert len(whole) == sum(TOKENS.values())
    assert whole.read(890, 910).tolist() == [*range(890, 900), *range(1000, 1010)]


def test_an_unknown_source_names_those_there_are(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS)
    with pytest.raises(ValueError, match="no source 'news'; it has crawl, books, wiki"):
        TokenStream(corpus, "train", "news")


def test_sources_of_an_old_corpus_cannot_be_told_apart(tmp_path):
    corpus = make_corpus(tmp_path / "c", [range(100)])
    with pytest.raises(ValueError, match="run `hfgpt prepare --overwrite` again"):
        TokenStream(corpus, "train", "crawl")
    with pytest.raises(ValueError, match="run `hfgpt prepare --overwrite` again"):
        PackedDataset(corpus, sequence_length=4, num_samples=1, weights={"crawl": 1})


def test_weighted_sources_are_mixed_as_asked_and_each_is_read_without_repeats(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, WEIGHTS, shard_tokens=70)
    run = sequences(PackedDataset(corpus, sequence_length=4, num_samples=500))
    assert set(Counter(map(source_of, run)).items()) == {("crawl", 250), ("books", 150), ("wiki", 100)}
    for number, (source, size) in enumerate(TOKENS.items()):
        own = [sequence for sequence in run if source_of(sequence) == source]
        cut = [tuple(range(1000 * number + start, 1000 * number + start + 4)) for start in range(0, size - 3, 4)]
        for start in range(0, len(own) - len(cut) + 1, len(cut)):
            assert sorted(own[start : start + len(cut)]) == cut
    assert any(source_of(a) != source_of(b) for a, b in itertools.pairwise(run[:20]))


def test_weights_of_the_run_override_those_of_the_corpus(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, WEIGHTS)
    even = PackedDataset(corpus, 4, num_samples=300, weights={"books": 1, "wiki": 1, "crawl": 1})
    assert set(Counter(map(source_of, sequences(even))).values()) == {100}
    plain = make_weighted_corpus(tmp_path / "plain", TOKENS)
    assert sequences(PackedDataset(plain, 4, 300, weights=WEIGHTS)) == sequences(PackedDataset(corpus, 4, 300))
    with pytest.raises(ValueError, match="`weight` of source 'wiki' is missing"):
        PackedDataset(corpus, 4, num_samples=1, weights={"crawl": 1, "books": 1})


def test_a_weighted_source_shorter_than_a_sequence_is_named(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", {**TOKENS, "wiki": 3}, WEIGHTS)
    with pytest.raises(ValueError, match=r"'wiki' has a `weight` \(2\) and less than one sequence"):
        PackedDataset(corpus, sequence_length=4, num_samples=1)


def test_a_weighted_run_resumes_anywhere_on_any_number_of_processes(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, WEIGHTS)
    whole = sequences(PackedDataset(corpus, 4, num_samples=400, seed=3))
    for processes in (1, 2, 3):
        parts = [PackedDataset(corpus, 4, num_samples=1000, seed=3) for _ in range(processes)]
        again = [tuple(parts[index % processes][index]["input_ids"].tolist()) for index in range(250, 400)]
        assert again == whole[250:]


def test_spawned_workers_read_the_weighted_run_in_order(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", {name: 40 * size for name, size in TOKENS.items()}, WEIGHTS)
    dataset = PackedDataset(corpus, sequence_length=4, num_samples=12)
    assert len(pickle.dumps(dataset)) < 10_000  # the tokens are 92,240 bytes
    loader = DataLoader(dataset, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    read = [tuple(row.tolist()) for batch in loader for row in batch["input_ids"]]
    assert read == sequences(dataset)


def test_held_out_data_is_read_over_all_sources(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", {"a": 7, "b": 4}, {"a": 1, "b": 1}, split="validation")
    dataset = HeldOutDataset(corpus, sequence_length=4, pad_token_id=0)
    labels = torch.cat([sample["labels"] for sample in dataset])
    assert labels[labels != IGNORE_INDEX].tolist() == [*range(7), *range(1000, 1004)]
    assert dataset.bytes_per_token == 3.0


@pytest.mark.parametrize("shard_tokens", [1, 3, 7, 8, 70, 10**9])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["one stream", "weighted"])
def test_as_dataset_has_every_sequence_in_the_order_of_the_corpus(tmp_path, weights, shard_tokens):
    corpus = make_weighted_corpus(tmp_path / "c", {"crawl": 90, "books": 23, "wiki": 50}, weights, shard_tokens)
    streams = [TokenStream(corpus, "train", source) for source in (weights or [None])]
    expected = [stream.read(start, start + 4).tolist() for stream in streams for start in range(0, len(stream) - 3, 4)]
    dataset = as_dataset(corpus, sequence_length=4)
    assert dataset["input_ids"][:] == expected
    assert len(expected) == (163 // 4 if weights is None else 90 // 4 + 23 // 4 + 50 // 4)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["one stream", "weighted"])
def test_as_dataset_in_the_order_of_a_run_is_what_training_reads(tmp_path, weights):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, weights, shard_tokens=70)
    rows = as_dataset(corpus, sequence_length=4, num_samples=700, seed=2)["input_ids"]
    assert [tuple(row) for row in rows] == sequences(PackedDataset(corpus, 4, num_samples=700, seed=2))


def test_as_dataset_is_the_files_themselves_not_a_copy(tmp_path):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS)
    dataset = as_dataset(corpus, sequence_length=4)
    with open(corpus / "train/crawl/00000.bin", "r+b") as file:
        file.write(b"\x4d\x00")
    assert dataset[0]["input_ids"] == [77, 1, 2, 3]


@pytest.mark.parametrize(("dtype", "name"), [("<u2", "uint16"), ("<u4", "uint32")])
def test_as_dataset_trains_as_int64(tmp_path, dtype, name):
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, dtype=dtype)
    dataset = as_dataset(corpus, sequence_length=4)
    assert (dataset.features["input_ids"].feature.dtype, dataset.features["input_ids"].length) == (name, 4)
    assert dataset.split == "train"
    for rows in (dataset, dataset.with_format("torch")):
        batch = default_data_collator([rows[1], rows[2]])["input_ids"]
        assert batch.dtype == torch.int64
        assert batch.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("num_samples", [None, 300])
def test_as_dataset_survives_being_saved(tmp_path, num_samples):
    from datasets import Dataset as ArrowDataset
    from datasets import load_from_disk

    corpus = make_weighted_corpus(tmp_path / "c", TOKENS, WEIGHTS, shard_tokens=70)
    dataset = as_dataset(corpus, sequence_length=4, num_samples=num_samples)
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "saved.parquet")
    for read in (
        load_from_disk(tmp_path / "saved"),
        ArrowDataset.from_parquet(str(tmp_path / "saved.parquet"), cache_dir=str(tmp_path / "cache")),
    ):
        assert read.features == dataset.features
        assert read["input_ids"][:] == dataset["input_ids"][:]


def test_as_dataset_is_named_by_what_it_holds(tmp_path):
    """`map` keeps its results under this name: another corpus, length or order must not find them."""
    corpus = make_weighted_corpus(tmp_path / "c", TOKENS)
    other = make_weighted_corpus(tmp_path / "d", TOKENS)
    names = [
        as_dataset(folder, sequence_length=length, **run)._fingerprint
        for folder in (corpus, other)
        for length in (4, 5)
        for run in ({}, {"weights": WEIGHTS}, {"num_samples": 9}, {"num_samples": 9, "seed": 1})
    ]
    assert len(set(names)) == len(names)
    assert as_dataset(corpus, sequence_length=4)._fingerprint == names[0]


def test_as_dataset_of_too_little_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 tokens, less than one sequence of 4 \(`sequence_length`\)"):
        as_dataset(make_corpus(tmp_path / "c", [range(3)]), sequence_length=4)


@pytest.mark.parametrize(("tokens", "length"), [(11, 4), (12, 4), (3, 4), (0, 4), (5, 1)])
def test_held_out_data_covers_every_token_once_with_padding_of_no_loss(tmp_path, tokens, length):
    corpus = make_corpus(tmp_path / "c", validation=[range(tokens)], shard_tokens=5)
    samples = list(HeldOutDataset(corpus, sequence_length=length, pad_token_id=55))
    ids = [token for sample in samples for token in sample["input_ids"].tolist()]
    labels = [label for sample in samples for label in sample["labels"].tolist()]
    padding = -tokens % length
    assert labels == [*range(tokens), *[IGNORE_INDEX] * padding]
    assert ids == [*range(tokens), *[55] * padding]
    assert all(len(sample["input_ids"]) == length for sample in samples)


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_the_held_out_data_is_refused(tmp_path, index):
    dataset = HeldOutDataset(make_corpus(tmp_path / "c", validation=[range(11)]), sequence_length=4, pad_token_id=0)
    assert len(dataset) == 3
    with pytest.raises(IndexError):
        dataset[index]


@pytest.mark.parametrize(("max_tokens", "read"), [(6, 6), (8, 8), (100, 11), (None, 11)])
def test_held_out_data_stops_at_max_tokens(tmp_path, max_tokens, read):
    corpus = make_corpus(tmp_path / "c", validation=[range(11)])
    dataset = HeldOutDataset(corpus, sequence_length=4, pad_token_id=0, max_tokens=max_tokens)
    labels = torch.cat([sample["labels"] for sample in dataset])
    assert dataset.tokens == read
    assert labels[labels != IGNORE_INDEX].tolist() == list(range(read))


def test_bytes_per_token_are_those_of_the_whole_split(tmp_path):
    corpus = make_corpus(tmp_path / "c", validation=[range(4), range(4)])
    dataset = HeldOutDataset(corpus, sequence_length=4, pad_token_id=0, max_tokens=4)
    assert dataset.bytes_per_token == 20 / 8
