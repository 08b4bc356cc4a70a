"""A person's leave to be recognized. Plain data and one question: which heads are off on a day? Time is an argument.

Stands in a box's config beside the head that recognizes somebody (`edge.config`); `edge.identity` asks for it where a
bundle says that it does.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from edge.strict_yaml import KeyMistake


class Consent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who agreed to be recognized, from which day to which (UTC, both included), and where that is written down.

    No more than needed: the paper with name and signature stays where `record` says, and none of this leaves the box.
    """

    who: Annotated[str, Meta(description="the person, as short as the record allows: a number will do")]
    given: Annotated[date, Meta(description="the day it was given")]
    until: Annotated[date, Meta(description="its last day")]
    record: Annotated[str, Meta(description="where the record is kept")]

    def __post_init__(self) -> None:
        wrong = []
        for key, what in (("who", "the person, or a number for her"), ("record", "where the record is kept")):
            if not str(getattr(self, key)).strip():
                wrong.append(KeyMistake(key, "empty", what))
        if self.until < self.given:
            wrong.append(KeyMistake("until", self.until, f"a day not before {self.given}, when it was given"))
        if wrong:
            raise ExceptionGroup("consent", wrong)

    def gap(self, today: date) -> tuple[str, str] | None:
        """Return why it does not hold on a day, as the key that says so and a clause; None where it holds."""
        if today < self.given:
            return "given", f"is given for {self.given} on"
        if today > self.until:
            return "until", f"ended on {self.until}"
        return None


class Consented(Protocol):
    """A head as its config has it."""

    @property
    def name(self) -> str: ...
    @property
    def consent(self) -> Mapping[str, Consent]: ...


def heads_off(heads: Iterable[Consented], today: date) -> dict[str, str]:
    """Return the heads that must be silent on a day, each with the reason; people are told by their label only.

    A head looks at every face to find its people, so one consent that does not hold puts out the whole head.
    """
    off = {}
    for head in heads:
        gaps = [f"the consent of {label!r} {gap[1]}" for label, c in head.consent.items() if (gap := c.gap(today))]
        if gaps:
            off[head.name] = ", ".join(gaps)
    return off
