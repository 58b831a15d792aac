"""Strategies for files that went wrong on their way."""

import os

from hypothesis import strategies as st


def cases(default):
    """Number of examples of a fuzz test; the environment variable FUZZ_CASES replaces it."""
    return int(os.environ.get("FUZZ_CASES", default))


@st.composite
def damaged(draw, data):
    """The given bytes after one to four mishaps: bytes changed, cut off, cut out, repeated or put in."""
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        put = draw(st.binary(max_size=8))
        data = draw(
            st.sampled_from(
                [
                    data[:first] + put + data[first + len(put) :],
                    data[:first],
                    data[:first] + data[last:],
                    data[:last] + data[first:],
                    data[:first] + put + data[first:],
                ]
            )
        )
    return data
