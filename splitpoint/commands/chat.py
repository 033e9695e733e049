"""`splitpoint chat`: a conversation in the terminal, tokens shown as they come.

The conversation outlives what goes wrong in it: an answer that the user stops, and a server that is
lost, full or not there.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.connection_options import BundleOptions
from splitpoint.commands.measure_options import MeasureOptions
from splitpoint.commands.option_groups import with_options
from splitpoint.text_input import text_argument


@with_options(max_new_tokens=512, temperature=0.2, top_p=0.9)
def chat(
    place: BundleOptions,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    measured: MeasureOptions,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    history: Annotated[
        bool, typer.Option(help="Keep the lines that you type, in a file of yours alone.")
    ] = True,
) -> None:
    """Talk to the model. /help lists what else can be typed. Ctrl-C stops an answer."""
    device.check()
    request = options.completion_request(sampling, control)
    first = "" if system is None else text_argument(system, "--system")
    from splitpoint.chat.session import open_lines, talk_until_the_end
    from splitpoint.chat.slash_commands import ChatState

    bundle = place.folder(device, device.addresses())
    with ExitStack() as stack:
        client = measured.open_client(
            device, stack, bundle, program="chat", keep_connected=True, is_watched=True
        )
        client.check(request)
        state = ChatState(levels=client, request=request)
        state.talk.set_system(first)
        lines = open_lines(client.level_names, keep_history=history)
        talk_until_the_end(client, state, lines)
