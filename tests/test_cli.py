import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from helpers import ROOT, make_reviews, run, write_jsonl

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


def test_convert_merges_an_adapter(pretrained, tmp_path, capsys):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(pretrained), LoraConfig(task_type="CAUSAL_LM"))
    words = ["convert", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--merge"]
    model.save_pretrained(tmp_path / "adapter")
    assert main(words) == 2
    assert "is empty: all its `lora_B`" in capsys.readouterr().err
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    assert main([*words, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["target_class"] == "GPT3ForCausalLM" and done["output"] == str(tmp_path / "merged")
    ids = torch.arange(10).view(1, 10)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(merged(ids).logits, model.eval()(ids).logits, atol=1e-4)
    assert main(["generate", str(tmp_path / "merged"), "The", "--max-new-tokens", "2", "--device", "cpu"]) == 0
    capsys.readouterr()
    # Banded layers: merged, and then refused as a GPT-2.
    assert main([*words[:2], str(tmp_path / "gpt2"), "--merge", "--to", "gpt2"]) == 2
    assert "banded attention" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "merged"]


def test_convert_needs_a_type_or_an_adapter_to_merge(pretrained, tmp_path, capsys):
    assert main(["convert", str(pretrained), str(tmp_path / "out")]) == 2
    assert "--to" in capsys.readouterr().err
    assert main(["convert", str(pretrained), str(tmp_path / "out"), "--merge"]) == 2
    assert "is no adapter" in capsys.readouterr().err


@pytest.fixture
def labelled(tmp_path):
    """The reviews that `pretrained` has read, with a label of each."""
    rows = [
        {"review": row["text"], "verdict": row["verdict"], "stars": n % 5} for n, row in enumerate(make_reviews(20, 3))
    ]
    return write_jsonl(tmp_path / "labelled.jsonl", rows)


def evaluate_words(pretrained, data, *more):
    names = ["--fields", "text=review,label=verdict", "--label-map", "fresh=positive,rotten=negative"]
    return ["evaluate", str(pretrained), "--tasks", "sentiment", "--data", str(data), *names, "--device", "cpu", *more]


def test_evaluate_prints_json_and_nothing_else(pretrained, labelled, tmp_path, capsys):
    with open(labelled, "a") as file:
        file.write('{"review": "Fine.", "verdict": "none"}\n')
    words = [
        "--json",
        "--shots",
        "0,1",
        "--train",
        str(labelled),
        "--output",
        str(tmp_path / "out"),
        "--resamples",
        "20",
    ]
    assert main(evaluate_words(pretrained, labelled, *words)) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [(one["task"], one["language"], one["shots"], one["rows"]) for one in found["results"]] == [
        ("sentiment", "en", 0, 20),
        ("sentiment", "en", 1, 20),
    ]
    assert found["results"][0]["bad_rows"] == 1
    assert "labelled.jsonl:21: Label 'none'" in captured.err
    assert set(found["results"][0]["metrics"]["accuracy"]) == {"value", "low", "high"}
    assert len((tmp_path / "out" / "predictions" / "sentiment-1shot.jsonl").read_text().splitlines()) == 20


def test_evaluate_prints_a_table(pretrained, labelled, capsys):
    words = ["--where", '{"stars": [1, 4]}', "--max-rows", "6", "--perplexity", str(labelled.with_suffix(".txt"))]
    labelled.with_suffix(".txt").write_text("The film was dull.")
    assert main(evaluate_words(pretrained, labelled, *words)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("task") and " accuracy " in captured.out and "majority" in captured.out
    assert "labelled.txt: perplexity" in captured.out and "rows passed over (`where`)" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name the MODEL"),
        (["MODEL"], "Nothing to evaluate"),
        (["MODEL", "--tasks", "sentiment"], "--data FILE"),
        (["MODEL", "--tasks", "hellaswag"], "--data hellaswag=FILE"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--where", "stars"], "`--where` is not JSON"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--where", "[1]"], "must be a mapping"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--fields", "text"], "`--fields` takes pairs"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--labels", "16"], "--curve RECIPE"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--shots", ""], "`--shots` names no number"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--shots", "0,0"], "`--shots` has 0 more than once"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--test-fraction", "0.5"], "`--part test`"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--output", "README.md"], "`--output README.md`"),
        (["MODEL", "--tasks", "sentiment", "--data", "x.jsonl", "--device", "foo"], "`--device foo` cannot"),
        (["MODEL", "--tasks", "sentimint", "--data", "x.jsonl"], "did you mean `sentiment`"),
        (["MODEL", "--curve", "recipe.yaml"], "leave out MODEL"),
        (["--curve", "recipe.yaml", "--shots", "1"], "leave out --shots"),
        (["--curve", "recipes/finetune/sentiment-full-imdb.yaml", "--labels", "few"], "`--labels` takes numbers"),
    ],
)
def test_evaluate_refuses_what_cannot_be(pretrained, capsys, words, message):
    words = [str(pretrained) if word == "MODEL" else word for word in words]
    assert main(["evaluate", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "hfgpt evaluate: error: " in err


def test_evaluate_refuses_a_model_whose_scores_are_no_numbers(pretrained, labelled, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(pretrained)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(tmp_path / "broken")
    lambada = write_jsonl(tmp_path / "lambada.jsonl", [{"text": "The film was dull."}])
    capsys.readouterr()  # saving says a word there
    words = ["evaluate", str(tmp_path / "broken"), "--device", "cpu", "--json", "--output", str(tmp_path / "out")]
    for more in (["--tasks", "lambada", "--data", str(lambada)], ["--perplexity", str(lambada)]):
        assert main([*words, *more]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and ("not a number" in captured.err or "not numbers" in captured.err)


def test_evaluate_prints_what_it_cannot_save(pretrained, labelled, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfgpt.evaluation.results.Path.write_text", full)
    words = ["--json", "--max-rows", "3", "--output", str(tmp_path / "out"), "--resamples", "20"]
    assert main(evaluate_words(pretrained, labelled, *words)) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"][0]["rows"] == 3
    assert "error: The results are not saved" in captured.err and "No space left" in captured.err


def test_evaluate_reads_the_tasks_own_names_for_a_model_trained_with_others(pretrained, labelled, tmp_path, capsys):
    from hfgpt.tasks import get_task
    from hfgpt.tasks.saved import TaskRecord, save_task

    model = tmp_path / "tuned"
    model.mkdir()
    for file in pretrained.iterdir():
        (model / file.name).symlink_to(file)
    names = {
        "fields": {"text": "document", "label": "verdict"},
        "label_map": {"fresh": "positive", "rotten": "negative"},
    }
    save_task(TaskRecord(get_task("sentiment"), "choice", "en", **names), model)
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    own = write_jsonl(tmp_path / "own.jsonl", [{"text": row["review"], "label": row["verdict"]} for row in rows])
    trained = write_jsonl(
        tmp_path / "d.jsonl", [{"document": row["review"], "verdict": row["verdict"]} for row in rows]
    )
    found = []
    for path in (own, trained):
        words = ["evaluate", str(model), "--data", str(path), "--device", "cpu", "--json", "--resamples", "20"]
        assert main(words) == 0
        found.append(json.loads(capsys.readouterr().out)["results"])
    assert found[0] == found[1] and (found[0][0]["rows"], found[0][0]["bad_rows"]) == (20, 0)
    # A part is drawn by the text, whatever it is called.
    parts = []
    for path in (own, trained):
        words = ["evaluate", str(model), "--data", str(path), "--part", "test", "--test-fraction", "0.5", "--json"]
        assert main([*words, "--device", "cpu", "--resamples", "20"]) == 0
        parts.append(json.loads(capsys.readouterr().out)["results"][0])
    assert parts[0] == parts[1] and 0 < parts[0]["rows"] < 20
    assert main(["evaluate", str(model), "--data", str(labelled), "--device", "cpu"]) == 2
    assert "no field `document`" in capsys.readouterr().err


def test_a_curve_is_the_recipes_with_the_numbers_given(tmp_path, capsys, monkeypatch):
    asked = {}

    def curve(config, args, label_counts, seeds, output):
        asked.update(model=config.model_name_or_path, labels=label_counts, seeds=seeds, output=str(output))
        point = {"labels": 16, "mean": 0.5, "low": 0.4, "high": 0.6, "values": [0.4, 0.6]}
        points = [{"start": start, **point} for start in ("pretrained", "random")]
        return {
            "task": "sentiment",
            "metric": "accuracy",
            "test_rows": 20,
            "baselines": {"majority": 0.5},
            "points": points,
            "differences": [point],
        }

    monkeypatch.setattr("hfgpt.evaluation.curve.curve", curve)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: there\noutput_dir: {tmp_path}/out\ntrain_path: x.jsonl\ntest_path: y.jsonl\n"
    )
    assert main(["evaluate", "--curve", str(recipe), "--labels", "16", "--seeds", "2"]) == 0
    assert asked == {"model": "there", "labels": [16], "seeds": 2, "output": f"{tmp_path}/out-curve"}
    out = capsys.readouterr().out
    assert "16      50.0% (40.0% to 60.0%)" in out and "curve.png" in out


def test_the_command_is_installed():
    assert "prepare" in run("-m", "hfgpt.cli", "--help", cwd=ROOT).stdout


def test_help_says_what_an_exit_status_means(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for status in ("0    done", "1    it failed", "2    bad input", "130  interrupted"):
        assert status in out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"hfgpt {version('hfgpt')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate", "x"], "hfgpt: error: there is no command `genrate`: did you mean `generate`?"),
        (["zzzzzz"], "there is no command `zzzzzz`: the commands are prepare, generate,"),
        (["plan", "--gpuss", "8"], "hfgpt plan: error: there is no option `--gpuss`: did you mean `--gpus`?"),
        (["plan", "--gpuss=8"], "there is no option `--gpuss`: did you mean `--gpus`?"),
        (["plan", "--zzz"], "there is no option `--zzz`: `hfgpt plan --help` lists what there is."),
        (["plan", "gpt3-125m", "gpt3-350m"], "'gpt3-350m' is one word too many"),
        (["convert", "a", "b", "--to", "gpt4"], "invalid choice: 'gpt4'"),
        (["plan", "--gpus", "x"], "invalid int value: 'x'"),
        (["push", "model", "me/name", "--token", "hf_secret"], "there is no option `--token`"),
        (["push", "model", "me/name", "--private", "--public"], "not allowed with argument"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_word_is_one_message_with_the_nearest_right_one(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    captured = capsys.readouterr()
    assert end.value.code == 2 and message in captured.err and captured.out == ""


def test_push_and_pull_hand_their_options_on(monkeypatch, capsys):
    calls = []

    class Done:
        def as_dict(self):
            return {"repo_id": "kim/tiny"}

        def lines(self):
            return ["kim/tiny", "2 files"]

    def record(name):
        return lambda *args, **options: calls.append((name, args, options)) or print("a library's word") or Done()

    monkeypatch.setattr("hfgpt.hub.push", record("push"))
    monkeypatch.setattr("hfgpt.hub.pull", record("pull"))
    words = [
        "push",
        "out/run",
        "kim/tiny",
        "--private",
        "--revision",
        "v1",
        "--with-code",
        "--message",
        "First",
        "--json",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"repo_id": "kim/tiny"} and captured.err == "a library's word\n"
    assert (
        main(["push", "out/run", "kim/tiny", "--public", "--adapter-only"])
        == main(["push", "out/run", "kim/tiny"])
        == 0
    )
    assert main(["pull", "kim/tiny", "here", "--revision", "v1"]) == main(["pull", "kim/tiny"]) == 0
    assert capsys.readouterr().out == "kim/tiny\n2 files\n" * 4
    names = ("private", "revision", "adapter_only", "with_code", "message")
    assert [(name, args, *(options.get(one) for one in names)) for name, args, options in calls] == [
        ("push", ("out/run", "kim/tiny"), True, "v1", False, True, "First"),
        ("push", ("out/run", "kim/tiny"), False, None, True, False, None),
        ("push", ("out/run", "kim/tiny"), None, None, False, False, None),
        ("pull", ("kim/tiny", "here"), None, "v1", None, None, None),
        ("pull", ("kim/tiny", "tiny"), None, None, None, None, None),
    ]


def out_of_memory():
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("`gpus` must be at least 1."), 2, "hfgpt plan: error: `gpus` must be at least 1.\n"),
        (OSError(28, "No space left on device", "x.png"), 1, "No space left on device: 'x.png'\n"),
        (ImportError("libcudart.so.13: cannot open"), 1, "libcudart.so.13: cannot open. `hfgpt doctor` says"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (out_of_memory, 1, "hfgpt plan: error: out of memory: CUDA out of memory. Tried to allocate 2 GiB.\n"),
    ],
)
def test_each_way_to_fail_has_its_exit_status_and_no_traceback(error, status, message, monkeypatch, capsys):
    def fail(*_):
        raise error() if callable(error) else error

    monkeypatch.setattr("hfgpt.planner.plan", fail)
    assert main(["plan", "gpt3-125m", "--gpus", "8"]) == status
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("hfgpt.planner.plan", lambda *_: {}["x"])
    with pytest.raises(KeyError):
        main(["plan", "gpt3-125m", "--gpus", "8"])


def test_a_reader_that_goes_ends_it_without_a_word():
    command = subprocess.Popen(
        [sys.executable, "-m", "hfgpt.cli", "recipes"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command.stdout.close()
    assert command.wait(60) == 1 and command.stderr.read() == b""


PIPED = """
import json, sys
from hfgpt.cli import main
for words in json.loads(sys.stdin.read()):
    sys.argv[1:] = words
    print("ENDS", main(), flush=True)
"""


def test_through_pipes_there_are_results_on_one_side_and_no_progress_bars_on_the_other(pretrained, labelled, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    commands = [
        ["prepare", recipe(tmp_path), "--output", str(tmp_path / "corpus"), "--json"],
        ["generate", str(pretrained), "The film", "--max-new-tokens", "2", "--device", "cpu", "--json"],
        [*evaluate_words(pretrained, labelled, "--json"), "--resamples", "20"],
        ["convert", str(tmp_path / "gpt2"), str(tmp_path / "gpt3"), "--to", "gpt3", "--json"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PIPED],
        input=json.dumps(commands), capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["ENDS 0"] * 4, done.stderr
    prepared, generated, evaluated, converted = map(json.loads, lines[::2])
    assert prepared["splits"] and generated["prompt"] == "The film"
    assert evaluated["results"][0]["rows"] == 20 and converted["target_type"] == "gpt3"
    assert not re.search(r"\r|[\u2588-\u258f]|it/s|\d%\|", done.stderr), done.stderr


def complete(script, line, folder):
    """What bash offers where the cursor stands behind `line`."""
    code = f"""
source {shlex.quote(str(script))}
COMP_LINE={shlex.quote(line)}
COMP_WORDS=({line}{' ""' if line.endswith(" ") else ""})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_POINT=${{#COMP_LINE}}
$(complete -p hfgpt | sed 's/.*-F \\([^ ]*\\) .*/\\1/') hfgpt "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_options_choices_and_files(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "hfgpt.bash"
    script.write_text(capsys.readouterr().out)
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "mine.yaml").write_text("")
    for line, offered in {
        "hfgpt gen": {"generate"},
        "hfgpt p": {"prepare", "plan", "push", "pull"},
        "hfgpt convert --to ": {"gpt3", "gpt2"},
        "hfgpt generate --max": {"--max-new-tokens"},
        "hfgpt prepare --executor ": {"local", "ray", "slurm"},
        "hfgpt prepare mi": {"mine.yaml"},
        "hfgpt prepare --output m": {"models"},
        "hfgpt generate m": {"models"},
        "hfgpt plan --recipe m": {"mine.yaml", "models"},
        "hfgpt completion ": {"bash", "zsh", "tcsh"},
        "hfgpt --v": {"--version"},
    }.items():
        assert complete(script, line, work) == offered, line


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef hfgpt"), ("tcsh", "complete hfgpt")])
def test_other_shells_have_scripts_too(shell, words, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert words in out and "generate" in out
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    assert f"hfgpt completion {shell}" in capsys.readouterr().out
