"""The proposer `openai`: a language model behind any server of that protocol.

A reply is data: parsed, typed, applied and checked like a derivation from anywhere. What fails goes
back as feedback, a bounded number of times. Every request is counted against the budget before it
is made, by what it may cost at the most. Keys come from the environment (OPENAI_API_KEY) and are
written nowhere; each conversation is in the store.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from kir.agent.knowledge import Knowledge
from kir.agent.prompt import SYSTEM, Answer, feedback, memory_of, question, read_answer, tool
from kir.agent.proposer import Ask, Derivation, Proposal
from kir.agent.store import Store, Transcript
from kir.check import check_kernel
from kir.errors import KirError, MissingExtraError, UsageError
from kir.pipeline import is_scheduled, schedule

MAX_REPLY = 1 << 20
"""Bytes of a reply that are read; a longer one is not used."""
WAIT_AT_MOST = 60.0
"""Seconds between two tries, whatever a server's Retry-After says."""
REPLY_KEPT = 20_000


@dataclass(frozen=True)
class Settings:
    """`tokens` and `dollars` bound the whole search; prices are dollars for a million tokens.
    `seconds` bound one request, `tries` how often it is made, `rounds` the replies to one question.
    """

    model: str = "gpt-5-mini"
    base_url: str | None = None
    tokens: int = 500_000
    dollars: float = 2.0
    price_in: float = 0.25
    price_out: float = 2.0
    reply_tokens: int = 4_000
    seconds: float = 120.0
    tries: int = 4
    rounds: int = 3


class _Unusable(Exception):
    """A request that gave no reply to use; `wait` is how long a server asked us to wait. It is
    `final` where trying again cannot help."""

    def __init__(self, why: str, wait: float | None = None, *, final: bool = False) -> None:
        super().__init__(why)
        self.wait, self.final = wait, final


class Model:
    """Asks a model; `sleep` and `clock` are there for tests."""

    name = "openai"

    def __init__(
        self,
        store: Store,
        target: str = "cpu",
        settings: Settings | None = None,
        knowledge: Knowledge | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or Settings()
        self._store, self._target = store, target
        self._knowledge = knowledge or Knowledge()
        self._sleep, self._clock = sleep, clock
        self._client = _client(self.settings)
        self._tokens = 0
        self._dollars = 0.0
        self._counts = {"requests": 0.0, "rejected": 0.0, "failed": 0.0}
        self._stopped = False
        self._left: dict[tuple[int, ...], list[Proposal]] = {}

    def spent(self) -> Mapping[str, float]:
        return {"tokens": self._tokens, "dollars": round(self._dollars, 6), **self._counts}

    def propose(self, ask: Ask) -> Iterator[Proposal]:
        """What is left of earlier answers about these variants, then those of a conversation."""
        key = tuple(p.id for p in ask.parents)
        left = self._left.setdefault(key, [])
        while left:
            yield left.pop(0)
        left += self._converse(ask)
        while left:
            yield left.pop(0)

    def _converse(self, ask: Ask) -> list[Proposal]:
        """A question, and feedback where an answer has nothing that holds; all of it is stored."""
        memory = memory_of(ask)
        parent = ask.parents[0]
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(ask, self._target, self._knowledge, memory)},
        ]
        before = (self._tokens, self._dollars)
        good: list[Answer] = []
        outcome = "rejected"
        try:
            for _ in range(self.settings.rounds):
                reply = self._request(messages, ask)
                if reply is None:
                    outcome = "out of budget" if self._stopped else "no reply"
                    break
                good, bad = self._judge(reply, ask)
                self._counts["rejected"] += len(bad)
                messages.append({"role": "assistant", "content": json.dumps(reply)[:REPLY_KEPT]})
                if good:
                    outcome = "proposed"
                    break
                messages.append({"role": "user", "content": feedback(bad)})
        finally:
            self._store.add_transcript(
                Transcript(
                    ask.run,
                    parent.id,
                    self.name,
                    self.settings.model,
                    tuple(messages),
                    self._tokens - before[0],
                    self._dollars - before[1],
                    outcome,
                )
            )
        kind = "crossover" if len(ask.parents) > 1 else "step"
        told = {"model": self.settings.model, "memory": memory}
        return [Proposal(a.steps, kind, {**told, "reason": a.reason}) for a in good]

    def _judge(self, reply: Mapping[str, Any], ask: Ask) -> tuple[list[Answer], list[str]]:
        """What of a reply parses, type-checks and applies, and why the rest does not."""
        arguments = _call(reply)
        if arguments is None:
            return [], ["there was no call of the tool `propose`"]
        answers, bad = read_answer(arguments, ask.parents[0].steps)
        good = []
        for number, answer in enumerate(answers, 1):
            why = _refusal(ask, answer.steps)
            if why:
                bad.append(f"derivation {number}: {why}")
            else:
                good.append(answer)
        return good, bad

    def _request(self, messages: list[dict[str, Any]], ask: Ask) -> Mapping[str, Any] | None:
        """The model's message; None where the budget does not allow asking, or no try gave one."""
        random = Random(f"{ask.seed}:{self._counts['requests']}")
        size = sum(len(str(m["content"])) for m in messages) + len(json.dumps(tool()))
        most = size // 2, self.settings.reply_tokens  # a token is at least two characters or so
        for attempt in range(self.settings.tries):
            if self._stopped or not self._affordable(*most):
                self._stopped = True
                return None
            self._counts["requests"] += 1
            try:
                data = self._send(messages)
                self._charge(data.get("usage"), *most)
                return _message(data)
            except _Unusable as error:
                self._counts["failed"] += 1
                if error.final:
                    self._stopped = True
                    raise UsageError(
                        f"the model's server refuses: {error}",
                        hint="check --model, --base-url and OPENAI_API_KEY",
                    ) from None
                backoff = min(WAIT_AT_MOST, 2.0**attempt * (0.5 + random.random()))
                self._sleep(min(WAIT_AT_MOST, error.wait if error.wait is not None else backoff))
        return None

    def _affordable(self, tokens_in: int, tokens_out: int) -> bool:
        cost = self._dollars + self._price(tokens_in, tokens_out)
        total = self._tokens + tokens_in + tokens_out
        return total <= self.settings.tokens and cost <= self.settings.dollars

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        s = self.settings
        return (tokens_in * s.price_in + tokens_out * s.price_out) / 1e6

    def _charge(self, usage: Any, most_in: int, most_out: int) -> None:
        """Count what a reply says it took; where it says nothing sensible, the most."""
        taken = [usage.get(k) if isinstance(usage, dict) else None
                 for k in ("prompt_tokens", "completion_tokens")]  # fmt: skip
        counted = [
            t if isinstance(t, int) and not isinstance(t, bool) and t >= 0 else most
            for t, most in zip(taken, (most_in, most_out), strict=True)
        ]
        self._tokens += sum(counted)
        self._dollars += self._price(*counted)

    def _send(self, messages: list[dict[str, Any]]) -> Mapping[str, Any]:
        """One request. _Unusable for whatever the network and the server may do."""
        openai = sys.modules["openai"]
        deadline = self._clock() + self.settings.seconds
        body = bytearray()
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.settings.model,
                messages=messages,
                tools=[tool()],
                tool_choice={"type": "function", "function": {"name": "propose"}},
                max_completion_tokens=self.settings.reply_tokens,
            ) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_REPLY:
                        raise _Unusable(f"a reply of more than {MAX_REPLY} bytes")
                    if self._clock() > deadline:
                        raise _Unusable("a reply that does not end")
            data = json.loads(body)
        except openai.RateLimitError as error:
            raise _Unusable("429", _retry_after(error)) from None
        except openai.APIStatusError as error:
            final = error.status_code < 500 and error.status_code not in (408, 409)
            raise _Unusable(f"status {error.status_code}", final=final) from None
        except (openai.OpenAIError, *_transport_errors(openai)) as error:
            raise _Unusable(type(error).__name__) from None
        except (ValueError, RecursionError):
            raise _Unusable("a reply that is no JSON") from None
        if not isinstance(data, dict):
            raise _Unusable("a reply that is no object")
        return data


