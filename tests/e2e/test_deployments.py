"""The manifests in tools/examples: good by their own schemas, and what they set does what they say it does.

No container is started: their environments are those of a gateway and an app that run here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from gateway.config import SETTINGS, load
from gateway.errors import ConfigError
from tests.e2e import KEY, fetch, request
from tests.kit.api import running_api
from tests.kit.process import gateway_process
from tests.kit.programs import run
from tests.kit.redis import running_redis

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tools" / "examples"
COMPOSE = EXAMPLES / "compose.yaml"
KUBERNETES = EXAMPLES / "kubernetes-sidecar.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SECRETS = {
    "TARGET_API_KEY": KEY,
    "TOKEN_SECRET": "Zt4Nq8Xw1Kd6Vm3Rb9Yp2Hc7Lf5Js0Ga",
    "ADMIN_KEY": "Hn3Wx7Qe9Cr1Vt5By2Ku8Mi6Lo4Zp0Jd",
}


class Deployed(NamedTuple):
    """What both manifests say, in one form.

    Args:
        gateway: The environment that is written down for it.
        secrets: What else it gets.
        app: The environment of the app, without its token.
        token_in: Where that goes.
        grace_s: How long a stop may take.
        user: By whom the gateway runs; None for the image's own.
    """

    gateway: dict[str, str]
    secrets: set[str]
    app: dict[str, str]
    token_in: str
    grace_s: float


def by_compose() -> Deployed:
    text = COMPOSE.read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    app = dict(services["app"]["environment"])
    (token_in,) = [name for name, value in app.items() if "GATEWAY_TOKEN" in value]
    del app[token_in]
    assert services["gateway"]["env_file"] == "gateway.env"
    assert "env_file" not in services["app"]
    return Deployed(
        gateway=services["gateway"]["environment"],
        secrets=set(re.findall(r"^#     ([A-Z_]+)=", text, re.MULTILINE)),
        app=app,
        token_in=token_in,
        grace_s=float(services["gateway"]["stop_grace_period"].removesuffix("s")),
    )


def resources() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8"))
    return {f"{document['kind']} {document['metadata']['name']}": document for document in documents}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = resources()["Deployment app"]["spec"]["template"]["spec"]
    return spec


def by_kubernetes() -> Deployed:
    (gateway,), (app,) = pod()["initContainers"], pod()["containers"]
    for container in (gateway, app):
        assert container["envFrom"] == [{"secretRef": {"name": container["name"]}}]
    (token_in,) = resources()["Secret app"]["stringData"]
    return Deployed(
        gateway={variable["name"]: variable["value"] for variable in gateway["env"]},
        secrets=set(resources()["Secret gateway"]["stringData"]),
        app={variable["name"]: variable["value"] for variable in app["env"]},
        token_in=token_in,
        grace_s=pod()["terminationGracePeriodSeconds"],
    )


BOTH = pytest.mark.parametrize("deployed", [by_compose(), by_kubernetes()], ids=["compose", "kubernetes"])


# --- their schemas ---------------------------------------------------------------------------------------------------


def test_compose_by_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", resources())
def test_kubernetes_by_its_schemas(name: str, version: str) -> None:
    """1.29 is the first that has sidecars; strictly: what the schema does not know is an error."""
    assert version.startswith(kubernetes_validate.validate(resources()[name], version, strict=True))


# --- what they set ---------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_set_are_settings(deployed: Deployed) -> None:
    known = {setting.environment: setting for setting in SETTINGS.values()}
    assert deployed.gateway.keys() <= known.keys()
    assert deployed.secrets == SECRETS.keys()
    config = load(arguments={}, environ={**deployed.gateway, **SECRETS}, file=None)
    assert deployed.grace_s > config.settings.drain_timeout_s


@BOTH
def test_no_secret_is_the_apps(deployed: Deployed) -> None:
    assert not deployed.app.keys() & {setting.environment for setting in SETTINGS.values()}


def test_what_is_left_to_change_does_not_start() -> None:
    written = resources()["Secret gateway"]["stringData"]
    with pytest.raises(ConfigError, match="32 characters"):
        load(arguments={}, environ={**by_kubernetes().gateway, **written}, file=None)


def test_nothing_is_granted_in_compose() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    gateway = services["gateway"]
    assert (gateway["read_only"], gateway["cap_drop"]) == (True, ["ALL"])
    # The image has a user without rights; nobody gives it another, or a port on the host.
    assert not gateway.keys() & {"user", "ports", "cap_add", "privileged"}
    assert re.search(r"^USER [1-9]\d*:", DOCKERFILE, re.MULTILINE)
    assert (EXAMPLES / gateway["build"] / "Dockerfile").samefile(ROOT / "Dockerfile")
    assert set(services["app"]["networks"]) & set(services["redis"]["networks"]) == set()


def test_nothing_is_granted_in_kubernetes() -> None:
    """As Kubernetes' Pod Security Standards have it, at "restricted"."""
    spec = pod()
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in (*spec["initContainers"], *spec["containers"]):
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
    (gateway,) = spec["initContainers"]
    user = f"{gateway['securityContext']['runAsUser']}:{gateway['securityContext']['runAsGroup']}"
    assert re.search(rf"^USER {user}$", DOCKERFILE, re.MULTILINE)
    assert gateway["securityContext"]["readOnlyRootFilesystem"] is True
    assert gateway["resources"]["limits"].keys() == {"cpu", "memory"}


