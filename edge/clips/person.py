"""Whom to cut out of a recording: a person whom a head knows, and who agrees to that today."""

from dataclasses import dataclass
from datetime import date

from edge.config import HeadConfig, LoadedConfig
from edge.errors import ConfigError
from edge.identity import head_manifests, require_consents


@dataclass(frozen=True, slots=True)
class Person:
    """Whom to look for: a label of a head, and the last day on which that person agrees to it."""

    head: HeadConfig
    label: str
    until: date


def person(config: LoadedConfig, head: str | None, label: str | None, today: date) -> Person:
    """Return whom to look for; a head or a label that is not named must be the only one.

    Raises:
        ConfigError: no such head, it recognizes nobody, not that one, or that person does not agree today.
    """
    manifests = head_manifests(config)
    heads = {h.name: h for h in config.box.heads}
    if head is None:
        knowing = [name for name, manifest in manifests.items() if manifest.people]
        if len(knowing) != 1:
            found = f"{len(knowing)} heads recognize a person ({', '.join(knowing)})" if knowing else "no head does"
            raise ConfigError(
                f"{config.path}: {found}, expected one, or --head NAME; facefleet-convert train-student --pictures "
                "makes a bundle that recognizes a person"
            )
        head = knowing[0]
    if head not in heads:
        raise ConfigError(f"{config.path}: no head {head!r}, expected one of {', '.join(heads) or 'none'}")
    if head not in manifests:
        raise ConfigError(f'{config.path}: the bundle of head {head} cannot be read; run "facefleet-edge check"')
    people = manifests[head].people
    if not people:
        raise ConfigError(
            f"{config.path}: head {head} recognizes nobody (its labels are {', '.join(manifests[head].labels)}), "
            "expected one whose bundle says whom, in `identifies`"
        )
    if label is None and len(people) > 1:
        raise ConfigError(f"{config.path}: head {head} recognizes {', '.join(people)}; say whom: --label LABEL")
    label = people[0] if label is None else label
    if label not in people:
        raise ConfigError(f"{config.path}: head {head} recognizes no {label!r}, expected one of {', '.join(people)}")
    require_consents(config, {head: manifests[head]}, today)
    return Person(heads[head], label, heads[head].consent[label].until)
