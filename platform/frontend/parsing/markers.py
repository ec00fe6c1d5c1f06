"""Finds a marker in text that comes piece by piece."""


def before_marker(text: str, marker: str) -> tuple[int, bool]:
    """Return how many characters come before the marker for certain, and whether it is there.

    What follows them may be the beginning of a marker whose rest is still to come.
    """
    place = text.find(marker)
    if place >= 0:
        return place, True
    place = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while place >= 0:
        if marker.startswith(text[place:]):
            return place, False
        place = text.find(marker[0], place + 1)
    return len(text), False


def could_become(text: str, marker: str) -> bool:
    """Whether `text` is the marker's beginning, or begins with the marker."""
    return text.startswith(marker) or marker.startswith(text)