@BOTH
def test_the_app_asks_where_the_image_listens(deployed: Deployed) -> None:
    (port,) = re.findall(r'GATEWAY_LISTEN="0\.0\.0\.0:(\d+)"', DOCKERFILE)
    assert {urlsplit(url).port for url in deployed.app.values()} == {int(port)}
    (exposed,) = pod()["initContainers"][0]["ports"]
    assert exposed == {"name": "gateway", "containerPort": int(port)}


# --- what comes of it ------------------------------------------------------------------------------------------------


def deployed_here(url: str, address: str) -> str:
    """Return an app's URL with the gateway that runs here in place of the deployed one."""
    return urlsplit(url)._replace(netloc=urlsplit(address).netloc).geturl()


@BOTH
async def test_the_app_passes_with_a_token_that_was_issued_as_they_say(deployed: Deployed) -> None:
    """What starts is asked as their health checks and probes do."""
    (sidecar,) = pod()["initContainers"]
    probes = [sidecar[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    healthcheck = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["gateway"]["healthcheck"]["test"]
    with running_api() as api, running_redis() as redis:
        settings = {**deployed.gateway, **SECRETS, "TARGET_API_URL": f"{api.url}/v1", "REDIS_URL": redis.url}
        settings["STORE_TIMEOUT"] = "10s"  # the 100 ms that it is else are less than a busy machine may need
        issuing = await run(
            sys.executable, "-m", "gateway", "token", "issue", "--name", "app", env=environment(settings)
        )
        token = issuing[1].decode().strip()
        async with gateway_process(**settings) as program:
            for probe in probes:
                assert (await fetch(program.url, request(probe["path"]))).status == 200
                assert probe["port"] == sidecar["ports"][0]["name"]
            here = environment({"GATEWAY_LISTEN": urlsplit(program.url).netloc})
            assert await run(sys.executable, "-m", *healthcheck[1:], env=here) == (0, b"", b"")
            app = {name: deployed_here(url, program.url) for name, url in deployed.app.items()}
            command = sys.executable, str(EXAMPLES / "openai_sync.py")
            ran = await run(*command, env=environment({**app, deployed.token_in: token}))
        counted = redis.call("KEYS", "gateway:*:limit:day")
    assert ran == (0, b"Hello.\n", b"")
    ((line, fields),) = api.got
    assert line == "POST /v1/chat/completions"
    assert fields.get_all("Authorization") == [f"Bearer {KEY}"]
    assert token not in str(fields)
    assert isinstance(counted, list)
    assert len(counted) == 1


def environment(settings: dict[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), **settings}
