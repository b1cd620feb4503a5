"""The page served on this machine alone, from memory."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from typing import Any

from mnist_ray.draw.build import page_of
from mnist_ray.errors import SettingsError

# The worker and the runtime's module are blobs, made of the texts in files.js.
POLICY = (
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src blob:; "
    "style-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def serve(where: str, port: int = 0) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; prints its address.

    Args:
        where: An ONNX file or a run's directory, local or s3://…
        port: 0 takes any that is free.

    Raises:
        SettingsError: The port cannot be listened on, or there is no model.
    """
    if not 0 <= port <= 65535:
        raise SettingsError(
            f"--port: {port} is not allowed; expected 0 (any that is free) to 65535"
        )
    files = page_of(where)
    try:
        server = Server(files, port)
    except OSError as error:
        raise SettingsError(f"--port: {port} cannot be listened on: {error.strerror}") from error
    with server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Serves files from memory.

    Only requests that name this machine are answered: a page from elsewhere may have its own name
    resolve to 127.0.0.1, and would then read the model (DNS rebinding).
    """

    def __init__(self, files: dict[str, bytes], port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.files = files
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        if self.server_port == 80:  # browsers leave it out
            self.hosts |= {"127.0.0.1", "localhost"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that has stopped loading, in place of a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers a request with one of the server's files."""

    server: Server
    timeout = 10.0  # seconds for a request to arrive

    def do_GET(self) -> None:
        """A file, or 404; 403 if the request names another host."""
        files = self.server.files
        name = self.path.partition("?")[0].removeprefix("/") or "index.html"
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self.send_error(403)
        elif name not in files:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", guess_type(name)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(files[name])))
            # The next model may be served on the same port.
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(files[name])

    def end_headers(self) -> None:
        """Adds to every answer, errors included, the browser's restrictions."""
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
