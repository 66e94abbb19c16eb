"""A conversation in the terminal, or line by line through pipes: `hfgpt generate MODEL --interactive`.

GPT-3 is a base model: it goes on with a text. A conversation is a text of turns, by default questions and answers as in
the paper's few-shot prompts, and an answer ends where the model would begin the next question. Models whose tokenizer has
a chat template are asked by that.
"""

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any, TextIO

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, set_seed

from .generation import DEFAULT_NEW_TOKENS, continue_prompt, encode_prompt, position_limit
from .tasks.base import template_fields
from .tasks.rows import is_utf8


# Source of the first: the questions of appendix G of Brown et al. 2020.
TEMPLATES = {
    "qa": "Q: {user}\nA: {model}\n\n",
    "qa-ko": "질문: {user}\n답: {model}\n\n",
    "dialogue": "User: {user}\nAssistant: {model}\n",
    "continue": "{user}{model}",
}
CHAT_TEMPLATE = "chat"


@dataclass(frozen=True)
class Template:
    """How turns become text: `before` the user's words, `between` them and the model's, `after` these.

    What the model reads ends without the spaces of `between`: its first word brings its own, as byte-level BPE likes it.
    """

    before: str
    between: str
    after: str

    @classmethod
    def parse(cls, text: str) -> "Template":
        """A template of its name, or of a text with {user} and {model} in it.

        Raises:
            ValueError: It is neither.
        """
        text = TEMPLATES.get(text, text)
        where = (
            f"`--template` (one of {', '.join([*TEMPLATES, CHAT_TEMPLATE])}, or a text with {{user}} and {{model}})"
        )
        if template_fields(text, where) != ["user", "model"]:
            raise ValueError(f"{where} must hold {{user}} and then {{model}}, each once, got {text!r}.")
        parts = [""]
        for literal, name, _, _ in Formatter().parse(text):
            parts[-1] += literal
            parts += [""] * (name is not None)
        return cls(*parts)

    @property
    def stop(self) -> list[str]:
        """Where an answer ends by itself: at a new line that begins as the user's turn does."""
        begin = self.before.strip()
        return [f"\n{begin}"] if begin else []

    def prompt(self, opening: str, turns: Sequence["Turn"], user: str) -> str:
        """What the model reads: the opening, whole turns, and one that it has to finish."""
        if opening and self.before and not opening.endswith("\n"):
            opening += "\n\n"
        past = "".join(f"{self.before}{turn.user}{self.between}{turn.model}{self.after}" for turn in turns)
        return opening + past + self.before + user + self.between.rstrip(" ")


@dataclass
class Turn:
    """What the user said and what the model answered."""

    user: str
    model: str = ""


@dataclass
class Settings:
    """How answers are written; `/set` changes them.

    Attributes:
        max_new_tokens: Tokens of an answer at most. Default: 64, or what the model's positions leave.
        temperature: 0 takes the likeliest token each time.
        top_p, top_k, repetition_penalty: As for `model.generate`.
        seed: Of the sampling, from here on.
        options: More for `model.generate`, such as `num_beams`.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    # What each may be: type, lowest, whether that itself is allowed, highest.
    RANGES = {
        "max_new_tokens": (int, 1, True, math.inf),
        "temperature": (float, 0, True, math.inf),
        "top_p": (float, 0, False, 1),
        "top_k": (int, 1, True, math.inf),
        "repetition_penalty": (float, 0, False, math.inf),
        "seed": (int, 0, True, 2**32 - 1),
    }

    def __post_init__(self) -> None:
        for name in self.RANGES:
            value = getattr(self, name)
            if value is not None:
                self.set(name, str(value))

    def set(self, name: str, text: str) -> None:
        """Change a setting by its name and a text.

        Raises:
            ValueError: There is no such setting, or the value is out of range.
        """
        name = name.replace("-", "_")
        if name not in self.RANGES:
            raise ValueError(f"there is no setting {name!r}; there are {', '.join(self.RANGES)}.")
        kind, low, included, high = self.RANGES[name]
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value >= low if included else value > low) or not value <= high or math.isinf(value):
            what = "a whole number" if kind is int else "a number"
            above = f"{'of at least' if included else 'above'} {low}"
            below = "" if math.isinf(high) else f" and at most {high}"
            raise ValueError(f"{name} must be {what} {above}{below}, got {text!r}.")
        setattr(self, name, value)

    @property
    def samples(self) -> bool:
        """Whether an answer is left to chance."""
        return self.temperature > 0 and self.options.get("num_beams", 1) == 1

    def generation_options(self) -> dict[str, Any]:
        """For `model.generate`."""
        options: dict[str, Any] = {**self.options, "do_sample": self.samples}
        names = ["repetition_penalty", *(("temperature", "top_p", "top_k") if self.samples else ())]
        return {**options, **{name: getattr(self, name) for name in names if getattr(self, name) is not None}}

    def __str__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in self.RANGES}
        return ", ".join(f"{name} {'default' if value is None else value}" for name, value in values.items())


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: What was written, without white space around it where the template brings its own.
        ended: See `Continuation.ended`.
        left_out: Turns at the beginning of the conversation that had no room in what the model read.
    """

    text: str
    ended: str
    left_out: int


