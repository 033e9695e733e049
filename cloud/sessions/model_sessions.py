"""The sessions of one model: what fits it, their KV memory, and how each of them is made.

A server has one of these for each model (`cloud.sessions.served_models`). Places, the queue and
tenants' limits are the whole server's (`cloud.sessions.admission`).
"""

from __future__ import annotations

from cloud.drafting.forecast_drafter import ForecastDrafter
from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.session_drafts import SessionDrafts
from cloud.errors import CloudError
from cloud.kv.pool import KvLease, KvPool
from cloud.kv.prefix_cache import Beginning, Keep, PrefixCache
from cloud.sessions.frame_rows import FrameRows
from cloud.sessions.grammars import Constrain, Grammars
from cloud.sessions.leaving import leaving_tokens
from cloud.sessions.moved_kv import MovedKv
from cloud.sessions.prefix_guesses import PrefixGuesses
from cloud.sessions.row_memory import KV_SHARE, RowMemory
from cloud.sessions.served_model import ServedModel
from cloud.sessions.session import ServerSession
from cloud.sessions.tenants import Tenant
from cloud.squeezed.fixed_context import FixedContext, Squeezing
from codec.ladder import Ladder
from codec.session_coder import SessionCoder
from optimizer.policy.kv_blocks import num_blocks
from protos.messages import Open
from protos.prefix import begin_chain


