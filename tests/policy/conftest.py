"""The timer of this process belongs to pytest's own timeout: tests give it back."""

from collections.abc import Iterator

import pytest

from ttmfs.policy import deadline


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    with deadline.borrowed():
        yield
