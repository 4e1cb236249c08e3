"""`lora-scripts completion`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_scripts.chinese.terminal import AsItIs
from lora_scripts.cli.options import options_of
from lora_scripts.events import Sink

HELP = "let the Tab key finish commands and options"
SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "DIR", "DIR:WEIGHT", "PATH", "RUN", "LORA", "T")
"""What an option's value is called where it is a file or a folder."""


@dataclass(frozen=True)
class Completion:
    """A script that the shell reads at its start."""

    shell: str
    script: str


@dataclass(frozen=True)
class Command:
    """What may stand behind a command's name."""

    name: str
    help: str
    options: Mapping[str, argparse.Action]
    """Only the long ones, and without --help."""
    keys: Sequence[str]
    """ "epochs=" and the like, of those that take a config."""

    @property
    def flags(self) -> list[str]:
        return [word for word, action in self.options.items() if action.nargs == 0]

    def values(self) -> dict[str, Sequence[str] | None]:
        """Option -> the words that it takes; none for a file, None for what only a person knows."""
        return {
            word: list(action.choices) if action.choices else [] if action.metavar in _FILES else None
            for word, action in self.options.items()
            if word not in self.flags
        }


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def call(options: argparse.Namespace, sink: Sink) -> Completion:
    """Prints a script for a shell; with it the Tab key finishes commands, options, their values and a config's keys."""
    from lora_scripts.cli import parsers
    from lora_scripts.config.schema import TrainConfig

    keys = [f"{key}=" for key in TrainConfig.model_fields]
    commands = []
    for name, parser in parsers().items():
        module = parser.get_default("command")
        long = {word: action for word, action in options_of(parser).items() if word.startswith("--")}
        del long["--help"]
        commands.append(Command(name, module.HELP, long, keys if getattr(module, "OVERRIDES", False) else []))
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](commands)
    return Completion(options.shell, script)


def words(result: Completion) -> list[str]:
    return [AsItIs(result.script)]


def _cases(commands: Sequence[Command], found: str, files: str) -> list[str]:
    """A line for each option with a value, for bash and zsh alike: what to do behind "command --option"."""
    lines = []
    for command in commands:
        for option, values in command.values().items():
            what = f"{found} {' '.join(values)}" if values else files
            lines.append(f'        "{command.name} {option}") {what}; return ;;')
    return lines


def _bash(commands: Sequence[Command]) -> str:
    options = [f'        {c.name}) options="{" ".join(c.options)}" keys="{" ".join(c.keys)}" ;;' for c in commands]
    lines = [
        '# In ~/.bashrc: eval "$(lora-scripts completion bash)"',
        "_lora_scripts() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" options="" keys=""',
        '    _lora_scripts_of() { COMPREPLY=($(compgen -W "$*" -- "$word")); }',
        "    COMPREPLY=()",
        f'    if [ "$COMP_CWORD" -eq 1 ]; then _lora_scripts_of {" ".join(c.name for c in commands)}; return; fi',
        '    case "${COMP_WORDS[1]} $before" in',
        *_cases(commands, "_lora_scripts_of", "true"),  # nothing of ours: files, by `-o default`
        "    esac",
        '    case "${COMP_WORDS[1]}" in',
        *options,
        "    esac",
        '    case "$word" in',
        "        -*) _lora_scripts_of $options ;;",
        '        *) [ -z "$keys" ] || { _lora_scripts_of $keys; compopt -o nospace 2>/dev/null; } ;;',
        "    esac",
        "}",
        "complete -o default -F _lora_scripts lora-scripts",
    ]
    return "\n".join(lines)


def _zsh(commands: Sequence[Command]) -> str:
    options = [f"        {c.name}) options=({' '.join(c.options)}) keys=({' '.join(c.keys)}) ;;" for c in commands]
    lines = [
        '# In ~/.zshrc, after compinit: eval "$(lora-scripts completion zsh)"',
        "_lora_scripts() {",
        "    local -a options keys",
        f"    if (( CURRENT == 2 )); then compadd -- {' '.join(c.name for c in commands)}; return; fi",
        '    case "$words[2] $words[CURRENT-1]" in',
        *_cases(commands, "compadd --", "_files"),
        "    esac",
        "    case $words[2] in",
        *options,
        "    esac",
        "    case $words[CURRENT] in",
        "        -*) compadd -- $options ;;",
        "        *) (( ! $#keys )) || compadd -S '' -- $keys; _files ;;",
        "    esac",
        "}",
        "compdef _lora_scripts lora-scripts",
    ]
    return "\n".join(lines)


def _fish(commands: Sequence[Command]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# In ~/.config/fish/config.fish: lora-scripts completion fish | source"]
    for command in commands:
        first = "complete -c lora-scripts -n __fish_use_subcommand -f"
        lines.append(f"{first} -a {command.name} -d {quoted(command.help)}")
        begin = f"complete -c lora-scripts -n '__fish_seen_subcommand_from {command.name}'"
        values = command.values()
        for option, action in command.options.items():
            text = quoted((action.help or "") % {"default": action.default})
            kind = ""
            if option in values:
                allowed = values[option]
                kind = "-x" if allowed is None else f"-x -a {quoted(' '.join(allowed))}" if allowed else "-r -F"
            lines.append(f"{begin} -l {option[2:]} {kind} -d {text}".replace("  ", " "))
        lines += [f"{begin} -a {quoted(' '.join(command.keys))}"] if command.keys else []
    return "\n".join(lines)
