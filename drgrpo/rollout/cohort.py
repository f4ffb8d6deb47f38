"""Requests that all decode one token a step, as arrays: a step is a few operations on them, not a walk over requests.

vLLM's `Request` objects stay behind meanwhile. `catch_up` tells one of them what has happened; whoever reads requests,
vLLM above all, has to be preceded by it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from vllm.v1.request import Request

_SOME_TOKENS = 64


class Cohort:
    """Running requests whose next step decodes one token each.

    Attributes (one entry per request):
        alive: Whether it has not ended.
        computed: Tokens whose keys and values are computed once all steps so far have run; the next one's place.
        watched: Whether each token of it is looked at: it is read as it grows, or may end in a way of its own.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        held: dict[str, list[int]],
        *,
        max_model_len: int,
        is_async: bool,
    ) -> None:
        self.requests, self.held, self.is_async = list(requests), held, is_async
        self.names = [request.request_id for request in requests]
        self.alive = np.ones(len(self.requests), dtype=bool)
        self.watched = np.array([_is_watched(request) for request in requests], dtype=bool)
        self.computed = self._each("num_computed_tokens")
        self._num_prompt_tokens = self._each("num_prompt_tokens")
        self._length = self._each("num_tokens")  # with the tokens that were received
        self._limit = self._num_prompt_tokens + self._each("max_tokens")
        self._end = np.minimum(self._limit, max_model_len)
        self._stops = np.array(sorted(set().union(*(_stop_ids(request) for request in requests))), dtype=np.int64)
        # Since the request caught up; a step or two may be on their way.
        self._tokens = np.empty((len(self.requests), _SOME_TOKENS), dtype=np.int32)
        self._scheduled, self._received = np.zeros_like(self.computed), np.zeros_like(self.computed)

    def _each(self, name: str) -> np.ndarray:
        return np.array([getattr(request, name) for request in self.requests], dtype=np.int64)

    def due(self) -> np.ndarray:
        """Indices of the requests that decode in the next step: all whose last token is not on its way."""
        return np.flatnonzero(self.alive & (self.computed + 1 < self._limit))

    def chosen_names(self, rows: np.ndarray) -> list[str]:
        """The requests' ids."""
        return self.names if len(rows) == len(self.names) else [self.names[row] for row in rows]

    def num_output_tokens(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each completion, those on their way included."""
        return self.computed[rows] + 1 - self._num_prompt_tokens[rows]

    def advance(self, rows: np.ndarray) -> None:
        """A step of these has been scheduled."""
        self.computed[rows] += 1
        self._scheduled[rows] += 1

    def receive(self, rows: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
        """A step's token of each; returns the rows that have to be looked at, because they may have ended."""
        living = self.alive[rows]  # an ended one may have had a step on its way
        rows, token_ids = rows[living], token_ids[living]
        if self._received[rows].max(initial=0) == self._tokens.shape[1]:
            self._tokens = np.pad(self._tokens, ((0, 0), (0, self._tokens.shape[1])))
        self._tokens[rows, self._received[rows]] = token_ids
        self._received[rows] += 1
        self._length[rows] += 1
        looked_at = (self._length[rows] >= self._end[rows]) | self.watched[rows]
        if len(self._stops):
            looked_at |= np.isin(token_ids, self._stops)
        return rows[looked_at]

    def catch_up(self, row: int, eligible_step: int) -> Request:
        """The request, with all that has happened; `eligible_step` is the first that may schedule it next.

        Its new blocks have no hashes yet (`Request.update_block_hashes`): one that has ended needs none.
        """
        request = self.requests[row]
        scheduled, received = int(self._scheduled[row]), int(self._received[row])
        if received:
            token_ids = self._tokens[row, :received].tolist()
            hasher, request._block_hasher = request._block_hasher, None
            request.append_output_token_ids(token_ids)
            request._block_hasher = hasher
            self.held.setdefault(self.names[row], []).extend(token_ids)
        request.num_computed_tokens += scheduled
        request.num_in_flight_tokens += scheduled - received
        if self.is_async:
            request.num_output_placeholders += scheduled - received
            request.next_decode_eligible_step = eligible_step
        self._scheduled[row] = self._received[row] = 0
        return request

    def rows_of(self, names: Iterable[str], requests: dict[str, Request]) -> np.ndarray | None:
        """Indices of a step that was scheduled before this cohort was formed, -1 for what has ended.

        None where one of them still runs and is not of this cohort.
        """
        place = {name: row for row, name in enumerate(self.names)}
        rows = []
        for name in names:
            request, row = requests.get(name), place.get(name, -1)
            if row < 0 and request is not None and not request.is_finished():
                return None
            rows.append(row)
        return np.array(rows, dtype=np.int64)


def _stop_ids(request: Request) -> set[int]:
    params: Any = request.sampling_params
    ids = {*(params.stop_token_ids or ())}
    return ids if params.eos_token_id is None else ids | {params.eos_token_id}


def _is_watched(request: Request) -> bool:
    params: Any = request.sampling_params
    return bool(params.detokenize or params.repetition_detection is not None)
