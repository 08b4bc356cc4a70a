"""Everything about a config that can be known at the integrator's desk. Behind `facefleet-edge check` and flashing."""

from pathlib import Path

from edge.assembly import find_bundle, preview_token, source_spec
from edge.config import LoadedConfig, load_box
from edge.errors import ConfigError, EdgeError
from edge.identity import faults, head_manifests, today_utc
from edge.publish.publisher import publisher_settings


def check(path: Path) -> str:
    """Return a summary of a sound config.

    Raises:
        ConfigError: mistakes of the file, else all missing credentials, bundles and recordings together.
    """
    config = load_box(path)
    wrong = [*_cameras(config), *_models(config), *_broker(config), *_page(config)]
    if wrong := [*(f"{path}: {text}" for text in wrong), *faults(config, head_manifests(config), today_utc())]:
        raise ConfigError("\n".join(wrong))
    return _summary(config)


def _cameras(config: LoadedConfig) -> list[str]:
    wrong = []
    for camera in config.box.cameras:
        try:
            spec = source_spec(config, camera)
        except ConfigError as error:
            wrong.append(str(error))
            continue
        if spec.kind in ("file", "folder") and not Path(spec.location).exists():
            wrong.append(f"camera {camera.id}: source.uri {spec.location} does not exist; correct it or put it there")
    return wrong


def _broker(config: LoadedConfig) -> list[str]:
    tls, wrong = config.box.mqtt.tls, []
    try:
        publisher_settings(config, stream=1)
    except ConfigError as error:
        wrong.append(str(error))
    for key, name in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)) if tls else ():
        if (
            name is not None and not Path(name).is_absolute() and not (config.base / name).is_file()
        ):  # else the box's own
            wrong.append(f"mqtt.tls.{key} {config.base / name} does not exist; correct it or put it there")
    return wrong


def _page(config: LoadedConfig) -> list[str]:
    try:
        preview_token(config)
    except ConfigError as error:
        return [str(error)]
    return []


def _models(config: LoadedConfig) -> list[str]:
    wrong = []
    for name, key, task in config.box.bundles():
        try:
            found = find_bundle(config.models_dir, name, key).manifest.task
            if found != task:
                wrong.append(f"{key} is {name!r}, a {found}; expected a {task} bundle")
        except EdgeError as error:
            wrong.append(str(error))
    return wrong


def _summary(config: LoadedConfig) -> str:
    box = config.box
    lines = [f"{config.path}: ok, {box.site}/{box.box}, config {config.digest}"]
    for camera in box.cameras:
        spec = source_spec(config, camera)
        rate = f"{camera.fps:g} detections/s" if camera.fps else "every frame"
        masks = f", {len(camera.masks)} privacy masks" if camera.masks else ""
        lines.append(f"  camera {camera.id}: {spec.kind} {spec.shown}, {camera.detector}, {rate}{masks}")
    lines += [
        f"  head {head.name}: {head.bundle_name}"
        + (f", purpose: {head.purpose}" if head.purpose else "")
        + "".join(f", consent of {label!r} until {consent.until}" for label, consent in head.consent.items())
        for head in box.heads
    ]
    lines.append(f"  broker {box.mqtt.host}:{box.mqtt.port}, MQTT {box.mqtt.protocol}, database {box.database}")
    return "\n".join(lines)
