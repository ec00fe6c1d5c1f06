"""Estimates follow from the data sheet by sums that can be done by hand."""

import json

import pytest

from stafette.platform import cli
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.data_sheets import Hardware, hardware, model_spec
from stafette.platform.profiling.document import load_profile, read_document
from stafette.platform.profiling.estimating import Worker, estimate
from stafette.platform.profiling.first_principles import Roofline, Step
from stafette.workers.errors import CheckpointError

# 1 layer, 10 wide, 1 head, no vocabulary to speak of.
TOY = {
    "model_type": "llama",
    "hidden_size": 10,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 5,
    "vocab_size": 1,
    "max_position_embeddings": 100_000,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
PLAIN = Hardware(
    name="plain",
    source="made up",
    tflops={"bfloat16": 1e-6},  # a million operations a second
    memory_gib=1.0,
    memory_gb_s=1e-3,  # a million bytes a second
    link_gb_s=1e-3,
    network_gb_s=1e-3,
    price_per_hour=1.0,
    compute_efficiency=1.0,
    attention_efficiency=1.0,
    memory_efficiency=1.0,
    link_efficiency=1.0,
    all_reduce_us=1e-9,
    layer_overhead_us=1e-9,
    step_overhead_ms=1.0,
    activation_gib=0.1,
)


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TOY))
    return path


def test_a_step_of_one_sequence_takes_the_reading_of_weights_and_kv(toy):
    roofline = Roofline(model_spec(str(toy)), PLAIN)

    # weights: q, k, v, o 2 x 10 x 15, gate, up, down 3 x 10 x 20, logits 10: 910 x 2 bytes
    # KV: 100 tokens of 2 x 5 x 2 bytes
    ms = roofline.step_ms(Step(decode_seqs=1, decode_kv_tokens=100))

    assert ms == pytest.approx(1.0 + 1.82 + 2.0)


def test_a_long_prompt_takes_its_operations(toy):
    roofline = Roofline(model_spec(str(toy)), PLAIN)

    # 2 x 900 operations a token, 4 x 10 a pair, 2 x 10 for the last one's logits
    ms = roofline.step_ms(Step(prefill_tokens=1000, prefill_pairs=500_000, logit_rows=1))

    assert ms == pytest.approx(1.0 + 1_800.02 + 20_000)


def test_two_devices_halve_the_reading_and_speak_to_each_other(toy):
    roofline = Roofline(model_spec(str(toy)), PLAIN, tensor_parallel=2)

    # Both hold the only KV head: reading it takes as long as before. 2 all-reduces of 10 x 2 bytes.
    ms = roofline.step_ms(Step(decode_seqs=1, decode_kv_tokens=100))

    assert ms == pytest.approx(1.0 + 0.91 + 2.0 + 0.04)


def test_more_devices_hold_more_and_step_faster():
    kv, step = [], []
    for tensor_parallel in (1, 2, 4, 8):
        roofline = Roofline(model_spec("Qwen3-8B"), hardware("H100"), tensor_parallel)
        kv.append(roofline.kv_tokens)
        step.append(roofline.step_ms(Step(decode_seqs=32, decode_kv_tokens=32 * 2000)))

    assert kv == sorted(kv)
    assert step == sorted(step, reverse=True)


@pytest.mark.parametrize(
    ("model", "billions", "kv_bytes"),
    [
        ("Llama-3.1-8B", 8.03, 131_072),
        ("meta-llama/Llama-3.1-70B", 70.55, 327_680),
        ("Qwen3-8B", 8.19, 147_456),
        ("qwen3-32b", 32.76, 262_144),
        ("Qwen3-30B-A3B", 30.53, 98_304),
        ("SmolLM2-135M", 0.1345, 23_040),
    ],
)
def test_the_known_models_have_the_published_size(model, billions, kv_bytes):
    roofline = Roofline(model_spec(model), hardware("B200"))

    assert roofline.weight_bytes / 2e9 == pytest.approx(billions, rel=2e-3)
    assert roofline.kv_bytes_per_token == kv_bytes


