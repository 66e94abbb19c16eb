import io
import json

import pytest
from helpers import ROOT, run, write_jsonl

from hfgpt.cli import main


def recipe(tmp_path, **fields):
    rows = [{"text": f"A line about number {i}."} for i in range(50)]
    values = {
        "sources": [{"name": "lines", "path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        "tokenizer": {"vocab_size": 300},
        **fields,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


def test_prepare_writes_a_corpus_and_says_what_is_in_it(tmp_path, capsys):
    assert main(["prepare", recipe(tmp_path), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "train:" in out and "tokens" in out
    assert (tmp_path / "out" / "metadata.json").exists()


def test_prepare_as_json_prints_nothing_else(tmp_path, capsys):
    assert main(["prepare", recipe(tmp_path), "--output", str(tmp_path / "out"), "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert sum(split["documents"] for split in metadata["splits"].values()) == 50


def test_malformed_rows_are_reported_by_file_and_line(tmp_path, capsys):
    path = recipe(tmp_path)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"text": "cut off\n{"txt": "other field"}\n')
    assert main(["prepare", path, "--output", str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert "2 malformed rows" in err and "rows.jsonl:51:" in err and "rows.jsonl:52:" in err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_bad_rows": 0}, "`max_bad_rows`"),
        ({"tokenizr": {}}, "did you mean `tokenizer`"),
        ({"tokenizer": {"vocab_size": 10}}, "`vocab_size` must be at least"),
        ({"sources": [{"path": "/nowhere/x.jsonl"}]}, "/nowhere/x.jsonl"),
        ({"sources": []}, "`sources` is empty"),
    ],
)
def test_bad_input_is_one_message_and_exit_status_2(tmp_path, capsys, fields, message):
    path = recipe(tmp_path, **fields)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write("no json\n")
    assert main(["prepare", path, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hfgpt prepare: error: ") and message in err
    assert not (tmp_path / "out").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_generate_prints_the_prompt_and_its_continuation(pretrained, capsys):
    assert main(["generate", str(pretrained), "The film", "--max-new-tokens", "8", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The film") and len(out.strip()) > len("The film")


def test_generate_with_beams_equals_generate_without_where_there_is_one(pretrained, capsys):
    words = ["generate", str(pretrained), "The film", "--max-new-tokens", "8", "--device", "cpu", "--json"]
    outputs = []
    for options in ([], ["--beams", "1"], ["--top-k", "1"], ["--beams", "3"]):
        assert main(words + options) == 0
        outputs.append(json.loads(capsys.readouterr().out)["text"])
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[3]


def test_a_seed_repeats_a_sample(pretrained, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        main(["generate", str(pretrained), "The", "--temperature", "2.0", "--seed", seed, "--json", "--device", "cpu"])
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_may_come_from_standard_input(pretrained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cast\n"))
    assert main(["generate", str(pretrained), "--max-new-tokens", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("The cast")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at-all", "x"], "nowhere/at-all"),
        (["MODEL", "x", "--max-new-tokens", "100"], "64 positions"),
        (["MODEL", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["MODEL", "word " * 200], "64 positions"),
        (["MODEL", "x", "--temperature", "0"], "--temperature"),
        (["MODEL", "x", "--top-p", "7"], "--top-p"),
    ],
)
def test_generate_refuses_what_cannot_be(pretrained, capsys, words, message):
    words = [str(pretrained) if word == "MODEL" else word for word in words]
    assert main(["generate", *words, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_is_installed():
    assert "prepare" in run("-m", "hfgpt.cli", "--help", cwd=ROOT).stdout
