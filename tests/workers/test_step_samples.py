"""What is told of a worker's last steps."""

from stafette.workers.batch import SeqStep
from stafette.workers.step_samples import StepSamples, StepWork


def seq(start: int, count: int) -> SeqStep:
    return SeqStep(1, start, [7] * count, False, [0], True)


def test_prompts_and_decoding_are_told_apart():
    work = StepWork.of([seq(0, 10), seq(100, 4), seq(50, 1), seq(9, 1)])

    assert work == StepWork(tokens=14, pairs=10 * 5 + 4 * 102, decoding=2, kv_tokens=61)


def test_the_last_steps_are_kept_with_their_numbers():
    samples = StepSamples()
    assert samples.latest() == [0, []]

    for number in range(50):
        samples.add([seq(number, 1)], 0.002)

    first, rows = samples.latest()
    assert (first, len(rows)) == (18, 32)
    assert rows[0] == [2.0, 0, 0.0, 1, 19]
    assert rows[-1] == [2.0, 0, 0.0, 1, 50]
