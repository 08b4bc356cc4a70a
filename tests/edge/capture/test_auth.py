"""Answers to WWW-Authenticate, against the vectors of RFC 7616 section 3.9.1 and RFC 7617 section 2."""

import pytest

from edge.capture.auth import answer

NONCE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


def challenge(algorithm: str) -> str:
    return (
        f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, nonce="{NONCE}", '
        'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_digest_equals_the_example_of_the_rfc(algorithm: str, response: str) -> None:
    said = answer([challenge(algorithm)], "Mufasa", "Circle of Life", "GET", "/dir/index.html", CNONCE)
    assert said is not None
    assert f'response="{response}"' in said
    assert "qop=auth," in said
    assert "nc=00000001" in said


def test_digest_without_qop_is_the_old_form() -> None:
    """RFC 2069: many cameras still speak it; MD5(HA1:nonce:HA2)."""
    said = answer(['Digest realm="cam", nonce="abc"'], "u", "p", "DESCRIBE", "rtsp://cam/a", "00")
    assert said is not None
    assert "cnonce" not in said
    assert 'response="75109a3eaf415562c7b78275a32f933f"' in said


def test_basic_equals_the_example_of_the_rfc() -> None:
    assert answer(['Basic realm="WallyWorld"'], "Aladdin", "open sesame", "GET", "/", "") == (
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    )


@pytest.mark.parametrize(
    ("offers", "begin", "inside"),
    [
        (['Basic realm="c"', challenge("MD5")], "Digest", "MD5"),
        (['Basic realm="c", ' + challenge("MD5")], "Digest", "MD5"),
        ([challenge("MD5"), challenge("SHA-256")], "Digest", "SHA-256"),
        ([challenge("SHA-512-256"), 'Basic realm="c"'], "Basic", ""),
    ],
    ids=["digest before basic", "both in one header", "the stronger digest", "an unknown digest is passed over"],
)
def test_the_best_offer_is_taken(offers: list[str], begin: str, inside: str) -> None:
    said = answer(offers, "u", "p", "GET", "/", "00")
    assert said is not None
    assert said.startswith(begin)
    assert inside in said


@pytest.mark.parametrize("offers", [[], ["Negotiate"], [challenge("SHA-512-256")]])
def test_an_offer_nobody_can_answer_is_none(offers: list[str]) -> None:
    assert answer(offers, "u", "p", "GET", "/", "00") is None
