"""Secrets are fed into every way a flash or a check can fail; whatever is printed, logged or written is searched."""

import base64
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.box.logs import JournalSocket, Sparing, _plain
from edge.cli import main
from edge.errors import EdgeError
from edge.flash import offers
from edge.flash.parcel import read_parcel, write_header
from edge.flash.spool import take_spool
from edge.flash.updater import Parcel
from edge.wire import Offer
from tests.edge.flash.desk import Box, Desk

SECRETS = {
    "door": "rtsp-Tu7hunter2", "broker": "mqtt-Bx9swordfish", "page": "token-Qz5opensesame", "url": "query-Ml3letmein",
}  # fmt: skip


@pytest.fixture
def outlets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], dict[str, bytes]]]:
    """Return what collects everything that came out: streams, log lines of both kinds, files of the box."""
    lines, journal = io.StringIO(), tmp_path / "journal"
    plain = _plain()
    assert isinstance(plain, logging.StreamHandler)
    plain.setStream(lines)
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(journal))
        receiver.setblocking(False)
        root = logging.getLogger()
        handlers = [Sparing(plain), Sparing(JournalSocket(journal))]
        level, before = root.level, list(root.handlers)
        root.setLevel(logging.DEBUG)
        for handler in handlers:
            root.addHandler(handler)

        def collect() -> dict[str, bytes]:
            said = capsys.readouterr()
            out = {"standard output": said.out.encode(), "standard error": said.err.encode()}
            out["log lines"] = lines.getvalue().encode()
            datagrams = []
            try:
                while True:
                    datagrams.append(receiver.recv(1 << 17))
            except BlockingIOError:
                out["journal"] = b"\n".join(datagrams)
            for path in (tmp_path / "box").rglob("*"):
                if path.is_file() and path.parent.name != "credentials":
                    out[str(path)] = path.read_bytes()
            return out

        yield collect
        root.handlers = before  # `apply` sets up handlers of its own
        for handler in handlers:
            handler.close()
        root.setLevel(level)
        logging.raiseExceptions = True


def search(out: dict[str, bytes], *more: str) -> None:
    """Fail where a secret is found, plain or in base64."""
    for name, secret in (SECRETS | dict(enumerate(more))).items():
        forms = [secret.encode(), base64.b64encode(secret.encode())]
        leaks = [where for where, data in out.items() for form in forms if re.search(re.escape(form), data, re.I)]
        assert not leaks, f"the secret {name} came out in {leaks}: {[out[where][-600:] for where in leaks]}"


CAMERA = {"id": "door", "detector": "tiny", "source": {"uri": "rtsp://127.0.0.1:1/door"}}


def camera(**source: Any) -> dict[str, Any]:
    return {"cameras": [CAMERA | {"source": {"uri": "rtsp://127.0.0.1:1/door"} | source}]}


@pytest.mark.parametrize("verb", ["check", "flash", "bundle"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(camera(uri=f"rtsp://anna:{SECRETS['door']}@127.0.0.1:1/door"), id="password in the address"),
        pytest.param(camera(uri=f"rtsp://:{SECRETS['door']}@127.0.0.1:99999/door"), id="in an address that is none"),
        pytest.param(camera(uri=f"http://127.0.0.1:1/v?user=a&password={SECRETS['url']}"), id="password in the query"),
        pytest.param(camera(user="anna", password=SECRETS["door"]), id="inline password"),
        pytest.param(camera(password={"credential": SECRETS["door"], "mode": 1}), id="unknown key beside it"),
        pytest.param({"mqtt": {"user": "box", "password": SECRETS["broker"]}}, id="broker's password inline"),
        pytest.param({"mqtt": {"user": "box", "password": {"value": SECRETS["broker"]}}}, id="with a wrong key"),
        pytest.param({"mqtt": {"user": "box", "password": [SECRETS["broker"]]}}, id="in a list"),
        pytest.param({"preview": {"enabled": True, "token": SECRETS["page"]}}, id="inline token"),
        pytest.param({"preview": {"enabled": True, "token": {"credential": {"a": SECRETS["page"]}}}}, id="nested"),
        pytest.param({"password": SECRETS["broker"]}, id="where no password belongs"),
    ],
)
def test_a_config_with_a_secret_in_it_is_refused_without_saying_it(
    verb: str, changes: dict[str, Any], desk: Desk, tmp_path: Path, outlets: Callable[[], dict[str, bytes]]
) -> None:
    config = str(desk.write("secret.yaml", **changes))
    card = tmp_path / "box"
    card.mkdir()
    words = {
        "check": ["check", config],
        "flash": ["flash", config, str(card), "--yes", "--key", str(desk.key)],
        "bundle": ["bundle", "build", config, "--key", str(desk.key)],
    }[verb]
    assert main(words) == 2
    out = outlets()
    assert b"secret.yaml" in out["standard error"], out
    search(out)


