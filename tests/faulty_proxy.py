"""An HTTP proxy on the loopback interface that passes requests on to a service, or fails them as a test says."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

_HOP_HEADERS = ("host", "connection", "transfer-encoding", "content-length", "server", "date")


@dataclass(frozen=True)
class Refuse:
    """An error answer in the XML that cloud services send."""

    status: int
    code: str


# `drop`: the request does not reach the service. `lose`: it does, and its answer is lost; `half`: half of its body is.
Fault = Refuse | Literal["drop", "lose", "half"]
Rule = Callable[[str, str], Fault | None]
"""From a request's method and path with query to its fault; None passes it on."""
Rewrite = Callable[[str, str, dict[str, str]], tuple[str, str]]
"""From a request's method, path with query and headers to the method and path that the service gets."""


@dataclass
class Proxy:
    """The proxy's address, its present rule, and the requests so far as `METHOD PATH`."""

    upstream: int | None
    rewrite: Rewrite = lambda method, path, headers: (method, path)
    port: int = 0
    rule: Rule = lambda method, path: None
    requests: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def faulty_proxy(upstream: int | None = None, rewrite: Rewrite | None = None) -> Iterator[Proxy]:
    """A proxy in front of the service at a port of this machine; with None it must refuse or drop every request."""
    proxy = Proxy(upstream) if rewrite is None else Proxy(upstream, rewrite)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            proxy.requests.append(f"{self.command} {self.path}")
            fault = proxy.rule(self.command, self.path)
            if isinstance(fault, Refuse):
                text = f"<Error><Code>{fault.code}</Code><Message>The message.</Message></Error>"
                self._answer(fault.status, [], text.encode())
                return
            if fault != "drop":
                assert proxy.upstream is not None, f"no rule for {self.command} {self.path}"
                connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
                connection.request(*proxy.rewrite(self.command, self.path, headers), body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if fault is None or fault == "half":
                    self._answer(answer.status, answer.getheaders(), content, cut=fault == "half")
            if fault is not None:
                self.close_connection = True

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            self.send_response(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() not in _HOP_HEADERS:
                    self.send_header(name, value)
                elif name.lower() == "content-length" and self.command == "HEAD":
                    length = value
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    proxy.port = server.server_port
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
