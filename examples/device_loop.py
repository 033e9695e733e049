"""A device that answers: questions come in one after another, answers go out, for weeks.

    python examples/device_loop.py BUNDLE HOST:PORT                           # lines on stdin
    python examples/device_loop.py BUNDLE HOST:PORT --mqtt BROKER --topic T   # needs paho-mqtt

On stdin every line is a question. On MQTT every message on T is one, and answers go to T/answer.
Each answer is one JSON object with the text, how it ended and what it took. The loop survives a
server that is away: that costs one answer, which says so, and the next question tries again.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from splitpoint import CompletionRequest, EdgeClient, EdgeError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("server", nargs="+")
    parser.add_argument("--mqtt", metavar="BROKER")
    parser.add_argument("--topic", default="splitpoint/questions")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--memory-limit-mib", type=int)
    arguments = parser.parse_args(argv)
    limit = arguments.memory_limit_mib
    with EdgeClient(
        arguments.bundle,
        arguments.server,
        memory_limit_bytes=None if limit is None else limit << 20,
    ) as client:
        if arguments.mqtt is None:
            serve(client, stdin_questions(), lambda text: print(text, flush=True), arguments)
        else:
            questions, publish = mqtt(arguments.mqtt, arguments.topic)
            serve(client, questions, publish, arguments)
    return 0


def serve(
    client: EdgeClient,
    questions: Iterable[str],
    publish: Callable[[str], Any],
    arguments: argparse.Namespace,
) -> None:
    """Answer every question; a failure becomes an answer with an `error` field."""
    request = CompletionRequest(max_new_tokens=arguments.max_new_tokens, deadline_tbt_s=1.0)
    for question in questions:
        try:
            done = client.complete([{"role": "user", "content": question}], request)
        except EdgeError as error:  # too long a question, no server in time: say so, go on
            publish(json.dumps({"question": question, "error": str(error)}))
            continue
        publish(
            json.dumps(
                {
                    "question": question,
                    "answer": done.text,
                    "finish_reason": done.finish_reason,
                    "seconds": round(done.total_s, 3),
                    "uplink_bytes": done.to_json()["uplink_bytes"],
                }
            )
        )


def stdin_questions() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def mqtt(broker: str, topic: str) -> tuple[Iterator[str], Callable[[str], Any]]:
    """Questions from an MQTT topic, one at a time, and a way to publish answers."""
    from paho.mqtt.client import CallbackAPIVersion, Client

    waiting: queue.Queue[str] = queue.Queue(maxsize=16)  # beyond: the broker keeps them
    connection = Client(CallbackAPIVersion.VERSION2)
    connection.on_connect = lambda *_: connection.subscribe(topic, qos=1)
    connection.on_message = lambda _c, _u, message: waiting.put(message.payload.decode())
    connection.connect(broker)
    connection.loop_start()
    return iter(waiting.get, None), lambda text: connection.publish(f"{topic}/answer", text, qos=1)


if __name__ == "__main__":
    sys.exit(main())
