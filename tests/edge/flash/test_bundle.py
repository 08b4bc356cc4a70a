"""The bundle file and its manifest: what is refused, and that nothing a stranger writes gets anywhere."""

import hashlib
import json
import os
import random
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.errors import FlashError
from edge.flash.archive import MAGIC, check_files, describe, read_head, unpack, write_bundle
from edge.flash.manifest import MAX_FILE_BYTES, MAX_FILES, MAX_MANIFEST_BYTES, Manifest, read_manifest
from edge.flash.signing import key_id, sign
from tests.edge.flash.desk import Desk

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
CONTENTS = {"config.yaml": b"site: demo\n", "models/tiny/model.onnx": b"weights" * 9, "models/tiny/manifest.yaml": b""}
FUZZ_CASES = 12_000


def fields(**changes: Any) -> dict[str, Any]:
    files = [{"path": p, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for p, b in CONTENTS.items()]
    whole = {"site": "demo", "box": "lobby-1", "device_class": "any", "counter": 7, "files": files, "schema": 1}
    return whole | changes


def one(**changes: Any) -> dict[str, Any]:
    """Return a manifest whose one file beside the config is changed."""
    files = fields()["files"]
    return fields(files=[files[0], files[1] | changes])


def signed(manifest: bytes, body: bytes) -> bytes:
    """Return a bundle with whatever manifest, properly signed."""
    name = bytes.fromhex(key_id(KEY.public_key()))
    return MAGIC + name + sign(KEY, manifest) + len(manifest).to_bytes(4, "big") + manifest + body


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(one(path="../evil"), "refused", id="parent"),
        pytest.param(one(path="/etc/passwd"), "refused", id="absolute"),
        pytest.param(one(path="models/../../evil"), "refused", id="parent in the middle"),
        pytest.param(one(path="models/tiny/.."), "refused", id="parent at the end"),
        pytest.param(one(path="models/tiny/a/b"), "refused", id="too deep"),
        pytest.param(one(path="models\\tiny\\x"), "refused", id="backslash"),
        pytest.param(one(path="models/tiny/x\0"), "refused", id="NUL"),
        pytest.param(one(path="models/tiny/x\n"), "refused", id="newline at the end"),
        pytest.param(one(path="credentials/cam1"), "refused", id="a secret's place"),
        pytest.param(one(path="manifest.json"), "refused", id="our own file"),
        pytest.param(one(path="models/tiny/" + "x" * 65), "refused", id="name too long"),
        pytest.param(one(path="CONFIG.yaml"), "refused", id="config in capitals"),
        pytest.param(one(bytes=-1), "-1 bytes", id="negative size"),
        pytest.param(one(bytes=MAX_FILE_BYTES + 1), "expected at most", id="file too large"),
        pytest.param(one(sha256="0" * 63), "no SHA-256", id="short digest"),
        pytest.param(fields(files=fields()["files"] * 2), "listed twice", id="twice"),
        pytest.param(fields(files=fields()["files"][1:]), "has no config.yaml", id="no config"),
        pytest.param(fields(files=[]), "lists 0 files", id="no files"),
        pytest.param(fields(files=fields()["files"] * MAX_FILES), "expected 1–256", id="too many files"),
        pytest.param(fields(counter=0), "counter is 0", id="counter 0"),
        pytest.param(fields(counter=2**53), "counter is", id="counter too large"),
        pytest.param(fields(box="a/b"), "box is 'a/b'", id="box with a slash"),
        pytest.param(fields(site="+"), "site is", id="site is a wildcard"),
        pytest.param(fields(schema=2), "update the software of the box first", id="newer schema"),
        pytest.param(fields(extra=1), "newer facefleet", id="unknown key"),
        pytest.param(fields(files="x"), "not readable", id="wrong type"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(FlashError, match=message):
        read_manifest(json.dumps(changed).encode())


def test_all_files_together_have_a_limit() -> None:
    base = fields()["files"]
    many = [base[1] | {"path": f"models/tiny/{i}", "bytes": MAX_FILE_BYTES} for i in range(3)]
    with pytest.raises(FlashError, match="its files have"):
        read_manifest(json.dumps(fields(files=[base[0], *many])).encode())


def test_a_bundle_survives_the_round_trip_byte_by_byte(tmp_path: Path) -> None:
    manifest = Manifest("demo", "lobby-1", "any", 7, tuple(describe(p, b) for p, b in CONTENTS.items()))
    head = write_bundle(tmp_path / "b", manifest, CONTENTS, KEY)
    data = (tmp_path / "b").read_bytes()
    assert head.bytes == len(data)
    stream = BytesIO(data)
    read = read_head(stream, TRUSTED)
    assert read == head
    (stage := tmp_path / "stage").mkdir()
    unpack(read, stream, stage)
    assert {p: (stage / p).read_bytes() for p in CONTENTS} == CONTENTS


def test_every_flipped_byte_of_a_bundle_is_noticed(tmp_path: Path) -> None:
    data = signed(json.dumps(fields()).encode(), b"".join(CONTENTS.values()))
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 0x20
        stream = BytesIO(bad)
        with pytest.raises(FlashError):
            check_files(read_head(stream, TRUSTED), stream)


def test_every_shortened_or_lengthened_bundle_is_noticed() -> None:
    data = signed(json.dumps(fields()).encode(), b"".join(CONTENTS.values()))
    for bad in [data[:n] for n in range(len(data))] + [data + b"\0"]:
        stream = BytesIO(bad)
        with pytest.raises(FlashError):
            check_files(read_head(stream, TRUSTED), stream)


def test_nothing_is_parsed_before_its_signature_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr("edge.flash.archive.read_manifest", lambda data: parsed.append(data))
    data = bytearray(signed(json.dumps(fields()).encode(), b""))
    data[-1] ^= 1
    with pytest.raises(FlashError, match="does not fit"):
        read_head(BytesIO(data), TRUSTED)
    assert parsed == []


def test_a_manifest_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    head = MAGIC + bytes(16) + b"s" * 64 + (2**32 - 1).to_bytes(4, "big")

    class Endless:
        taken = 0

        def read(self, count: int) -> bytes:
            self.taken += count
            return (head + bytes(count))[self.taken - count : self.taken]

    with pytest.raises(FlashError, match=f"expected at most {MAX_MANIFEST_BYTES}"):
        read_head(stream := Endless(), TRUSTED)  # type: ignore[arg-type]
    assert stream.taken <= len(head)


def mutations(rng: random.Random) -> Iterator[bytes]:
    """Yield bundles: damaged as a whole, or with a damaged or hostile manifest that is properly signed."""
    body = b"".join(CONTENTS.values())
    plain = json.dumps(fields()).encode()
    paths = [
        "..",
        "/",
        "models",
        "\0",
        "a" * 300,
        ".",
        "config.yaml",
        "models/../x",
        "~",
        "é",
        "models/tiny/model.onnx",
    ]
    values: list[Any] = [None, -1, 0, 2**63, 2**200, 1e308, "", "x" * 5000, [], {}, [[]] * 50, True, "../../evil"]
    while True:
        kind = rng.randrange(5)
        if kind == 0:  # noise over a good bundle
            data = bytearray(signed(plain, body))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
        elif kind == 1:  # noise over a manifest, signed
            text = bytearray(plain)
            for _ in range(rng.randrange(1, 8)):
                place = rng.randrange(len(text))
                text[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
            yield signed(bytes(text), body)
        elif kind == 2:  # a key with another value, signed
            manifest = fields()
            manifest[rng.choice([*manifest, "trust", "new"])] = rng.choice(values)
            yield signed(json.dumps(manifest).encode(), body)
        elif kind == 3:  # a file with another path, size or digest, signed
            manifest = fields()
            file = rng.choice(manifest["files"])
            path = "/".join(rng.choice(paths) for _ in range(rng.randrange(1, 5)))
            file[rng.choice([*file, "mode"])] = rng.choice([*values, path])
            yield signed(json.dumps(manifest).encode(), body)
        else:  # not even JSON, signed; deep nesting among it
            text_ = rng.choice([b"[" * rng.randrange(1, 100_000), b'{"files":' * 5000, rng.randbytes(200), b""])
            yield signed(text_, rng.randbytes(50))


def test_no_bundle_crashes_the_box_leaves_its_folder_or_fills_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # durability is tested elsewhere; here it is only slow
    stage = tmp_path / "outer" / "stage"
    stage.mkdir(parents=True)
    taken = 0
    tracemalloc.start()
    try:
        for number, data in zip(range(FUZZ_CASES), mutations(random.Random(20240607)), strict=False):
            stream = BytesIO(data)
            try:
                folder = stage / str(number)
                head = read_head(stream, TRUSTED)
                folder.mkdir()
                unpack(head, stream, folder)
                taken += 1
            except FlashError:
                continue
            finally:
                assert {p.name for p in stage.iterdir()} <= {str(number)}
                for path in [*stage.rglob("*")][::-1]:
                    path.rmdir() if path.is_dir() else path.unlink()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert [p.name for p in (tmp_path / "outer").iterdir()] == ["stage"]
    assert {p.name for p in tmp_path.iterdir()} == {"outer"}
    assert 0 < taken < FUZZ_CASES // 4  # some mutations change nothing that matters


def test_a_bundle_holds_the_models_the_config_names_and_nothing_else(desk: Desk) -> None:
    (desk.folder / "models" / "tiny" / "stray.txt").write_text("not in the manifest")
    made = desk.made(1)
    assert [f.path for f in made.head.manifest.files] == [
        "config.yaml", "models/tiny/manifest.yaml", "models/tiny/model.onnx",
    ]  # fmt: skip