def test_yaml_that_breaks_at_a_secret_does_not_show_the_line(
    desk: Desk, outlets: Callable[[], dict[str, bytes]]
) -> None:
    for text in (
        f"mqtt:\n  password: '{SECRETS['broker']}\n",
        f"mqtt: {{password: {SECRETS['broker']}: }}\n",
        f"mqtt:\n  password: &{SECRETS['broker']} *{SECRETS['broker']}x\n",
        f"mqtt:\n\tpassword: {SECRETS['broker']}\n",
        f"mqtt:\n  password: !!{SECRETS['broker']} x\n",
    ):
        path = desk.folder / "broken.yaml"
        path.write_text(text)
        assert main(["check", str(path)]) == 2
    search(outlets())


WITH_SECRETS: dict[str, Any] = camera(user="anna", password={"credential": "door"}) | {
    "mqtt": {"user": "box", "password": {"credential": "broker"}},
    "preview": {"enabled": True, "token": {"credential": "page"}},
}


def test_a_flash_of_secrets_says_their_names_and_not_them(
    desk: Desk, tmp_path: Path, outlets: Callable[[], dict[str, bytes]]
) -> None:
    for name in ("door", "broker", "page"):
        desk.secret(name, SECRETS[name])
    config = str(desk.write("box.yaml", **WITH_SECRETS))
    card = tmp_path / "box"
    card.mkdir()
    words = ["flash", config, str(card), "--key", str(desk.key)]
    assert main([*words, "--dry-run"]) == 0
    assert main([*words, "--yes"]) == 0
    assert main(["apply", "--status", "--root", str(card / "var/lib/facefleet")]) == 0
    (desk.folder / "credentials" / "door").chmod(0o644)
    assert main([*words, "--yes"]) == 2
    out = outlets()
    assert b"secrets written anew: broker, door, page" in out["standard output"]
    assert b"can be read by others" in out["standard error"]
    assert len(list(card.rglob("credentials/*"))) == 3, "they are on the card, and searched for everywhere else"
    search(out)


def test_a_parcel_that_is_damaged_or_refused_says_nothing_of_what_it_carries(
    desk: Desk, box: Box, outlets: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = write_header({name: value.encode() for name, value in SECRETS.items()}, "")
    torn = header.replace(b'"schema":1', b'"schema":"one"').replace(b'"adopt":""', b'"adopt":7')
    damaged = [header[:-20] + b"\n", header.replace(b'="', b'"'), torn, header.replace(b"{", b"[", 1)]
    for data in damaged:
        with pytest.raises(EdgeError) as raised:
            read_parcel(io.BytesIO(data))
        assert all(secret not in str(raised.value) for secret in SECRETS.values())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["apply", "--stdin", "--json", "--root", str(box.root)]) == 1
    for name in ("door", "broker", "page"):
        desk.secret(name, SECRETS[name])
    box.updater.apply(desk.parcel(1, **WITH_SECRETS))
    bad = desk.made(2, **WITH_SECRETS).path.read_bytes()
    for bundle in (bad[:-5], b"no bundle", bad[:-1] + b"x"):
        with pytest.raises(EdgeError):
            box.updater.apply(Parcel(io.BytesIO(bundle), {name: v.encode() for name, v in SECRETS.items()}))
    odd = {f"../{name}": value.encode() for name, value in SECRETS.items()}
    box.updater.apply(Parcel(io.BytesIO(desk.made(3, **WITH_SECRETS).path.read_bytes()), odd))
    too_many = {f"{name}-{i}": value.encode() for name, value in SECRETS.items() for i in range(40)}
    with pytest.raises(EdgeError, match="at most 64 secrets"):
        box.updater.apply(Parcel(io.BytesIO(desk.made(4, **WITH_SECRETS).path.read_bytes()), too_many))
    search(outlets())