def _client(settings: Settings) -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError(
            "the proposer `openai` needs the package openai, which is not installed",
            hint="pip install 'kir[agent]'; the proposer `rules` needs no network",
        ) from error
    if not os.environ.get("OPENAI_API_KEY"):
        raise UsageError(
            "there is no key for the model's server",
            hint="set OPENAI_API_KEY; it is stored nowhere",
        )
    return openai.OpenAI(base_url=settings.base_url, timeout=settings.seconds, max_retries=0)


def _transport_errors(openai: Any) -> tuple[type[Exception], ...]:
    """What the client's HTTP library raises while a reply is read, by whichever name it has."""
    names = {base.__module__.split(".")[0] for base in openai.DefaultHttpxClient.__mro__}
    found = [getattr(sys.modules[n], "HTTPError", None) for n in names if n.startswith("httpx")]
    return tuple(e for e in found if isinstance(e, type) and issubclass(e, Exception))


def _retry_after(error: Any) -> float | None:
    """Seconds that a server asked us to wait; None where it says nothing that can be read."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _message(data: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise _Unusable("a reply without a message")
    return {k: message[k] for k in ("content", "tool_calls") if k in message}


def _call(reply: Mapping[str, Any]) -> str | None:
    """The arguments of the first call of `propose`; None where there is none."""
    calls = reply.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and function.get("name") == "propose":
            arguments = function.get("arguments")
            return arguments if isinstance(arguments, str) else None
    return None


def _refusal(ask: Ask, steps: Derivation) -> str:
    """Why a derivation does not hold, in short; "" where it does."""
    try:
        kernel = schedule(ask.spec, steps)
        if not is_scheduled(kernel):
            return "definitions or reductions are left: begin with loops()"
        check_kernel(kernel)
    except KirError as error:
        return f"{error.title}: {error.message}" + (f" ({error.hint})" if error.hint else "")
    return ""
