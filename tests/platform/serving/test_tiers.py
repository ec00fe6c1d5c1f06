"""Workers with tiers below their pools: what a pool has evicted is not computed again."""

import subprocess
import sys

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.serving.tier_folder import TierFolder

STORY = "Once upon a time there was a relay team that ran through seven countries. "


async def test_a_prompt_comes_back_from_the_host_and_the_router_knows(rig, expected):
    await rig.start("b0", engine={"num_kv_blocks": 64}, host_blocks=512)
    prompts = [f"Number {number}. {STORY * 40}" for number in range(3)]  # each of most of the pool
    first, *others = [
        rig.request(f"r{n}", prompt, max_tokens=8) for n, prompt in enumerate(prompts)
    ]
    tokens = len(first.prompt_token_ids) // 16 * 16

    assert await rig.answer(first) == expected(prompts[0], max_tokens=8)
    for other in others:
        await rig.answer(other)
    before = await rig.stats("b0")
    again = rig.request("again", prompts[0], max_tokens=8)

    assert await rig.answer(again) == expected(prompts[0], max_tokens=8)
    placed = rig.dispatcher.placement("again")
    assert placed["options"][0]["decode_overlap"]["host"] > tokens // 32
    assert placed["actual"]["cached_tokens"] == tokens
    assert (await rig.stats("b0"))["pulled_tokens"] - before["pulled_tokens"] > tokens // 2


def test_each_worker_of_a_host_has_a_folder_and_the_next_one_finds_it_again(tmp_path):
    first, second = TierFolder(tmp_path, "decode"), TierFolder(tmp_path, "decode")
    other = TierFolder(tmp_path, "prefill")
    code = (
        "import sys; from pathlib import Path;"
        "from stafette.platform.serving.tier_folder import TierFolder;"
        "print(TierFolder(Path(sys.argv[1]), 'decode').path)"
    )
    told = subprocess.check_output([sys.executable, "-P", "-c", code, str(tmp_path)], text=True)

    assert first.path == tmp_path / "decode-0"
    assert second.path == tmp_path / "decode-1"
    assert other.path == tmp_path / "prefill-0"
    assert told.strip() == str(tmp_path / "decode-2")
    first.close()
    assert TierFolder(tmp_path, "decode").path == first.path


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSetting, match=r"tiers\.disk\.folder = .* cannot be used"):
        TierFolder(tmp_path / "file", "decode")
