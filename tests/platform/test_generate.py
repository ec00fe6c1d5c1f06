"""`stafette generate`, as a user runs it."""

import json
import signal
import subprocess
import sys

import pytest

SMALL = ["--max-model-len", "512", "--num-kv-blocks", "64", "--max-num-seqs", "4"]
NO_WARNINGS = ["--log-level", "error"]  # such as that there are no native kernels


def stafette(*arguments, stdin=None):
    command = [sys.executable, "-m", "stafette", *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=120)


def test_a_question_is_answered_and_the_pace_is_told():
    done = stafette("generate", *SMALL, "What is a relay race? Answer in one sentence.")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A relay race is")
    assert "tok/s" in done.stderr


def test_the_prompt_may_come_from_standard_input_and_be_continued_raw():
    arguments = ["--raw", "--max-tokens", "4", "--quiet", "-"]

    done = stafette(*NO_WARNINGS, "generate", *SMALL, *arguments, stdin="The capital of France is")

    assert "Paris" in done.stdout
    assert done.stderr == ""


def test_an_answer_can_be_bound_to_a_schema(tmp_path):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({**schema, "additionalProperties": False}))

    done = stafette("generate", *SMALL, "--json-schema", str(file), "Is water wet?")

    assert type(json.loads(done.stdout)["ok"]) is bool


def test_a_wrong_flag_is_one_line_and_no_traceback():
    done = stafette("generate", "--max-model-len", "1000000", "hello")

    assert done.returncode == 1
    assert done.stderr.startswith("stafette: max_model_len = 1000000")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_is_not_there_is_named():
    done = stafette("generate", "--model", "/no/such/model", "hello")

    assert done.returncode == 1
    assert done.stderr.startswith("stafette: model = '/no/such/model'")


def test_help_needs_no_torch():
    script = (
        "import sys; sys.modules['torch'] = sys.modules['psutil'] = None\n"
        "from stafette.platform.cli import main; main(['generate', '--help'])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "--max-num-seqs" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["torch", "llguidance", "psutil"])
def test_without_the_engines_packages_one_line_says_which_extra_brings_them(module):
    script = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from stafette.platform.cli import main; sys.exit(main(['generate', 'hello']))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    remedy = "pip install 'stafette[engine]'"
    assert done.returncode == 1
    expected = f"stafette: generate needs {module}, which is not installed: {remedy}\n"
    assert done.stderr == expected


def answering():
    """A long answer that has begun."""
    command = [sys.executable, "-m", "stafette", *NO_WARNINGS, "generate", *SMALL]
    process = subprocess.Popen(
        [*command, "--max-tokens", "400", "Count to 100."],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.read(1)
    return process


def test_a_reader_that_leaves_early_gets_no_traceback():
    with answering() as process:
        process.stdout.close()

        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 128 + signal.SIGPIPE


def test_an_interrupt_ends_quietly():
    with answering() as process:
        process.send_signal(signal.SIGINT)

        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 128 + signal.SIGINT
