"""P39 over HTTPS: a bundle is fetched from a server that the fleet's own authority vouches for, and from no other."""

import hashlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.ca import authority
from bridge.ca.authority import Authority
from edge.config import load_box
from edge.flash.offers import CHUNK_BYTES, OfferError, Offers, fetch
from edge.flash.spool import take_spool
from edge.wire import Offer
from tests.broker import free_port
from tests.edge.flash.desk import Box, Desk
from tests.edge.flash.test_offers import spooled


class Server:
    """An HTTPS server with a certificate of an authority of its own; it counts what it was made to send."""

    def __init__(self, folder: Path, host: str) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.sent_bytes = 0
        self.asked: list[str] = []
        self.ca = folder / "ca" / "ca.pem"
        Authority.make(folder / "ca", [host], 1, folder / "tls", authority.now())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls/broker.pem", folder / "tls/broker.key")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()

    def offer(self, path: Path, counter: int, **changes: Any) -> Offer:
        """Serve a file and return an offer of it."""
        data = path.read_bytes()
        self.files[f"/{path.name}"] = data
        said = {"url": f"{self.url}/{path.name}", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return Offer(**(said | {"counter": counter} | changes))

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if target := server.redirects.get(self.path):
                    self.send_response(302)
                    self.send_header("Location", target)
                    self.end_headers()
                    return
                data = server.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.end_headers()
                try:
                    for start in range(0, len(data or b""), 1 << 16):
                        server.sent_bytes += self.wfile.write((data or b"")[start : start + (1 << 16)])
                except OSError:
                    return  # the other side has had enough

            def log_message(self, *_: object) -> None:
                return

        return Handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (folder := tmp_path / "server").mkdir()
    with Server(folder, "127.0.0.1").running() as running:
        yield running


@pytest.fixture
def box(desk: Desk, box: Box) -> Box:
    box.updater.apply(desk.parcel(1))
    return box


def refused(offer: Offer, box: Box, ca: Path | None) -> str:
    """Fetch what must not be had; return why."""
    with pytest.raises(OfferError) as error:
        fetch(offer, box.root, threading.Event(), ca)
    assert spooled(box) == []
    return str(error.value)


def test_an_offered_bundle_comes_over_https_and_is_taken(desk: Desk, box: Box, server: Server) -> None:
    fetch(server.offer(desk.made(2, presence_s=30).path, 2), box.root, threading.Event(), server.ca)
    assert spooled(box) == ["2.ffbundle"]
    ((_, result),) = list(take_spool(box.updater))
    assert getattr(result, "outcome", result) == "committed"
    assert box.running() == 2


def test_a_redirect_to_another_https_address_is_followed(desk: Desk, box: Box, server: Server) -> None:
    offer = server.offer(desk.made(2).path, 2)
    server.redirects["/moved"] = offer.url
    moved = Offer(f"{server.url}/moved", offer.sha256, offer.bytes, 2)
    fetch(moved, box.root, threading.Event(), server.ca)
    assert spooled(box) == ["2.ffbundle"]


def test_a_server_nobody_vouches_for_is_refused(desk: Desk, box: Box, server: Server) -> None:
    said = refused(server.offer(desk.made(2).path, 2), box, None)
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "the next try comes by itself" in said
    assert server.asked == [], "nothing was asked of it"


def test_a_server_with_the_certificate_of_another_host_is_refused(desk: Desk, box: Box, tmp_path: Path) -> None:
    (folder := tmp_path / "elsewhere").mkdir()
    with Server(folder, "elsewhere.example").running() as other:
        said = refused(other.offer(desk.made(2).path, 2), box, other.ca)
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said
    assert other.asked == []


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_a_redirect_away_from_https_is_refused(scheme: str, desk: Desk, box: Box, server: Server) -> None:
    offer = server.offer(desk.made(2).path, 2, url=f"{server.url}/moved")
    server.redirects["/moved"] = f"{scheme}://127.0.0.1:{free_port()}/2.ffbundle"
    said = refused(offer, box, server.ca)
    if scheme == "file":
        assert "HTTP 302" in said, "urllib follows it to no file by itself"
    else:
        assert f"redirected to {scheme}://127.0.0.1" in said
        assert "expected https" in said


def test_more_bytes_than_were_offered_are_not_even_fetched(desk: Desk, box: Box, server: Server) -> None:
    offer = server.offer(desk.made(2).path, 2)
    server.files["/2.ffbundle"] += bytes(64 << 20)
    assert "holds something else than was offered" in refused(offer, box, server.ca)
    assert server.sent_bytes < offer.bytes + 16 * CHUNK_BYTES, "what buffers hold, and not all of it"


def test_other_bytes_than_were_offered_are_refused(desk: Desk, box: Box, server: Server) -> None:
    offer = server.offer(desk.made(2).path, 2)
    served = server.files["/2.ffbundle"]
    server.files["/2.ffbundle"] = served[:-1] + bytes([served[-1] ^ 1])
    assert "holds something else than was offered" in refused(offer, box, server.ca)
    server.files["/2.ffbundle"] = served[:-1]
    assert "holds something else than was offered" in refused(offer, box, server.ca)


def test_a_bundle_that_is_gone_is_named(desk: Desk, box: Box, server: Server) -> None:
    offer = server.offer(desk.made(2).path, 2, url=f"{server.url}/gone?token=secret")
    said = refused(offer, box, server.ca)
    assert f"{server.url}/gone cannot be fetched (HTTP 404" in said
    assert "secret" not in said


def test_a_boxs_downloads_believe_the_authority_its_config_names(desk: Desk, box: Box, tmp_path: Path) -> None:
    Authority.make(tmp_path / "fleet", ["localhost"], 1, tmp_path / "fleet-broker", authority.now())
    (desk.folder / "ca.pem").write_bytes((tmp_path / "fleet/ca.pem").read_bytes())
    box.updater.apply(desk.parcel(3, mqtt={"port": free_port(), "tls": {"ca": "ca.pem"}}))
    config = load_box(box.slots.current / "config.yaml")
    assert Offers(config)._ca == config.base / "credentials/ca.pem"
