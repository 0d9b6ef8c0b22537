"""What the tests of reading data share."""

import pytest

from dlnjax.cli.data import DataError, load

GOOD = "a,b,y\n1,2,3\n4,5,6\n"


def fails(source, *words, target=None):
    """`load` raises a short `DataError` that contains all `words`."""
    with pytest.raises(DataError) as info:
        load(source, target)
    message = str(info.value)
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
    assert "\n" not in message and len(message) < 600
    return message
