"""The worker as a service: its engine, for frontends in other processes, on one stream each."""

import os

# How gRPC waits for sockets, which it reads from the environment when it is first imported. Without
# its event engine a message costs fewer hand-offs between threads: a round trip took 160 instead of
# 250 us here, and 90 instead of 130 us of CPU (grpcio 1.85).
GRPC_POLLING = ("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

os.environ.setdefault(*GRPC_POLLING)
