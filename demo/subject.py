"""What a demo watches, and the box config for it: the shipped config/demo.yaml with ports and paths changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.errors import DemoError
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec
from edge.config import SENSITIVE, SHIPPED_MODELS, LoadedConfig, load_box
from edge.errors import EdgeError

TEMPLATE = Path(__file__).resolve().parent.parent / "config" / "demo.yaml"
CREDENTIAL = "source"  # name of the file that a camera's password, given in its address, is kept in


@dataclass(frozen=True, slots=True)
class Subject:
    """A source, looked at once.

    Attributes:
        spec: Where its pictures come from.
        builtin: Whether it is the clip of ours.
        live: A camera, which has no end.
        duration_s: Length of a recording, seconds.
    """

    spec: SourceSpec
    builtin: bool
    live: bool
    duration_s: float | None


@dataclass(frozen=True, slots=True)
class Ports:
    """Where things of this run listen."""

    broker: int
    page: int


def builtin(clip: Path, duration_s: float) -> Subject:
    """Return the built-in clip as a subject, rendered or not yet."""
    return Subject(SourceSpec.from_text(str(clip)), builtin=True, live=False, duration_s=duration_s)


def look_at(text: str) -> Subject:
    """Return what a person means by SOURCE=, after one picture of it was seen.

    Raises:
        DemoError: it gives no picture; one line says why and what to do.
    """
    try:
        spec = SourceSpec.from_text(text)
        if spec.kind in ("file", "folder"):
            spec = SourceSpec.from_text(str(Path(text).expanduser().resolve()))
            with open_source(spec) as source:
                duration_s = getattr(source, "duration_s", None)
        else:
            duration_s = None
            probe(spec)
    except EdgeError as error:
        raise DemoError(f"SOURCE {error}") from error
    return Subject(spec, builtin=False, live=spec.kind not in ("file", "folder"), duration_s=duration_s)


def write_config(folder: Path, subject: Subject, ports: Ports, state_dir: Path) -> tuple[LoadedConfig, list[str]]:
    """Write the config of the demo's box.

    Args:
        folder: Where to; a password out of the source's address goes beside it, mode 0600.
        subject: What it watches.
        ports: Where broker and live page listen.
        state_dir: Where the box keeps its outbox.

    Returns:
        The config as the box will read it, and what was left out of it, for a person to read.

    Raises:
        DemoError: this is no checkout, or a model that is needed is not in it.
    """
    try:
        box: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text())
    except OSError as error:
        raise DemoError(f"{TEMPLATE} cannot be read ({error.strerror}); run the demo from a checkout") from error
    camera = box["cameras"][0]
    notes: list[str] = []
    if not subject.builtin:
        camera |= {"id": "camera", "source": _source(folder, subject.spec)}
        box["heads"] = [head for head in box["heads"] if head["name"] not in SENSITIVE]
        notes.append("race and emotion stay off: this is not the built-in clip")
    else:
        camera["source"]["uri"] = subject.spec.location
    _require(camera["detector"])
    missing = [head["name"] for head in box["heads"] if not _shipped(head.get("bundle", f"{head['name']}-student"))]
    if missing:
        box["heads"] = [head for head in box["heads"] if head["name"] not in missing]
        notes.append(f"no model for {', '.join(missing)} in {SHIPPED_MODELS.name}/: left out")
    box |= {"state_dir": str(state_dir), "credentials_dir": str(folder)}
    box["mqtt"]["port"] = ports.broker
    box["preview"]["port"] = ports.page
    path = folder / "box.yaml"
    path.write_text(f"# written by facefleet-demo from {TEMPLATE.name}\n" + yaml.safe_dump(box, sort_keys=False))
    return load_box(path), notes


def _source(folder: Path, spec: SourceSpec) -> dict[str, Any]:
    source: dict[str, Any] = {"uri": spec.location}
    if spec.user:
        source["user"] = spec.user
    if spec.password:
        secret = folder / CREDENTIAL
        secret.touch(mode=0o600)
        secret.write_text(spec.password)
        source["password"] = {"credential": CREDENTIAL}
    return source


def _shipped(bundle: str) -> bool:
    return (SHIPPED_MODELS / bundle / "manifest.yaml").is_file()


def _require(bundle: str) -> None:
    if not _shipped(bundle):
        raise DemoError(f"the model {bundle} is not in {SHIPPED_MODELS}; fetch a complete checkout")
