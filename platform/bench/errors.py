"""What can end a benchmark, and what its user can do about it.

InvalidSetting (stafette.platform.frontend.errors)   an option is wrong, or contradicts another
BenchError         everything else; what was measured until then is kept
├── Unreachable    nobody listens there: start the server, or correct the URL
├── Refused        the server says no to every request: its answer tells why
├── ServerLost     it answered, and stopped doing so: start it, and run the command again
├── PlanChanged    the results hold another plan: take another name
└── NotWritten     the results cannot be written: make room, and run the command again
"""

from stafette.workers.errors import EngineError


class BenchError(EngineError):
    """Names what is wrong, the value it has, and what to do."""


class Unreachable(BenchError):
    """`value` is the URL."""


class Refused(BenchError):
    """`value` is the URL or the model."""


class ServerLost(BenchError):
    """`value` is the URL."""


class PlanChanged(BenchError):
    """`value` is the folder of the results."""


class NotWritten(BenchError):
    """`value` is the path."""
