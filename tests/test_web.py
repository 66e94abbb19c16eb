"""The page: what is behind it as plain Python, and the page itself in a headless Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import pytest
import torch
from helpers import ROOT, SENTIMENT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hfgpt.cli import main
from hfgpt.generation import continue_prompt, load, token_probabilities
from hfgpt.tasks import ChoiceTask, TextTask
from hfgpt.tasks.saved import TaskRecord, save_task
from hfgpt.web import (
    Page,
    Speaker,
    answer_html,
    error_html,
    exposure,
    find_port,
    open_models,
    pieces,
    scored_html,
    tokens_html,
)


RECORD = TaskRecord(
    ChoiceTask("sentiment", prompt=SENTIMENT["prompt"], choices=SENTIMENT["label_words"]),
    "choice",
    "en",
    max_length=40,
)


@pytest.fixture(scope="module")
def adapter(pretrained, tmp_path_factory):
    """A LoRA of the tiny model that writes something else than its base."""
    folder = tmp_path_factory.mktemp("adapter") / "reviewer"
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(pretrained),
        LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=str(pretrained)),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)
    save_task(RECORD, folder)
    return folder


@pytest.fixture(scope="module")
def page(adapter):
    return Page(open_models(adapter, device="cpu"))


def test_an_adapter_and_its_base_are_one_model(page, pretrained, adapter):
    base, tuned = page.speakers
    assert base.model is tuned.model and base.adapter_off and not tuned.adapter_off
    assert (base.name, tuned.name) == (
        f"{pretrained.parent.name}/{pretrained.name} (base)",
        f"{adapter.parent.name}/reviewer",
    )
    parameters = sum(p.numel() for p in load(pretrained, "cpu")[0].parameters())
    assert base.facts.startswith(f"{parameters / 1000:.3g}K parameters, float32, 64 positions")


def test_both_write_from_the_same_prompt_and_seed(page, pretrained, adapter):
    states = list(page.write("The film", 12, temperature=1.3, top_p=0.8, seed=5))
    assert len(states[-1]) == 2 and states[-1][0].text != states[-1][1].text
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.3, "top_p": 0.8, "seed": 5}
    for written, place in zip(states[-1], (pretrained, adapter)):
        model, tokenizer = load(place, "cpu")
        found = continue_prompt(model, tokenizer, "The film", **options)
        assert (written.text, written.continuation.new_ids) == (found.text, found.new_ids)
        wanted = token_probabilities(model, tokenizer, [*found.prompt_ids, *found.new_ids], from_start=False)
        assert [token.token_id for token in written.tokens] == [token.token_id for token in wanted]
        got = [token.log_prob for token in written.tokens[1:]]
        assert got == pytest.approx([token.log_prob for token in wanted[1:]], abs=1e-4)


def test_both_score_a_text(page, pretrained, adapter):
    for tokens, place in zip(page.score("The film was dull."), (pretrained, adapter)):
        wanted = token_probabilities(*load(place, "cpu"), "The film was dull.")
        assert [token.log_prob for token in tokens] == pytest.approx([token.log_prob for token in wanted], abs=1e-4)


def test_both_answer_the_task(page, pretrained, adapter):
    answers = page.ask({"text": "The film was wonderful."})
    shares = [dict(answer.shares) for answer in answers]
    assert shares[0] != shares[1]
    for answer, share, place in zip(answers, shares, (pretrained, adapter)):
        assert list(share) == ["negative", "positive"] and sum(share.values()) == pytest.approx(1)
        assert answer.text == max(share, key=share.get)
        # Both words are one token: the model's own probabilities, shared out.
        model, tokenizer = load(place, "cpu")
        ids = tokenizer("The film was wonderful. The film was", return_tensors="pt").input_ids
        with torch.no_grad():
            row = model(input_ids=ids).logits[0, -1].float().softmax(-1)
        words = [tokenizer(word).input_ids for word in SENTIMENT["label_words"].values()]
        if all(len(word) == 1 for word in words):
            wanted = [float(row[word[0]]) for word in words]
            assert share["negative"] == pytest.approx(wanted[0] / sum(wanted), abs=1e-4)
    long = page.ask({"text": "The film was wonderful. " * 30})
    assert all(answer.cut_tokens > 0 for answer in long)
    with pytest.raises(ValueError, match=r"field `text` is empty\."):
        page.ask({"text": " "})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "word " * 100}, "64 positions"),
        ({"prompt": "The", "new_tokens": 64}, "64 positions"),
        ({"prompt": "The", "new_tokens": 0}, "New tokens must be at least 1, got 0"),
        ({"prompt": "The", "top_p": 0}, "Top-p must be above 0"),
        ({"prompt": "The", "temperature": -1}, "Temperature must be at least 0"),
        ({"prompt": "The", "seed": 2**40}, "Seed must be"),
    ],
)
def test_what_cannot_be_written_is_named(page, options, message):
    with pytest.raises(ValueError, match=message):
        list(page.write(**options))


def test_a_session_stops_its_own_text(page):
    steps = []
    end = page.speakers[0].tokenizer.eos_token_id

    def press(module, args, output):
        """Buttons, pressed while the base model writes; and no text that ends by itself."""
        output.logits[..., end] = -1e4
        steps.append(len(steps) + 1)
        if len(steps) in (3, 6):
            page.stop("another" if len(steps) == 3 else "mine")

    handle = page.speakers[0].model.get_base_model().register_forward_hook(press)
    try:
        page.begin("mine")
        last = list(page.write("The film", 40, seed=1, session="mine"))[-1]
        # The base model after the token of the press, and the other one after its first.
        assert [written.continuation.ended for written in last] == ["asked", "asked"]
        assert [len(written.continuation.new_ids) for written in last] == [6, 1]
        # What comes next is written in full, and is not stopped by the button of before.
        last = list(page.write("The film", 5, temperature=0, session="mine"))[-1]
        assert [written.continuation.ended for written in last] == ["length", "length"]

        # Pressed while a request waits for its turn; and before there is one.
        page.begin("mine")
        page.stop("mine")
        last = list(page.write("The film", 5, session="mine"))[-1]
        assert [written.continuation.ended for written in last] == ["asked", "asked"]
        page.stop("mine")
        page.begin("mine")
        last = list(page.write("The film", 5, session="mine"))[-1]
        assert [written.continuation.ended for written in last] == ["length", "length"]
    finally:
        handle.remove()


def test_a_classifier_answers_beside_its_base_and_does_not_write(pretrained, tmp_path):
    folder = tmp_path / "classifier"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"Without a task\.json beside it nothing is known of its task"):
        open_models(folder, device="cpu")
    save_task(TaskRecord(RECORD.task, "choice", "en", head="classification", max_length=40), folder)
    alone = Page(open_models(folder, device="cpu"))
    with pytest.raises(ValueError, match="None of the models writes"):
        list(alone.write("The"))
    page = Page(open_models(folder, pretrained, device="cpu"))
    base, tuned = page.ask({"text": "The film was dull."})
    assert [speaker.head for speaker in page.speakers] == ["lm", "classification"]
    assert len(page.writers) == 1 and len(list(page.write("The", 3))[-1]) == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The film was dull. The film was", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits[0].softmax(-1).tolist()
    assert [share for _, share in tuned.shares] == pytest.approx(wanted, abs=1e-4)
    assert base.text in ("negative", "positive")


def test_a_task_that_writes_its_answer(pretrained, tmp_path):
    model, tokenizer = load(pretrained, "cpu")
    task = TextTask("qa", prompt="{question} {context} The", context_field="context", max_new_tokens=6)
    speaker = Speaker("tiny", model, tokenizer, record=TaskRecord(task, "text", "en"))
    answer = Page([speaker]).ask({"question": "What was dull?", "context": "The film was dull."})[0]
    assert answer.shares == () and isinstance(answer.text, str)


def test_bytes_of_one_character_are_drawn_together(page):
    speaker = page.speakers[0]
    tokens = page.score("The 감동 <b>&")[0]
    assert [len(piece) for piece in pieces(tokens)].count(3) == 2
    drawn = tokens_html(tokens, speaker.tokenizer)
    assert re.sub(r"<[^>]+>", "", drawn.split("</div>")[0]) == "The 감동 &lt;b&gt;&amp;"
    assert 'data-first="' in drawn and drawn.count("<tr data-place") == len(tokens)
    assert "<b>&" not in scored_html(speaker, tokens)
    assert "<script>" not in error_html("<script>") + answer_html(speaker, page.ask({"text": "<script>"})[0])


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"`--port {port}` cannot be used at 127.0.0.1: another program has it"):
            find_port("127.0.0.1", port)
    assert find_port("127.0.0.1", port) == port
    assert 7860 <= find_port("127.0.0.1") < 7960
    with pytest.raises(ValueError, match="`--port` must be from 1 to 65535"):
        find_port("127.0.0.1", 70000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at-all"], "No model 'nowhere/at-all'"),
        (["MODEL", "--compare", "nowhere/at-all"], "No model 'nowhere/at-all'"),
        (["MODEL", "--task-example", "text"], "FIELD=TEXT"),
        (["MODEL", "--task-example", "film=x"], "no field 'film'; it has text"),
        (["MODEL", "--port", "0"], "--port"),
        (["MODEL", "--auth", "me"], "--auth takes USER:PASSWORD"),
    ],
)
def test_the_command_refuses_what_cannot_be(adapter, capsys, words, message):
    words = [str(adapter) if word == "MODEL" else word for word in words]
    assert main(["demo", *words, "--no-browser", "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(adapter, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(adapter), "--no-browser"]) == 2
    assert "pip install 'hfgpt[demo]'" in capsys.readouterr().err


def test_a_page_for_others_says_so(adapter, capsys, monkeypatch):
    """Served by gradio in this process, until the command would begin to wait."""
    seen = []

    def look(seconds):
        if seconds < 3600:  # another thread's
            return sleep(seconds)
        out = capsys.readouterr()
        port = re.search(r":(\d+)", out.out)[1]
        seen.append(out.err.replace(port, "PORT"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            seen.append(opener.open(f"http://127.0.0.1:{port}/config", timeout=30).status)
        except urllib.error.HTTPError as error:
            seen.append(error.code)
        raise KeyboardInterrupt

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", look)
    words = ["demo", str(adapter), "--no-browser", "--device", "cpu", "--host", "0.0.0.0", "--auth", "me:secret:word"]
    assert main(words) == 0
    assert re.search(r"--host 0\.0\.0\.0: whoever reaches .* http://[^/]+:PORT/ with the password$", seen[0], re.M)
    assert seen[1] == 401
    assert exposure("127.0.0.1", 7860, False, False) == exposure("localhost", 7860, False, False) == []
    [network, public] = exposure("::1:2", 7860, True, False)
    assert "http://[::1:2]:7860/ without a password; --auth" in network
    assert public.startswith("--share: whoever has the public address can use the page without a password; --auth")


# In the browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def address(adapter):
    """Where the real command serves its page."""
    words = [
        "-m",
        "hfgpt.cli",
        "demo",
        str(adapter),
        "--no-browser",
        "--device",
        "cpu",
        "--task-example",
        "text=Dull 영화.",
    ]
    server = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.match(r"hfgpt demo: (http://127\.0\.0\.1:\d+)", line)
    if not found:
        server.kill()
        pytest.fail(f"no address: {line} {server.communicate()[1]}")
    yield found[1]
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert "Traceback" not in server.communicate()[1]


@pytest.fixture
def browser(address):
    """The page in Chromium, and afterwards a look at what it asked for and complained of."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    requests, complaints = [], []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
        context.on("request", lambda request: requests.append(request.url))
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address)
        yield tab
        context.close()
    assert len(requests) > 5
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert complaints == []


