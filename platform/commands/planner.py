"""Ask a running fleet's planner what it wants and why, or hold a pool at a size for a while."""

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from stafette.platform.commands.talking import Asker, AskingFailed, add_server_arguments
from stafette.platform.commands.telling import tell
from stafette.platform.frontend.errors import InvalidSetting

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    explain = actions.add_parser("explain", help="print the last changes of mind")
    explain.add_argument("--last", type=int, default=3, metavar="N", help="default: %(default)s")
    explain.add_argument("--json", action="store_true", help="as the server tells it")
    pin = actions.add_parser("pin", help="hold a pool at a size, whatever the planner thinks")
    pin.add_argument("pool")
    pin.add_argument("replicas", type=int)
    pin.add_argument(
        "--for", dest="duration", required=True, metavar="TIME", help="such as 90s, 30m, 2h or 1d"
    )
    unpin = actions.add_parser("unpin", help="let the planner decide on a pool again")
    unpin.add_argument("pool")
    for each in (explain, pin, unpin):
        add_server_arguments(each)


def run(arguments: argparse.Namespace) -> int:
    asker = Asker.of(arguments)
    match arguments.action:
        case "explain":
            return _explain(asker, arguments)
        case "pin":
            body = {"pool": arguments.pool, "replicas": arguments.replicas}
            asker.post("/v1/planner/pins", body | {"for_s": seconds(arguments.duration)})
            tell(f"{arguments.pool} is held at {arguments.replicas} for {arguments.duration}")
        case "unpin":
            asker.delete(f"/v1/planner/pins/{quote(arguments.pool, safe='')}")
            tell(f"{arguments.pool} is planned again")
    return 0


def seconds(duration: str) -> float:
    """Return how long `30m` is."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", duration)
    if found is None or not float(found[1]):
        raise InvalidSetting("--for", duration, "must be a time such as 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def told_sizes(planner: Mapping[str, Any]) -> list[str]:
    """Return a line for each pool: what there is, and what is wanted."""
    if planner["mode"] == "off":
        return []
    lines = [f"planner: {planner['mode']}"]
    for name, pool in planner["pools"].items():
        pin = pool["pin"]
        held = "" if pin is None else f", pinned to {pin['replicas']} for {pin['left_s']:.0f} s"
        bounds = f"{pool['min_replicas']}..{pool['max_replicas']}"
        there, wanted = _number(pool["ready"]), _number(pool["planned"])
        lines.append(f"  {name}: {there} ready, {wanted} planned, of {bounds}{held}")
    return lines


def told_plan(plan: Mapping[str, Any]) -> list[str]:
    """Return what one plan wants, and why."""
    why = plan["explanation"]
    sizes = ", ".join(f"{name} {count}" for name, count in plan["replicas"].items())
    until = "" if plan["age_s"] < 5 else f" to {plan['age_s']:.0f} s ago"
    lines = [f"{plan['since_s']:.0f} s ago{until}: {sizes or 'no size'}; by {why['decided_by']}"]
    if plan["held"] is not None:
        lines.append(f"  held: {plan['held']}")
    lines += [f"  {flip['worker']}: {flip['before']} -> {flip['role']}" for flip in plan["flips"]]
    lines += [f"  {name} leaves" for name in plan["release"]]
    for part in ("observed", "predicted", "capacity", "needed"):
        if why[part]:
            numbers = ", ".join(f"{name} {_number(value)}" for name, value in why[part].items())
            lines.append(f"  {part}: {numbers}")
    for broken in plan["violations"]:
        limit, expected = _number(broken["limit_ms"]), _number(broken["expected_ms"])
        lines.append(f"  {broken['target']} {expected} ms, not {limit}: {broken['remedy']}")
    return lines + [f"  {note}" for note in why["notes"]]


def _explain(asker: Asker, arguments: argparse.Namespace) -> int:
    if arguments.last < 1:
        raise InvalidSetting("--last", arguments.last, "must be at least 1")
    told = asker.get(f"/v1/planner?last={arguments.last}")
    if told["mode"] == "off":
        raise AskingFailed("planner", "off", "set planner.mode to dry_run or 'on', and serve again")
    if arguments.json:
        print(json.dumps(told, indent=2))
        return 0
    for plan in told["plans"]:
        print("\n".join(told_plan(plan)))
    for effect in told["effects"][: arguments.last]:
        reason = f": {effect['reason']}" if effect["reason"] else ""
        told_of = f"{effect['subject']}: {effect['wish']}: {effect['state']}"
        print(f"{effect['age_s']:.0f} s ago {told_of}{reason}")
    print("\n".join(told_sizes(told)))
    return 0


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
