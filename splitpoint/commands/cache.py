"""`splitpoint cache`: the bundles that `run`, `chat` and `api` fetched by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from splitpoint.commands.connection_options import CacheDirOption
from splitpoint.commands.option_groups import JsonOption
from splitpoint.views.output import print_json
from splitpoint.views.sizes import size_text
from splitpoint.views.terminal_text import shown_text

cache_app = typer.Typer(help="Bundles of servers that are kept here.", no_args_is_help=True)


@cache_app.callback()
def cache() -> None:
    """Bundles of servers that are kept here."""


@cache_app.command("list")
def list_bundles(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """List the servers, the size on the disk, and the folder of each bundle."""
    from edge.pull.cache import BundleCache, cache_root

    root = cache_root(cache_dir)
    found = list(BundleCache(root).entries())
    if as_json:
        bundles = [
            {
                "server": one.address,
                "bytes": one.num_bytes,
                "complete": one.is_there,
                "folder": str(one.folder),
            }
            for one in found
        ]
        print_json({"cache": str(root), "bundles": bundles})
        return
    for one in found:
        state = "" if one.is_there else "  (not complete)"
        typer.echo(f"{shown_text(one.address)}  {size_text(one.num_bytes)}  {one.folder}{state}")
    if not found:
        typer.echo(f"{root}: no bundles")


@cache_app.command()
def clear(
    server: Annotated[
        str | None,
        typer.Argument(help="HOST:PORT whose bundle goes (default: all).", show_default=False),
    ] = None,
    cache_dir: CacheDirOption = None,
) -> None:
    """Delete the bundles that were fetched, or that of one server."""
    from edge.pull.cache import BundleCache, cache_root

    root = cache_root(cache_dir)
    found = BundleCache(root).entries()  # behind the address stands the bundle that was named
    wanted = [one for one in found if server in (None, one.address, one.address.split(" ")[0])]
    if server is not None and not wanted:
        raise typer.BadParameter(f"{server}: no bundle of this server is in {root}")
    freed = 0
    for one in wanted:
        freed += one.num_bytes
        one.remove()
    typer.echo(f"{root}: {len(wanted)} bundles deleted, {size_text(freed)} freed")
