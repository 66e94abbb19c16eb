"""The callbacks with a plain Trainer of the Hub's GPT-2: as documented, in a notebook, and where there is no terminal."""

import base64
import inspect
import io
import json
import os
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from callback_runs import LENGTH, make_model, make_tokenizer, make_trainer, weights
from helpers import ROOT, pretrain_arguments
from task_runs import recipe
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    TrainerState,
)

from hfgpt.planner import flops_per_token
from hfgpt.training import callbacks
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.callbacks import (
    LivePlotCallback,
    LossWatchCallback,
    MetricStoppingCallback,
    SampleCallback,
    TerminalCallback,
    ThroughputCallback,
    training_flops_per_token,
)
from hfgpt.training.finetune import finetune
from hfgpt.training.pretrain import pretrain


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(callbacks.logger, "warning", found.append)
    return found


# As documented

DOCUMENTED = [
    value
    for name in callbacks.__all__
    if inspect.isclass(value := getattr(callbacks, name)) and issubclass(value, TrainerCallback)
]


def example(cls):
    """The three lines of a callback's docstring, of which the last trains."""
    [code] = re.findall(r"```python\n(.*?)\n *```$", inspect.getdoc(cls), re.DOTALL)
    lines = textwrap.dedent(code).splitlines()
    assert len(lines) == 3 and lines[-1] == "trainer.train()"
    return lines


def documented_trainer(folder):
    return make_trainer(
        folder, [], kind="gpt2", options={"processing_class": make_tokenizer()}, save_strategy="steps", save_steps=2,
        eval_steps=2,
    )  # fmt: skip


def test_three_lines_use_them_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = documented_trainer(tmp_path / "run")
    for cls in reversed(DOCUMENTED):
        exec("\n".join(example(cls)[:-1]), {"trainer": trainer})
    trainer.train()
    assert {type(callback) for callback in trainer.callback_handler.callbacks} >= set(DOCUMENTED)
    assert trainer.state.global_step == 8
    printed = [line for line in capsys.readouterr().out.splitlines() if "loss" in line and "lr" in line]
    assert printed and all(" tok/s" in line for line in printed)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"checkpoint-6", "checkpoint-8", "live_plot.png", "samples.jsonl"}
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(PNG)


