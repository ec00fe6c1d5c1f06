"""Which extra of the installation brings a module that is missing."""

import re
from importlib.metadata import PackageNotFoundError, requires

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*extra == ['\"](?P<extra>\w+)")


def extra_with(module: str) -> str | None:
    """Return the first extra that asks for the package of this name; None when none does."""
    try:
        requirements = requires("stafette") or []
    except PackageNotFoundError:  # run from its sources
        return None
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        if match["name"].replace("-", "_").lower() == module.lower():
            return match["extra"]
    return None
