"""POST /tokenize and /detokenize."""

from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.errors import wrong
from stafette.platform.frontend.messages import template_messages
from stafette.platform.frontend.prompts import Conversation, Prompt
from stafette.platform.frontend.protocol.tokens import DetokenizeRequest, TokenizeRequest
from stafette.platform.frontend.routes.chat import template_tools
from stafette.platform.frontend.routes.services import Services
from stafette.platform.frontend.spelling import Spelling


async def tokenize(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, TokenizeRequest)
    _check_model(services, body.model)
    tokens = (await _prompt(services, body)).token_ids
    spelling = Spelling(services.served.tokenizer)
    spelled = [spelling.text(token) for token in tokens] if body.return_token_strs else None
    shown = {
        "count": len(tokens),
        "max_model_len": services.served.max_model_len,
        "tokens": tokens,
        "token_strs": spelled,
    }
    await exchange.respond_json(shown)


async def detokenize(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, DetokenizeRequest)
    _check_model(services, body.model)
    tokenizer = services.served.tokenizer
    for place, token in enumerate(body.tokens):
        if token >= tokenizer.vocab_size:
            remedy = f"must be below {tokenizer.vocab_size}, the size of the vocabulary"
            raise wrong(f"tokens[{place}]", token, remedy)
    text = tokenizer.decode(body.tokens, skip_special_tokens=False)
    await exchange.respond_json({"prompt": text})


async def _prompt(services: Services, body: TokenizeRequest) -> Prompt:
    prompts = services.planner.prompts
    if body.messages is None:
        return await prompts.of_text(body.prompt or "", body.add_special_tokens)
    talk = Conversation(
        messages=template_messages(body.messages),
        tools=template_tools(body.tools),
        variables=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
    )
    return await prompts.of_conversation(talk)


def _check_model(services: Services, model: str | None) -> None:
    services.served.adapter(model, None, services.generator.status().loras)
