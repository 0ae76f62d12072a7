"""A server of chats that bills what it answers: it writes the text to a log, flushed, before the answer is sent.

``python billing_server.py PORT LOG SETTINGS``; it imports nothing that takes time.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, LOG, SETTINGS = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Names the label whose turn it is."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.headers["Authorization"].endswith("of-the-ledger"):
            return self.reply(401, {"error": {"message": "no such key"}})
        text = body["messages"][0]["content"].partition("\n")[0]
        number = int(text.rpartition(" ")[2])
        time.sleep(SETTINGS.get("seconds_each", 0.0))
        if number in SETTINGS.get("slow", ()):
            time.sleep(SETTINGS["seconds"])
        said = {"role": "assistant", "content": ("earth", "fire", "sea")[number % 3]}
        if number in SETTINGS.get("silent", ()):
            said = {"role": "assistant", "content": None, "refusal": "no"} if number % 2 else said | {"content": "well"}
        with LOCK, open(LOG, "a", encoding="utf-8") as log:
            log.write(text + "\n")
            log.flush()
            os.fsync(log.fileno())
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return self.reply(200, answer)

    def reply(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args):
        """A client that is gone is no error."""


Server(("127.0.0.1", PORT), Handler).serve_forever()
