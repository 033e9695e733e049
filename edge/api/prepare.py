"""From a checked request to runs that can start: prompts are tokenized, choices get readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from edge.api.asked import ApiRequest
from edge.api.choices import ChoiceReader
from edge.api.delivery import AnswerPlan
from edge.api.logprobs import PromptEcho
from edge.api.runs import AnswerRuns
from edge.api.shape import AnswerShape, AnswerSource
from edge.api.tool_calls.forms import FORCED, form_of
from edge.api.tool_calls.reader import ToolCallReader
from edge.client import EdgeClient
from edge.device.detokenizer import DecodedToken
from edge.device.tokenizer import ChatMessage

MakeShape: TypeAlias = Callable[[ApiRequest, AnswerSource], AnswerShape]


class Prepared(NamedTuple):
    """A request, its runs in order, and what makes their answers."""

    asked: ApiRequest
    runs: AnswerRuns
    plan: AnswerPlan


class RequestPreparer:
    """For one client. `prepare` computes: call it in a thread."""

    def __init__(self, client: EdgeClient, fingerprint: str) -> None:
        self._client = client
        self._source = AnswerSource(
            model=client.plan.model.id, fingerprint=fingerprint, text_of=self._text_of
        )

    def prepare(self, asked: ApiRequest, make_shape: MakeShape) -> Prepared:
        """Tokenize the prompts. Raises InputError or ApiError when one cannot be served."""
        runs = []
        echoes: list[PromptEcho | None] = []
        tools = None if asked.tools is None else asked.tools.schemas
        sampling = asked.completion.sampling
        for prompt in asked.prompts:
            ids = self._client.prompt_ids(
                [int(str(id_)) for id_ in prompt] if _is_ids(prompt) else prompt,
                asked.completion,
                tools=tools,
            )
            echo = self._echo(ids, with_tokens=sampling.logprobs) if asked.echo else None
            for choice in range(asked.num_choices):
                runs.append(self._client.start_ids(ids, asked.choice(choice)))
                echoes.append(echo)
        readers = [ChoiceReader(self._tool_calls(asked)) for _ in runs]
        shape = make_shape(asked, self._source)
        plan = AnswerPlan(shape=shape, readers=readers, echoes=echoes)
        return Prepared(asked, AnswerRuns(runs), plan)

    def _tool_calls(self, asked: ApiRequest) -> ToolCallReader | None:
        tools = asked.tools
        if tools is None:
            return None
        form = FORCED if tools.grammar is not None else form_of(self._client.tokenizer.template)
        return ToolCallReader(form, tools.names, parallel=tools.parallel)

    def _echo(self, ids: list[int], *, with_tokens: bool) -> PromptEcho:
        """The prompt as its tokens read."""
        stream = self._client.tokenizer.stream()
        tokens = []
        for token_id in ids:
            tokens.append(stream.push(token_id))
        text = "".join(token.text for token in tokens) + stream.flush()
        return PromptEcho(text=text, tokens=tuple(tokens) if with_tokens else ())

    def _text_of(self, token_id: int) -> DecodedToken:
        """A token that is not the first of its text."""
        return self._client.tokenizer.stream((token_id,)).push(token_id)


def _is_ids(prompt: str | list[int] | list[ChatMessage]) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
