"""What is served: a model under its names, with its tokenizer and its ways of speaking."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import NotFound, shown, wrong
from stafette.platform.frontend.parsing.registry import reasoning_parser, tool_parser
from stafette.platform.frontend.parsing.tool_parser import ToolParser
from stafette.workers.weights.advised_sampling import Advice
from stafette.workers.weights.tokenizer import Tokenizer

_SHOWN_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    names: tuple[str, ...]  # the first is shown
    root: str  # what the model was opened as
    tokenizer: Tokenizer
    max_model_len: int
    tool_parser: type[ToolParser] | None
    reasoning_parser: str | None
    sampling: Advice = field(default_factory=dict)  # where a request leaves it open
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls,
        config: FrontendConfig,
        model: str,
        tokenizer: Tokenizer,
        max_model_len: int,
        sampling: Advice | None = None,
    ) -> "Served":
        templates = "\n".join(tokenizer.chat_templates.values())
        return cls(
            names=config.served_model_name or (Path(model).name or model,),
            root=model,
            tokenizer=tokenizer,
            max_model_len=max_model_len,
            tool_parser=tool_parser(config.tool_parser, templates),
            reasoning_parser=reasoning_parser(config.reasoning_parser, templates),
            sampling=sampling or {},
        )

    @property
    def name(self) -> str:
        return self.names[0]

    def adapter(self, model: str | None, lora: str | None, loras: tuple[str, ...]) -> str | None:
        """Return the adapter that a request asks for, by `model` or by `lora`; None: none.

        NotFound when there is no such model or adapter.
        """
        named = model if model is not None and model not in self.names else None
        if named is not None and named not in loras:
            known = ", ".join([*self.names, *loras][:_SHOWN_NAMES])
            message = f"model = {shown(model)}: is not served here; served: {known}"
            raise NotFound(message, param="model", code="model_not_found")
        if lora is None:
            return named
        if named not in (None, lora):
            raise wrong("lora", lora, f"is another adapter than model = {named}: name one")
        if lora not in loras:
            known = ", ".join(loras[:_SHOWN_NAMES]) or "none"
            message = f"lora = {shown(lora)}: is not loaded; loaded: {known}"
            raise NotFound(message, param="lora", code="model_not_found")
        return lora
