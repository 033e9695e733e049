"""Structured logs: an event with fields, as text or as one JSON object a line.

A field is an id, a size, a time or a reason, and never a prompt, a token or a hidden state.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Final

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def event(logger: logging.Logger, name: str, **fields: object) -> None:
    """Log `name` with its fields at INFO, without the fields that are None."""
    if logger.isEnabledFor(logging.INFO):
        kept = {key: value for key, value in fields.items() if value is not None}
        text = " ".join([name, *(f"{key}={value}" for key, value in kept.items())])
        # The text is not a format: it may hold percent signs.
        logger.info("%s", text, extra={"event": name, "fields": kept})


def trace_id(traceparent: str | bytes | None) -> str | None:
    """The 32 hex digits of a W3C traceparent; None when it is absent or malformed."""
    text = traceparent.decode(errors="replace") if isinstance(traceparent, bytes) else traceparent
    match = _TRACEPARENT.fullmatch(text or "")
    return match[1] if match and set(match[1]) != {"0"} else None


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None) or record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(*, as_json: bool) -> None:
    """Send the server's events to stderr, from level INFO on."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else text)
    root = logging.getLogger("cloud")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
