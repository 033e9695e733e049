"""How model families write tool calls, and which form a chat template stands for.

Each family was trained on a form of its own. Its chat template names the markers. Sources: the
templates of Qwen 2.5, Hermes 2 Pro, Llama 3.1 and Mistral 7B v0.3 as Hugging Face has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """One form. opens: the text before a call. closes: the text after it; empty for none.

    bare: whether an answer that begins with JSON may be a call without its marker.
    """

    name: str
    opens: tuple[str, ...] = ()
    closes: str = ""
    bare: bool = False

    @property
    def markers(self) -> frozenset[str]:
        """Texts that may be special tokens, which the answer's text leaves out."""
        return frozenset((*self.opens, self.closes)) - {""}


HERMES: Final = CallForm(name="hermes", opens=("<tool_call>",), closes="</tool_call>")
MISTRAL: Final = CallForm(name="mistral", opens=("[TOOL_CALLS]",))
LLAMA: Final = CallForm(name="llama", opens=("<|python_tag|>",), bare=True)
FORCED: Final = CallForm(name="forced", bare=True)  # under a grammar: JSON and nothing else
# Without a known marker: what models write that were told of tools as JSON.
ANY: Final = CallForm(name="any", opens=("<tool_call>",), closes="</tool_call>", bare=True)
FORMS: Final = (HERMES, MISTRAL, LLAMA)
_LLAMA_TEXTS: Final = ("<|python_tag|>", '"parameters": dictionary')


def form_of(template: str) -> CallForm:
    """The form that a chat template's text stands for."""
    for form in FORMS:
        if any(marker in template for marker in form.opens):
            return form
    return LLAMA if any(text in template for text in _LLAMA_TEXTS) else ANY
