"""From a checked request to runs that can start: prompts are tokenized, choices get readers."""

from __future__ import annotations

from typing import NamedTuple

from edge.api.answers import AnswerFormat
from edge.api.choices import ChoiceReader
from edge.api.logprobs import PromptEcho
from edge.api.requests import ApiRequest
from edge.api.responses import AnswerPlan
from edge.api.runs import AnswerRuns
from edge.api.tool_calls.forms import FORCED, form_of
from edge.api.tool_calls.reader import ToolCallReader
from edge.client import EdgeClient
from edge.device.detokenizer import DecodedToken
from edge.device.tokenizer import ChatMessage


class Prepared(NamedTuple):
    """A request, its runs in order, and what makes their answers."""

    asked: ApiRequest
    runs: AnswerRuns
    plan: AnswerPlan


class RequestPreparer:
    """For one client. `prepare` computes: call it in a thread."""

    def __init__(self, client: EdgeClient, fingerprint: str) -> None:
        self._client = client
        self._fingerprint = fingerprint

    def prepare(self, asked: ApiRequest) -> Prepared:
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
        answer = AnswerFormat(
            model=self._client.plan.model.id,
            fingerprint=self._fingerprint,
            is_chat=asked.is_chat,
            with_logprobs=sampling.logprobs,
            with_top=sampling.top_logprobs > 0,
            num_choices=asked.num_choices,
            text_of=self._text_of,
        )
        readers = [ChoiceReader(self._tool_calls(asked)) for _ in runs]
        return Prepared(
            asked, AnswerRuns(runs), AnswerPlan(format=answer, readers=readers, echoes=echoes)
        )

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
