"""Text of models and servers on a terminal: shown, never obeyed."""

from __future__ import annotations

import re
from typing import Final

# Control characters of C0 and C1 but tab and line feed: escape sequences begin with them.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown_text(text: str) -> str:
    """`text` with every control character replaced by U+FFFD; tabs and line feeds stay.

    Carriage returns go: one alone would let a line overwrite itself.

    A server chooses the tokens, so it could send a sequence that moves the cursor, sets the
    clipboard or renames the window.
    """
    return _CONTROL.sub("\ufffd", text.replace("\r", ""))
