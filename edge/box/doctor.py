"""One line per thing a box needs: ok, or what to do. Behind `facefleet-edge doctor`; changes nothing."""

import os
import platform
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge.assembly import find_bundle, model_threads, source_spec
from edge.box import facts
from edge.capture.sources import probe
from edge.config import LoadedConfig
from edge.errors import EdgeError
from edge.identity import head_manifests, require_consents, today_utc
from edge.models.runtime import load_model

PACKAGES = ("numpy", "onnxruntime", "openvino", "opencv-python-headless", "scipy", "paho-mqtt", "msgspec", "pyyaml")
LEAST_FREE_BYTES = 512 << 20
BROKER_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is fine, and what was seen or what to do."""

    thing: str
    ok: bool
    text: str


def examine(config: LoadedConfig | None) -> Iterator[Finding]:
    """Yield findings as they are made; without a config only what every box needs."""
    yield _python()
    yield from map(_package, PACKAGES)
    yield _journal()
    yield _guarded("devices", _devices)
    if config is None:
        yield Finding("config", True, "none given; name one to check models, cameras and broker too")
        return
    box = config.box
    yield _guarded("disk", lambda: _disk(config.state_dir))
    for bundle in dict.fromkeys(name for name, _, _ in box.bundles()):
        yield _guarded(f"model {bundle}", lambda name=bundle: _model(config, name))  # type: ignore[misc]
    if any(head.consent for head in box.heads) or any(m.people for m in head_manifests(config).values()):
        yield _guarded("consents", lambda: _consents(config))
    for i, camera in enumerate(box.cameras):
        yield _guarded(f"camera {camera.id}", lambda i=i: _camera(config, i))  # type: ignore[misc]
    if config.has_own_tls:
        yield _guarded("certificate", lambda: _certificate(config))
    yield _guarded("broker", lambda: _broker(config))


def _guarded(thing: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(thing, True, look())
    except (EdgeError, OSError, ImportError, RuntimeError) as error:  # OpenVINO raises RuntimeError for all of its own
        return Finding(thing, False, " ".join(str(error).split()))


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.machine()}, {facts.cpu_name()}")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, 'not installed; pip install "facefleet[edge]"')


def _journal() -> Finding:
    # The folder systemd/ beside us is found as a namespace package: only the import of a name tells the library.
    try:
        from systemd import journal
    except ImportError:
        return Finding("systemd-python", True, "not installed, not needed: the journal hears the same without it")
    return Finding("systemd-python", True, f"journal handler {journal.JournalHandler.__name__}")


def _devices() -> str:
    import openvino as ov

    core = ov.Core()
    return ", ".join(f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})" for d in core.available_devices)


def _disk(state_dir: Path) -> str:
    existing = next(p for p in (state_dir, *state_dir.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        raise EdgeError(f"state_dir {state_dir} cannot be written by this user; change state_dir or its owner")
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise EdgeError(f"{state_dir} has {free >> 20} MB free, expected {LEAST_FREE_BYTES >> 20} MB; make room")
    return f"{state_dir}, {free >> 30} GB free"


def _model(config: LoadedConfig, name: str) -> str:
    bundle = find_bundle(config.models_dir, name, "bundle")
    started = time.perf_counter()
    loaded = load_model(
        bundle,
        config.box.devices,
        threads=model_threads(config, bundle.manifest.task),
        cache_dir=config.state_dir / "cache" if config.state_dir.is_dir() else None,
        log=lambda _: None,
    )
    where = f"{loaded.runtime.device} {loaded.runtime.artefact}"
    refused = "".join(f"; refused {a}" for a in loaded.attempts)
    return f"{where}, golden {loaded.golden}, {time.perf_counter() - started:.1f} s, {bundle.manifest.licence}{refused}"


def _consents(config: LoadedConfig) -> str:
    today = today_utc()
    require_consents(config, head_manifests(config), today)
    held = [(head.name, label, c) for head in config.box.heads for label, c in head.consent.items()]
    return ", ".join(f"{name}: {label!r} until {c.until}, {(c.until - today).days} days" for name, label, c in held)


def _camera(config: LoadedConfig, index: int) -> str:
    spec = source_spec(config, config.box.cameras[index])
    height, width = probe(spec).image.shape[:2]
    return f"{spec.shown}, {width}×{height}"


def _certificate(config: LoadedConfig) -> str:
    from edge.box import certificate  # only where there is one

    certificate.require(config)
    found = certificate.held(config.own_tls_dir)
    assert found is not None, "it was required"
    if (days := found.days(certificate.now())) <= 0:
        raise EdgeError(
            f"ended on {found.until:%Y-%m-%d}; enroll this box anew, or set its clock, which says "
            f"{certificate.now():%Y-%m-%d %H:%M} UTC"
        )
    return f"{found.site}/{found.box}, good for {days:.0f} days"


def _broker(config: LoadedConfig) -> str:
    mqtt, tls = config.box.mqtt, config.tls_files()
    address = f"{mqtt.host}:{mqtt.port}"
    try:
        with socket.create_connection((mqtt.host, mqtt.port), BROKER_S) as raw:
            if tls is None:
                return f"{address} answers"
            context = ssl.create_default_context(cafile=str(tls.ca))
            with context.wrap_socket(raw, server_hostname=mqtt.host) as secure:
                return f"{address} answers, {secure.version()}"
    except OSError as error:
        raise EdgeError(
            f"{address} does not answer ({error}); start it (`facefleet-bridge local` brings one) or correct mqtt"
        ) from error
