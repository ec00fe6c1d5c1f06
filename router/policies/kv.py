"""`kv`: the way that costs least in predicted milliseconds, pairs of targets included."""

from collections.abc import Sequence

from stafette.router import pairs
from stafette.router.cost import Terms
from stafette.router.policy import Policy
from stafette.router.request import Candidate, Option, Request

_MOST = 32  # options of each kind that are looked at


class KvPolicy(Policy):
    def options(
        self,
        request: Request,
        prefillers: Sequence[Candidate],
        decoders: Sequence[Candidate],
        terms: Terms,
    ) -> list[Option]:
        return pairs.options(request, prefillers, decoders, terms, _MOST)
