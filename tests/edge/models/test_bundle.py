"""A bundle is believed only as far as its manifest and digests carry."""

import re
from pathlib import Path

import msgspec
import pytest

from edge.errors import ModelError
from edge.models.bundle import MANIFEST, contradiction, load_bundle
from edge.models.manifest import File, Input


def test_bundle_round_trips_with_its_files(bundles):
    bundle = bundles.classifier()
    assert load_bundle(bundle.folder).manifest == bundle.manifest
    assert bundle.path("xml") == bundle.folder / "model.xml"


def test_missing_role_is_named(bundles):
    with pytest.raises(ModelError, match=r"files\.onnx is missing, found \['bin', 'golden', 'xml'\]"):
        bundles.classifier().path("onnx")


def test_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere: no such folder, expected a model bundle"):
        load_bundle(tmp_path / "nowhere")


def test_folder_without_manifest_is_no_bundle(tmp_path: Path):
    with pytest.raises(ModelError, match=r"manifest\.yaml: not found"):
        load_bundle(tmp_path)


def test_missing_file_is_named_with_its_role(bundles):
    bundle = bundles.classifier()
    bundle.path("bin").unlink()
    with pytest.raises(ModelError, match=r"model\.bin: not found, but files\.bin of .*; copy the whole bundle again"):
        load_bundle(bundle.folder)


def test_one_flipped_bit_is_found_and_unverified_reading_lets_it_pass(bundles):
    bundle = bundles.classifier()
    data = bytearray(bundle.path("xml").read_bytes())
    data[100] ^= 1
    bundle.path("xml").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.xml: SHA-256 \w{64} found, \w{64} expected"):
        load_bundle(bundle.folder)
    assert load_bundle(bundle.folder, verify=False).manifest == bundle.manifest


def test_truncated_file_says_both_sizes(bundles):
    bundle = bundles.classifier()
    size = bundle.path("xml").stat().st_size
    bundle.path("xml").write_bytes(bundle.path("xml").read_bytes()[:-7])
    with pytest.raises(ModelError, match=rf"{size - 7} bytes found, {size} expected"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("path", ["../outside.xml", "/etc/hostname", "sub/../../outside.xml"])
def test_path_outside_the_folder_is_refused(bundles, path):
    bundle = bundles.classifier()
    (bundle.folder.parent / "outside.xml").write_text("x")
    _rewrite(bundle, files={**bundle.manifest.files, "xml": File(path, "0" * 64, 1)})
    with pytest.raises(ModelError, match=r"files\.xml\.path is .*, expected a file inside"):
        load_bundle(bundle.folder)


def test_link_that_leads_outside_the_folder_is_refused(bundles):
    bundle = bundles.classifier()
    outside = bundle.folder.parent / "outside.xml"
    bundle.path("xml").rename(outside)
    bundle.path("xml").symlink_to(outside)
    with pytest.raises(ModelError, match="expected a file inside"):
        load_bundle(bundle.folder)


def test_checkpoint_may_stay_at_the_desk(bundles):
    bundle = bundles.classifier()
    _rewrite(bundle, files={**bundle.manifest.files, "checkpoint": File("float.pt", "0" * 64, 1)})
    assert "checkpoint" in load_bundle(bundle.folder).manifest.files


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [unclosed", "expected ',' or ']'"),
        ("name: x", "missing required field"),
        ("", "Expected `object`, got `null`"),
        ("\x00", "not allowed"),
    ],
    ids=["bad YAML", "field missing", "empty", "binary"],
)
def test_unreadable_manifest_is_told_apart(bundles, text, told):
    bundle = bundles.classifier()
    (bundle.folder / MANIFEST).write_text(text)
    with pytest.raises(ModelError, match=told) as caught:
        load_bundle(bundle.folder)
    assert str(bundle.folder / MANIFEST) in str(caught.value)


def test_unknown_key_is_refused(bundles):
    bundle = bundles.classifier()
    (bundle.folder / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes() + b"treshold: 0.5\n")
    with pytest.raises(ModelError, match="unknown field `treshold`"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema": 2}, "reads up to 1"),
        ({"input": Input(0, 8)}, "expected positive sizes"),
        ({"input": Input(8, 8, scale=(1.0, 0.0, 1.0))}, "no zero scale"),
        ({"input": Input(8, 8, mean=(1.0,))}, "do not fit RGB"),
        ({"decoder": "yunet"}, "expected one of .*softmax"),
        ({"outputs": ()}, "outputs is empty"),
        ({"labels": ("face",)}, "at least two"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_contradictions_in_a_manifest_are_told(bundles, changes, told):
    manifest = msgspec.structs.replace(bundles.classifier().manifest, **changes)
    assert re.search(told, contradiction(manifest) or "none")


def test_half_an_ir_is_a_contradiction(bundles):
    manifest = bundles.classifier().manifest
    files = {role: file for role, file in manifest.files.items() if role != "bin"}
    half = msgspec.structs.replace(manifest, files=files)
    assert contradiction(half) == "files has only one of xml and bin, expected both"


def _rewrite(bundle, **changes):
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    (bundle.folder / MANIFEST).write_bytes(msgspec.yaml.encode(manifest))
