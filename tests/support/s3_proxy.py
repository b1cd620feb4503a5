"""A proxy before the S3 server that notes the requests and answers some of them itself."""

import contextlib
import http.client
import http.server
import socket
import threading
import uuid
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from tests.support.servers import soon


class Proxy:
    """Stands before the S3 server: notes the requests, and answers some of them itself.

    Requests pass one by one: moto looks at a condition (If-Match) and stores in two steps, between
    which another request may come.

    Attributes:
        seen: method and path of each request.
        keys: the Authorization header of each request.
        rule: called with method and path; a number is the answer, None passes the request on.
    """

    def __init__(self, s3_uri: str) -> None:
        self.seen: list[str] = []
        self.keys: list[str] = []
        self.one_by_one = threading.Lock()
        self.rule: Callable[[str, str], int | None] = lambda method, path: None
        self.server: http.server.ThreadingHTTPServer | None = None
        self.connections: list[socket.socket] = []
        self.behind = parse_qs(urlsplit(s3_uri).query)["endpoint_override"][0]
        self.port = 0
        self.start()
        self.prefix = f"bucket/{uuid.uuid4().hex}"
        self.uri = f"s3://{self.prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def start(self) -> None:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = b""
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append(f"{self.command} {self.path}")
                proxy.keys.append(self.headers.get("Authorization", ""))
                status = proxy.rule(self.command, self.path)
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                hop = ("transfer-encoding", "expect", "content-length")
                headers = {
                    key: value for key, value in self.headers.items() if key.lower() not in hop
                }
                headers["Content-Length"] = str(len(body))
                with proxy.one_by_one:
                    behind = http.client.HTTPConnection(proxy.behind)
                    behind.request(self.command, self.path, body, headers)
                    answer = behind.getresponse()
                    data = answer.read()
                    behind.close()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in (
                        "transfer-encoding",
                        "connection",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(key, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def setup(self) -> None:
                super().setup()
                proxy.connections.append(self.connection)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *args: object) -> None:
                pass

        place = ("127.0.0.1", self.port)  # of a free port at first, then of that in the URI
        self.server = soon(lambda: http.server.ThreadingHTTPServer(place, Handler))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        while self.connections:  # those kept alive would go on being served
            with contextlib.suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)
