"""What a line that begins with a slash does. A new command is a function and a line in COMMANDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from hwprofiles.schema.near_names import did_you_mean
from splitpoint.chat.conversation import Conversation
from splitpoint.chat.saved import SavedChatError, load, save
from splitpoint.chat.statistics import ChatStatistics
from splitpoint.views.terminal_text import shown_text

if TYPE_CHECKING:
    from edge.generation.completion import CompletionRequest

NO_SYSTEM: Final = "-"


class LevelSource(Protocol):
    """What knows which levels there are: an EdgeClient."""

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, best quality first."""
        ...

    def check(self, request: CompletionRequest) -> None:
        """InputError for a request that cannot be served."""
        ...


@dataclass(slots=True, kw_only=True)
class ChatState:
    """What commands read and change. `ended`: the chat is over. `ask_again`: as /retry wants it."""

    levels: LevelSource
    request: CompletionRequest
    talk: Conversation = field(default_factory=Conversation)
    statistics: ChatStatistics = field(default_factory=ChatStatistics)
    file: Path | None = None
    ended: bool = False
    ask_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlashCommand:
    """One command. run: changes the state, and returns the lines to show."""

    name: str
    argument: str = ""
    summary: str
    run: Callable[[ChatState, str], Sequence[str]]


def run_command(line: str, state: ChatState) -> Sequence[str]:
    """Run a line that begins with a slash; returns the lines to show.

    Raises InputError for what a command cannot do. An unknown command is answered with the nearest
    one, and is never sent to the model.
    """
    word, _, argument = line.partition(" ")
    command = next((one for one in COMMANDS if one.name == word), None)
    if command is None:
        hint = did_you_mean(word, [one.name for one in COMMANDS])
        return [f"no command {shown_text(word)}{hint or '; /help lists them'}"]
    if argument.strip() and not command.argument:
        return [f"{command.name} takes nothing behind it"]
    return command.run(state, argument.strip())


def _help(state: ChatState, _: str) -> Sequence[str]:
    width = max(len(f"{one.name} {one.argument}") for one in COMMANDS)
    lines = [f"{f'{one.name} {one.argument}':<{width}}  {one.summary}" for one in COMMANDS]
    return [
        *lines,
        'Alt-Return begins a new line; """ alone begins and ends a text of several lines.',
        "Ctrl-C stops an answer; twice at the prompt, or Ctrl-D, ends the chat.",
    ]


def _clear(state: ChatState, _: str) -> Sequence[str]:
    count = state.talk.num_questions
    state.talk.clear()
    kept = "; the system message stays" if state.talk.system else ""
    return [f"{count} questions forgotten{kept}"]


def _save(state: ChatState, name: str) -> Sequence[str]:
    return _saved(state, name, replace_it=False)


def _save_over(state: ChatState, name: str) -> Sequence[str]:
    return _saved(state, name, replace_it=True)


def _saved(state: ChatState, name: str, *, replace_it: bool) -> Sequence[str]:
    path = _path(name) if name else state.file
    if path is None:
        return ["say where to: /save FILE"]
    was_there = save(path, state.talk, replace=replace_it or path == state.file)
    state.file = path
    what = "replaced" if was_there else "saved"
    return [f"{what} {path}: {state.talk.num_questions} questions"]


def _path(name: str) -> Path:
    """The file that a user named; SavedChatError for what no file system has."""
    try:
        if "\0" in name:
            raise SavedChatError("a file's name has no zero bytes")
        return Path(name).expanduser()
    except RuntimeError as error:  # the home of a user that does not exist
        raise SavedChatError(f"{shown_text(name)}: {error}") from error


def _load(state: ChatState, name: str) -> Sequence[str]:
    if not name:
        return ["say from where: /load FILE"]
    path = _path(name)
    loaded = load(path)
    dropped = state.talk.num_questions
    state.talk.messages[:] = loaded.messages
    state.talk.is_open = loaded.is_open
    state.file = path
    lines = [f"loaded {path}: {loaded.num_questions} questions"]
    if dropped:
        lines[0] += f", in place of {dropped}"
    if loaded.is_open:
        lines.append("its last question has no whole answer: Return asks again")
    return lines


def _level(state: ChatState, name: str) -> Sequence[str]:
    names = ("auto", *state.levels.level_names)
    if not name:
        return [f"level {state.request.level}; there are {', '.join(names)}"]
    asked = replace(state.request, level=name)
    state.levels.check(asked)
    state.request = asked
    return [f"level {name} from the next answer on"]


def _split(state: ChatState, text: str) -> Sequence[str]:
    if not text:
        return [f"split {'auto' if state.request.split is None else state.request.split}"]
    if text != "auto" and not text.isdecimal():
        return ["say a number of layers, or auto: /split 6"]
    asked = replace(state.request, split=None if text == "auto" else int(text))
    state.levels.check(asked)
    state.request = asked
    return [f"split {text} from the next answer on"]


def _stats(state: ChatState, _: str) -> Sequence[str]:
    return state.statistics.lines()


def _system(state: ChatState, text: str) -> Sequence[str]:
    if not text:
        return [f"system message: {shown_text(state.talk.system) or 'none'}"]
    state.talk.set_system("" if text == NO_SYSTEM else text)
    return ["system message " + ("removed" if text == NO_SYSTEM else "set")]


def _retry(state: ChatState, _: str) -> Sequence[str]:
    state.ask_again = True
    return []


def _exit(state: ChatState, _: str) -> Sequence[str]:
    state.ended = True
    return []


COMMANDS: Final[tuple[SlashCommand, ...]] = (
    SlashCommand(name="/help", summary="What there is.", run=_help),
    SlashCommand(name="/clear", summary="Forget the conversation.", run=_clear),
    SlashCommand(
        name="/save", argument="FILE", summary="Write the conversation to a new file.", run=_save
    ),
    SlashCommand(
        name="/save!", argument="FILE", summary="The same, also over another file.", run=_save_over
    ),
    SlashCommand(name="/load", argument="FILE", summary="Go on with a saved one.", run=_load),
    SlashCommand(
        name="/level",
        argument="NAME|auto",
        summary="Compression level; alone: which there are.",
        run=_level,
    ),
    SlashCommand(
        name="/split",
        argument="LAYERS|auto",
        summary="Layers to run here, where the bundle has several splits; alone: which.",
        run=_split,
    ),
    SlashCommand(name="/stats", summary="Tokens, times and bytes so far.", run=_stats),
    SlashCommand(
        name="/system",
        argument="TEXT",
        summary=f"Set the system message; {NO_SYSTEM} removes it; alone: show it.",
        run=_system,
    ),
    SlashCommand(name="/retry", summary="Ask the last question again.", run=_retry),
    SlashCommand(name="/exit", summary="End the chat.", run=_exit),
)
