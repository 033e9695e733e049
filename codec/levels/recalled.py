"""Calibrated levels in a session: a row is predicted from an earlier row that it resembles.

A row's token stood in the session before, perhaps with the same tokens before it. Then

    y' = y - a[k] v        v: the earlier row's y as both sides hold it, k: how much context agrees

is coded in the place of y (`codec.levels.calibrated`). The shares a[k] of each component, and what
is left of y, are fitted to the calibration text. Each k has families of its own, and so have rows
that resemble none.

Both sides hold v in whole numbers of `unit`, in 16 bits. The prediction is made in integers: shares
are in 256ths. A value becomes a float by one product, and a whole number by one quotient. IEEE 754
says what both come to, so every machine holds the same rows. Families follow from tokens alone. No
float feeds the entropy decoder.

Payload: as that of the calibrated kind, up to the codes. Then a stream of codes for each k that
rows have, ascending, and before each of them but the last its length (LEB128).

Source: ours. Coding a difference from what the decoder holds: Cutler 1952, US patent 2,605,361.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codec.arrays import F32, I16, I32, I64, U8, Mask
from codec.chunks import by_chunks
from codec.entropy import trellis
from codec.errors import FrameError
from codec.frame import pack_varint, read_varint
from codec.levels.calibrated import (
    MOST_ESCAPES,
    CalibratedCodec,
    PayloadSide,
    read_side,
    scale_weights,
    write_side,
)
from codec.levels.recall_frame import CodedRows, RecallWork, groups_of
from codec.levels.recall_model import SHARE_ONE, RecallModel
from codec.rows import Encoded, RowMask, Rows, TokenIds
from codec.session_rows import References, RowHistory

_NOISE: Final = 0.24  # squared error of a level in squared half steps, mean over components
_MOST_TRIES: Final = 16  # to code a frame whose rows are declined one after another
_LARGEST: Final = (1 << 15) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalledCodec:
    """One calibrated level in a session. bases: [5, D] uint8, families at offset 0 by context;
    weights: [5, D] int32, loudness; shares: [5, D] int32 in 256ths."""

    plain: CalibratedCodec
    bases: U8
    weights: I32
    shares: I32
    unit: np.float32

    @classmethod
    def build(cls, plain: CalibratedCodec, recall: RecallModel) -> RecalledCodec:
        """A level's families: what is left of y, and its share of what a held row lacks."""
        noise = _NOISE * plain.step**2
        share = recall.shares.astype(np.float64) / SHARE_ONE
        lacking = share**2 * np.minimum(recall.power.astype(np.float64) ** 2, noise)
        spread = recall.left.astype(np.float64)
        spread[1:] = np.sqrt(spread[1:] ** 2 + lacking)
        pairs = [scale_weights(row.astype(np.float32), 2 * plain.step) for row in spread]
        shares = np.concatenate([np.zeros((1, share.shape[1]), np.uint8), recall.shares])
        return cls(
            plain=plain,
            bases=np.stack([base for base, _ in pairs]),
            weights=np.stack([weights for _, weights in pairs]),
            shares=shares.astype(np.int32),
            unit=np.float32(recall.unit),
        )

    def encode(
        self, rows: Rows, token_ids: TokenIds, held: RowHistory, first_position: int
    ) -> tuple[Encoded, I16]:
        """A payload of the rows that are not declined, and what both sides then hold, [T, D].

        held: the session's rows; those before first_position are referred to. A row that is
        declined is not referred to.
        """
        mask, components, step_index, declined = self.plain.components(rows, token_ids)
        names = token_ids.tolist()
        if len(rows) == 1:
            references = held.references(first_position, names, ~declined)
            return self._encode_one(rows, mask, components, step_index, declined, held, references)
        for turn in range(_MOST_TRIES):
            taken = ~declined
            if not taken.any() or turn == _MOST_TRIES - 1:
                return Encoded(b"", np.ones_like(declined)), _nothing(rows)
            references = held.references(first_position, names, taken)
            work = RecallWork.of(components, step_index, references, first_position, len(rows))
            strange = self._quantize(work, held, taken)
            if not strange.any():
                break
            # A row that refers to a strange one is tried again without.
            declined = declined | (strange & ~work.refer_to(strange))
        payload = write_side(step_index[taken], work.offsets[taken], rows[taken], mask[taken])
        payload += self._streams(work, np.flatnonzero(taken))
        return Encoded(payload, declined), work.values

    def decode(
        self,
        payload: bytes,
        token_ids: TokenIds,
        held: RowHistory,
        first_position: int,
        taken: RowMask,
    ) -> tuple[Rows, I16]:
        """Rows [n, D] under the mask `taken` [T], and what both sides then hold, [T, D].

        token_ids [T]: of the whole frame. Changes nothing. Raises FrameError.
        """
        data = memoryview(payload)
        which = np.flatnonzero(taken)
        side, at = read_side(data, len(which), self.bases.shape[1])
        references = held.references(first_position, token_ids.tolist(), taken)
        if len(token_ids) == len(which) == 1:
            return self._decode_one(data[at:], side, token_ids, held, references)
        num_rows, size = len(token_ids), self.bases.shape[1]
        components = np.zeros((num_rows, size), dtype=np.float32)
        offsets = np.zeros(num_rows, dtype=np.int8)
        offsets[which] = side.offsets
        groups = list(groups_of(references.contexts, which))
        for index, (context, part) in enumerate(groups):
            end = len(data)
            if index < len(groups) - 1:
                length, used = read_varint(bytes(data[at : at + 5]), 0)
                at += used
                end = at + length
                if end > len(data):
                    raise FrameError("entropy-coded stream ends too early")
            components[part] = trellis.decode(
                self.plain.models,
                self.plain.centres,
                self.bases[context],
                offsets[part],
                data[at:end],
            )
            at = end
        if not groups and len(data) > at:
            raise FrameError(f"{len(data) - at} bytes for no values")
        step_index = np.zeros(num_rows, dtype=np.uint8)
        step_index[which] = side.step_index
        components *= self.plain.steps(step_index)[:, None]
        work = RecallWork.of(components, step_index, references, first_position, num_rows)
        for context, rows in work.groups(taken):
            predicted = self._predicted(work, held, context, rows)
            arrived = components[rows]
            if predicted is not None:
                arrived += predicted
                components[rows] = arrived
            work.values[rows] = self.held(arrived)
        if len(which) < num_rows:
            components, token_ids = components[which], token_ids[which]
        return self.plain.restored(components, side, token_ids), work.values

    def held(self, components: F32) -> I16:
        """Components as both sides hold them."""
        with np.errstate(over="ignore", invalid="ignore"):
            whole = components / self.unit
            np.rint(whole, out=whole)
            np.maximum(whole, np.float32(-_LARGEST), out=whole)
            np.minimum(whole, np.float32(_LARGEST), out=whole)
            return whole.astype(np.int16)

    def _encode_one(
        self,
        rows: Rows,
        mask: Mask,
        components: F32,
        step_index: U8,
        declined: RowMask,
        held: RowHistory,
        references: References,
    ) -> tuple[Encoded, I16]:
        """`encode` for a frame of one row, as decoding sends them: the same, but quicker."""
        context = int(references.contexts[0])
        predicted = None
        if context:
            predicted = self._share_of(context, held.values_at(references.positions))
        coded = self._coded(components, step_index, context, predicted)
        if declined[0] or coded.strange[0]:
            return Encoded(b"", np.ones_like(declined)), _nothing(rows)
        payload = write_side(step_index, coded.offsets, rows, mask)
        payload += trellis.encode(self.plain.models, coded.models, coded.codes)
        return Encoded(payload, declined), coded.values

    def _decode_one(
        self,
        data: memoryview,
        side: PayloadSide,
        token_ids: TokenIds,
        held: RowHistory,
        references: References,
    ) -> tuple[Rows, I16]:
        """`decode` for a frame of one row. data: behind its side bytes."""
        context = int(references.contexts[0])
        plain = self.plain
        components = trellis.decode(
            plain.models, plain.centres, self.bases[context], side.offsets, data
        )
        components *= plain.steps(side.step_index)[:, None]
        predicted = None
        if context:
            predicted = self._share_of(context, held.values_at(references.positions))
        if predicted is not None:
            components += predicted
        return plain.restored(components, side, token_ids), self.held(components)

    def _quantize(self, work: RecallWork, held: RowHistory, taken: RowMask) -> RowMask:
        """Code the rows that are taken, wave by wave; which of them [T] fit no code."""
        strange = np.zeros(len(taken), dtype=np.bool_)
        for context, rows in work.groups(taken):

            def code(part: slice, context: int = context, rows: I64 = rows) -> None:
                at = rows[part]
                predicted = self._predicted(work, held, context, at)
                coded = self._coded(work.components[at], work.step_index[at], context, predicted)
                work.values[at], work.offsets[at] = coded.values, coded.offsets
                work.codes[at], work.models[at] = coded.codes, coded.models
                strange[at] = coded.strange

            by_chunks(code, len(rows))
        return strange

    def _coded(
        self, components: F32, step_index: U8, context: int, predicted: F32 | None
    ) -> CodedRows:
        """Rows of one context. Overwrites the components [n, D]."""
        if predicted is not None:
            components -= predicted
        targets, beyond = self.plain.in_units(components, step_index)
        offsets, loud = self.plain.offsets_by(targets, self.weights[context])
        codes, models, escapes = trellis.quantize(
            self.plain.models, targets, self.bases[context], offsets
        )
        arrived = self.plain.values_of(codes, models)
        arrived *= self.plain.steps(step_index)[:, None]
        if predicted is not None:
            arrived += predicted
        strange = beyond | loud | (escapes > MOST_ESCAPES * targets.shape[1])
        return CodedRows(offsets, codes, models, self.held(arrived), strange)

    def _predicted(self, work: RecallWork, held: RowHistory, context: int, rows: I64) -> F32 | None:
        """What earlier rows say of these rows' components, [n, D]; None: nothing.

        rows: those of one context, whose earlier rows are known.
        """
        if not context:
            return None
        positions = work.references.positions[rows]
        inside = positions >= work.first_position
        if not inside.any():
            earlier = held.values_at(positions)
        elif inside.all():
            earlier = work.values[positions - work.first_position]
        else:
            earlier = np.empty((len(rows), self.bases.shape[1]), dtype=np.int16)
            earlier[~inside] = held.values_at(positions[~inside])
            earlier[inside] = work.values[positions[inside] - work.first_position]
        return self._share_of(context, earlier)

    def _share_of(self, context: int, earlier: I16) -> F32:
        """The prediction from earlier rows [n, D]."""
        whole = self.shares[context] * earlier
        whole += SHARE_ONE // 2
        whole >>= 8
        predicted = whole.astype(np.float32)
        predicted *= self.unit
        return np.asarray(predicted)

    def _streams(self, work: RecallWork, rows: I64) -> bytes:
        """The codes of these rows, by context."""
        streams = [
            trellis.encode(self.plain.models, work.models[part], work.codes[part])
            for _, part in groups_of(work.references.contexts, rows)
        ]
        parts: list[bytes] = []
        for stream in streams[:-1]:
            parts += [pack_varint(len(stream)), stream]
        return b"".join(parts + streams[-1:])


def _nothing(rows: Rows) -> I16:
    return np.zeros(rows.shape, dtype=np.int16)