@pytest.mark.slow
@pytest.mark.parametrize("cls", DOCUMENTED, ids=lambda cls: cls.__name__)
def test_three_lines_use_it(cls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = documented_trainer(tmp_path / "run")
    exec("\n".join(example(cls)), {"trainer": trainer})
    assert any(type(callback) is cls for callback in trainer.callback_handler.callbacks)
    assert trainer.state.global_step == 8


def test_there_is_one_for_each_concern():
    assert {cls.__name__ for cls in DOCUMENTED} == {
        "CheckpointPruningCallback", "LivePlotCallback", "LossCurveCallback", "LossWatchCallback",
        "MetricStoppingCallback", "SampleCallback", "StragglerCallback", "TerminalCallback", "ThroughputCallback",
    }  # fmt: skip


# Tokens and utilisation


def lines(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def rows_of_lengths(*lengths):
    return [{"input_ids": torch.full((length,), 7), "labels": torch.full((length,), 7)} for length in lengths]


def padded(rows):
    """As a collator does: to the longest, with a mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    pad = [torch.nn.functional.pad(row["input_ids"], (0, longest - len(row["input_ids"]))) for row in rows]
    mask = [(torch.arange(longest) < len(row["input_ids"])).long() for row in rows]
    return {"input_ids": torch.stack(pad), "attention_mask": torch.stack(mask), "labels": torch.stack(pad)}


@pytest.mark.parametrize(
    ("counted", "tokens"),
    [
        ({}, [20, 40]),
        pytest.param({"include_num_input_tokens_seen": "non_padding"}, [16, 32], marks=pytest.mark.slow),
    ],
)
def test_tokens_are_counted_as_they_come(tmp_path, capsys, counted, tokens):
    """Rows of 3 and 5 tokens; evaluations and samples are none of training."""
    throughput = ThroughputCallback(peak_flops_per_device=1e12)
    options = {"train_dataset": rows_of_lengths(3, 5) * 8, "data_collator": padded}
    samples = SampleCallback(make_tokenizer(), ["a"], 4, every_steps=1)
    trainer = make_trainer(
        tmp_path, [samples], kind="gpt2", options=options, max_steps=4, eval_steps=1,
        train_sampling_strategy="sequential", **counted,
    )  # fmt: skip
    throughput.insert_in(trainer)
    trainer.train()
    found = lines(trainer)
    printed = [line for line in capsys.readouterr().out.splitlines() if "'grad_norm'" in line]  # by Trainer's own
    assert len(printed) == 2 and all("'tokens_per_second'" in line for line in printed)
    assert [line["tokens"] for line in found] == tokens
    assert [line["batch_tokens"] for line in found] == [tokens[0] // 2] * 2
    flops = training_flops_per_token(trainer.model, 5)
    for line in found:
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * flops.dense / 1e12, rel=1e-3)
    assert found[-1]["eta_seconds"] == 0 and found[0]["eta_seconds"] >= 0
    assert not trainer.model._forward_pre_hooks


@pytest.mark.slow
def test_a_resumed_run_counts_on(tmp_path):
    fields = {"kind": "gpt2", "save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    make_trainer(tmp_path, [ThroughputCallback()], max_steps=4, **fields).train()
    resumed = make_trainer(tmp_path, [ThroughputCallback()], **fields)
    resumed.train(resume_from_checkpoint=True)
    assert [line["tokens"] for line in lines(resumed)] == [step * 2 * 2 * LENGTH for step in (2, 4, 6, 8)]


def test_a_model_that_cannot_be_counted_is_told_what_to_give(tmp_path, warnings):
    trainer = make_trainer(tmp_path, [ThroughputCallback()], kind="gpt2")
    trainer.model._compiled_call_impl = trainer.model._call_impl  # as `model.compile()` sets it
    trainer.train()
    assert len(warnings) == 1 and "ThroughputCallback(tokens_per_step)" in warnings[0]
    assert not any("tokens" in line or "tokens_per_second" in line for line in lines(trainer))
    with pytest.raises(ValueError, match="`progress` as tokens of a step must be at least 1, got 0"):
        ThroughputCallback(0)


class Bigram(torch.nn.Module):
    """Of one's own making: no config, and no words for its embeddings."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(257, 257)

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_a_model_of_ones_own_has_a_speed_and_no_utilisation(tmp_path, warnings):
    fields = {"max_steps": 4, "eval_strategy": "no"}
    trainer = make_trainer(
        tmp_path, [ThroughputCallback(peak_flops_per_device=1e12)], options={"model": Bigram()}, **fields
    )
    trainer.train()
    assert [line["tokens"] for line in lines(trainer)] == [step * 2 * LENGTH for step in (2, 4)]
    assert not any("mfu" in line for line in lines(trainer))
    assert warnings == [
        "No utilisation is logged: Bigram has no `config` to tell its FLOPs by. Give ThroughputCallback "
        "`flops_per_token`, if you know them."
    ]

    class Unsaid(Bigram):
        config = SimpleNamespace()

        def get_input_embeddings(self):
            raise NotImplementedError

    with pytest.raises(ValueError, match="Unsaid does not say which weights are its embeddings"):
        training_flops_per_token(Unsaid(), 8)


def test_an_encoder_with_a_decoder_is_counted_and_sampled(tmp_path, warnings):
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=257, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=256,
            eos_token_id=255, pad_token_id=256,
        )
    )  # fmt: skip
    prompt, tokenizer = "A prompt of more tokens than are to be written", make_tokenizer()
    callbacks_ = [ThroughputCallback(peak_flops_per_device=1e12), SampleCallback(tokenizer, [prompt], 6)]
    trainer = make_trainer(tmp_path, callbacks_, options={"model": model}, max_steps=4)
    trainer.train()
    assert [line["tokens"] for line in lines(trainer)] == [2 * step * 2 * LENGTH for step in (2, 4)]
    assert not any("mfu" in line for line in lines(trainer))
    [words] = warnings
    assert "T5ForConditionalGeneration has an encoder and a decoder" in words
    output = model.eval().generate(
        tokenizer(prompt, return_tensors="pt")["input_ids"], max_new_tokens=6, do_sample=False
    )
    [row] = samples(tmp_path)
    assert row["continuation"] and row["continuation"] == tokenizer.decode(output[0, 1:])