def test_a_sparse_model_reads_more_experts_the_more_sequences_there_are():
    roofline = Roofline(model_spec("Qwen3-30B-A3B"), hardware("H200"))
    dense = Roofline(model_spec("Qwen3-32B"), hardware("H200"))

    def growth(of):
        steps = [of.step_ms(Step(decode_seqs=n, decode_kv_tokens=n)) for n in (1, 32)]
        return steps[1] / steps[0]

    assert growth(roofline) > 3
    assert growth(dense) < 1.1


def test_the_profile_is_like_a_measured_one(tmp_path):
    path = tmp_path / "h200.json"
    document = estimate(Worker(model="Qwen3-8B", hardware="H200"))
    document.write(path)

    assert read_document(path).points == document.points
    assert load_profile(path).kv_bytes_per_token == 147_456
    assert document.fit.mean_error < 0.1


def test_chunks_cost_the_reading_of_the_weights_again():
    large = estimate(Worker(model="Qwen3-8B", hardware="H200", max_num_batched_tokens=8192))
    small = estimate(Worker(model="Qwen3-8B", hardware="H200", max_num_batched_tokens=512))

    times = [{p.name: p.ms for p in d.points}["prefill 8192 after 0"] for d in (large, small)]
    assert times[1] > times[0]


def test_unknown_hardware_names_the_nearest():
    with pytest.raises(InvalidSetting, match=r"'H20O': is not known, the nearest is H200"):
        hardware("H20O")


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(InvalidSetting, match=r"nearest is Qwen3-8B; there are .*Llama-3.1-8B"):
        model_spec("qwen-3-8b")


def test_a_model_that_does_not_fit_says_what_it_needs():
    with pytest.raises(InvalidSetting, match=r"131\.4 GiB of weights.*raise --tp"):
        estimate(Worker(model="Llama-3.1-70B", hardware="H100"))


def test_a_dtype_that_the_device_lacks_is_refused():
    with pytest.raises(InvalidSetting, match="A100-80G has no rate for it"):
        estimate(Worker(model="Qwen3-8B", hardware="A100-80G", dtype="fp8"))


def test_heads_must_divide():
    with pytest.raises(InvalidSetting, match="must divide the 9 attention heads"):
        estimate(Worker(model="SmolLM2-135M", hardware="H100", tensor_parallel=2))


def test_a_device_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "mine: {source: me, tflops: {bfloat16: 1}, memory_gib: 64, memory_gb_s: 100,\n"
        "       link_gb_s: 1, network_gb_s: 1, price_per_hour: 0.5}\n"
    )

    assert estimate(Worker(model="Qwen3-8B", hardware=str(path))).subject["hardware"] == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {}\nb: {}\n", "exactly one device"),
        ("mine: {memory_gb: 3}\n", "memory_gb = 3: is unknown; did you mean memory_gib"),
        ("mine: {source: me}\n", "lacks .*tflops"),
        ("mine: 3\n", "must be a mapping"),
        ("- a\n", "mapping of names"),
        (
            "mine: {source: me, tflops: {bfloat16: 1}, memory_gib: -1, memory_gb_s: 100,"
            " link_gb_s: 1, network_gb_s: 1, price_per_hour: 0.5}\n",
            "memory_gib = -1: must be a number above 0",
        ),
    ],
)
def test_a_wrong_device_of_ones_own_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)

    with pytest.raises(InvalidSetting, match=message):
        hardware(str(path))


def test_a_config_that_is_none_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")

    with pytest.raises(CheckpointError, match="model_type"):
        model_spec(str(path))


def test_the_command_prints_what_it_assumes(tmp_path, capsys):
    out, mocker = tmp_path / "p.json", tmp_path / "m.json"
    what = ["--model", "Qwen3-32B", "--hardware", "H200", "--tp", "4"]

    assert cli.main(["estimate", *what, "--out", str(out), "--mocker", str(mocker)]) == 0

    shown = capsys.readouterr().out
    assert "NVIDIA H200 SXM data sheet" in shown
    assert "shares of the sheet's rates: compute 0.72" in shown
    assert "262,144 bytes of KV a token" in shown
    assert load_profile(mocker) == load_profile(out)
