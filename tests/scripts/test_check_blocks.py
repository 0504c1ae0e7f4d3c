"""The independent check of what fio wrote knows the headers of the versions there are, and a wrong byte in each."""

from pathlib import Path

import numpy as np
import pytest

from lib.check_blocks import unknown_headers, wrong_blocks

DATA = Path(__file__).parents[1] / "data"
BLOCK = 512


@pytest.mark.parametrize("version", ["3.33", "3.41"])
def test_blocks_of_each_fio_are_right_until_a_byte_is_not(version: str) -> None:
    """Two blocks, as that fio wrote them with verify=crc32c."""
    data = np.fromfile(DATA / f"fio-{version}-crc32c", np.uint8)
    assert len(data) == 2 * BLOCK
    assert wrong_blocks(data, BLOCK).tolist() == []
    for at in (0, 2, 4, 17, 100, BLOCK - 1):
        changed = data.copy()
        changed[BLOCK + at] ^= 1
        assert wrong_blocks(changed, BLOCK).tolist() == [1], at
    assert wrong_blocks(np.roll(data, BLOCK), BLOCK).tolist() == [0, 1]
    assert unknown_headers(data) == []


def test_a_fio_with_other_headers_is_named() -> None:
    data = np.fromfile(DATA / "fio-3.41-crc32c", np.uint8)
    data[2] = 0x99
    assert wrong_blocks(data, BLOCK).tolist() == [0]
    (sentence,) = unknown_headers(data)
    assert "type 0x0599" in sentence
    assert unknown_headers(np.zeros(3, np.uint8)) == []
