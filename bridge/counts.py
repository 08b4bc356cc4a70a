"""What went through a bridge, for its log and for tests."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counts:
    """What went through since the start; for the log and for tests."""

    batches: int = 0
    inserted: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    quarantined: int = 0
    unknown_vocabulary: int = 0
    erased: int = 0  # came too late: of a time that was erased
    states: int = 0
    health: int = 0
    acks: int = 0
    malformed: int = 0  # states and health; a malformed batch is a dead letter
    misaddressed: int = 0  # on a topic with an id that no box may have
    turned_away: int = 0
    failures: int = 0  # of transactions; each was tried again

    def __str__(self) -> str:
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name))
