"""What a pipe can be made of here: gloo always, NCCL where there are GPUs."""

from dataclasses import dataclass
from importlib import import_module

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import PeerInfo
from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.gloo import GlooPipe
from stafette.kvtransfer.transports.two_sided.nccl import CudaDevice, NcclPipe
from stafette.kvtransfer.transports.two_sided.nccl_library import Nccl, NcclLibrary
from stafette.kvtransfer.transports.two_sided.pipe import Pipe
from stafette.kvtransfer.transports.two_sided.pools import Streams

NAME = "torch_dist"
GLOO, NCCL = "gloo", "nccl"


@dataclass(frozen=True, slots=True)
class End:
    """What one end of a pipe needs."""

    board: Board
    rank: int
    host: str  # the address of this machine at which the other side reaches it
    device: int  # of NCCL
    streams: Streams


@dataclass(frozen=True, slots=True)
class Path:
    """Of what a pipe is, and between which GPUs; 0 where there are none."""

    medium: str
    their_device: int
    our_device: int


class Media:
    def __init__(self) -> None:
        """Raise InvalidValue where torch is missing, or cannot talk to other processes."""
        try:
            distributed = import_module("torch.distributed")
        except ImportError as error:
            remedy = "needs torch: pip install 'stafette[engine]'"
            raise InvalidValue("transport", "torch_dist", remedy) from error
        if not distributed.is_available() or not distributed.is_gloo_available():
            remedy = "needs a torch that was built with gloo"
            raise InvalidValue("transport", "torch_dist", remedy)
        self._nccl = _find_nccl()

    def names(self) -> list[str]:
        return [GLOO] if self._nccl is None else [GLOO, NCCL]

    def make(self, medium: str, end: End) -> Pipe:
        """Return a pipe, when the other side has made its end too; OSError when it does not."""
        if medium == GLOO:
            return GlooPipe(end.board, end.rank, end.host)
        if medium == NCCL and self._nccl is not None:
            device = CudaDevice(end.device, end.streams.of(end.device))
            return NcclPipe(self._nccl, end.board, end.rank, device)
        raise MalformedMessage("medium", " | ".join(self.names()))


def choose(media: Media, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> Path:
    """Return how a region of the peer comes into one of ours."""
    theirs = peer.endpoints.get(NAME)
    both_have_it = NCCL in media.names() and isinstance(theirs, list) and NCCL in theirs
    both_on_gpus = remote.kind == "cuda" and local.info.kind == "cuda"
    if both_have_it and both_on_gpus and remote.hints.get(NAME) != gpu_of(local):
        return Path(NCCL, remote.device, local.info.device)
    return Path(GLOO, 0, 0)


def gpu_of(region: LocalRegion) -> str | None:
    """Return the name of the GPU that a region is on: NCCL does not connect one with itself."""
    if region.info.kind != "cuda":
        return None
    return str(import_module("torch").cuda.get_device_properties(region.info.device).uuid)


def _find_nccl() -> Nccl | None:
    if not import_module("torch").cuda.is_available():
        return None
    try:
        return NcclLibrary()
    except OSError:
        return None
