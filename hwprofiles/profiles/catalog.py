"""Find, load and write device profiles: the shipped ones by name, others by path."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from hwprofiles.errors import ProfileError
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.schema.near_names import did_you_mean
from hwprofiles.schema.strict_yaml import load_strict

DEVICES_DIR = Path(__file__).parents[1] / "devices"


def shipped_devices() -> tuple[str, ...]:
    """Names of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in DEVICES_DIR.glob("*.yaml")))


def load_device(name_or_path: str | Path) -> DeviceProfile:
    """Load a shipped profile by name, or any profile by path.

    Raises ProfileError: no such profile (names the shipped ones), unknown or missing key
    (names file, key and allowed keys), a number without a source, an impossible number.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = DEVICES_DIR / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ProfileError(
                f"no device profile {str(name_or_path)!r}; shipped are "
                f"{', '.join(shipped_devices())}; or give the path of a .yaml file"
                f"{did_you_mean(str(name_or_path), shipped_devices())}"
            )
    try:
        return load_strict(path, DeviceProfile)
    except ProfileError as error:
        message = str(error)
        if str(path) in message:
            raise
        raise ProfileError(f"{path}: {message}") from error


def device_to_yaml(profile: DeviceProfile) -> str:
    """The profile as YAML text that `load_device` reads back to an equal value."""
    return yaml.safe_dump(to_plain(profile), sort_keys=False, width=100, allow_unicode=True)


def to_plain(value: Any) -> Any:
    """Dataclasses and tuples as dicts and lists; optional keys at their default are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: to_plain(getattr(value, item.name))
            for item in fields(value)
            if getattr(value, item.name) != item.default and getattr(value, item.name) != {}
        }
    if isinstance(value, dict):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    return value
