"""Python's garbage collector, for a process that has begun to serve."""

import gc

# Objects made before the youngest are looked through. Python's 700 are those of two requests.
_YOUNG = 10_000


def settle() -> None:
    """What is there now stays: model, tokenizer and code are not looked through again.

    For whoever owns a process, once it is ready. Else each full collection walks hundreds of
    thousands of objects while clients wait for tokens.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
