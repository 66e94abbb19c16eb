"""Conversations: as a library, through pipes, and at a terminal (a pseudo-terminal, typed into)."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from transformers import AutoTokenizer

from hfgpt.chat import Conversation, Session, Settings, Template, Turn
from hfgpt.cli import main
from hfgpt.generation import load_writer


@pytest.fixture(scope="module")
def loaded(pretrained):
    return load_writer(pretrained, "cpu")


def conversation(loaded, **options):
    options.setdefault("settings", Settings(max_new_tokens=8, seed=0))
    return Conversation(*loaded, **options)


def talk(talker, *lines, **options):
    """The session's standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    session = Session(
        talker, stdin=io.StringIO("".join(f"{line}\n" for line in lines)), stdout=out, stderr=err, **options
    )
    session.run()
    return out.getvalue(), err.getvalue()


def test_turns_become_text():
    template = Template.parse("qa")
    assert template.prompt("", [Turn("one?", "two.")], "three?") == "Q: one?\nA: two.\n\nQ: three?\nA:"
    assert template.prompt("A film.", [], "one?") == "A film.\n\nQ: one?\nA:"
    assert template.stop == ["\nQ:"]
    own = Template.parse("### {{user}}: {user}\n### answer:\n{model}\n")
    assert own.prompt("", [], "hi ") == "### {user}: hi \n### answer:\n"
    assert Template.parse("continue").stop == []


@pytest.mark.parametrize("text", ["{user}", "{model}{user}", "{user}{model}{other}", "nothing", "{user"])
def test_a_template_without_both_places_is_refused(text):
    with pytest.raises(ValueError, match="`--template`"):
        Template.parse(text)


def test_an_answer_ends_at_the_users_next_turn(loaded):
    talker = conversation(loaded, settings=Settings(max_new_tokens=20, seed=1, options={"min_new_tokens": 20}))
    whole = talker.ask("film").text
    assert len(whole) > 20
    stop = whole[10:14]
    cut = conversation(
        loaded, settings=Settings(max_new_tokens=20, seed=1, options={"min_new_tokens": 20}), stop=[stop]
    )
    pieces = []
    answer = cut.ask("film", pieces.append)
    assert answer.text == "".join(pieces) == whole[: whole.index(stop)].rstrip()
    assert answer.ended == "stop"
    assert cut.turns[0].model == answer.text


def test_the_model_reads_what_was_said_before(loaded, monkeypatch):
    read = []
    monkeypatch.setattr(loaded[0], "generate", recording(loaded[0].generate, read))
    talker = conversation(loaded, opening="Films.")
    first = talker.ask("one").text
    talker.ask("two")
    tokenizer = loaded[1]
    assert tokenizer.decode(read[0]) == "Films.\n\nQ: one\nA:"
    assert tokenizer.decode(read[1]) == f"Films.\n\nQ: one\nA: {first}\n\nQ: two\nA:"


def recording(generate, read):
    def recorded(*args, **kwargs):
        read.append(kwargs["input_ids"][0].tolist())
        return generate(*args, **kwargs)

    return recorded


def test_the_first_turns_go_where_the_positions_end(loaded, monkeypatch):
    read = []
    monkeypatch.setattr(loaded[0], "generate", recording(loaded[0].generate, read))
    talker = conversation(loaded)
    left_out = [talker.ask("The film was funny.").left_out for _ in range(8)]
    assert left_out[0] == 0 and left_out == sorted(left_out) and left_out[-1] > 2
    assert all(len(ids) + 8 <= 64 for ids in read)
    # Whole turns, and all of them are kept for the user.
    assert all(loaded[1].decode(ids).startswith("Q: The film") for ids in read)
    assert len(talker.turns) == 8
    _, err = talk(talker, "The film was funny.")
    assert "(the model no longer sees the first" in err and "64 positions" in err


