"""A local server that speaks the OpenAI protocol, as scripted: it replays, and it misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Script:
    """What it does with one request after the other (the last act is repeated); what it got."""

    acts: list[Act]
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def send(h: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    h.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        h.send_header(name.replace("_", "-"), value)
    h.send_header("Content-Length", str(len(body)))
    h.end_headers()
    h.wfile.write(body)


def reply(arguments: str, usage: Any = None, name: str = "propose") -> Act:
    """A call of a tool with these arguments, whatever they are."""
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    data = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": usage or {"prompt_tokens": 100, "completion_tokens": 10}}  # fmt: skip
    return lambda h: send(h, json.dumps(data).encode())


def propose(*derivations: Any) -> Act:
    """Derivations, each a list of steps after the first one of the parent's."""
    listed = [{"reason": "it is", "keep": 1, "steps": steps} for steps in derivations]
    return reply(json.dumps({"derivations": listed}))


def raw(body: bytes) -> Act:
    return lambda h: send(h, body)


def status(code: int, **headers: str) -> Act:
    return lambda h: send(h, b'{"error": {"message": "no"}}', code, **headers)


def hang(h: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def trickle(h: BaseHTTPRequestHandler) -> None:
    """A byte now and then, without end."""
    h.send_response(200)
    h.end_headers()
    for _ in range(30):
        h.wfile.write(b" ")
        h.wfile.flush()
        time.sleep(0.1)


def truncated(h: BaseHTTPRequestHandler) -> None:
    h.send_response(200)
    h.send_header("Content-Length", "1000")
    h.end_headers()
    h.wfile.write(b'{"choices": [')
    h.wfile.flush()
    h.close_connection = True
    h.connection.close()


def huge(h: BaseHTTPRequestHandler) -> None:
    send(h, b'{"choices": "' + b"x" * (3 << 20) + b'"}')


@contextmanager
def serving(*acts: Act) -> Iterator[Script]:
    script = Script(list(acts))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            script.requests.append(json.loads(self.rfile.read(length)))
            act = script.acts.pop(0) if len(script.acts) > 1 else script.acts[0]
            try:
                act(self)
            except (BrokenPipeError, ConnectionError, ValueError):  # the client gave up
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
