"""A server of chats that bills what it answers: a line in a log, written before the answer is sent.

``python billing_server.py PORT LOG SETTINGS``; it imports nothing that takes time.

A line has the text, the number of the vote, the request's idempotency key and the tokens that are billed.
What has come in, billed or not yet, is a line each in ``LOG.received``.
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, LOG, SETTINGS = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
LOCK, SEEN = threading.Lock(), Counter()
FAULTS = ("429", "503", "500 come again", "502", "502 billed", "cut", "cut billed")


class Handler(BaseHTTPRequestHandler):
    """Names the label whose turn it is."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.headers["Authorization"].endswith("of-the-ledger"):
            return self.reply(401, {"error": {"message": "no such key"}})
        text = body["messages"][0]["content"].partition("\n")[0]
        number, vote = int(text.rpartition(" ")[2]), body.get("seed", 0)
        with LOCK, open(f"{LOG}.received", "a", encoding="utf-8") as log:
            log.write(f"{number}\n")
        time.sleep(SETTINGS.get("seconds_each", 0.0) * random.uniform(0.5, 1.5))
        if number in SETTINGS.get("slow", ()):
            time.sleep(SETTINGS["seconds"])
        if number in SETTINGS.get("long", ()):
            return self.reply(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
        fault = self.fault(number, vote)
        usage = self.usage(number, vote)
        if fault is None or fault.endswith("billed"):
            self.bill(text, vote, usage)
            time.sleep(SETTINGS.get("seconds_to_reply", 0.0))
        if fault is not None and fault.startswith("cut"):
            self.close_connection = True
            return None
        if fault is not None:
            return self.reply(int(fault[:3]), {"error": {"message": "come again"}}, again="again" in fault)
        said = {"role": "assistant", "content": ("earth", "fire", "sea")[number % 3]}
        if number in SETTINGS.get("silent", ()):
            said = {"role": "assistant", "content": None, "refusal": "no"} if number % 2 else said | {"content": "well"}
        counts = None if SETTINGS.get("silent_on_tokens") else usage
        return self.reply(200, ANSWER | {"choices": [CHOICE | {"message": said}], "usage": counts})

    def fault(self, number, vote):
        """What goes wrong with a request: of a seeded share of them the first attempts."""
        if SETTINGS.get("fault"):
            return SETTINGS["fault"]
        with LOCK:
            SEEN[number, vote] += 1
            attempt = SEEN[number, vote]
        chance = random.Random(f"{SETTINGS.get('seed')} {number} {vote} {attempt}")
        return chance.choice(FAULTS) if attempt < 3 and chance.random() < SETTINGS.get("faults", 0.0) else None

    def usage(self, number, vote):
        """Tokens of an answer, others for each."""
        read = SETTINGS.get("tokens_in") or 5 + 7 * number % 60
        wrote = 1 + (number + vote) % SETTINGS.get("tokens_out", 2)
        return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}

    def bill(self, text, vote, usage):
        line = [text, vote, self.headers["Idempotency-Key"], usage["prompt_tokens"], usage["completion_tokens"]]
        with LOCK, open(LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def reply(self, status, answer, *, again=False):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if again:
            self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


ANSWER = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
CHOICE = {"index": 0, "finish_reason": "stop"}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args):
        """A client that is gone is no error."""


Server(("127.0.0.1", PORT), Handler).serve_forever()
