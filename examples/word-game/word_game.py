"""A word game for two: each begins with the last letter of the other's word. python word_game.py NAME [PARTNER]"""

import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request

RELAY = os.environ.get("RELAY", "http://127.0.0.1:3000")


def ask(call, **body):
    """One request. Whatever failed on its way is asked again: the relay does nothing twice."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{RELAY}/v1/turn/{call}", json.dumps(body).encode(), headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503):  # those mean: again, in a moment
                raise SystemExit("the game is over: " + json.load(error)["Error"][1]) from None
        except OSError:
            print("the relay cannot be reached; trying again")
        time.sleep(1)


def listen(key, words, after=0):
    """Fetch the partner's words as they come. This also tells the relay that we are here while we think."""
    try:
        while True:
            answer = ask("exchange", key=key, after=after, wait=10)
            after = answer["after"]
            for word in answer["updates"]:
                words.put(word)
    except SystemExit as end:
        words.put(end)


name, partner = [*sys.argv[1:3], None][:2]
key = ask("register", name=name, partner=partner)["key"]
while (game := ask("play", key=key, wait=20))["state"] != "playing":
    print("waiting for", partner or "anybody", flush=True)
theirs, said, word = queue.Queue(), [], " "
threading.Thread(target=listen, args=(game["key"], theirs), daemon=True).start()
while word:
    mine, first = len(said) % 2 == game["player"], said[-1][-1] if said else ""
    if mine:
        word = input(f"your word with {first or 'any letter'} (empty: give up): ").strip().lower()
        while word and (not word.isalpha() or word in said or not word.startswith(first)):
            word = input("that does not go; your word: ").strip().lower()
        ask("exchange", key=game["key"], number=len(said) // 2, data=word)
    elif isinstance(word := theirs.get(), SystemExit):
        raise word
    print(f"{name if mine else game['partner']!a}: {word!a}", flush=True)
    said.append(word)
print(f"{len(said) - 1} words. You {'lose.' if mine else 'win!'}")
