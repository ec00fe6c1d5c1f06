"""The frontend's settings, checked when they are made."""

from dataclasses import dataclass

from stafette.platform.frontend.errors import InvalidSetting

_LEAST = {
    "port": 0,
    "max_body_bytes": 1,
    "max_in_flight": 1,
    "max_answers": 1,
}
_ABOVE_ZERO = ("body_timeout_s", "drain_timeout_s", "keep_alive_s", "deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """Everything that the API is started with."""

    host: str = "127.0.0.1"  # 0.0.0.0: every interface; then set api_keys
    port: int = 8000  # 0: any that is free
    served_model_name: tuple[str, ...] = ()  # the first is shown; none: the model's own

    # limits
    max_body_bytes: int = 16 << 20
    body_timeout_s: float = 30.0  # for a request to arrive in
    max_in_flight: int = 1024  # requests; more are refused with 429
    max_answers: int = 128  # of one request: n, times its prompts
    deadline_s: float | None = None  # for requests that name none; None: no end
    keep_alive_s: float = 75.0  # a connection without a request
    drain_timeout_s: float = 30.0  # for what is in flight at the end

    # what requests leave open: auto: as the model's maker advises; vllm: OpenAI's defaults; or a
    # directory with a generation_config.json
    generation_config: str = "auto"

    # reading answers
    tool_parser: str = "auto"  # auto: by the chat template
    reasoning_parser: str = "auto"

    # who may ask, and from where
    api_keys: str | None = None  # a file; None: no keys, or those of STAFETTE_API_KEYS
    cors_origins: tuple[str, ...] = ()  # *: any
    tls_certfile: str | None = None
    tls_keyfile: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "served_model_name", tuple(self.served_model_name))
        object.__setattr__(self, "cors_origins", tuple(self.cors_origins))
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InvalidSetting(name, getattr(self, name), f"must be at least {least}")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSetting(name, value, "must be above 0")
        if self.port > 65_535:
            raise InvalidSetting("port", self.port, "must be at most 65535")
        if self.tls_keyfile is not None and self.tls_certfile is None:
            raise InvalidSetting("tls_keyfile", self.tls_keyfile, "needs tls_certfile beside it")
