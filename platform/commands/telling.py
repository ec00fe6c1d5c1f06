"""How commands speak to whoever started them."""

import json


def tell(text: str) -> None:
    print(f"stafette: {text}", flush=True)


def invite(url: str, model: str, has_keys: bool) -> None:
    """Say that it is ready, with a line to paste."""
    key = "-H 'Authorization: Bearer KEY' " if has_keys else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    tell(f"ready at {url}/v1; try")
    print(
        f"  curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\", flush=True
    )
    print(f"    -d '{body}'", flush=True)
    tell(f"console at {url}/console")
