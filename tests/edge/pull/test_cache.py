"""Where fetched bundles are kept, and that a cache without a place is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import InputError
from edge.pull.cache import BundleCache, cache_root
from edge.pull.pulling import PullSettings, pull
from tests.edge.pull.fake_source import FILES, FakeSource


def test_the_place_is_the_options_then_xdg_then_home() -> None:
    given = Path("given")
    assert cache_root(given, {"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == given
    assert cache_root(None, {"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/splitpoint")
    assert cache_root(None, {"HOME": "/h"}) == Path("/h/.cache/splitpoint")
    relative = {"XDG_CACHE_HOME": "x", "HOME": "/h"}
    assert cache_root(None, relative) == Path("/h/.cache/splitpoint")


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
def test_without_a_home_the_error_names_the_option_and_the_variables(
    environment: dict[str, str],
) -> None:
    with pytest.raises(InputError, match=r"--cache-dir.*SPLITPOINT_CACHE_DIR.*XDG_CACHE_HOME"):
        cache_root(None, environment)


def test_servers_have_folders_of_their_own_that_only_their_owner_reads(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path / "cache")
    assert list(cache.entries()) == []
    assert not (tmp_path / "cache").exists()
    addresses = ["a:1", "a_1", "[::1]:1", "../../x:1", "A:1"]
    places = [cache.place(address) for address in addresses]
    assert not (tmp_path / "cache").exists()
    for place in places:
        pull(FakeSource(), place.folder, PullSettings(begin=place.begin))
    assert len({place.folder for place in places}) == len(addresses)
    assert all(place.folder.is_relative_to(tmp_path / "cache" / "bundles") for place in places)
    assert sorted(one.address for one in cache.entries()) == sorted(addresses)
    assert all(one.folder.parent.stat().st_mode & 0o077 == 0 for one in places)


def test_a_cleared_bundle_is_gone_and_can_come_back(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path)
    place = cache.place("a:1")
    assert not place.is_there
    pull(FakeSource(), place.folder, PullSettings(begin=place.begin))
    assert place.is_there
    assert place.num_bytes > sum(map(len, FILES.values()))
    place.remove()
    assert list(cache.entries()) == []
    pull(FakeSource(), cache.place("a:1").folder, PullSettings())
    assert cache.place("a:1").is_there
