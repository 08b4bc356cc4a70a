"""Answer a camera's `WWW-Authenticate`, as RTSP and HTTP share it: Digest where offered, else Basic.

Source: RFC 7616 (Digest), RFC 7617 (Basic).
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable

_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Digest)\s+", re.IGNORECASE)
_FIELD = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_HASHES: dict[str, Callable[[bytes], "hashlib._Hash"]] = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def answer(challenges: Iterable[str], user: str, password: str, method: str, uri: str, cnonce: str) -> str | None:
    """Return the value of an `Authorization` header.

    Args:
        challenges: the values of all `WWW-Authenticate` headers.
        user, password: plain text.
        method: "DESCRIBE" or "GET".
        uri: as in the request line.
        cnonce: the client's nonce, random, hex.

    Returns:
        The header's value, or None when nothing is offered that we can answer.
    """
    offers = [offer for challenge in challenges for offer in _offers(challenge)]
    digests = [fields for scheme, fields in offers if scheme == "digest" and _algorithm(fields) in _HASHES]
    if digests:
        strongest = max(digests, key=lambda fields: _algorithm(fields) == "SHA-256")
        return _digest(strongest, user, password, method, uri, cnonce)
    if any(scheme == "basic" for scheme, _ in offers):
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return None


def _offers(challenge: str) -> Iterable[tuple[str, dict[str, str]]]:
    marks = list(_SCHEME.finditer(challenge))
    ends = [*(mark.start() for mark in marks[1:]), len(challenge)]
    for mark, end in zip(marks, ends, strict=False):
        fields = _FIELD.findall(challenge[mark.end() : end])
        yield mark[1].lower(), {name.lower(): quoted or bare for name, quoted, bare in fields}


def _algorithm(fields: dict[str, str]) -> str:
    return fields.get("algorithm", "MD5").upper()


def _digest(fields: dict[str, str], user: str, password: str, method: str, uri: str, cnonce: str) -> str:
    algorithm = _algorithm(fields)

    def h(text: str) -> str:
        return _HASHES[algorithm](text.encode()).hexdigest()

    realm, nonce = fields.get("realm", ""), fields.get("nonce", "")
    ha1, ha2 = h(f"{user}:{realm}:{password}"), h(f"{method}:{uri}")
    said = {"username": user, "realm": realm, "nonce": nonce, "uri": uri}
    bare = {"algorithm": algorithm} if "algorithm" in fields else {}
    if "auth" in re.split(r"[\s,]+", fields.get("qop", "")):
        said["response"] = h(f"{ha1}:{nonce}:00000001:{cnonce}:auth:{ha2}")
        said["cnonce"] = cnonce
        bare |= {"qop": "auth", "nc": "00000001"}
    else:
        said["response"] = h(f"{ha1}:{nonce}:{ha2}")
    if "opaque" in fields:
        said["opaque"] = fields["opaque"]
    return "Digest " + ", ".join([f'{k}="{v}"' for k, v in said.items()] + [f"{k}={v}" for k, v in bare.items()])
