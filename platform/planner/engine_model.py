"""What the planner believes of one class of workers: their speed, and how much they hold."""

from dataclasses import dataclass

from stafette.platform.frontend.errors import InvalidSetting
from stafette.router.performance import Performance
from stafette.workers.mocker.speed_profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    performance: Performance = Performance()
    kv_tokens: int = 262_144  # that one worker holds
    max_num_seqs: int = 256
    block_size: int = 16
    kv_bytes_per_token: int = 131_072
    transfer_gb_s: float = 20.0  # of KV into a worker
    transfer_latency_ms: float = 0.2

    def __post_init__(self) -> None:
        for name in ("kv_tokens", "max_num_seqs", "block_size"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"model.{name}", getattr(self, name), "must be at least 1")

    @classmethod
    def of_profile(
        cls,
        profile: Profile,
        kv_tokens: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        block_size: int = 16,
    ) -> "EngineModel":
        """Return what a worker's profile and flags say."""
        return cls(
            performance=Performance(
                step_ms=profile.step_ms,
                prefill_ms_per_token=profile.prefill_ms_per_token,
                prefill_ms_per_pair=profile.prefill_ms_per_pair,
                decode_ms_per_seq=profile.decode_ms_per_seq,
                decode_ms_per_kv_token=profile.decode_ms_per_kv_token,
                max_num_batched_tokens=max_num_batched_tokens,
            ),
            kv_tokens=kv_tokens,
            max_num_seqs=max_num_seqs,
            block_size=block_size,
            kv_bytes_per_token=profile.kv_bytes_per_token,
            transfer_gb_s=profile.transfer_gb_s,
            transfer_latency_ms=profile.transfer_latency_ms,
        )

    def transfer_ms(self, tokens: float) -> float:
        """Return how long the KV of so many tokens takes into a worker."""
        return self.transfer_latency_ms + self.transfer_tokens_ms(tokens)

    def transfer_tokens_ms(self, tokens: float) -> float:
        return tokens * self.kv_bytes_per_token / (self.transfer_gb_s * 1e6)
