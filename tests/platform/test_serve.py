"""`stafette serve --local`, as a user starts it."""

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from stafette.platform.commands import serve
from stafette.platform.commands.serve import api_keys
from stafette.platform.config import load
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.server import listen

SMALL = ["--max-model-len", "256", "--num-kv-blocks", "32", "--max-num-seqs", "2"]
LAPTOP = str(Path(__file__).parents[2] / "examples/laptop.yaml")
COMMAND = [sys.executable, "-P", "-m", "stafette", "--log-level", "error", "serve"]
TELLING = ["info" if word == "error" else word for word in COMMAND]


def refused(*arguments):
    """Run a server that cannot start; return what it says."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_it_says_where_it_is_and_how_to_ask_and_ends_on_a_signal(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("alice sk-1\n")
    arguments = ["--local", "--port", "0", "--api-keys", str(keys), *SMALL]
    process = subprocess.Popen(
        [*TELLING, *arguments, "--served-model-name", "tiny", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    while "-d '" not in said:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        said += line
    curl = said[said.index("curl") :].replace("\\\n", "").replace("KEY", "sk-1")

    url = re.search(r"ready at (\S+)/v1;", said)[1]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/v1/models", timeout=30)
    answer = subprocess.run(
        ["bash", "-c", f"{curl.strip()} --silent --max-time 60"], capture_output=True, text=True
    )
    process.send_signal(signal.SIGINT)

    assert '"model": "tiny"' in answer.stdout
    assert process.wait(timeout=60) == 0
    lines = [json.loads(line) for line in process.stderr]  # of the log, which is no terminal
    (told,) = [line for line in lines if "POST /v1/chat/completions 200" in line["message"]]
    assert (told["process"], told["request"]) == ("local", json.loads(answer.stdout)["id"])
    process.stdout.close()
    process.stderr.close()


def test_a_port_in_use_is_told_before_a_model_is_loaded():
    with listen(FrontendConfig(port=0)) as taken:
        port = str(taken.getsockname()[1])

        assert f"port = '127.0.0.1:{port}'" in refused("--local", "--port", port)


def test_a_missing_model_is_one_line():
    assert "model = '/no/such/model'" in refused(
        "--local", "--port", "0", "--model", "/no/such/model"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--local", "--max-body-bytes", "0"], "max_body_bytes = 0"),
        (["--local", "--port", "70000"], "port = 70000"),
        (["--local", "--lora", "nonsense"], "--lora = 'nonsense'"),
        (["--local", "--api-keys", "/no/such/file"], "api_keys = '/no/such/file'"),
        (["--local", "--tls-keyfile", "key.pem"], "tls_keyfile = 'key.pem'"),
        (["--local", "--api-server-count", "2"], "--api-server-count = 2: means nothing with"),
        ([LAPTOP, "--port", "70000"], "frontend.port = 70000"),
        ([LAPTOP, "--api-server-count", "0"], "replicas = 0"),
        ([LAPTOP, "--max-model-len", "0"], "engine.max_model_len = 0"),
        ([LAPTOP, "--lora", "nonsense"], "--lora = 'nonsense': must be NAME=DIR"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments, told):
    assert told in refused(*arguments)


def test_flags_of_one_engine_are_settings_of_a_fleet():
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    flags = "--host 0.0.0.0 --port 0 --served-model-name a b --model smollm2 --max-num-seqs 3"
    arguments = parser.parse_args([LAPTOP, *flags.split(), "--no-enable-prefix-caching"])

    config = load(arguments.config, serve.assignments(arguments)).config

    assert (config.frontend.host, config.frontend.port) == ("0.0.0.0", 0)
    assert config.frontend.served_model_name == ("a", "b")
    assert config.model == "smollm2"
    for pool in config.pools:
        engine = config.engine_flags(pool)
        assert (engine.max_num_seqs, engine.enable_prefix_caching) == (3, False)


def test_several_frontends_are_asked_for_as_vllm_has_it():
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    arguments = parser.parse_args([LAPTOP, "--api-server-count", "3"])

    config = load(arguments.config, serve.assignments(arguments)).config

    assert config.frontend.replicas == 3


def test_keys_come_from_the_file_or_else_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("alice sk-1\n")
    monkeypatch.setenv("STAFETTE_API_KEYS", "bob sk-2\ncarol sk-3")

    assert [key.name for key in api_keys(FrontendConfig(api_keys=str(file)))] == ["alice"]
    assert [key.name for key in api_keys(FrontendConfig())] == ["bob", "carol"]
    monkeypatch.delenv("STAFETTE_API_KEYS")
    assert api_keys(FrontendConfig()) is None


def test_a_variable_without_a_key_does_not_open_the_door(monkeypatch):
    monkeypatch.setenv("STAFETTE_API_KEYS", "# nobody yet")

    with pytest.raises(InvalidSetting, match="STAFETTE_API_KEYS"):
        api_keys(FrontendConfig())


def test_help_needs_neither_torch_nor_uvicorn():
    script = (
        "import sys\n"
        "for name in ('torch', 'uvicorn', 'uvloop', 'prometheus_client', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "from stafette.platform.cli import main; main(['serve', '--help'])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "--max-body-bytes" in done.stdout
    assert done.stderr == ""


def test_without_uvloop_one_line_says_which_extra_brings_it():
    script = (
        "import sys; sys.modules['uvloop'] = None\n"
        "from stafette.platform.cli import main; sys.exit(main(['serve', '--local']))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    told = "stafette: serve needs uvloop, which is not installed: pip install 'stafette["
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1


def test_every_command_line_in_the_docs_is_understood():
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    lines = re.findall(r"^    (stafette serve .*?)(?:\s+#.*)?$", page, re.MULTILINE)

    assert lines
    for line in lines:
        parser = argparse.ArgumentParser(exit_on_error=False)
        serve.add_arguments(parser)
        assert parser.parse_args(shlex.split(line)[2:]).local


SIGNALLED = """
import signal, threading, time
from stafette.platform.commands import serve

def say_when_it_listens():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.001)
    print("listens", flush=True)

threading.Thread(target=say_when_it_listens).start()
serve._sleep_until_signal()
time.sleep(0.5)  # more of them come
print("goes on", flush=True)
"""


def test_a_fleet_s_command_goes_on_to_its_end_however_often_it_is_told():
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SIGNALLED], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "listens\n"
        for _ in range(20_000):
            process.send_signal(signal.SIGTERM)

        assert process.communicate(timeout=30)[0] == "goes on\n"
    finally:
        process.kill()
        process.wait()