def test_a_rollback_tells_its_reason_without_the_passwords_in_it(
    desk: Desk, box: Box, outlets: Callable[[], dict[str, bytes]]
) -> None:
    """Foreign texts come in through a check that fails; the log is the last net."""
    for name in ("door", "broker", "page"):
        desk.secret(name, SECRETS[name])
    box.updater.apply(desk.parcel(1, **WITH_SECRETS))

    def fails(*_: object) -> None:
        raise ValueError(f"ffmpeg: rtsp://anna:{SECRETS['door']}@127.0.0.1/door: refused")

    box.updater.check = fails
    try:
        box.updater.apply(desk.parcel(2, **WITH_SECRETS))
    except ValueError:
        logging.getLogger("edge").exception("a bug")
    out = outlets()
    assert b"a bug" in out["log lines"]
    assert b"a bug" in out["journal"]
    search(out)


def test_keys_are_never_shown(desk: Desk, tmp_path: Path, outlets: Callable[[], dict[str, bytes]]) -> None:
    private = desk.key.read_text()
    inside = "".join(private.splitlines()[1:-1])
    config = str(desk.write("box.yaml"))
    assert main(["keys", "show", str(desk.key)]) == 0
    desk.key.chmod(0o644)
    assert main(["bundle", "build", config, "--key", str(desk.key)]) == 1
    for number, text in enumerate((private[:-40], private.replace("-----BEGIN", "----BEGIN"), inside)):
        damaged = tmp_path / f"damaged-{number}.key"
        damaged.write_text(text)
        damaged.chmod(0o600)
        assert main(["bundle", "build", config, "--key", str(damaged)]) == 1
        assert main(["bundle", "build", config, "--key", str(desk.key), "--trust", str(damaged)]) == 1
        assert main(["certificate", "accept", str(damaged), "--folder", str(tmp_path / "box" / "tls")]) == 1
    out = outlets()
    assert b"can be read by others" in out["standard error"] or b"0600" in out["standard error"]
    search(out, inside[-24:], inside[:40][-20:])


def test_an_offers_address_is_told_without_user_password_and_query(
    box: Box, desk: Desk, outlets: Callable[[], dict[str, bytes]]
) -> None:
    import threading

    box.updater.apply(desk.parcel(1))
    for url in (
        f"https://anna:{SECRETS['door']}@127.0.0.1:1/b?token={SECRETS['url']}",
        f"file:///nonexistent/{'x'}?{SECRETS['url']}",
        f"ftp://anna:{SECRETS['door']}@127.0.0.1/b",
        f"https://anna:{SECRETS['door']}@[broken/b?{SECRETS['url']}",
        f"https://127.0.0.1:port/{'b'}?{SECRETS['url']}",
    ):
        offer = Offer(counter=5, url=url, sha256="0" * 64, bytes=100)
        try:
            offers.fetch(offer, box.root, threading.Event())
        except offers.OfferError as error:
            logging.getLogger("edge").warning("offer: %s", error)
        except ValueError:
            logging.getLogger("edge").exception("an address that is none")
    search(outlets())


def test_a_spool_of_rubbish_says_what_it_is_and_not_what_is_in_it(
    box: Box, desk: Desk, outlets: Callable[[], dict[str, bytes]]
) -> None:
    box.updater.apply(desk.parcel(1))
    for number, secret in enumerate(SECRETS.values()):
        (box.slots.spool / f"{number}.ffbundle").write_bytes(f"my notes: password {secret}".encode())
    taken = dict(take_spool(box.updater))
    out = outlets() | {name: str(came).encode() for name, came in taken.items()}
    search(out)
    assert len(taken) == len(SECRETS)
