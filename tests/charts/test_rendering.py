"""What comes out is what Kubernetes and KubeRay accept, and hangs together."""

import helm_python as helm

_INFORMATION = 1


def test_helm_warns_of_nothing(chart, cases):
    found = [helm.lint(chart.path, values, strict=True) for values in cases.values()]

    warnings = [m for each in found for m in each["messages"] if m["severity"] > _INFORMATION]
    assert warnings == []
    assert [each["errors"] for each in found] == [[]] * len(cases)


def test_every_object_has_only_fields_that_its_kind_knows(chart, case):
    wrong = {f"{o['kind']} {o['metadata']['name']}": chart.wrong(o) for o in case.objects}

    assert {name: errors for name, errors in wrong.items() if errors} == {}


def test_validation_would_notice_a_misspelt_field(chart, rendered):
    service = rendered["default"].one("RayService")
    budget = rendered["fleet64"].of("PodDisruptionBudget")[0]
    pod = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]

    pod["containers"][0]["imagee"] = pod["containers"][0].pop("image")
    budget["spec"]["minavailable"] = budget["spec"].pop("minAvailable")

    assert any("imagee" in error for error in chart.wrong(service))
    assert any("minavailable" in error for error in chart.wrong(budget))
    pod["containers"][0]["image"] = pod["containers"][0].pop("imagee")
    budget["spec"]["minAvailable"] = budget["spec"].pop("minavailable")


def test_no_two_objects_of_a_kind_share_a_name(case):
    names = [(each["kind"], each["metadata"]["name"]) for each in case.objects]

    assert len(set(names)) == len(names)


def test_service_finds_exactly_the_pods_that_serve(case):
    selector = case.one("Service")["spec"]["selector"]

    for group in case.groups.values():
        labels, container = _pod(group)
        ports = {port["name"] for port in container["ports"]}
        assert (selector.items() <= labels.items()) == ("http" in ports)
    head, _ = _pod(case.cluster["headGroupSpec"])
    assert not selector.items() <= head.items()


def test_frontends_are_asked_whether_they_are_ready_on_their_own_listener(case):
    for container in case.containers().values():
        serves = any(port["name"] == "http" for port in container["ports"])
        probe = container["readinessProbe"]["httpGet"]
        assert (probe["path"], probe["port"]) == (
            ("/ready", "http") if serves else ("/api/healthz", 52365)
        )


def test_no_pod_names_the_charts_version(case):
    """It would replace the whole cluster with each new chart."""
    for spec in (case.cluster["headGroupSpec"], *case.groups.values()):
        labels, _ = _pod(spec)
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_every_group_with_several_pods_gives_up_one_at_a_time(case):
    budgets = {
        each["spec"]["selector"]["matchLabels"].get("ray.io/group"): each["spec"]["minAvailable"]
        for each in case.of("PodDisruptionBudget")
    }
    budgets.pop(None, None)  # the head's

    assert budgets == {
        name: group["minReplicas"] - 1
        for name, group in case.groups.items()
        if group["minReplicas"] > 1
    }


def test_no_container_runs_as_root_or_gains_rights(case):
    for spec in (case.cluster["headGroupSpec"], *case.groups.values()):
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_the_heads_autoscaler_may_talk_to_kubernetes(rendered):
    tokens = {
        name: [
            spec["template"]["spec"]["automountServiceAccountToken"]
            for spec in (case.cluster["headGroupSpec"], *case.groups.values())
        ]
        for name, case in rendered.items()
    }

    assert not any(tokens["default"])
    assert tokens["fleet64"] == [True, False, False, False]


def test_model_volume_is_mounted_read_only_where_models_are_read(rendered):
    for name in ("node8", "fleet64", "everything"):
        containers = rendered[name].containers()
        assert "volumeMounts" not in containers.pop("head")
        for container in containers.values():
            mount = container["volumeMounts"][0]
            assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)


def test_long_and_short_names_stay_within_kuberays_limit(chart):
    assert chart.render(name="stafette").one("RayService")["metadata"]["name"] == "stafette"
    long = chart.render(name="a" * 53)
    names = [each["metadata"]["name"] for each in long.of("RayService")]

    assert names == ["a" * 40]


def _pod(spec):
    template = spec["template"]
    return template["metadata"]["labels"], template["spec"]["containers"][0]