class Conversation:
    """Turns of a user and a model, which sees as many of the last ones as its positions hold.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        template: A name of `TEMPLATES`, a text with {user} and {model}, or "chat", the tokenizer's own. Default: that,
            where there is one, else "qa".
        opening: Text before the first turn; the system message of a chat template.
        stop: Texts at which an answer ends. Default: where the user's next turn would begin.
        settings: How answers are written.

    Raises:
        ValueError: No such template, the tokenizer has no chat template, or an empty stop text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        opening: str = "",
        stop: Sequence[str] | None = None,
        settings: Settings | None = None,
    ):
        self.model, self.tokenizer, self.opening = model, tokenizer, opening
        self.settings = settings or Settings()
        self.turns: list[Turn] = []
        own = getattr(tokenizer, "chat_template", None)
        if template == CHAT_TEMPLATE and not own:
            raise ValueError(
                f"`--template chat`: the tokenizer has no chat template. Use one of {', '.join(TEMPLATES)}, or give "
                "a text with {user} and {model}."
            )
        self.template = None if own and template in (None, CHAT_TEMPLATE) else Template.parse(template or "qa")
        if stop is None:
            stop = self.template.stop if self.template is not None else []
        if not all(stop):
            raise ValueError("`--stop` is empty, which would end every answer before it begins.")
        self.stop = list(stop)
        if self.settings.seed is not None:
            set_seed(self.settings.seed)

    @property
    def continues(self) -> bool:
        """Whether the text just goes on, without turns, so that an empty message is one, too."""
        return self.template is not None and not (self.template.before or self.template.between)

    def ask(
        self, user: str, write: Callable[[str], Any] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> Answer:
        """Add a turn.

        Args:
            user: The user's words.
            write: Called with each piece of the answer as it comes.
            should_stop: Asked after each token; where it says yes, the answer is what was written so far.

        Raises:
            ValueError: The message alone is too long for the model, or its chat template does not take the
                conversation; nothing was added.
        """
        prompt, left_out = self._fitting_prompt(user)
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            if write is not None:
                write(piece)

        trimmed = _Trimmer(take, *self._trimmed_ends())
        ended = "asked"
        try:
            ended = continue_prompt(
                self.model,
                self.tokenizer,
                prompt,
                max_new_tokens=self.settings.max_new_tokens,
                write=trimmed,
                stop=self.stop,
                should_stop=should_stop,
                **self.settings.generation_options(),
            ).ended
        except KeyboardInterrupt:
            # Stopped at once, in the middle of a token: what is on the screen is the answer.
            if not pieces:
                raise
        self.turns.append(Turn(user, "".join(pieces)))
        return Answer("".join(pieces), ended, left_out)

    def undo(self) -> Turn:
        """Take back the last turn.

        Raises:
            ValueError: There is none.
        """
        if not self.turns:
            raise ValueError("there is no turn to take back.")
        return self.turns.pop()

    def text(self) -> str:
        """The whole conversation as text."""
        template = self.template or Template.parse("dialogue")
        end = template.before + template.between.rstrip(" ")
        return template.prompt(self.opening, self.turns, "").removesuffix(end)

    def messages(self) -> list[dict[str, str]]:
        """The whole conversation as `apply_chat_template` takes it."""
        return _messages(self.opening, self.turns)

    def _fitting_prompt(self, user: str) -> tuple[list[int], int]:
        """Token ids of what the model reads, and how many turns had no room."""
        limit = position_limit(self.model)
        room = self.settings.max_new_tokens
        if room is None:
            room = DEFAULT_NEW_TOKENS if limit is None else min(DEFAULT_NEW_TOKENS, limit // 2)
        if limit is None:
            return self._encode(self.turns, user), 0
        ids = self._encode([], user)
        if len(ids) + room <= limit:
            return self._longest(user, ids, limit - room)
        opening = " with the opening text" if self.opening else ""
        raise ValueError(
            f"the message takes {len(ids)} tokens{opening}, {room} are kept for the answer, and the model has {limit} "
            "positions (`max_position_embeddings`): shorten it, or lower max_new_tokens."
        )

    def _longest(self, user: str, ids: list[int], room: int) -> tuple[list[int], int]:
        """Like `_fitting_prompt`, where the message alone, of token ids `ids`, has room.

        Twice as many of the last turns each time, until they are too many; then the number is halved in on. What is
        encoded has no more to do with how long the conversation has become.
        """
        kept, too_many = 0, len(self.turns) + 1
        while too_many - kept > 1:
            tried = min(2 * kept or 1, (kept + too_many) // 2)
            found = self._encode(self.turns[len(self.turns) - tried :], user)
            if len(found) <= room:
                kept, ids = tried, found
            else:
                too_many = tried
        return ids, len(self.turns) - kept

    def _encode(self, turns: Sequence[Turn], user: str) -> list[int]:
        if self.template is None:
            messages = [*_messages(self.opening, turns), {"role": "user", "content": user}]
            try:
                ids: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            except TemplateError as error:
                without = "leave out `--system` and `--context`, or " if self.opening else ""
                raise ValueError(
                    f"the tokenizer's chat template does not take this conversation ({error}): {without}give "
                    "`--template qa`."
                ) from None
            return list(ids)
        return encode_prompt(self.tokenizer, self.template.prompt(self.opening, turns, user))

    def _trimmed_ends(self) -> tuple[bool, bool]:
        if self.template is None:
            return True, True
        return self.template.between != self.template.between.rstrip(" "), bool(self.template.after)


def _messages(opening: str, turns: Sequence[Turn]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": opening}] if opening else []
    for turn in turns:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.model}]
    return messages


class _Trimmer:
    """Passes text on without the white space at its beginning and end."""

    def __init__(self, write: Callable[[str], Any], left: bool, right: bool):
        self.write, self.left, self.right, self._held = write, left, right, ""

    def __call__(self, text: str) -> None:
        text = self._held + text
        if self.left:
            text = text.lstrip()
            self.left = not text
        kept = text.rstrip() if self.right else text
        self._held = text[len(kept) :]
        if kept:
            self.write(kept)


# The terminal

HELP = """\
/help               this list
/set NAME VALUE     change a setting, such as /set temperature 0.7; /set alone shows them
/history            the conversation so far
/undo               take back the last question and its answer
/retry              answer the last question again
/clear              forget the conversation
/save FILE          write it to FILE: as messages where it ends in .json, else as text
/quit               end, as Ctrl-D does
Ctrl-C stops an answer and keeps what is written. A line that ends in \\ goes on in the next one. // begins a message
that begins with a slash."""
COMMANDS = ("/help", "/set", "/history", "/undo", "/retry", "/clear", "/save", "/quit")


class _End(Exception):
    """The user wants to leave."""


class Session:
    """A conversation by lines of text.

    At a terminal there are line editing and prompts; through pipes each line of standard input is a message, answers go
    to standard output and everything else to standard error.

    Args:
        conversation: With whom.
        as_json: Write each answer as a line of JSON, `{"user": ..., "text": ..., "ended": ...}`, when it is whole.
        stdin, stdout, stderr: Default: the process's.
    """

    def __init__(
        self,
        conversation: Conversation,
        as_json: bool = False,
        stdin: TextIO | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ):
        self.conversation, self.as_json = conversation, as_json
        self.stdin, self.stdout, self.stderr = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
        self.at_terminal = self.stdin.isatty()
        self.failed = 0
        self._left_out = 0
        # `input` edits lines only between the process's own terminal streams.
        self._edits = self.at_terminal and self.stdin is sys.stdin and sys.stdout.isatty()
        if self._edits:
            _set_up_readline()

    def run(self, first: str | None = None) -> int:
        """Talk until the input ends.

        Args:
            first: A message to begin with.

        Returns:
            How many messages could not be answered.
        """
        if self.at_terminal:
            self._say(f"{self._describe()} /help lists commands, Ctrl-D ends.")
        try:
            if first is not None:
                self._message(first)
            for line in self._lines():
                self._take(line)
        except _End:
            pass
        return self.failed

    def _describe(self) -> str:
        conversation = self.conversation
        stop = ", ".join(map(json.dumps, conversation.stop))
        how = f"Answers end at {stop} or end-of-text." if stop else "Answers end at end-of-text."
        return f"{conversation.settings}. {how}"

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._read("> ")
                while line is not None and line.endswith("\\"):
                    more = self._read(". ")
                    line = line[:-1] if more is None else f"{line[:-1]}\n{more}"
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                self._say("\n(Ctrl-D ends)")
                continue
            except UnicodeDecodeError as error:
                self._fail(f"a line is not valid UTF-8 ({error.reason}) and was left out.")
                continue
            if line is None:
                if self.at_terminal:
                    self._say("")
                return
            yield line

    def _read(self, prompt: str) -> str | None:
        """A line without its end; None where there is no more."""
        if self._edits:
            try:
                return input(prompt)
            except EOFError:
                return None
        if self.at_terminal:
            print(prompt, end="", file=self.stderr, flush=True)
        line = self.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def _take(self, line: str) -> None:
        """A message or a command."""
        if not is_utf8(line):
            self._fail("the message is not valid UTF-8: set the terminal and LANG to UTF-8.")
        elif line.startswith("/") and not line.startswith("//"):
            try:
                self._command(*line.split(maxsplit=1))
            except ValueError as error:
                self._fail(str(error))
        elif line.strip() or self.conversation.continues:
            self._message(line[1:] if line.startswith("//") else line)

    def _message(self, text: str) -> None:
        written = False

        def write(piece: str) -> None:
            nonlocal written
            written = True
            print(piece, end="", file=self.stdout, flush=True)

        try:
            with self._stoppable() as asked:
                answer = self.conversation.ask(text, None if self.as_json else write, asked)
        except KeyboardInterrupt:
            self._say("(stopped before the first word)")
            return
        except ValueError as error:
            self._fail(str(error), text)
            return
        if self.as_json:
            row = {"user": text, "text": answer.text, "ended": answer.ended}
            print(json.dumps(row, ensure_ascii=False), file=self.stdout, flush=True)
        else:
            print(file=self.stdout, flush=True)
        if not answer.text and not self.as_json:
            self._say("(no answer: the model ended at once)")
        elif answer.ended == "asked":
            self._say("(stopped)")
        if answer.left_out > self._left_out:
            turns = "the first turn" if answer.left_out == 1 else f"the first {answer.left_out} turns"
            limit = position_limit(self.conversation.model)
            self._say(f"(the model no longer sees {turns}: it has {limit} positions)")
        self._left_out = answer.left_out

    @contextmanager
    def _stoppable(self) -> Iterator[Callable[[], bool] | None]:
        """Ctrl-C ends the answer after the present token, a second one at once."""
        if not self.at_terminal or threading.current_thread() is not threading.main_thread():
            yield None
            return
        asked = False

        def stop(*_: Any) -> None:
            nonlocal asked
            if asked:
                raise KeyboardInterrupt
            asked = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield lambda: asked
        finally:
            signal.signal(signal.SIGINT, before)

    def _command(self, name: str, rest: str = "") -> None:
        conversation, words = self.conversation, rest.split()
        if name == "/help":
            self._say(HELP)
        elif name == "/quit":
            raise _End
        elif name == "/clear":
            conversation.turns.clear()
            self._left_out = 0
            self._say("(forgotten)")
        elif name == "/undo":
            self._say(f"(taken back: {conversation.undo().user})")
        elif name == "/retry":
            turn = conversation.undo()
            if not conversation.settings.samples:
                self._say("(the likeliest answer is always the same: /set temperature 0.8 samples)")
            turns = len(conversation.turns)
            self._message(turn.user)
            if len(conversation.turns) == turns:
                conversation.turns.append(turn)
        elif name == "/history":
            self._say(conversation.text().rstrip("\n") or "(nothing yet)")
        elif name == "/save":
            self._save(rest.strip())
        elif name == "/set":
            if len(words) == 2:
                conversation.settings.set(*words)
                if words[0] == "seed":
                    set_seed(conversation.settings.seed or 0)
            elif words:
                raise ValueError("/set takes a name and a value, such as /set temperature 0.7.")
            self._say(f"({conversation.settings})")
        else:
            raise ValueError(f"there is no command {name}; /help lists them, and // begins a message with a slash.")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("/save takes a file name.")
        path = Path(name).expanduser()
        if path.suffix == ".json":
            text = json.dumps(self.conversation.messages(), ensure_ascii=False, indent=2) + "\n"
        else:
            text = self.conversation.text()
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ValueError(f"{path} is there already: name another file.") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}.") from None
        self._say(f"(written to {path})")

    def _fail(self, message: str, user: str | None = None) -> None:
        self.failed += 1
        if self.as_json and user is not None:
            print(json.dumps({"user": user, "error": message}, ensure_ascii=False), file=self.stdout, flush=True)
        self._say(f"error: {message}")

    def _say(self, text: str) -> None:
        print(text, file=self.stderr, flush=True)


def _set_up_readline() -> None:
    """Editing, history of this session and completion of commands, where this Python has them."""
    try:
        import readline
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        found = [command for command in COMMANDS if text.startswith("/") and command.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \n")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
