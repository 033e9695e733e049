"""Options that say what happens when an answer outgrows its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from optimizer.policy.kv.registry import KV_POLICIES
from splitpoint.commands.choices import completed, contexts, one_of


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """Which tokens stay, and how many."""

    context: Annotated[
        str,
        typer.Option(
            help="Beyond the cache's tokens: "
            f"{', or '.join(policy.summary for policy in KV_POLICIES.values())}.",
            autocompletion=completed(contexts),
        ),
    ] = "refuse"
    context_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens that stay cached at most, where --context lets some leave. Default: as "
            "many as the plan's cache holds.",
            min=16,
        ),
    ] = None

    def check_context(self) -> None:
        """BadParameter for a policy that there is not."""
        one_of(self.context, contexts(), "--context")
