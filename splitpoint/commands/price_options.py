"""The prices that `splitpoint plan` may be given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from optimizer.errors import PlanError
from splitpoint.commands.plan_options import ChoiceOptions

if TYPE_CHECKING:
    from hwprofiles.profiles.device import DeviceProfile
    from optimizer.cost.money import Prices


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """Money for what a token uses; with a price, the least cost is the objective."""

    PANEL: ClassVar = "Prices"

    cloud_price: Annotated[
        float | None,
        typer.Option(help="Money for an hour of the server; the objective is then 'cost'."),
    ] = None
    energy_price: Annotated[
        float | None,
        typer.Option(
            help="Money for a kilowatt-hour on the device, where its profile states watts: those "
            "measured ('profile device --sustained'), or else the most that it draws."
        ),
    ] = None

    def prices(self) -> Prices:
        """The options as Prices; BadParameter for one that is none."""
        from optimizer.cost.money import Prices

        try:
            return Prices(cloud_per_hour=self.cloud_price, energy_per_kwh=self.energy_price)
        except PlanError as error:
            raise typer.BadParameter(str(error)) from error

    def check(self, choices: ChoiceOptions) -> None:
        """BadParameter for a price that is none, and for the objective 'cost' without one."""
        if not self.prices().are_given and choices.wanted() == "cost":
            raise typer.BadParameter(
                "--objective cost needs a --cloud-price or an --energy-price above 0"
            )

    def counted(self, edge: DeviceProfile) -> Prices:
        """The prices that count with this device; a line on stderr says with which watts, or that
        its energy is left out.

        PlanError where nothing is left that costs anything.
        """
        prices = self.prices()
        if not prices.leaves_out(edge):
            if prices.energy_per_kwh is not None:
                typer.echo(f"splitpoint: {_watts_text(edge)}", err=True)
            return prices
        if not prices.cloud_per_hour:
            raise PlanError(
                f"--energy-price: the profile {edge.name} states no watts, so nothing has a price; "
                "give a --cloud-price"
            )
        typer.echo(
            f"splitpoint: the profile {edge.name} states no watts: the device's energy is left out "
            "of all costs",
            err=True,
        )
        return replace(prices, energy_per_kwh=None)


def _watts_text(edge: DeviceProfile) -> str:
    from optimizer.cost.money import has_measured_watts, watts_of

    watts = f"{edge.name}'s energy is counted with {watts_of(edge):.3g} W"
    if edge.power is not None and has_measured_watts(edge):
        return f"{watts}, measured under the front's load by {edge.power.sensor or 'its profile'}"
    return f"{watts}, the most that its profile states: an upper bound"


def priced(choices: ChoiceOptions, prices: PriceOptions, asked: Collection[str]) -> ChoiceOptions:
    """The choices with the least cost as objective, where a price and no objective was given."""
    if "objective" in asked or not prices.prices().are_given:
        return choices
    return replace(choices, objective="cost")
