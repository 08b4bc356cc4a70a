"""Heads that recognize a person, held against the consents in the config: for `check`, flashing and every start.

What a bundle recognizes stands in its manifest (`Manifest.people`), who agreed in the config (`heads[].consent`). A
missing consent is refused always; one that does not hold today is refused at the desk, while on a box the head is off
(`edge.consent.heads_off`): a box must not stop counting because a year is over.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime

from edge.config import LoadedConfig
from edge.errors import ConfigError, ModelError
from edge.models.bundle import load_bundle
from edge.models.manifest import Manifest
from edge.strict_yaml import line_of


def today_utc() -> date:
    """Return the day that consents are held against."""
    return datetime.now(UTC).date()


def head_manifests(config: LoadedConfig) -> dict[str, Manifest]:
    """Return the manifests of a config's heads, by head name; one that cannot be read is somebody else's to find."""
    found = {}
    for head in config.box.heads:
        with suppress(ModelError):
            found[head.name] = load_bundle(config.models_dir / head.bundle_name, verify=False).manifest
    return found


def require_consents(config: LoadedConfig, manifests: Mapping[str, Manifest], today: date | None = None) -> None:
    """Refuse a config whose heads recognize somebody who is not known to agree.

    Raises:
        ConfigError: as `faults` says.
    """
    if wrong := faults(config, manifests, today):
        raise ConfigError("\n".join(wrong))


def faults(config: LoadedConfig, manifests: Mapping[str, Manifest], today: date | None = None) -> list[str]:
    """Return what is wrong with the consents, each with file, line, key, finding and expectation.

    Args:
        config: the box.
        manifests: of the heads' bundles, by head name; a head that is not named is passed over.
        today: also refuse consents that do not hold on that day.
    """
    found = _faults(config, manifests, today)
    return [
        f"{config.path}:{line_of(config.path, key)}: {key} is {what}, expected {wanted}" for key, what, wanted in found
    ]


def _faults(
    config: LoadedConfig, manifests: Mapping[str, Manifest], today: date | None
) -> Iterator[tuple[str, object, str]]:
    for i, head in enumerate(config.box.heads):
        key = f"heads[{i}].consent"
        if (manifest := manifests.get(head.name)) is None:
            continue
        for label in manifest.people:
            if label not in head.consent:
                yield (
                    f"{key}.{label}" if head.consent else key,
                    "missing",
                    f"`{label}: {{who: …, given: DAY, until: DAY, record: where it is kept}}`: bundle "
                    f"{manifest.name} recognizes a person, and is off until that person agrees",
                )
        for label, consent in head.consent.items():
            if label not in manifest.people:
                people = ", ".join(manifest.people)
                wanted = f"one of {people}" if people else f"none: bundle {manifest.name} recognizes nobody"
                yield f"{key}.{label}", "a consent", wanted
            elif today is not None and (gap := consent.gap(today)):
                when = "a day that has come" if gap[0] == "given" else "a day that is not over"
                yield (
                    f"{key}.{label}.{gap[0]}",
                    getattr(consent, gap[0]),
                    f"{when} (today is {today}): ask for a new consent, or take the head out",
                )