def test_a_long_conversation_takes_no_longer_to_fit(loaded):
    """What is encoded for a message stays the same; the turns that are left out are as few as can be."""
    tokenizer, encoded = loaded[1], []

    class Counting(type(tokenizer)):
        def __call__(self, text, *args, **kwargs):
            encoded.append(text)
            return super().__call__(text, *args, **kwargs)

    talker = conversation((loaded[0], Counting.from_pretrained(tokenizer.name_or_path)))
    counts = []
    for turns in (0, 1, 2, 3, 50, 3000):
        talker.turns = [Turn("The film?", "dull" * (turn % 3 == 0)) for turn in range(turns)]
        encoded.clear()
        left_out = talker.ask("funny").left_out
        counts.append(sum(map(len, encoded)))
        del talker.turns[turns:]
        room = [
            len(tokenizer(talker.template.prompt("", talker.turns[out:], "funny")).input_ids) + 8 <= 64
            for out in range(max(left_out - 1, 0), left_out + 1)
        ]
        assert room == ([False, True] if left_out else [True])
    assert left_out > 2990 and counts[-1] <= 1.2 * counts[-2]


def test_a_chat_template_that_refuses_is_named_and_the_conversation_goes_on(loaded, pretrained):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' or m.content == 'no' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    talker = Conversation(loaded[0], tokenizer, opening="Be kind.", settings=Settings(max_new_tokens=2))
    with pytest.raises(ValueError, match=r"\(System role not supported\): leave out `--system`.* `--template qa`"):
        talker.ask("Hi")
    talker = Conversation(loaded[0], tokenizer, settings=Settings(max_new_tokens=2))
    _, err = talk(talker, "no", "film")
    assert "error: the tokenizer's chat template does not take this conversation" in err
    assert "--system" not in err and [turn.user for turn in talker.turns] == ["film"]


def test_a_message_too_long_is_named_and_the_conversation_goes_on(loaded):
    talker = conversation(loaded)
    out, err = talk(talker, "funny " * 100, "The film")
    assert re.search(r"error: the message takes \d+ tokens, 8 are kept for the answer, and the model has 64", err)
    assert [turn.user for turn in talker.turns] == ["The film"] and out.strip()


def test_a_chat_template_is_used_where_there_is_one(loaded, pretrained, monkeypatch):
    read = []
    monkeypatch.setattr(loaded[0], "generate", recording(loaded[0].generate, read))
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    with pytest.raises(ValueError, match="no chat template"):
        Conversation(loaded[0], tokenizer, "chat")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
    Conversation(loaded[0], tokenizer, opening="Be kind.", settings=Settings(max_new_tokens=2)).ask("Hi")
    assert tokenizer.decode(read[0]) == "[system] Be kind.\n[user] Hi\n[me]"


def test_commands(loaded, tmp_path):
    talker = conversation(loaded)
    out, err = talk(
        talker, "one", "two", "/undo", "/history", "/set temperature 0", "three", "/retry", "/set top_p 3", "/what"
    )
    assert [turn.user for turn in talker.turns] == ["one", "three"]
    assert "(taken back: two)" in err and "Q: one\nA:" in err
    assert "temperature 0.0" in err and "always the same" in err
    # The last answer again: nothing is sampled.
    assert out.splitlines()[-1] == out.splitlines()[-2]
    assert "error: top_p must be a number above 0 and at most 1, got '3'." in err
    assert "error: there is no command /what" in err

    text, messages = tmp_path / "talk.txt", tmp_path / "talk.json"
    _, err = talk(talker, f"/save {text}", f"/save {messages}", f"/save {text}", "/clear", "/undo", "/quit", "never")
    assert re.fullmatch(r"Q: one\nA: (?s:.*)\n\nQ: three\nA: (?s:.*)\n\n", text.read_text())
    assert [m["role"] for m in json.loads(messages.read_text())] == ["user", "assistant"] * 2
    assert "is there already" in err and "error: there is no turn to take back." in err
    assert talker.turns == []


