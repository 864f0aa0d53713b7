"""A language model as judge, behind any server with OpenAI's chat-completions interface.

vLLM, SGLang, Ollama, llama.cpp's llama-server and OpenAI itself speak it. The model is asked for
"yes" or "no" at temperature 0. Its judgements are not BEM's: results name the judge, and scores by
different judges are not comparable.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from ravqa.config import Strict, fingerprint
from ravqa.errors import UserError

PROMPT = """\
Question about an image: {question}
Reference answer: {reference}
Candidate answer: {candidate}

Given the question, does the candidate answer mean the same as the reference answer? Wording, \
units and more or less detail may differ as long as both answer the question in the same way.
Reply with one word: yes or no.
"""

_WHY = "the judge llm"
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # worth another try


class LLMJudge:
    """Asks one question a triple, several at a time."""

    class Config(Strict):
        """Options.

        Attributes:
            url: the server's base address, as in http://localhost:8000/v1.
            model: its name at the server.
            prompt: text with {question}, {reference} and {candidate}.
            max_tokens: longest reply.
            workers: requests under way at once.
            timeout: seconds that one request may take.
            retries: further tries after a busy server or a broken connection.
            api_key_env: environment variable with the key; without it, none is sent.
        """

        url: str
        model: str
        prompt: str = PROMPT
        max_tokens: int = Field(default=8, ge=1)
        workers: int = Field(default=4, ge=1)
        timeout: float = Field(default=60, gt=0)
        retries: int = Field(default=5, ge=0)
        api_key_env: str = "OPENAI_API_KEY"

    def __init__(self, config: Config):
        """Keep the settings; the server is first asked when something is judged.

        Raises:
            UserError: the address is none, or the prompt has other fields than those three.
        """
        if not re.match(r"https?://[^/]", config.url):
            raise UserError(f"{_WHY}: url: an http address is expected, got {config.url!r}")
        try:
            config.prompt.format(question="", reference="", candidate="")
        except (KeyError, ValueError, IndexError) as e:
            raise UserError(
                f"{_WHY}: prompt: only {{question}}, {{reference}} and {{candidate}} can be filled "
                f"in ({e})"
            ) from None
        self.config = config
        self.name = f"llm ({config.model})"
        # The address is not part of it: the same model elsewhere is the same judge.
        self.fingerprint = fingerprint("llm/1", config.model, config.prompt, config.max_tokens)
        self._wait = 1.0  # seconds before the second try, doubled with every further one

    def judge(
        self, questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]
    ) -> list[float]:
        """1.0 for yes, 0.0 for no, nan for a reply that is neither; per triple in order.

        Raises:
            UserError: the server cannot be reached, refuses, or is none for chat completions.
        """
        prompts = [
            self.config.prompt.format(question=q, reference=r, candidate=c)
            for q, r, c in zip(questions, references, candidates, strict=True)
        ]
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                return list(pool.map(self._ask, prompts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, prompt: str) -> float:
        verdict = _VERDICT.match(self._complete(prompt))
        return float(verdict.group(1).lower() == "yes") if verdict else math.nan

    def _complete(self, prompt: str) -> str:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.config.api_key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.config.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        wait = self._wait
        for left in range(self.config.retries, -1, -1):
            try:
                with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
                    reply = response.read()
                break
            except urllib.error.HTTPError as e:
                problem = f"HTTP {e.code} {e.reason}"
                again = e.code in _PASSING
            except (OSError, http.client.HTTPException) as e:
                reason = getattr(e, "reason", e)
                problem = str(reason) or type(reason).__name__
                again = not isinstance(reason, ConnectionRefusedError | socket.gaierror)
            if not left or not again:
                raise UserError(f"{_WHY}: {address}: {problem}")
            time.sleep(wait)
            wait *= 2
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{_WHY}: {address} gave no chat completion: url is the address before "
                "/chat/completions, mostly ending in /v1"
            ) from None
        return str(content)
