"""What Mosquitto reads: its listener with TLS and certificates as identities, and who may use which topic. Pure."""

from collections.abc import Iterable
from pathlib import Path

from bridge.ca.names import ClaimName, Name

CONF, ACL = "facefleet.conf", "facefleet.acl"
CA, CRL, CERTIFICATE, KEY = "ca.pem", "crl.pem", "broker.pem", "broker.key"


def configuration(folder: Path, port: int) -> str:
    """Return a Mosquitto config, to be included or used alone.

    Args:
        folder: where the other files lie, as the broker sees it.
        port: of the listener.
    """
    return f"""\
# Written by `facefleet-bridge ca`; it will be written again. Include it: Debian reads /etc/mosquitto/conf.d/*.conf.
listener {port}
cafile {folder / CA}
certfile {folder / CERTIFICATE}
keyfile {folder / KEY}
crlfile {folder / CRL}
tls_version tlsv1.2

# Nobody without a certificate of this fleet; its common name is the user name that the rules below go by.
allow_anonymous false
require_certificate true
use_identity_as_username true
acl_file {folder / ACL}

# As in config/mosquitto.conf, where each number is explained.
max_inflight_messages 1000
max_queued_messages 20000
message_size_limit 1048576
set_tcp_nodelay true
"""


def rules(members: Iterable[Name | ClaimName]) -> str:
    """Return the access list. Without a `user` line nobody may anything, and client ids mean nothing here.

    A box that finds a twin listens under another client id; its certificate, and so its rights, stay the same.
    """
    lines = ["# Written by `facefleet-bridge ca`. Whoever is not here may do nothing, with whatever certificate."]
    for name in sorted(members, key=str):
        lines += ["", f"# {name}", f"user {name.user}"]
        lines += [f"topic {way} {topic}" for way, topic in name.topics()]
    return "\n".join(lines) + "\n"
