"""Which backend an engine gets."""

import pytest
import torch

from stafette.workers.attention import registry
from stafette.workers.attention.backend import AttentionShape
from stafette.workers.attention.reference import ReferenceAttention
from stafette.workers.errors import ConfigError

SHAPE = AttentionShape(4, 2, 64, 16, 0.125)
CPU = torch.device("cpu")


class Unable(ReferenceAttention):
    @classmethod
    def why_not(cls, shape, device, kv_dtype):
        return "it is Tuesday"


@pytest.fixture
def backends(monkeypatch):
    """Registers this file's `Unable` and a module that is not there ahead of the rest."""
    known = {
        "unable": (__name__, "Unable"),
        "absent": ("stafette.no_such_driver", "Absent"),
        "reference": registry.BACKENDS["reference"],
    }
    monkeypatch.setattr(registry, "BACKENDS", known)


def test_auto_passes_over_those_that_cannot_serve(backends):
    assert registry.choose("auto", SHAPE, CPU, "float32") is ReferenceAttention


def test_unknown_name_lists_what_there_is(backends):
    with pytest.raises(ConfigError, match="auto, unable, absent, reference"):
        registry.choose("flahs", SHAPE, CPU, "float32")


def test_one_that_cannot_serve_says_why(backends):
    with pytest.raises(ConfigError, match="attention_backend = 'unable'.*it is Tuesday"):
        registry.choose("unable", SHAPE, CPU, "float32")


def test_a_missing_driver_hurts_only_who_asks_for_it(backends):
    with pytest.raises(ConfigError, match="not installed.*no_such_driver"):
        registry.choose("absent", SHAPE, CPU, "float32")


def test_auto_never_takes_the_reference():
    assert registry.choose("auto", SHAPE, CPU, "float32").name in ("cpu", "torch")
