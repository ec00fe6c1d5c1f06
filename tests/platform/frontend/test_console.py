"""The console over HTTP: its files, its data, and who may see which."""

import gzip
import json

import pytest

from stafette.platform.console.assets import assets
from stafette.platform.frontend.keys import ApiKey


async def test_the_page_and_its_files_may_only_use_what_is_theirs(api):
    page = await api.get("/console")

    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"<script>" not in page.body
    assert b"style=" not in page.body
    assert b"http" not in page.body.replace(b"http-equiv", b"")


@pytest.mark.parametrize("name", sorted(assets()))
async def test_every_file_is_served_and_asked_for_again_cheaply(api, name):
    first = await api.get(f"/console/{name}")
    again = await api.get(f"/console/{name}", if_none_match=first.headers["etag"])

    assert (first.status, len(first.body) > 0) == (200, True)
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["/console/../app.py", "/console/nothing.js", "/console/%2e%2e"])
async def test_other_files_are_not_there(api, path):
    assert (await api.get(path)).status == 404


async def test_data_need_a_key_where_there_are_keys_and_files_do_not(make_api):
    api = make_api(keys=(ApiKey(name="alice", secret="sk-1"),))

    assert (await api.get("/console")).status == 200
    assert (await api.get("/console/data")).status == 401
    assert (await api.get("/console/data", authorization="Bearer sk-1")).status == 200


async def test_data_are_compressed_for_those_that_can_read_it(api):
    worker = api.generator.workers()[0]
    api.generator.workers = lambda: [{**worker, "name": f"w{i}"} for i in range(500)]

    plain = await api.get("/console/data")
    packed = await api.get("/console/data", accept_encoding="gzip, br")

    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 2
    told, same = json.loads(gzip.decompress(packed.body)), plain.json()
    assert told["workers"] == same["workers"]
    assert plain.headers["cache-control"] == "no-store"
