"""Every error of the package has its gRPC status, and every one is drawn in the tree."""

from __future__ import annotations

import grpc
import pytest

from cloud import errors
from cloud.errors import CapacityError, CloudError, status_of


def all_errors(root: type[CloudError] = CloudError) -> list[type[CloudError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors()[1:])
def test_every_error_is_mapped_itself_or_through_a_base_of_ours(kind: type[CloudError]) -> None:
    assert any(base in errors.STATUS_OF_ERROR for base in kind.__mro__)
    assert status_of(kind("because")) is not grpc.StatusCode.OK


def test_every_error_stands_in_the_drawn_tree() -> None:
    tree = errors.__doc__ or ""
    assert [kind.__name__ for kind in all_errors() if kind.__name__ not in tree] == []


def test_full_means_resource_exhausted_and_a_time_to_come_back() -> None:
    error = CapacityError("full", retry_after_s=2.5)
    assert status_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s == 2.5
