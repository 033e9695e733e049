"""What a server says of itself to clients: its bundles, and how full it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloud.sessions.lifecycle import Lifecycle
from cloud.sessions.served_models import ServedModels
from protos.messages import Description, ServedBundle


class ServerDescription:
    """Answers `Describe`. bundles: in the order in which they were given, sessions left out."""

    def __init__(
        self, models: ServedModels, lifecycle: Lifecycle, bundles: Sequence[ServedBundle]
    ) -> None:
        self._models = models
        self._lifecycle = lifecycle
        self._bundles = tuple(bundles)

    def now(self) -> Description:
        """The model's figures of the first bundle, the sessions and KV memory of all, and each."""
        first = self._models.first.served
        return Description(
            model_id=first.model_id,
            model_sha256=first.model_sha256,
            first_layer=first.layers.start,
            num_layers=first.layers.stop,
            hidden_size=first.hidden_size,
            max_tokens=first.max_tokens,
            active_sessions=self._lifecycle.num_with_blocks,
            kv_bytes_in_use=sum(one.pool.used_bytes for one in self._models),
            kv_bytes_limit=sum(one.pool.limit_bytes for one in self._models),
            bundles=self._with_figures(),
        )

    def _with_figures(self) -> tuple[ServedBundle, ...]:
        models = {one.served.model_sha256: one for one in self._models}
        return tuple(
            replace(
                bundle,
                active_sessions=self._lifecycle.num_of_model(model.name),
                kv_bytes_in_use=model.pool.used_bytes,
                kv_bytes_limit=model.pool.limit_bytes,
            )
            for bundle in self._bundles
            for model in (models[bundle.model_sha256],)
        )