def test_a_model_without_a_limit_of_positions_takes_any_prompt():
    model = SimpleNamespace(generate=None, config=SimpleNamespace(max_position_embeddings=-1))  # as XLNet says it
    SampleCallback(make_tokenizer(), ["a"]).on_train_begin(None, None, None, model=model)


def test_flops_are_the_planners_and_those_of_other_models():
    gpt3 = make_model("gpt3")
    assert training_flops_per_token(gpt3, 32) == flops_per_token(gpt3.config, 32)
    gpt2 = make_model("gpt2")
    parameters, attention = sum(p.numel() for p in gpt2.parameters()), 12 * 2 * 16 * 32
    found = training_flops_per_token(gpt2, 32)
    assert (found.paper, found.dense) == (6 * parameters, 6 * parameters + attention)
    assert found.banded == pytest.approx(6 * parameters + attention * 33 / 64)  # a query meets half the keys
    for name, parameter in gpt2.named_parameters():
        parameter.requires_grad = "ln" in name
    trained = sum(p.numel() for p in gpt2.parameters() if p.requires_grad)
    assert training_flops_per_token(gpt2, 32).paper == 4 * (parameters - trained) + 6 * trained


def test_flops_of_grouped_heads_of_windows_and_of_experts():
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=8, tie_word_embeddings=False))
    looked_up = llama.model.embed_tokens.weight.numel()
    parameters = sum(p.numel() for p in llama.parameters())
    assert training_flops_per_token(llama, 10).dense == 6 * (parameters - looked_up) + 12 * 2 * 32 * 10
    mixtral = MixtralForCausalLM(
        MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2, sliding_window=4, tie_word_embeddings=False)
    )
    experts = sum(p.numel() for name, p in mixtral.named_parameters() if ".experts." in name)
    parameters = sum(p.numel() for p in mixtral.parameters())
    found = training_flops_per_token(mixtral, 10)
    assert experts and found.paper == 6 * (parameters - experts / 2)
    keys = (1 + 2 + 3 + 7 * 4) / 10
    assert found.dense - found.banded == pytest.approx(12 * 2 * 16 * (10 - keys))


# Samples


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_samples_at_steps_change_nothing(tmp_path):
    """Nor of a module that is kept in evaluation, and with the Trainer's tokenizer."""
    found = []
    for name, seen in (("plain", []), ("sampled", [SampleCallback(prompts=["a", ""], every_steps=3, do_sample=True)])):
        trainer = make_trainer(tmp_path / name, seen, kind="gpt2", options={"processing_class": make_tokenizer()})
        frozen = trainer.model.transformer.h[0]
        trainer.model.train = lambda mode=True, model=trainer.model, frozen=frozen: (
            type(model).train(model, mode), frozen.eval(), model
        )[-1]  # fmt: skip
        trainer.train()
        found.append((weights(trainer), torch.rand(3), frozen.training))
    assert all(torch.equal(one, other) for one, other in zip(found[0][:2], found[1][:2]))
    assert not found[1][2]
    assert [row["step"] for row in samples(tmp_path / "sampled")] == [3, 3, 6, 6]


def test_samples_of_a_run_without_evaluations_are_made_at_its_end(tmp_path):
    trainer = make_trainer(
        tmp_path, [SampleCallback(make_tokenizer(), "The film", 4)], kind="gpt2", eval_strategy="no"
    )
    trainer.train()
    assert [(row["step"], row["prompt"]) for row in samples(tmp_path)] == [(8, "The film")]


