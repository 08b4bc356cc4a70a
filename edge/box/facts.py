"""What the machine says about itself: temperature, memory, disk, boot. Each is None where it cannot be known."""

import hashlib
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

PROC = Path("/proc")
SYS = Path("/sys")


def boot_id() -> str | None:
    """Return the kernel's random id of this boot."""
    return _text(PROC / "sys/kernel/random/boot_id")


def machine_id() -> str:
    """Return a name of this machine that cannot be turned back into its id (machine-id(5) asks for that)."""
    raw = _text(Path("/etc/machine-id")) or _text(PROC / "sys/kernel/random/boot_id") or "unknown"
    return hashlib.sha256(b"facefleet" + raw.encode()).hexdigest()[:16]


def temperature_c() -> float | None:
    """Return the hottest thermal zone, °C."""
    zones = [_text(p) for p in SYS.glob("class/thermal/thermal_zone*/temp")]
    degrees = [int(z) / 1000 for z in zones if z and z.lstrip("-").isdecimal()]
    return max(degrees, default=None)


def throttled() -> bool | None:
    """Tell whether the CPU has been slowed down for heat since boot."""
    counts = [_text(p) for p in SYS.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    known = [int(c) for c in counts if c and c.isdecimal()]
    return any(known) if known else None


def rss_bytes() -> int | None:
    """Return the resident memory of this process."""
    statm = _text(PROC / "self/statm")
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm else None


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory this process has had."""
    for line in (_text(PROC / "self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def disk_free_bytes(folder: Path) -> int | None:
    """Return the space left for the state folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def certificate_days(path: Path) -> float | None:
    """Return how long a PEM certificate is still good, in days; negative when it has expired."""
    from cryptography import x509  # only where there is a certificate: it costs memory

    try:
        end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None
    return round((end - datetime.now(UTC)).total_seconds() / 86400, 2)


def cpu_name() -> str:
    """Return the processor's model name."""
    for line in (_text(PROC / "cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def count_boot(state_dir: Path) -> int:
    """Return how many boots this state folder has seen; a restart of the process alone does not count."""
    file = state_dir / "boots"
    count, last = 0, ""
    if (text := _text(file)) and len(parts := text.split()) == 2 and parts[0].isdecimal():
        count, last = int(parts[0]), parts[1]
    now = boot_id() or "unknown"
    if now != last:
        count += 1
        aside = file.with_suffix(".new")
        try:
            aside.write_text(f"{count} {now}\n")
            aside.replace(file)
        except OSError as error:  # a full disk must not keep a box from starting
            log.warning("%s was not written: %s", file, error)
    return count


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
