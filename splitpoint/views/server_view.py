"""What a server that is ready says about itself: model, memory, who may connect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitpoint.views.sizes import size_text
from splitpoint.views.terminal_text import shown_text


def server_lines(facts: Mapping[str, Any]) -> list[str]:
    """Lines for people, of `cloud.server.process.Server.facts`."""
    models = facts.get("models", (facts,))
    has_several = len(models) > 1 or len(facts.get("bundles", ())) > 1
    lines = []
    for model in models:
        lines += _model_lines({**facts, **model}, names_bundles=has_several)
    lines.append(
        f"access   {_transport(facts)}; {_tenants(facts['tenants'])}"
        + ("; devices may fetch their files" if facts.get("offers_files") else "")
    )
    return lines


def _model_lines(facts: Mapping[str, Any], *, names_bundles: bool) -> list[str]:
    first, last = facts["first_layer"], facts["num_layers"] - 1
    layers = f"layers {first}-{last} and the head" if first <= last else "the head"
    compiled = ", compiled 8-bit layers" if facts["native"] else ""
    sessions = ""
    if facts["kv_sessions"] is not None:
        at_once = min(facts["kv_sessions"], facts["max_sessions"])
        sessions = f", {at_once} sessions of {facts['max_tokens']:,} tokens at once"
        if facts["kv_sessions"] > facts["max_sessions"]:
            sessions += " (--max-sessions)"
    lines = [
        f"model    {shown_text(facts['model'])}: {layers}, {size_text(facts['weights_bytes'])} "
        f"on {facts['device']}{compiled}"
    ]
    if names_bundles:
        names = ", ".join(shown_text(name) for name in facts["bundles"])
        shared = " (one back for all of them)" if len(facts["bundles"]) > 1 else ""
        lines.append(f"bundles  {names}{shared}")
    lines.append(
        f"KV       {size_text(facts['kv_bytes'])}: {facts['kv_tokens']:,} tokens{sessions}"
    )
    if facts.get("draft_head"):
        size = size_text(facts["draft_head_bytes"])
        lines.append(f"drafts   {facts['draft_head']} head, {size}")
    return lines


def _transport(facts: Mapping[str, Any]) -> str:
    if not facts["tls"]:
        return "no TLS"
    return "TLS with client certificates" if facts["client_certificates"] else "TLS"


def _tenants(names: tuple[str, ...]) -> str:
    if not names:
        return "no tokens, everybody who connects is served"
    shown = ", ".join(shown_text(name) for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{len(names)} tenant{'' if len(names) == 1 else 's'}: {shown}{more}"
