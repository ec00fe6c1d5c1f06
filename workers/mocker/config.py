"""What a mock worker is told when it is made: an engine's flags, its speed, how long it answers."""

from dataclasses import dataclass

from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.event_stream.publisher import PublisherConfig
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.tier_speed import TierSpeed
from stafette.workers.service.standing import ROLES, Role

DEFAULT_FLAGS = EngineConfig(
    model="mock", num_kv_blocks=16_384, max_model_len=32_768, max_num_batched_tokens=8_192
)
_NEEDED = ("enable_prefix_caching",)
_UNKNOWN = ("enable_lora", "speculative_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class MockerConfig:
    name: str  # unique in the cluster
    role: Role = "both"
    engine: EngineConfig = DEFAULT_FLAGS  # those of its flags that need no model
    profile: Profile = Profile()
    speedup: float = 1.0  # all modelled times are divided by it
    vocab_size: int = 49_152  # of the embedded model, as are the ends
    eos_token_ids: tuple[int, ...] = (2,)
    mean_output_tokens: float = 0.0  # until a modelled end of text; 0: only limits end an answer
    p2p: P2pConfig = P2pConfig()  # its lease and its timeouts
    events: PublisherConfig = PublisherConfig()
    tiers: TiersConfig | None = None  # below the pool
    tier_speed: TierSpeed = TierSpeed()
    worker_class: str = ""  # those of one class are equally fast

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError("worker.role", self.role, f"must be one of {', '.join(ROLES)}")
        for name in ("num_kv_blocks", "max_model_len"):
            if getattr(self.engine, name) is None:
                raise ConfigError(name, None, "must be given: there is no model to tell it")
        for name in _NEEDED:
            if not getattr(self.engine, name):
                raise ConfigError(name, False, "must be set for KV to be handed over")
        for name in _UNKNOWN:
            if getattr(self.engine, name):
                raise ConfigError(name, getattr(self.engine, name), "a mock worker cannot do it")
        if not self.speedup > 0:
            raise ConfigError("speedup", self.speedup, "must be above 0")
        if not self.mean_output_tokens >= 0:
            value = self.mean_output_tokens
            raise ConfigError("mean_output_tokens", value, "must be at least 0; 0 models no end")
        self._check_tokens()

    def _check_tokens(self) -> None:
        if self.vocab_size <= len(set(self.eos_token_ids)):
            remedy = "must leave ids beside eos_token_ids"
            raise ConfigError("vocab_size", self.vocab_size, remedy)
        if not all(0 <= token < self.vocab_size for token in self.eos_token_ids):
            remedy = f"must be in 0..{self.vocab_size - 1}"
            raise ConfigError("eos_token_ids", self.eos_token_ids, remedy)
        if self.mean_output_tokens and not self.eos_token_ids:
            raise ConfigError("eos_token_ids", (), "must hold the token that ends an answer")

    @property
    def num_blocks(self) -> int:
        assert self.engine.num_kv_blocks is not None
        return self.engine.num_kv_blocks

    @property
    def max_model_len(self) -> int:
        assert self.engine.max_model_len is not None
        return self.engine.max_model_len

    @property
    def block_bytes(self) -> int:
        return self.profile.kv_bytes_per_token * self.engine.block_size
