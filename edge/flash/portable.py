"""A config as it lies on the integrator's desk becomes one that works in a slot; secrets beside it are gathered.

The text is edited in place, value by value, so that comments survive and the difference shown is the real one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from edge.config import Box, LoadedConfig
from edge.errors import ConfigError
from edge.flash.slots import CREDENTIALS
from edge.models.bundle import MANIFEST, NOT_FLASHED, load_bundle
from edge.strict_yaml import Credential, YamlErrors, loads

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """What a box gets: `files` inside the bundle by path, `secrets` beside it by name.

    `wanted` are the credentials the config names; one that is not among `secrets` must be on the box already.
    """

    files: dict[str, Path | bytes]
    secrets: dict[str, bytes] = field(repr=False)
    wanted: frozenset[str]


def gather(config: LoadedConfig) -> Contents:
    """Collect what a config needs on a box.

    Raises:
        ConfigError: it names files of this desk that a box will not have.
        ModelError: a bundle is missing or damaged.
    """
    _refuse_local_sources(config)
    tls = _tls_files(config)
    text = slot_text(config.path.read_text("utf-8"), config.box, {keys: path.name for keys, path in tls.items()})
    files: dict[str, Path | bytes] = {"config.yaml": text.encode()}
    box = config.box
    for name in dict.fromkeys(name for name, _, _ in box.bundles()):
        bundle = load_bundle(config.models_dir / name)
        paths = [MANIFEST, *(f.path for role, f in bundle.manifest.files.items() if role not in NOT_FLASHED)]
        files |= {f"models/{name}/{path}": bundle.folder / path for path in paths}
    names = credentials_of(box)
    secrets = {path.name: path.read_bytes() for path in tls.values()}
    for name in names:
        try:
            secrets[name] = Credential(name).read(config.credential_dirs).encode()
        except ValueError as error:
            if "can be read by others" in str(error):
                raise ConfigError(f"{config.path}: {error}") from error
    return Contents(files, secrets, frozenset(names | {path.name for path in tls.values()}))


def credentials_of(box: Box) -> set[str]:
    """Return the names of all credentials a config names."""
    found = [camera.source.password for camera in box.cameras] + [box.mqtt.password, box.preview.token]
    return {c.credential for c in found if c is not None}


def slot_secrets(config: LoadedConfig) -> set[str]:
    """Return the names of all files a slot's config expects in its credentials folder."""
    tls, prefix = config.box.mqtt.tls, f"{CREDENTIALS}/"
    files = [tls.ca, tls.cert, tls.key] if tls else []
    carried = {name.removeprefix(prefix) for name in files if name and name.startswith(prefix)}
    return credentials_of(config.box) | carried


def slot_text(text: str, box: Box, tls_names: Mapping[str, str]) -> str:
    """Return a config's text with its folders as they are in a slot.

    An absolute `state_dir` stays: somebody put the outbox on a disk of its own.
    """
    changes: dict[Keys, str] = {("models_dir",): "models", ("credentials_dir",): CREDENTIALS}
    if not Path(box.state_dir).is_absolute() or not _has(text, "state_dir"):
        changes["state_dir",] = "../.."
    changes |= {("mqtt", "tls", key): f"{CREDENTIALS}/{name}" for key, name in tls_names.items()}
    changed = edit(text, changes)
    try:
        loads(changed.encode(), Box, name="the config as it would be on the box")
    except YamlErrors as error:  # anchors, or folders written in a form that cannot be edited in place
        raise ConfigError(f"{error}\nwrite models_dir, state_dir and credentials_dir as plain lines") from error
    return changed


def edit(text: str, changes: Mapping[Keys, str]) -> str:
    """Set scalars in YAML text, by their keys from the root; a missing one of the root is added."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was loaded as a config before"
    edits, added = [], []
    for keys, value in changes.items():
        node = _find(root, keys)
        if node is not None:
            edits.append((node.start_mark.index, node.end_mark.index, json.dumps(value)))
        else:
            added.append(
                f"{keys[-1]}: {value}" if not root.flow_style else f"{json.dumps(keys[-1])}: {json.dumps(value)}"
            )
    if added and root.flow_style:
        edits.append((root.start_mark.index + 1,) * 2 + (", ".join(added) + ", ",))
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    if added and not root.flow_style:
        text = text.rstrip("\n") + "\n\n# Where things lie on a flashed box.\n" + "\n".join(added) + "\n"
    return text


def _find(node: yaml.Node, keys: Keys) -> yaml.Node | None:
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            return None
        values = [value for name, value in node.value if name.value == key]
        if not values:
            return None
        node = values[0]
    return node


def _has(text: str, key: str) -> bool:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return root is not None and _find(root, (key,)) is not None


def _refuse_local_sources(config: LoadedConfig) -> None:
    wrong = []
    for i, camera in enumerate(config.box.cameras):
        uri = str(camera.source.uri).removeprefix("file://")
        if camera.source.kind(config.base) in ("file", "folder") and not Path(uri).is_absolute():
            wrong.append(
                f"{config.path}: cameras[{i}].source.uri is {uri!r}, a file on this desk; "
                "expected a camera, or the absolute path of a recording on the box"
            )
    if wrong:
        raise ConfigError("\n".join(wrong))


def _tls_files(config: LoadedConfig) -> dict[str, Path]:
    """Return the TLS files that lie beside the config and must travel; absolute ones are the box's own."""
    tls = config.box.mqtt.tls
    named = {"ca": tls.ca, "cert": tls.cert, "key": tls.key} if tls else {}
    files = {key: config.base / value for key, value in named.items() if value and not Path(value).is_absolute()}
    if missing := [f"mqtt.tls.{key} {path}" for key, path in files.items() if not path.is_file()]:
        raise ConfigError(
            f"{config.path}: {', '.join(missing)} not found; expected a file beside the config, "
            "or an absolute path on the box"
        )
    return files