def test_samples_that_fail_do_not_end_the_run(tmp_path, warnings):
    trainer = make_trainer(
        tmp_path, [SampleCallback(make_tokenizer(), ["a"], 4, top_p=-1.0, do_sample=True)], kind="gpt2"
    )
    trainer.train()
    assert trainer.state.global_step == 8 and not (tmp_path / "samples.jsonl").exists()
    assert len(warnings) == 1 and warnings[0].startswith("No samples, training goes on: ")


class Stream(io.TextIOWrapper):
    """Standard output of an older encoding, or one that nobody reads any longer."""

    broken = False

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="euc-kr")

    def write(self, text):
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_what_cannot_be_printed_or_logged_does_not_end_the_run(tmp_path, monkeypatch, warnings):
    def failing(logs):
        raise ConnectionError("no connection")

    callback = SampleCallback(
        make_tokenizer(), ["영화 🎬"], 2, log=failing, suppress_tokens=[*range(65), *range(66, 257)]
    )
    args, model, stream = SimpleNamespace(output_dir=str(tmp_path)), make_model("gpt2"), Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    for step in (1, 2):
        stream.broken = step == 2
        callback.on_evaluate(args, TrainerState(global_step=step), None, model=model)
        TerminalCallback().on_log(args, TrainerState(global_step=step), None, logs={"loss": 1.0})
    monkeypatch.undo()
    letter = make_tokenizer().decode([65])
    assert stream.buffer.getvalue().decode("euc-kr") == f"  sample  영화 ?|{letter * 2}\nstep 1/0  loss 1.0000\n"
    assert [row["prompt"] for row in samples(tmp_path)] == ["영화 🎬"] * 2
    assert warnings == [
        "The samples could not be logged, training goes on: no connection",
        "The samples could not be shown, training goes on: [Errno 32] Broken pipe",
        "A line could not be printed, training goes on: [Errno 32] Broken pipe",
    ]


def test_what_samples_refuse(tmp_path):
    with pytest.raises(ValueError, match="`prompts` is empty"):
        SampleCallback(make_tokenizer())
    with pytest.raises(ValueError, match=r"SampleCallback\(prompts=\[\.\.\.\]\)"):
        SampleCallback(["The film"])
    with pytest.raises(ValueError, match="`every_steps` must be at least 1, got 0"):
        SampleCallback(prompts=["a"], every_steps=0)
    with pytest.raises(ValueError, match=r"needs a tokenizer.*processing_class"):
        make_trainer(tmp_path, [SampleCallback(prompts=["a"])], kind="gpt2").train()
    callback = SampleCallback(make_tokenizer(), ["a"])
    model = SimpleNamespace(generate=None, can_generate=lambda: False)
    with pytest.raises(ValueError, match="continues texts, which SimpleNamespace does not"):
        callback.on_train_begin(None, None, None, model=model)


# The picture


def panels(figures):
    return [axes.get_ylabel() for axes in figures[-1].axes]


@pytest.fixture
def figures(monkeypatch):
    """What is drawn; to save it takes most of the time."""
    from matplotlib.figure import Figure

    found = []

    def savefig(self, path, **kwargs):
        found.append(self)
        Path(path).write_bytes(PNG)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_panels_are_of_what_is_logged(tmp_path, figures):
    fields = {"kind": "gpt2", "eval_steps": 3}
    make_trainer(tmp_path / "1", [LivePlotCallback()], **{**fields, "eval_strategy": "no"}).train()
    assert panels(figures) == ["loss", "learning rate", "gradient norm"]
    assert [line.get_label() for line in figures[-1].axes[0].lines] == ["training"]
    make_trainer(tmp_path / "2", [ThroughputCallback(), LivePlotCallback(metrics=["eval_runtime"])], **fields).train()
    assert panels(figures) == [
        "loss", "learning rate", "gradient norm", "batch tokens", "tokens / s", "eval runtime",
    ]  # fmt: skip
    held_out = figures[-1].axes[0].lines[-1]
    # Steps 3, 6 and 8, of which only the last has a line of training: the tokens of the others are between those.
    assert list(held_out.get_xdata()) == [step * 2 * LENGTH for step in (3, 6, 8)]
    assert (tmp_path / "2" / "live_plot.png").read_bytes().startswith(PNG)