def test_the_page(browser, page, pretrained):
    box = browser.get_by_label("Prompt")
    box.fill("The film")
    browser.get_by_label("Seed").fill("3")
    browser.get_by_role("spinbutton", name="number input for New tokens").fill("12")
    browser.get_by_role("button", name="Write").click()
    wanted = list(page.write("The film", 12, seed=3))[-1]
    for number, written in enumerate(wanted, start=1):
        card = browser.locator(f"#written-{number}")
        card.locator(".hfgpt-token").first.wait_for()
        text = "".join(card.locator(".hfgpt-token:not(.hfgpt-special)").all_text_contents()).replace("⏎", "")
        assert text == f"The film{written.text}"
        assert page.speakers[number - 1].name in card.inner_text()
        # The probabilities of the new tokens, in the table and beside the token that is pointed at.
        rows = card.locator("tbody tr")
        assert rows.count() == len(written.tokens)
        last = written.tokens[-1]
        assert rows.last.locator("td").nth(3).text_content() == f"{last.rank:,}"
        assert rows.last.locator("li").count() == 5
        card.locator(".hfgpt-token").last.hover()
        assert f"rank {last.rank:,}" in browser.get_by_role("tooltip").inner_text()
        assert "bits per byte" in card.inner_text()

    # Too long: said on the page, and the next try goes on.
    box.fill("word " * 100)
    browser.get_by_role("button", name="Write").click()
    alert = browser.get_by_role("alert")
    alert.wait_for()
    assert "This model has 64 positions" in alert.inner_text() and "Traceback" not in alert.inner_text()
    box.fill("The cast")
    browser.get_by_role("button", name="Write").click()
    alert.wait_for(state="hidden")
    browser.locator("#written-2 .hfgpt-token", has_text="cast").wait_for()

    browser.get_by_role("tab", name="Score a text").click()
    browser.get_by_label("Text", exact=True).locator("visible=true").fill("감동 <b>film</b> ${1+1}")
    browser.get_by_role("button", name="Score").click()
    browser.locator("#scored-2 .hfgpt-token").first.wait_for()
    tokens = browser.locator("#scored-1 .hfgpt-token").all_text_contents()
    assert tokens[:2] == ["감", "동"] and "".join(tokens) == "감동 <b>film</b> ${1+1}"

    browser.get_by_role("tab", name="Task: sentiment").click()
    assert browser.locator("#task-text textarea").input_value() == "Dull 영화."
    browser.get_by_role("button", name="Ask").click()
    for number, answer in enumerate(page.ask({"text": "Dull 영화."}), start=1):
        bars = browser.locator(f"#answer-{number} .hfgpt-bar b")
        bars.first.wait_for()
        assert bars.all_text_contents() == [f"{100 * share:.1f}%" for _, share in answer.shares]
