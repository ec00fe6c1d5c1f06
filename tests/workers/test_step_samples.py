"""What is told of a worker's last steps."""

from stafette.workers.batch import SeqStep
from stafette.workers.step_samples import StepSamples, StepWork


def seq(start: int, count: int) -> SeqStep:
    return SeqStep(1, start, [7] * count, False, [0], True)


def test_prompts_and_decoding_are_told_apart():
    work = StepWork.of([seq(0, 10), seq(100, 4), seq(50, 1), seq(9, 1)])

    assert work == StepWork(tokens=14, pairs=10 * 5 + 4 * 102, decoding=2, kv_tokens=61)


def test_a_step_belongs_to_prompts_by_their_share_of_its_tokens():
    assert StepWork(tokens=6, pairs=0.0, decoding=2, kv_tokens=9).of_prompts == 0.75
    assert StepWork(tokens=0, pairs=0.0, decoding=0, kv_tokens=0).of_prompts == 0.0


def test_a_reader_is_told_of_the_newest_step_once():
    samples = StepSamples()
    assert samples.newest(0) == (0, None)
    samples.add([seq(0, 10)], 0.004)
    samples.add([seq(0, 20), seq(5, 1)], 0.002)

    count, newest = samples.newest(0)

    assert newest == (StepWork(tokens=20, pairs=200.0, decoding=1, kv_tokens=6), 0.002)
    assert samples.newest(count) == (2, None)


def test_the_last_steps_are_kept_with_their_numbers():
    samples = StepSamples()
    assert samples.latest() == [0, []]

    for number in range(50):
        samples.add([seq(number, 1)], 0.002)

    first, rows = samples.latest()
    assert (first, len(rows)) == (18, 32)
    assert rows[0] == [2.0, 0, 0.0, 1, 19]
    assert rows[-1] == [2.0, 0, 0.0, 1, 50]
