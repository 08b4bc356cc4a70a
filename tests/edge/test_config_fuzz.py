"""The config loader against damaged and hostile YAML: a list of mistakes, never a crash, never much memory or time."""

import random
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from edge.config import Box
from edge.strict_yaml import MAX_BYTES, YamlErrors, loads

CASES = 10_000
SOUND = """\
site: demo
box: b1
database: 6c6f6361-6c00-4000-8000-000000000000
cameras:
  - {id: door, source: {uri: 0, fps: 5}, masks: [[[0, 0], [1, 0], [1, 1]]]}
heads: [{name: age, threshold: 0.5}]
mqtt: {port: 1883, password: {credential: p}}
"""
PIECES = [
    "&a", "*a", "!!python/object:os.system", "!!binary x", "!<tag> x", "<<: *a", "<<: 1", "---\n", "...\n",
    "{", "}", "[", "]", "- ", ": ", "? ", "|", ">", "'", '"', "#", "=", "\n", "  ", "%YAML 9.9\n", "\t", "\0",
    "\x85", "\ufeff", "é", "~", "null", "true", ".inf", ".nan", "1e999", "0x", "0o9", "1:2:3", "-1", "9" * 400,
    "2001-99-99", "2001-01-01T00:00:00Z",
]  # fmt: skip


def mutations(rng: random.Random) -> Iterator[bytes]:
    """Yield sound configs with noise, hostile pieces, swapped or repeated lines, or cut off."""
    lines = SOUND.splitlines(keepends=True)
    while True:
        text = SOUND
        match rng.randrange(5):
            case 0:
                for _ in range(rng.randrange(1, 4)):
                    place = rng.randrange(len(text))
                    text = text[:place] + rng.choice(PIECES) + text[place + rng.randrange(4) :]
            case 1:
                mixed = [rng.choice(lines) for _ in range(rng.randrange(1, 9))]
                text = "".join(mixed)
            case 2:
                text = text[: rng.randrange(len(text))]
            case 3:
                text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 30)))
            case _:
                raw = bytearray(text.encode())
                for _ in range(rng.randrange(1, 5)):
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
                yield bytes(raw)
                continue
        yield text.encode()


def refuse_or_take(data: bytes) -> bool:
    """Load; say whether it was a config. Any other exception than the loader's own fails the test."""
    try:
        loads(data, Box)
    except YamlErrors as errors:
        return not errors.mistakes  # a refusal that names nothing would be taken for a success, and fail the test
    return True


@pytest.mark.slow
def test_no_config_crashes_the_loader() -> None:
    taken = sum(refuse_or_take(data) for data, _ in zip(mutations(random.Random(7)), range(CASES), strict=False))
    assert 0 < taken < CASES // 2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"a: &a [x, x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
        ), id="billion laughs"),
        pytest.param(b"[" * 1_000_000, id="deep lists"),
        pytest.param(b"{a: " * 250_000, id="deep mappings"),
        pytest.param(b"- " * 30_000, id="deep block"),
        pytest.param(b"x" * (MAX_BYTES + 1), id="too long"),
        pytest.param(b"site: &a {site: *a}", id="alias of itself"),
        pytest.param(b"cameras: &a [*a]", id="list in itself"),
        pytest.param(b"site: " + b"9" * 20_000, id="huge number"),
    ],
)  # fmt: skip
def test_a_small_file_cannot_cost_much(data: bytes) -> None:
    tracemalloc.start()
    started_s = time.monotonic()
    try:
        assert not refuse_or_take(data)
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started_s < 20
