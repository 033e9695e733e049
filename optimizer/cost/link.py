"""Seconds on the wire at a quantile of the link, and what outages add.

Ours: one direction takes half the round trip plus the bytes at the rate that holds with
probability 1 - eps (epsilon-outage: the eps-quantile of the rate, the (1 - eps)-quantile of the
round trip). Rate and round trip are taken at their bad quantiles together, which errs on the
safe side when they are not fully dependent.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.links.profile import LinkProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPoint:
    """One state of a link: rates in bytes per second, round trip in seconds."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float


def link_at(profile: LinkProfile, *, epsilon: float) -> LinkPoint:
    """The link as it is at least as good as with probability 1 - epsilon; 0.5 is its median."""
    return LinkPoint(
        up_bytes_per_s=profile.up_bytes_per_s.at(epsilon),
        down_bytes_per_s=profile.down_bytes_per_s.at(epsilon),
        rtt_s=profile.rtt_s.at(1 - epsilon),
    )


def exchange_s(link: LinkPoint, *, up_bytes: float, down_bytes: float) -> float:
    """Seconds of one message up and its answer down, the cloud's time left out; infinite when a
    rate is zero."""
    if link.up_bytes_per_s <= 0 or link.down_bytes_per_s <= 0:
        return float("inf")
    return link.rtt_s + up_bytes / link.up_bytes_per_s + down_bytes / link.down_bytes_per_s


def outage_wait_s(profile: LinkProfile) -> float:
    """Mean seconds that a message waits for an outage to end: the share of time that is outage,
    times the mean remainder of one, which for exponential lengths is its mean length."""
    if profile.outage is None:
        return 0.0
    return profile.outage.share_of_time * profile.outage.mean_duration_s


def pipeline_s(front: tuple[float, ...], wire: tuple[float, ...], back: tuple[float, ...]) -> float:
    """Seconds until the last chunk leaves a three-stage pipeline: edge, uplink, cloud.

    Chunk i enters a stage when it has left the one before and chunk i-1 has left this one
    (a permutation flow shop; exact by this recurrence).
    """
    done_front = done_wire = done_back = 0.0
    for edge_s, wire_s, cloud_s in zip(front, wire, back, strict=True):
        done_front += edge_s
        done_wire = max(done_wire, done_front) + wire_s
        done_back = max(done_back, done_wire) + cloud_s
    return done_back
