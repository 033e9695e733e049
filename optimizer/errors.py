"""What can go wrong while planning, building and opening bundles.

OptimizerError
├── PlanError            a plan that contradicts itself, or a choice that no model allows
├── ModelError           a model source that cannot be read, or is not supported
├── BuildError           the exporter or the calibration failed
├── BundleError          a bundle that is incomplete, changed, or of another format
├── CredentialsError     a credentials file that cannot be used
├── ChatTemplateError    a chat template that cannot be parsed, or fails on a conversation
├── ScenarioError        a scenario that contradicts itself, or names what is not there
├── MeasurementError     a measurement log that cannot be written, read or learned from
└── PolicyError          settings that a run-time decision cannot work with
"""

from __future__ import annotations


class OptimizerError(Exception):
    """Root of everything that this package raises on purpose. One line, for the user."""


class PlanError(OptimizerError):
    """The plan contradicts itself, or asks for what the model does not have."""


class ModelError(OptimizerError):
    """The model source cannot be read, or its architecture is not supported."""


class BuildError(OptimizerError):
    """Exporting, quantizing or calibrating failed."""


class BundleError(OptimizerError):
    """The bundle is incomplete, was changed after it was built, or has another format."""


class CredentialsError(OptimizerError):
    """A credentials file cannot be read or written, or is not for this side."""


class ChatTemplateError(OptimizerError):
    """The chat template cannot be parsed, refuses the conversation, or goes beyond its limits."""


class ScenarioError(OptimizerError):
    """A scenario to simulate contradicts itself, or names what is not there."""


class MeasurementError(OptimizerError):
    """A measurement log cannot be written or read, or does not fit what is to be learned."""


class PolicyError(OptimizerError):
    """A run-time policy was given settings that it cannot decide by."""
