"""`lora-scripts chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_scripts.cli.options import (
    add_device,
    add_language_model,
    add_template,
    asked,
    default,
    file_of,
    number,
    path,
)
from lora_scripts.cli.printing import say
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note, Sink
from lora_scripts.units import HALF

if TYPE_CHECKING:
    from lora_scripts.chat.of_file import Answered
    from lora_scripts.chat.session import Chatted

HELP = "talk to a language model with LoRAs on it"


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_language_model(parser)
    add("--system", metavar="TEXT", default="", help="the system prompt")
    add("--message", metavar="TEXT", help="ask this, and leave")
    text = 'answer each line of it, or of a .jsonl file each {"prompt": …} or {"messages": …}, and leave'
    add("--from-file", metavar="FILE", type=path, help=text)
    text = "with --from-file: where the answers go (default: FILE-answers.jsonl beside it)"
    add("--output", metavar="FILE", type=file_of(".jsonl"), help=text)
    text = "with --from-file: go on with the answers that are there, of a command that was stopped"
    add("--resume", action="store_true", help=text)
    add_template(parser)
    tokens = number(int, 1, 1_000_000)
    add("--max-tokens", metavar="N", type=tokens, default=512, help=default("512", "the longest answer"))
    text = default("0", "0: always the likeliest token")
    add("--temperature", metavar="X", type=number(float, 0, 10), default=0.0, help=text)
    text = default("1", "draw from the likeliest tokens that have this share")
    add("--top-p", metavar="X", type=number(float, 0.01, 1), default=1.0, help=text)
    add("--seed", metavar="N", type=number(int, 0, 2**31), default=0, help=default("0", "of drawn answers"))
    add_device(parser)


def call(options: argparse.Namespace, sink: Sink) -> Chatted | Answered:
    """Answers what you write, line by line, and remembers the conversation; /help names what else it understands."""
    if options.from_file is not None and options.message is not None:
        raise UserError("--message and --from-file are both given", hint="leave one out")
    if options.output is not None and options.from_file is None:
        raise UserError("--output does nothing without --from-file", hint="leave it out, or name a file of prompts")
    if options.resume and options.from_file is None:
        raise UserError("--resume does nothing without --from-file", hint="leave it out, or name a file of prompts")
    if options.message is not None and not options.message.strip():
        raise UserError("--message is empty", hint="write what is to be asked")
    if options.from_file is not None:
        return _of_file(options, sink)
    from lora_scripts.chat.session import Piece, chat

    def tell(event: Event) -> None:
        if isinstance(event, Piece) and not options.json:
            say(event.text, end="")
        else:
            sink(event)

    once = options.message is not None
    lines = _once(options.message) if once else _typed(sink, quiet=options.json)
    return chat(lines=lines, once=once, sink=tell, **asked(options, "message", "from_file", "output", "resume"))


def words(result: Chatted | Answered) -> list[str]:
    """Of a file what has become of it; the answers of a conversation were told as they came."""
    from lora_scripts.chat.of_file import Answered

    if not isinstance(result, Answered):
        return []
    cut = result.prompts - result.stopped
    more = f"; {cut} cut off, --max-tokens gives them more" if cut else ""
    return [f"{result.prompts} prompt{'' if result.prompts == 1 else 's'} answered in {result.output}{more}"]


def _of_file(options: argparse.Namespace, sink: Sink) -> Answered:
    from lora_scripts.chat.of_file import answer_file
    from lora_scripts.families.texts import Answering

    given = asked(options, "message", "from_file", "max_tokens", "temperature", "top_p", "seed", "think")
    answering = Answering(options.max_tokens, options.temperature, options.top_p, options.seed, options.think)
    return answer_file(source=options.from_file, answering=answering, sink=sink, **given)


def _once(message: str) -> Callable[[], str | None]:
    waiting = [message]
    return lambda: waiting.pop() if waiting else None


def _not_text() -> UserError:
    hint = "save them as UTF-8, or give a file of them with --from-file"
    return UserError(f"the messages that are piped in are not {sys.stdin.encoding} text", hint=hint)


def _typed(sink: Sink, *, quiet: bool) -> Callable[[], str | None]:
    """What a person types after "> ", or the lines of a pipe."""
    people = sys.stdin.isatty() and not quiet
    if people:
        sink(Note("write a message; /help says what else, /quit leaves"))

    def line() -> str | None:
        try:
            text = input("> " if people else "")
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise _not_text() from None
        if HALF.search(text):  # of such bytes, where the system hands them on
            raise _not_text()
        return text

    return line
