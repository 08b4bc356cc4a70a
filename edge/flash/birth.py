"""Wait until a flashed box shows itself at the broker: its birth names the config that was flashed."""

import queue
import secrets
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from edge.config import TlsFiles, load_box
from edge.errors import FlashError
from edge.link import Link, Message
from edge.publish.publisher import publisher_settings
from edge.wire import BoxState, topic


def wait_for_birth(config_path: Path, digest: str, timeout_s: float, reader: Path | None = None) -> BoxState:
    """Return the first birth of a box with this config digest.

    Args:
        config_path: the config on the desk, for broker and credentials.
        digest: of the config as it lies on the box.
        timeout_s: how long to wait.
        reader: folder with the certificate of a reader, for a box whose own is only on the box.

    Raises:
        FlashError: none came.
    """
    config = load_box(config_path)
    files = _reader(reader) if reader else config.tls_files()
    name = topic(config.box.site, config.box.box, "state")
    settings = replace(
        publisher_settings(config, 1).link,
        client_id=f"facefleet-flash-{secrets.token_hex(4)}",
        will=None,
        ca=files.ca if files else None,
        cert=files.cert if files else None,
        key=files.key if files else None,
    )
    heard: queue.SimpleQueue[Message | str] = queue.SimpleQueue()
    link = Link(
        settings,
        on_message=heard.put,
        on_up=lambda *_: None,
        on_down=heard.put,
        subscriptions=[(name, 1)],
    )
    link.start()
    last, give_up_s = "nothing was heard", time.monotonic() + timeout_s
    try:
        while (left_s := give_up_s - time.monotonic()) > 0:
            try:
                said = heard.get(timeout=min(left_s, 1.0))
            except queue.Empty:
                link.check()
                continue
            if isinstance(said, str):
                last = f"broker {settings.host}:{settings.port}: {said}"
                continue
            try:
                state = msgspec.json.decode(said.payload, type=BoxState)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if state.state == "online" and state.config_digest == digest:
                return state
            last = f"{config.box.site}/{config.box.box} is {state.state} with config {state.config_digest or 'unknown'}"
    finally:
        link.stop()
    raise FlashError(
        f"no birth with config {digest} within {timeout_s:g} s ({last}); "
        "is the card in the box, is the box on, does it reach the broker?"
    )


def _reader(folder: Path) -> TlsFiles:
    """Return the files that `ca enroll reader:NAME --out` wrote."""
    keys = sorted(folder.glob("*.key"))
    if len(keys) != 1 or not (folder / "ca.pem").is_file():
        raise FlashError(f'{folder} holds {len(keys)} keys, expected the one that "ca enroll reader:NAME --out" wrote')
    return TlsFiles(folder / "ca.pem", keys[0].with_suffix(".pem"), keys[0])
