"""How tokens are chosen, between `SamplingParams` and the wire's `Sampling`."""

from __future__ import annotations

from decoding.grammar import Grammar
from decoding.params import SamplingParams
from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError


def sampling_to_proto(sampling: SamplingParams) -> pb.Sampling:
    """The message. What version 1 does not know takes no byte unless it is asked for."""
    grammar = sampling.grammar
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        bias_ids=list(sampling.logit_bias),
        bias_values=list(sampling.logit_bias.values()),
        grammar=None if grammar is None else pb.Grammar(kind=grammar.kind, text=grammar.text),
        top_logprobs=sampling.top_logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )


def sampling_from_proto(message: pb.Sampling) -> SamplingParams:
    """The checked values. Raises RemoteWireError for values that nobody may ask for."""
    if len(message.bias_ids) != len(message.bias_values):
        raise RemoteWireError("sampling: as many bias_values as bias_ids")
    try:
        grammar = None
        if message.HasField("grammar"):
            grammar = Grammar(kind=message.grammar.kind, text=message.grammar.text)
        return SamplingParams(
            temperature=message.temperature,
            top_p=message.top_p,
            top_k=message.top_k,
            min_p=message.min_p,
            repetition_penalty=message.repetition_penalty,
            seed=message.seed,
            logprobs=message.logprobs,
            frequency_penalty=message.frequency_penalty,
            presence_penalty=message.presence_penalty,
            logit_bias=dict(zip(message.bias_ids, message.bias_values, strict=True)),
            grammar=grammar,
            top_logprobs=message.top_logprobs,
            prompt_logprobs=(
                message.prompt_logprobs if message.HasField("prompt_logprobs") else None
            ),
        )
    except ValueError as error:
        raise RemoteWireError(f"sampling: {error}") from error
