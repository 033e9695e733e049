"""The bounds of the wire: how large a message, a frame or a number in it may be.

Both sides check them: `protos.encode` before it sends, `protos.decode` after it received.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
# What an Open names that asks for more than version 1 knows, so that an older server refuses it
# and does not ignore what it asks for.
EXTENDED_VERSION: Final = 2
# How a server's refusal of codec tables that it does not hold begins: an edge that chose among
# several takes the default ones then.
TABLES_REFUSED: Final = "the edge's codec tables are"
# Tokens that may end an answer.
MAX_END_TOKENS: Final = 64

# 1,024 rows of 8,192 float32 are 32 MiB: no honest message is larger.
MAX_MESSAGE_BYTES: Final = 33 << 20
# All of a message but this much must be hidden states (1,024 token ids of 5 bytes are a tenth of
# it).
SMALL_MESSAGE_BYTES: Final = 64 << 10
# A message up to this size is parsed at once: nothing in it takes long.
TINY_MESSAGE_BYTES: Final = 512
MAX_FRAME_TOKENS: Final = 1024
# Most drafts that one frame may carry.
MAX_FRAME_DRAFTS: Final = 64
# A cloud's guesses: most positions, choices for one position, and drafters.
MAX_DRAFT_IDS: Final = 32
MAX_DRAFT_CHOICES: Final = 8
MAX_DRAFT_SOURCES: Final = 8
MAX_TOKENS: Final = 1 << 24
# The bits of `Frame.kept`: so many bytes for a cache of 262,144 places.
MAX_KEPT_BYTES: Final = 1 << 15
# Layers and hidden width of a model.
MAX_LAYERS: Final = 1 << 16
MAX_WIDTH: Final = 1 << 16
# A log-probability of a certain token may round to a little above 0.
MAX_LOGPROB_ERROR: Final = 1e-3
# No part of a frame's work in the cloud takes longer than a day, in seconds.
MAX_TIMING_S: Final = 86_400.0
MAX_DETAIL_CHARS: Final = 400
MAX_PROBE_BYTES: Final = 1 << 20
# A server sends small messages: a result of few tokens, or the answer to a probe.
MAX_ANSWER_BYTES: Final = MAX_PROBE_BYTES + (64 << 10)
MAX_RESUME_S: Final = 3600.0
MAX_PREFIX_HASHES: Final = 1024
# The secret that a device's chains begin with; none at all is allowed too.
MIN_SALT_BYTES: Final = 16
MAX_SALT_BYTES: Final = 64
# Unanswered frames that a server takes from one session when `Opened` does not say how many.
DEFAULT_FRAMES_IN_FLIGHT: Final = 16
MAX_FRAMES_IN_FLIGHT: Final = 1024
# A pull: the manifest of a bundle, and one file of it. A chunk is small, because the server's
# answers to sessions wait while it is written.
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILE_NAME_BYTES: Final = 255
MAX_FILE_BYTES: Final = 1 << 40
MIN_CHUNK_BYTES: Final = 1 << 10
MAX_CHUNK_BYTES: Final = 64 << 10
# Bundles behind one address, and what names one of them.
MAX_BUNDLES: Final = 64
MAX_BUNDLE_NAME_BYTES: Final = 255
