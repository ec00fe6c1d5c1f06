"""Ids of requests and answers: unique, but no secrets."""

import random

_numbers = random.Random()  # seeded by the system, which is not asked again for each id


def new_id(prefix: str = "", num_digits: int = 32) -> str:
    return f"{prefix}{_numbers.getrandbits(4 * num_digits):0{num_digits}x}"