class ModelSessions:
    """See the module's docstring. Lives on the event loop's thread.

    name: of the model, unique on this server; logs and metrics use it.
    """

    def __init__(
        self,
        served: ServedModel,
        pool: KvPool,
        *,
        prefixes: PrefixCache,
        grammars: Grammars,
        head: CloudHeadDrafter | None = None,
        forecasts: ForecastDrafter | None = None,
        squeezing: Squeezing | None = None,
        name: str = "",
    ) -> None:
        """prefixes: of this model alone, and of this pool. head, forecasts: who guesses beyond
        answers, the first that is there. squeezing: how rows read the keys of
        long prompts; None: all of them."""
        self.served = served
        self.pool = pool
        self.head = head
        self._forecasts = forecasts
        self.squeezing = squeezing
        self.name = name or served.model_id
        self.row_memory = RowMemory(pool.limit_bytes // KV_SHARE, hidden_size=served.hidden_size)
        self._prefixes = prefixes
        self._grammars = grammars
        self._guesses = PrefixGuesses()

    @property
    def free_blocks(self) -> int:
        """KV blocks that no session holds."""
        return self.pool.num_blocks - self.pool.used_blocks

    def num_blocks(self, request: Open) -> int:
        """KV blocks of the session that is asked for."""
        return num_blocks(request.max_tokens) * self.served.num_layers_from(request.split)

    async def constrain(self, request: Open) -> Constrain | None:
        """What makes the masks of its grammar; raises for a request that nobody can have here."""
        self.served.check(request)
        if request.sampling.grammar is None:
            return None
        return await self._grammars.constrain(request)

    def lease(self, request: Open) -> KvLease:
        """The session's blocks, without a shared beginning. Raises CapacityError, BadOpenError."""
        return self.pool.lease(split=request.split, max_tokens=request.max_tokens)

    def reserve(self, request: Open, tenant: Tenant, constrain: Constrain | None) -> ServerSession:
        """A session with its blocks. Raises CapacityError where they do not fit."""
        may_share = tenant.share_prefixes or bool(request.prefix_salt)
        may_share = may_share and not request.max_positions  # rows move that others would read
        shareable_tokens = min(request.shareable_tokens, request.max_tokens) if may_share else 0
        with self.pool.lock:  # what is found stays until it is leased
            # What is skipped has no logits, and a prompt's log-probabilities need them.
            may_skip = may_share and request.sampling.prompt_logprobs is None
            beginning = self._find(tenant.name, request) if may_skip else None
            lease = self.pool.lease(
                split=request.split,
                max_tokens=request.max_tokens,
                shared=None if beginning is None else beginning.blocks,
                shareable_tokens=shareable_tokens,
            )
        context = None
        if self.squeezing is not None and not request.max_positions:  # no token leaves
            context = self.squeezing.begin(
                split=request.split,
                shareable_tokens=shareable_tokens,
                held=() if beginning is None else beginning.indexes,
            )
        session = self._session(
            request,
            lease,
            constrain,
            beginning=beginning,
            keep=self._prefixes.keeper(tenant.name, lease, shareable_tokens, context),
            context=context,
            below=self._lease_below(request, beginning),
        )
        session.begin_chain(begin_chain(request))
        return session

    def moved(
        self, request: Open, lease: KvLease, constrain: Constrain | None, moved: MovedKv
    ) -> ServerSession:
        """A session that begins with `moved`, on its own blocks."""
        return self._session(request, lease, constrain, moved=moved)

    def _session(
        self,
        request: Open,
        lease: KvLease,
        constrain: Constrain | None,
        *,
        beginning: Beginning | None = None,
        keep: Keep | None = None,
        below: KvLease | None = None,
        moved: MovedKv | None = None,
        context: FixedContext | None = None,
    ) -> ServerSession:
        ladder = self.served.ladder(request)
        drafts = None if request.max_positions else self._drafts(request, lease, ladder)
        return ServerSession(
            request.session_id,
            lease=lease,
            ladder=ladder,
            sampling=request.sampling,
            vocab_size=self.served.vocab_size,
            max_frame_tokens=self.served.max_frame_tokens,
            prompt_tokens=request.prompt_tokens,
            constrain=constrain,
            beginning=beginning,
            keep=keep,
            embedding=self.served.embedding if request.token_rows else None,
            below=below,
            drafts=drafts,
            moved=moved,
            context=context,
            leaving=leaving_tokens(request, self.served.leaving_positions),
            rows=self._frame_rows(request, ladder, beginning),
        )

    def _drafts(self, request: Open, lease: KvLease, ladder: Ladder) -> SessionDrafts | None:
        """What a drafter will keep of the session; None: nobody guesses for it."""
        most = request.draft_ids
        if self.head is not None:
            return self.head.open(split=request.split, max_tokens=request.max_tokens, most=most)
        if self._forecasts is not None and request.split:
            return self._forecasts.open(lease, ladder, most=most)
        return None

    def _frame_rows(self, request: Open, ladder: Ladder, beginning: Beginning | None) -> FrameRows:
        """What decodes its frames; holds rows where it asks for that and there is room for them."""
        held = None if beginning is None else beginning.rows
        can_hold = ladder.can_recall and (beginning is None or held is not None)
        if request.max_positions or not (request.recall and can_hold):
            return FrameRows(ladder)
        room = self.row_memory.take(request.max_tokens)
        return FrameRows(ladder, None if room is None else SessionCoder(ladder, held), room)

    def _lease_below(self, request: Open, beginning: Beginning | None) -> KvLease | None:
        """Blocks of the layers below the split, for a prompt that comes in token frames.

        None: the session takes no such frames. Either the server cannot, or it has no room now, or
        the session begins with positions of which these layers hold nothing.
        """
        if not request.token_rows or not request.split or self.served.embedding is None:
            return None
        if request.max_positions:  # these rows would have to move too
            return None
        if beginning is not None:
            return None
        try:
            return self.pool.lease(
                split=0,
                stop=request.split,
                max_tokens=min(request.token_rows, request.max_tokens),
            )
        except CloudError:  # the edge sends rows instead
            return None

    def _find(self, tenant: str, request: Open) -> Beginning | None:
        """The longest shared beginning that the request names. The pool's lock must be held."""
        names = request.prefix_hashes
        if not request.prefix_salt:  # whoever holds the token could guess these
            allowed = self._guesses.allowed(tenant)
            names = names[-allowed:] if allowed else ()
        beginning = self._prefixes.find(tenant, names)
        if not request.prefix_salt:
            found_at = -1 if beginning is None else names.index(beginning.chain)
            self._guesses.missed(tenant, len(names) - 1 - found_at)
        return beginning
