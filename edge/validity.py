"""Why a connection with certificates failed, as far as their dates and this machine's clock tell.

TLS says little: a broker's refusal of an expired certificate reaches a client as a lost connection.
"""

from datetime import UTC, datetime
from pathlib import Path


def explain(certificate: Path | None, authority: Path | None) -> str:
    """Return what is wrong with the dates of a client's certificate or its authority's, "" when nothing is known."""
    try:
        from cryptography import x509  # only once something failed: it costs memory
    except ImportError:
        return ""
    now = datetime.now(UTC)
    for path in (certificate, authority):
        try:
            found = x509.load_pem_x509_certificate(path.read_bytes()) if path else None
        except (OSError, ValueError):
            continue
        if found is None:
            continue
        if now < found.not_valid_before_utc:
            return (
                f"the clock here says {now:%Y-%m-%d %H:%M} UTC, and {path} begins on "
                f"{found.not_valid_before_utc:%Y-%m-%d}: no certificate is valid before NTP has set it"
            )
        if now > found.not_valid_after_utc:
            return (
                f"{path} ended on {found.not_valid_after_utc:%Y-%m-%d}, and the clock here says {now:%Y-%m-%d}: "
                "enroll anew, or set the clock"
            )
    return ""
