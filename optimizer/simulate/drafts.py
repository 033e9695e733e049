"""How many tokens a step drafts, and how many of them the model accepts: drawn, or as measured."""

from __future__ import annotations

from optimizer.simulate.context import Device
from optimizer.simulate.scenario import DraftingScenario


class SimulatedDrafts:
    """The drafts of one generation. drafting None: there are none."""

    __slots__ = ("_device", "_drafting", "_measured_accepted")

    def __init__(self, drafting: DraftingScenario | None, device: Device) -> None:
        self._drafting = drafting
        self._device = device
        self._measured_accepted = 0  # of the measured round that was drawn last

    def propose(self) -> int:
        """How many tokens the drafter has for the next step."""
        drafting, device = self._drafting, self._device
        if drafting is None:
            return 0
        if drafting.outcomes:
            drawn = drafting.outcomes[int(device.draw() * len(drafting.outcomes))]
            self._measured_accepted = drawn.accepted
            return drawn.drafts
        return device.draft_length if device.draw() < drafting.proposal_share else 0

    def accept(self, num_drafts: int) -> int:
        """How many of `num_drafts` drafts the model accepts, up to the first that it rejects."""
        drafting = self._drafting
        if drafting is None:
            return 0
        if drafting.outcomes:
            return min(num_drafts, self._measured_accepted)
        accepted = 0
        while accepted < num_drafts and self._device.draw() < drafting.chance_at(accepted + 1):
            accepted += 1
        return accepted