def test_a_resumed_picture_is_whole_and_drawn_at_once(tmp_path, figures):
    fields = {"kind": "gpt2", "save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path, [], max_steps=4, **fields).train()
    resumed = make_trainer(tmp_path, [LivePlotCallback(tmp_path / "own.png", min_seconds=1000)], **fields)
    resumed.train(resume_from_checkpoint=True)
    assert [list(figure.axes[0].lines[0].get_xdata()) for figure in figures] == [[2, 4], [2, 4, 6, 8]]
    assert (tmp_path / "own.png").exists() and not (tmp_path / "live_plot.png").exists()


def test_pictures_are_no_more_often_than_asked(tmp_path, figures):
    trainer = make_trainer(tmp_path / "1", [LivePlotCallback(min_seconds=1000)], kind="gpt2")
    trainer.train()
    assert len(figures) == 2  # the first line, and the end
    trainer.evaluate()
    assert len(figures) == 3 and len(figures[-1].axes[0].lines[-1].get_xdata()) == 3
    with pytest.raises(ValueError, match="`min_seconds` must be at least 0"):
        LivePlotCallback(min_seconds=-1)


def test_a_picture_that_fails_is_told_once(tmp_path, warnings):
    (tmp_path / "file").write_text("not a folder")
    callback = LivePlotCallback(tmp_path / "file" / "plot.png", min_seconds=0)
    trainer = make_trainer(tmp_path, [callback], kind="gpt2", logging_steps=1)
    trainer.train()
    assert trainer.state.global_step == 8
    assert len(warnings) == 1 and warnings[0].startswith("The live plot could not be drawn, training goes on")


# Places

RUN = """
import sys
import textwrap
from pathlib import Path
from callback_runs import make_tokenizer, make_trainer
from hfgpt.training.callbacks import *

live = LivePlotCallback(min_seconds=0)
seen = [ThroughputCallback(), live, SampleCallback(prompts=["<b>The film", "영화는"], max_new_tokens=8), LossWatchCallback()]
trainer = make_trainer(
    Path({folder!r}), seen, kind="gpt2", options={{"processing_class": make_tokenizer()}}, disable_tqdm=False,
    eval_steps=2, logging_steps=1,
)
TerminalCallback().replace_in(trainer)
trainer.train()
"""


def test_in_a_log_file(tmp_path, capsys):
    """No bars, no pictures, a line a step: whatever `disable_tqdm` says."""
    exec(RUN.format(folder=str(tmp_path / "run")), {})
    out, err = capsys.readouterr()
    assert "\r" not in err + out and "it/s" not in err
    assert len(re.findall(r"^step \d/8  tokens \d+  loss", out, re.MULTILINE)) == 8
    assert len(re.findall(r"^step \d/8  held out: loss", out, re.MULTILINE)) == 4
    assert len(re.findall(r"^  sample  영화는\|", out, re.MULTILINE)) == 4
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["live_plot.png", "samples.jsonl"]


@pytest.mark.slow
def test_in_a_notebook(tmp_path, monkeypatch):
    """One picture and one table, replaced in place, which stay in the saved notebook; and no PNG beside it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(ROOT / "tests")])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if "image/png" in msg["content"].get("data", {}):
                shown.append((msg["msg_type"], msg["content"]["data"]["image/png"]))
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RUN.format(folder=str(tmp_path / "run")))])
    Client(notebook, timeout=300, kernel_name="python3").execute()
    saved = nbformat.reads(nbformat.writes(notebook), as_version=4).cells[0].outputs
    pictures = [output["data"]["image/png"] for output in saved if "image/png" in output.get("data", {})]
    kinds, versions = zip(*shown)
    assert kinds[0] == "display_data" and set(kinds[1:]) == {"update_display_data"}
    assert pictures == [versions[-1]] and len(set(versions)) == len(versions)
    assert base64.b64decode(pictures[0]).startswith(PNG)
    tables = [html for output in saved if "<table>" in (html := output.get("data", {}).get("text/html", ""))]
    assert len(tables) == 1
    assert "&lt;b&gt;The film" in tables[0] and "영화는" in tables[0]
    steps = re.findall(r"<tr><td>(\d)</td>", tables[0])
    assert steps == ["8", "8", "6", "6", "4", "4"]  # the last three rounds, newest first
    text = "".join(output.get("text", "") for output in saved)
    assert "sample  영화는" not in text and "step 8/8" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["samples.jsonl"]


def test_a_process_forked_from_a_notebook_is_no_notebook(monkeypatch):
    from hfgpt.training.callbacks.common import in_notebook

    def kernel(pid):
        shell = SimpleNamespace(kernel=SimpleNamespace(session=SimpleNamespace(pid=pid)))
        return SimpleNamespace(get_ipython=lambda: shell)

    for module, expected in (
        (kernel(os.getpid()), True),
        (kernel(os.getpid() + 1), False),
        (SimpleNamespace(get_ipython=lambda: None), False),
        (SimpleNamespace(get_ipython=lambda: SimpleNamespace()), False),  # IPython in a terminal
    ):
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert in_notebook() == expected


def test_the_terminal_takes_the_place_of_trainers_own(tmp_path):
    for disable_tqdm in (True, False):
        trainer = make_trainer(tmp_path, [], kind="gpt2", disable_tqdm=disable_tqdm)
        TerminalCallback().replace_in(trainer)
        names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
        assert names == ["DefaultFlowCallback", "TerminalCallback"]


# Recipes


def test_fine_tuning_takes_further_callbacks_and_writes_samples(base, reviews_file, tmp_path):
    config, args = recipe(
        base("gpt2"), reviews_file, tmp_path, {"max_steps": 2, "save_strategy": "steps", "save_steps": 1},
        sample_prompts="The film", sample_tokens=4, max_train_rows=32, max_test_rows=4,
    )  # fmt: skip
    finetune(config, args, callbacks=[LivePlotCallback()])
    assert [(row["step"], row["prompt"]) for row in samples(tmp_path)] == [(2, "The film")]
    assert (tmp_path / "live_plot.png").read_bytes().startswith(PNG)
    config.sample_prompts = None  # another word for people does not make it another run
    finetune(config, args)
    with pytest.raises(ValueError, match="`sample_prompts` is for completions: use `head: lm`"):
        recipe(base("gpt2"), reviews_file, tmp_path, head="classification", sample_prompts=["a"])


def test_pretraining_ends_by_a_metric_and_gives_up_on_spikes(corpus, tmp_path):
    def pretrain_with(name, *seen, **fields):
        argv = pretrain_arguments(corpus, tmp_path / name, save_strategy="no", eval_on_start=False, **fields)
        return pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=argv), callbacks=seen)

    tokens = 4 * 32  # of a step
    metrics = pretrain_with("good", MetricStoppingCallback("eval_bits_per_byte", target=100.0), eval_steps=2)
    assert metrics["train_tokens"] == 2 * tokens
    jumpy = LossWatchCallback("ignore", spike="stop", max_spikes=1)
    jumpy.spike_deviations = -1.0  # whatever does not fall is a spike
    fields = {"train_tokens": 30 * tokens, "decay_tokens": 30 * tokens, "learning_rate": 1e-9, "eval_strategy": "no"}
    with pytest.raises(RuntimeError, match="`loss` was far above its median"):
        pretrain_with("bad", jumpy, **fields)
    assert not (tmp_path / "bad" / "model.safetensors").exists()
