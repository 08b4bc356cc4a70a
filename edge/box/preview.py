"""The live page of a box: each camera's annotated picture as MJPEG and a small status panel. Off unless enabled.

The pipeline only leaves its newest result here; drawing and JPEG happen in the viewer's thread, and only while
somebody looks, so that a page nobody opens costs nothing.
"""

import hmac
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import cv2

from edge.box.annotate import draw
from edge.config import LOOPBACK, Preview
from edge.errors import EdgeError
from edge.pipeline import Seen

log = logging.getLogger(__name__)

BOUNDARY = "frame"


class Shown:
    """The newest result of one camera. Its picture is nobody's to change any more: masks were painted before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: Seen | None = None
        self._version = 0
        self._times: list[float] = []

    def put(self, seen: Seen) -> None:
        """Leave the newest result of the camera."""
        with self._changed:
            self._seen = seen
            self._version += 1
            self._times = [*self._times[-29:], time.monotonic()]
            self._changed.notify_all()

    def next(self, after: int, timeout_s: float) -> tuple[int, Seen | None]:
        """Return a result newer than version `after`, or None when none comes in time."""
        with self._changed:
            if self._changed.wait_for(lambda: self._version > after, timeout_s):
                return self._version, self._seen
            return after, None

    @property
    def fps(self) -> float:
        """Return how many results came in a second lately."""
        times = self._times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a viewer that stopped reading must not keep the box from ending

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong with one viewer, without its request: it may carry the token."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # the viewer left
            log.warning("live page: a request failed: %r", error)


class _Server6(_Server):
    address_family = socket.AF_INET6


class LivePage:
    """The HTTP server of one box.

    Args:
        settings: Where to listen, picture size and rate.
        title: Site and box, for the headline.
        cameras: Names of the cameras, in order.
        status: Returns the current health as a JSON-like dictionary.
        token: What a viewer must present off loopback: `?token=…` once, then a cookie.
    """

    def __init__(
        self,
        settings: Preview,
        title: str,
        cameras: tuple[str, ...],
        status: Callable[[], dict[str, Any]],
        token: str | None = None,
    ) -> None:
        self.settings, self.title, self.status, self.token = settings, title, status, token
        self.shown = {name: Shown() for name in cameras}
        self.stopping = threading.Event()
        try:
            server = _Server6 if ":" in settings.host else _Server
            self._server = server((settings.host, settings.port), _handler(self))
        except OSError as error:
            raise EdgeError(
                f"live page cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
                "choose another preview.port, or 0 for a free one"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="live-page", daemon=True)

    def show(self, camera: str, seen: Seen) -> None:
        """Leave a camera's newest result; where faces are blurred only those in which somebody looked for faces."""
        if seen.searched or not self.settings.blurred:
            self.shown[camera].put(seen)

    @property
    def url(self) -> str:
        """Return the address to open, without the token."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def allowed(self, query: dict[str, list[str]], cookie: str, host: str) -> bool:
        """Tell whether a request may see the page.

        Without a token only who asks for this machine by its own name may: a foreign site that lets its name point to
        127.0.0.1 could otherwise read the page through a browser here.
        """
        if self.token is None:
            return not self.settings.loopback or host.rpartition(":")[0].strip("[]") in LOOPBACK or host in LOOPBACK
        try:
            kept = SimpleCookie(cookie).get("token")
        except CookieError:
            kept = None
        offered = [*query.get("token", []), *([kept.value] if kept else [])]
        return any(hmac.compare_digest(o.encode(), self.token.encode()) for o in offered)


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "facefleet"
        sys_version = ""

        def end_headers(self) -> None:
            """Keep other sites from showing our pictures as theirs, and caches from keeping any."""
            self.send_header("Cache-Control", "no-store")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.send_header("X-Content-Type-Options", "nosniff")
            super().end_headers()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if not page.allowed(query, self.headers.get("Cookie", ""), self.headers.get("Host", "")):
                wanted = "?token=... once" if page.token is not None else "to be asked for as localhost"
                self._send(HTTPStatus.FORBIDDEN, "text/plain", f"This page needs {wanted}.\n".encode())
            elif url.path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", _html(page).encode(), query)
            elif url.path == "/status.json":
                body = json.dumps(page.status() | {"shown_fps": {n: round(s.fps, 1) for n, s in page.shown.items()}})
                self._send(HTTPStatus.OK, "application/json", body.encode())
            elif url.path.startswith("/camera/") and (name := url.path.removeprefix("/camera/")) in page.shown:
                self._stream(page.shown[name], name)
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"Nothing here. Try /\n")

        def _send(self, code: HTTPStatus, kind: str, body: bytes, query: dict[str, list[str]] | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if page.token is not None and query and "token" in query:
                self.send_header("Set-Cookie", f"token={page.token}; HttpOnly; SameSite=Strict")
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, shown: Shown, name: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            version = 0
            while not page.stopping.is_set():
                version, seen = shown.next(version, 1.0)
                if seen is None:
                    continue
                picture = draw(
                    seen,
                    width=page.settings.width,
                    blur=page.settings.blurred,
                    title=f"{name}  {shown.fps:.1f} fps  {seen.people} here",
                )
                jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                page.stopping.wait(1 / page.settings.fps)

        def log_message(self, format: str, *args: object) -> None:
            """Keep requests out of the log: they may carry the token."""

    return Handler


def _html(page: LivePage) -> str:
    pictures = "".join(
        f'<figure><img src="/camera/{name}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name in page.shown
    )
    return PAGE.replace("{title}", page.title).replace("{pictures}", pictures)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>facefleet {title}</title>
<meta name="viewport" content="width=device-width">
<style>
body{margin:0;background:#12161c;color:#e6e9ee;font:15px/1.5 system-ui,sans-serif}
header{padding:14px 22px;border-bottom:1px solid #2a313c;display:flex;gap:14px;align-items:baseline}
h1{font-size:18px;margin:0}header span{color:#8b96a5}
main{display:flex;flex-wrap:wrap;gap:22px;padding:22px}
figure{margin:0;flex:2 1 560px}img{width:100%;border-radius:8px;background:#1c222b;min-height:240px}
figcaption{color:#8b96a5;margin-top:4px}aside{flex:1 1 260px}
table{border-collapse:collapse;width:100%}td{padding:5px 0;border-bottom:1px solid #232a34;vertical-align:top}
td:first-child{color:#8b96a5;padding-right:16px;white-space:nowrap}.ok{color:#78dc78}.bad{color:#f5a542}
</style>
<header><h1>facefleet</h1><span>{title}</span></header>
<main>{pictures}<aside><table id="s"><tr><td>status</td><td>…</td></tr></table></aside></main>
<script>
const row=(k,v,c)=>{const t=document.createElement('tr'),a=document.createElement('td'),b=document.createElement('td');
a.textContent=k;b.textContent=v;if(c)b.className=c;t.append(a,b);return t};
async function tick(){try{const h=await(await fetch('/status.json')).json(),t=document.createElement('tbody');
t.append(row('publisher',h.publisher??'–',h.publisher==='connected'?'ok':'bad'));
t.append(row('outbox',(h.outbox_events??0)+' events waiting'));
for(const[n,c]of Object.entries(h.cameras??{}))
t.append(row(n,`${c.state}, ${c.fps_processed??'–'} fps, ${c.tracks??0} here${c.error?' — '+c.error:''}`,
c.state==='streaming'?'ok':'bad'));
for(const[n,m]of Object.entries(h.models??{}))
t.append(row(n,`${m.device} ${m.artefact}, golden ${m.golden}`,m.golden==='ok'?'ok':'bad'));
t.append(row('memory',h.rss_bytes?(h.rss_bytes/1048576).toFixed(0)+' MB':'–'));
t.append(row('up',Math.round(h.uptime_s??0)+' s'));
document.getElementById('s').replaceChildren(t)}catch(e){}setTimeout(tick,1000)}tick();
</script></html>"""
