"""Releases as Helm makes them at an API server: what an upgrade keeps, and what it changes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helm_python as helm
import pytest
import yaml

RESOURCES = {
    "v1": ("Secret", "Service", "ServiceAccount", "Namespace"),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "policy/v1": ("PodDisruptionBudget",),
    "ray.io/v1": ("RayJob", "RayService"),
}


def plural(kind):
    if kind.endswith("y"):
        return kind.lower()[:-1] + "ies"
    return kind.lower() + ("es" if kind.endswith("s") else "s")


def group_of(version):
    name, _, number = version.partition("/")
    one = {"groupVersion": version, "version": number}
    return {"name": name, "versions": [one], "preferredVersion": one}


def resources_of(version):
    verbs = ["create", "delete", "get", "list", "patch"]
    made = [
        {"name": plural(kind), "singularName": kind.lower(), "kind": kind}
        | {"namespaced": kind != "Namespace", "verbs": verbs}
        for kind in RESOURCES[version]
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": made}


def openapi_of(version):
    """Say that this server validates fields itself: Helm then leaves it to it."""
    group, _, number = version.rpartition("/")
    about = {"group": group, "version": number}
    query = [{"name": "fieldValidation", "in": "query"}]
    paths = {
        f"/{kind}": {
            "patch": {
                "parameters": query,
                "responses": {},
                "x-kubernetes-group-version-kind": about | {"kind": kind},
            }
        }
        for kind in RESOURCES[version]
    }
    return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": paths}


class Api(BaseHTTPRequestHandler):
    """As much of Kubernetes as Helm asks for: discovery, get, list, create, apply, delete."""

    def log_message(self, *_):
        pass

    def _answer(self, code, body):
        payload = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _missing(self):
        self._answer(404, {"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound"})

    def _body(self):
        return yaml.safe_load(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        found = self.server.objects.get(path) or self._discovered(path)
        self._answer(200, found) if found else self._missing()

    def _discovered(self, path):
        prefixes = {version: "api" if version == "v1" else "apis" for version in RESOURCES}
        paths = {f"{prefix}/{version}": version for version, prefix in prefixes.items()}
        if path == "version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            groups = [group_of(version) for version in RESOURCES if version != "v1"]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "openapi/v3":
            return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in paths}}
        if (version := paths.get(path.removeprefix("openapi/v3/"))) is None:
            return None
        return openapi_of(version) if path.startswith("openapi") else resources_of(version)

    def do_POST(self):
        body = self._body()
        name = body["metadata"]["name"]
        self._keep(f"{self.path.partition('?')[0].strip('/')}/{name}", body, 201)

    def do_PATCH(self):
        self._keep(self.path.partition("?")[0].strip("/"), self._body(), 200)

    def do_DELETE(self):
        if self.server.objects.pop(self.path.partition("?")[0].strip("/"), None) is None:
            return self._missing()
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _keep(self, path, body, code):
        self.server.version += 1
        body["metadata"] |= {"uid": path, "resourceVersion": str(self.server.version)}
        self.server.objects[path] = body
        self._answer(code, body)


class Cluster:
    """A namespace in which Helm keeps one release."""

    def __init__(self, server, config, path):
        self._server, self._config, self._path = server, config, path

    def install(self, **values):
        self._config.install(self._path, "demo", values, namespace="prod", wait="hookOnly")

    def upgrade(self, **values):
        self._config.upgrade(self._path, "demo", values, namespace="prod", wait="hookOnly")

    def uninstall(self):
        self._config.uninstall("demo", wait="hookOnly")

    def of(self, kind):
        objects = self._server.objects.values()
        return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


@pytest.fixture
def cluster(chart):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.objects, server.version = {}, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with helm.Config(kube_apiserver=url, namespace="prod", storage_driver="memory") as config:
        yield Cluster(server, config, chart.path)
    server.shutdown()
    server.server_close()
    thread.join()


def test_upgrade_keeps_the_secrets_that_were_generated(cluster):
    cluster.install()
    before = {name: secret["data"] for name, secret in cluster.of("Secret").items()}

    cluster.upgrade(monitoring={"interval": "30s"})

    assert sorted(before) == ["demo-stafette-api-keys", "demo-stafette-cluster"]
    assert {name: secret["data"] for name, secret in cluster.of("Secret").items()} == before


def test_secrets_outlive_the_release_and_serve_the_next_one(cluster):
    cluster.install()
    before = {name: secret["data"] for name, secret in cluster.of("Secret").items()}

    cluster.uninstall()
    assert cluster.of("RayService") == {}
    cluster.install()

    assert {name: secret["data"] for name, secret in cluster.of("Secret").items()} == before


def test_two_installations_share_no_secret(chart):
    first, second = chart.render(), chart.render()

    for one, other in zip(first.of("Secret"), second.of("Secret"), strict=True):
        assert not set(one["data"].values()) & set(other["data"].values())


def test_wrong_values_leave_the_release_as_it_was(cluster):
    cluster.install()
    before = cluster.of("RayService")

    with pytest.raises(helm.HelmError, match="'replica' not allowed"):
        cluster.upgrade(config={"pools": {"decode": {"replica": 2}}})

    assert cluster.of("RayService") == before