def test_two_slashes_begin_a_message(loaded):
    talker = conversation(loaded)
    talk(talker, "//help", "first \\", "second")
    assert [turn.user for turn in talker.turns] == ["/help", "first \nsecond"]


def test_an_answer_is_stopped_and_kept(loaded):
    talker = conversation(loaded, settings=Settings(max_new_tokens=30, seed=0, options={"min_new_tokens": 30}))
    pieces = []
    answer = talker.ask("film", pieces.append, should_stop=lambda: len(pieces) > 2)
    assert answer.ended == "asked" and talker.turns[0].model == answer.text == "".join(pieces)

    def interrupt(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    pieces.clear()
    talker.ask("film", interrupt)
    assert talker.turns[1].model == "".join(pieces)


# The command


def command(model, *words):
    return [sys.executable, "-m", "hfgpt.cli", "generate", str(model), "--interactive", "--device", "cpu", *words]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "TERM": "dumb"}


def test_through_pipes_each_line_is_a_turn(pretrained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The film\n\n한국 영화\n" + "word " * 100 + "\nbye\n"))
    words = command(pretrained, "--json", "--max-new-tokens", "4", "--seed", "0", "--min-new-tokens", "3")
    status = main(words[3:])
    done = capsys.readouterr()
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["user"] for row in rows] == ["The film", "한국 영화", "word " * 100, "bye"]
    assert [sorted(row) for row in rows] == [["ended", "text", "user"]] * 2 + [
        ["error", "user"],
        ["ended", "text", "user"],
    ]
    assert status == 2 and "1 of the lines could not be answered" in done.err


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, words):
        self.shown = ""
        pid, self.file = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execve(words[0], words, ENVIRONMENT)
        self.pid = pid

    def type(self, text):
        self.shown = ""
        os.write(self.file, text.encode())

    def wait_for(self, pattern, seconds=180):
        """Read until the pattern is on the screen."""
        end = time.monotonic() + seconds
        data = b""
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.file], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{pattern!r} did not come: {self.shown!r}"
            try:
                read = os.read(self.file, 4096)
            except OSError:  # the other side has gone
                read = b""
            assert read, f"{pattern!r} did not come before the end: {self.shown!r}"
            data += read
            self.shown = data.decode("utf-8", errors="ignore").replace("\r", "")
        return found

    def status(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def endless(pretrained, tmp_path_factory) -> Path:
    """A model of random weights that has time for thousands of tokens."""
    from hfgpt import GPT3Config, GPT3ForCausalLM

    folder = tmp_path_factory.mktemp("endless")
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    config = GPT3Config(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=9000,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_at_a_terminal(endless):
    terminal = Terminal(command(endless, "--max-new-tokens", "8000", "--min-new-tokens", "8000", "--stop", "zzzz"))
    try:
        terminal.wait_for(r"/help lists commands, Ctrl-D ends\.\n(.*\n)*> ")
        # Ctrl-C at the prompt leaves nothing.
        terminal.type("nonsense\x03")
        terminal.wait_for(r"\(Ctrl-D ends\)\n> ")
        # A syllable is deleted whole, and the answer is stopped while it is written.
        terminal.type("한국\x7f글 film\r")
        terminal.wait_for(r"film\n(?s:.{20})")
        terminal.type("\x03")
        terminal.wait_for(r"\(stopped\)\n> ")
        terminal.type("/history\r")
        assert terminal.wait_for(r"Q: (.*)\nA: ?(?s:(.{10,}))\n> ")[1] == "한글 film"
        terminal.type("/undo\r")
        terminal.wait_for(r"\(taken back: 한글 film\)\n> ")
        terminal.type("/history\r")
        terminal.wait_for(r"\(nothing yet\)\n> ")
        terminal.type("\x04")
        assert terminal.status() == 0
    finally:
        try:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(terminal.file)
