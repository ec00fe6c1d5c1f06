"""A server whose speed hangs on its flags: the more sequences, the quicker, until none fits."""

import argparse
import sys
import threading

from tests.platform.bench.played import PlayedServer, tokens

STEP_S = 0.04

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--max-num-seqs", type=int, default=2)
arguments, _ = parser.parse_known_args()
if arguments.max_num_seqs == 256:
    sys.exit("stafette: max_num_seqs = 256: there is no room for that")
PlayedServer(tokens, gap_s=STEP_S / arguments.max_num_seqs, port=arguments.port).start()
threading.Event().wait()
