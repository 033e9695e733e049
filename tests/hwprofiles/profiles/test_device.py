"""Device profiles: the shipped ones load, and a number without a source never gets in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from hwprofiles.errors import ProfileError
from hwprofiles.profiles.catalog import DEVICES_DIR, device_to_yaml, load_device, shipped_devices
from hwprofiles.profiles.checks import walk
from hwprofiles.profiles.device import DeviceProfile, Figure, Source
from hwprofiles.schema.json_schema import json_schema

EXPECTED = {
    "raspberry-pi-5-8gb",
    "raspberry-pi-4-4gb",
    "jetson-orin-nano-8gb",
    "jetson-agx-orin-64gb",
    "phone-snapdragon-8-gen-3",
    "laptop-apple-m2-16gb",
    "l4-24gb",
    "a100-80gb",
    "h100-80gb",
    "h200-141gb",
    "local-epyc-2core",
}


@pytest.fixture
def edited(tmp_path: Path):
    """Write the Raspberry Pi 5's profile with one change, and give the file's path."""

    def write(change) -> Path:
        data = yaml.safe_load((DEVICES_DIR / "raspberry-pi-5-8gb.yaml").read_text())
        change(data)
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def test_the_promised_devices_are_shipped() -> None:
    assert set(shipped_devices()) >= EXPECTED


@pytest.mark.parametrize("name", shipped_devices())
def test_a_shipped_profile_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    profile = load_device(name)
    assert profile.name == name
    copy = tmp_path / "copy.yaml"
    copy.write_text(device_to_yaml(profile))
    assert load_device(copy) == profile


@pytest.mark.parametrize("name", shipped_devices())
def test_rates_are_either_measured_or_carry_an_efficiency(name: str) -> None:
    profile = load_device(name)
    for kernel in profile.kernels:
        for curve in (kernel.decode, kernel.batch):
            source = profile.sources[curve.source]
            assert profile.measured == (source.kind == "measured")
            assert profile.measured or curve.efficiency_source is not None


@pytest.mark.parametrize("name", shipped_devices())
def test_a_shipped_profile_has_the_kernels_that_its_role_runs(name: str) -> None:
    profile = load_device(name)
    engines = {"edge": {"onnxruntime-cpu"}, "cloud": {"torch-cpu", "torch-cuda"}}
    for role in profile.roles:
        assert profile.platform.engine in engines[role]


def test_a_jetsons_cpu_is_as_fast_as_what_is_reported_of_it() -> None:
    """SmolLM-135M with llama.cpp: 84.2 tokens/s, 2.92 times a Raspberry Pi 4."""
    nano, pi = (load_device(name) for name in ("jetson-orin-nano-8gb", "raspberry-pi-4-4gb"))
    ratio = nano.memory.bandwidth_bytes_per_s.effective / pi.memory.bandwidth_bytes_per_s.effective
    assert ratio == pytest.approx(84.2 / 28.8, rel=0.02)


def test_bandwidths_are_those_of_the_data_sheets() -> None:
    sheet = {
        "raspberry-pi-5-8gb": 17.07e9,  # 4267 MT/s * 4 bytes
        "raspberry-pi-4-4gb": 12.8e9,  # 3200 MT/s * 4 bytes
        "jetson-orin-nano-8gb": 102e9,
        "jetson-agx-orin-64gb": 204.8e9,
        "l4-24gb": 300e9,
        "a100-80gb": 2039e9,
        "h100-80gb": 3350e9,
        "h200-141gb": 4800e9,
    }
    for name, expected in sheet.items():
        assert load_device(name).memory.bandwidth_bytes_per_s.value == pytest.approx(expected)


def test_an_unknown_key_names_file_key_and_allowed_keys(edited) -> None:
    path = edited(lambda data: data["memory"].update(bandwith=3))
    with pytest.raises(ProfileError) as caught:
        load_device(path)
    for part in (str(path), "bandwith", "bandwidth_bytes_per_s"):
        assert part in str(caught.value)


def test_a_missing_key_is_named(edited) -> None:
    path = edited(lambda data: data["memory"].pop("usable_bytes"))
    with pytest.raises(ProfileError, match="usable_bytes"):
        load_device(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["memory"]["total_bytes"].update(source="nowhere"), "nowhere"),
        (lambda d: d["memory"]["runtime_base_bytes"].update(value=-1.0), "must be positive"),
        (lambda d: d["memory"]["total_bytes"].update(value=1.0), "exceeds total"),
        (lambda d: d["memory"]["total_bytes"].update(efficiency=0.5), "efficiency_source"),
        (lambda d: d["memory"]["total_bytes"].update(value=float("nan")), "finite"),
        (lambda d: d["sources"]["memory"].update(reference="a book"), "not a URL"),
        (lambda d: d["sources"]["memory"].update(kind="measured"), "no date"),
        (lambda d: d["sources"]["memory"].update(kind="heard"), "heard"),
        (lambda d: d["kernels"][0]["batch"].update(points=[]), "empty"),
        (lambda d: d.update(kernels=[]), "at least one kernel"),
        (lambda d: d["kernels"][0]["batch"]["points"].append({"num_rows": 1, "flops_per_s": 1.0}),
         "rising"),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_right_is_refused(edited, change, complaint: str) -> None:
    with pytest.raises(ProfileError, match=complaint) as caught:
        load_device(edited(change))
    assert "edited.yaml" in str(caught.value)


def test_an_unknown_device_lists_the_shipped_ones() -> None:
    with pytest.raises(ProfileError, match="raspberry-pi-5-8gb"):
        load_device("commodore-64")


def test_a_precision_that_was_not_profiled_is_an_error_that_names_those_that_were() -> None:
    profile = load_device("raspberry-pi-5-8gb")
    with pytest.raises(ProfileError, match="3-bit"):
        profile.kernel(3)
    with pytest.raises(ProfileError, match="2-bit"):
        profile.attention_kernel(2)


def test_effective_is_value_times_efficiency() -> None:
    figure = Figure(value=10.0, source="x", efficiency=0.4, efficiency_source="x")
    assert figure.effective == pytest.approx(4.0)


def test_every_number_of_a_measured_profile_has_a_dated_command() -> None:
    profile = load_device("local-epyc-2core")
    assert profile.measured
    for _, part in walk(profile):
        if isinstance(part, Figure):
            source = profile.sources[part.source]
            assert source.kind == "measured"
            assert source.date


def test_the_schema_refuses_unknown_keys_and_knows_every_field() -> None:
    schema = json_schema(DeviceProfile)
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(DeviceProfile)}
    assert "power" not in schema["required"]
    source = schema["$defs"]["Source"]
    assert source["additionalProperties"] is False
    assert source["properties"]["kind"] == {
        "enum": ["measured", "data_sheet", "derived", "assumed"]
    }
    assert set(source["required"]) == {"kind", "reference"}
    assert {f.name for f in dataclasses.fields(Source)} == set(source["properties"])


def test_the_committed_schema_is_the_exported_one() -> None:
    committed = json.loads((DEVICES_DIR.parent / "schema" / "device.schema.json").read_text())
    assert committed == json_schema(DeviceProfile)
