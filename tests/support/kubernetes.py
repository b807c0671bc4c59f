"""What Kubernetes would make of `deploy/kubernetes`: Kustomize as kubectl has it, and a schema for
every kind.

kubectl comes from Debian, Kubernetes' own schemas from a package of PyPI, and those of KEDA and of
the Prometheus operator from their Go modules: each of a fixed version, checked by a hash, and kept
in the cache. RabbitMQ's operators can't be had so; what their kinds take is said here, as far as it
is used.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from deploy.local.debian import lay_out, remove
from deploy.local.paths import REPOSITORY, cache_directory, locked
from deploy.local.processes import AS_ROOT, ProcessError, run_tool

HERE = REPOSITORY / "deploy/kubernetes"
OVERLAYS = ("base", "overlays/own-servers", "overlays/complete")

Manifest = dict[str, Any]

_SUITE = "trixie"
_SCHEMAS = "kubernetes-validate==1.37.0"
_SCHEMAS_HASH = "85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9"
_KUBERNETES = "v1.34.0"
_FETCH_SECONDS = 300

_KEDA = ("github.com/kedacore/keda/v2@v2.21.0", "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=")
_PROMETHEUS = (
    "github.com/prometheus-operator/prometheus-operator@v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
)
_DEFINITIONS: Mapping[str, tuple[tuple[str, str], str]] = {
    "ScaledObject": (_KEDA, "config/crd/bases/keda.sh_scaledobjects.yaml"),
    "TriggerAuthentication": (_KEDA, "config/crd/bases/keda.sh_triggerauthentications.yaml"),
    "PodMonitor": (
        _PROMETHEUS,
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
    ),
    "PrometheusRule": (
        _PROMETHEUS,
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
"""Kinds, and the Go module and file that have their definitions."""


# Manifests.


@cache
def built(overlay: str) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder. Not to be changed: it is made once."""
    done = subprocess.run(
        [_kubectl(), "kustomize", str(HERE / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


def rules() -> list[Manifest]:
    """What `deploy/kubernetes/rules` prints."""
    return parsed(
        subprocess.run(
            [HERE / "rules"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    )


def parsed(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def faults(manifest: Manifest) -> list[str]:
    """What the API server would refuse or drop: a field that there is none of, a value of a wrong
    type."""
    found = _validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    return [f"{manifest['kind']} {error.json_path}: {error.message}" for error in found]


# Schemas.


@cache
def _validator(version: str, kind: str) -> Draft202012Validator:
    if version == "rabbitmq.com/v1beta1":
        return Draft202012Validator(_RABBITMQ[kind])
    if kind in _DEFINITIONS:
        (definition,) = yaml.safe_load_all(_definition(kind).read_text())
        (schema,) = (
            one["schema"]
            for one in definition["spec"]["versions"]
            if version.endswith(f"/{one['name']}")
        )
        return Draft202012Validator(_strict(schema["openAPIV3Schema"]))
    schemas, registry = _core()
    group, _, name = version.rpartition("/")
    parts = (kind.lower(), group.partition(".")[0], name)
    return Draft202012Validator(
        schemas["-".join(part for part in parts if part)], registry=registry
    )


@cache
def _core() -> tuple[Mapping[str, Any], Registry[Any]]:
    """The schemas of Kubernetes' own kinds, by file name, and what they refer to."""
    folder = f"kubernetes_validate/kubernetes-json-schema/{_KUBERNETES}-local-strict/"
    with zipfile.ZipFile(io.BytesIO(_wheel().read_bytes())) as archive:
        names = [name for name in archive.namelist() if name.startswith(folder)]
        kinds = (
            "deployment-",
            "serviceaccount-",
            "configmap-",
            "poddisruptionbudget-",
            "networkpolicy-",
            "_definitions",
        )
        files = {
            name: json.loads(archive.read(name))
            for name in names
            if name.removeprefix(folder).startswith(kinds)
        }
    shared = files[f"{folder}_definitions.json"]
    registry: Registry[Any] = Registry().with_resource(
        shared["$id"], Resource.from_contents(shared)
    )
    return {Path(name).stem: schema for name, schema in files.items()}, registry


def _strict(schema: Any) -> Any:
    """A definition's schema with no room for fields that it does not name; the API server drops
    those."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict["type"] = ["integer", "string"]
    open_ended = (
        strict.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in strict
    )
    if (
        isinstance(strict.get("properties"), dict)
        and strict.get("type") == "object"
        and not open_ended
    ):
        strict["additionalProperties"] = False
        if {"apiVersion", "kind", "metadata"} <= strict["properties"].keys():
            strict["properties"]["metadata"] = _FREE  # which is Kubernetes' own, and not said here
    return strict


# Fetched once.


def _kubectl() -> Path:
    place = cache_directory("kubernetes") / f"kubectl-{_SUITE}"
    program = place / "usr/bin/kubectl"
    with locked("kubectl"):
        if not program.exists():
            partial, log = (
                place.with_name(f"{place.name}.partial"),
                place.with_name(f"{place.name}.log"),
            )
            remove(partial, place, log=log)
            # Only unpacked: it needs nothing of the release around it.
            lay_out(_SUITE, partial, ("--variant=extract", "--include=kubernetes-client"), log=log)
            run_tool(
                "mv", "--no-target-directory", str(partial), str(place), log=log, within=AS_ROOT
            )
    return program


def _wheel() -> Path:
    """The package with Kubernetes' schemas. It is read as it is: installed it takes a hundred
    megabytes."""
    folder = cache_directory("kubernetes")
    with locked("kubernetes-schemas"):
        if not (found := _intact(folder)):
            wanted = folder / "schemas.txt"
            wanted.write_text(f"{_SCHEMAS} --hash=sha256:{_SCHEMAS_HASH}\n")
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            _run([*pip, "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)])
            found = _intact(folder)
    assert found, "pip fetched something else"
    return found


def _intact(folder: Path) -> Path | None:
    wheels = folder.glob("kubernetes_validate-*.whl")
    return next(
        (path for path in wheels if sha256(path.read_bytes()).hexdigest() == _SCHEMAS_HASH), None
    )


def _definition(kind: str) -> Path:
    (module, digest), name = _DEFINITIONS[kind]
    path = cache_directory("kubernetes") / f"{module.replace('/', '_')}-{Path(name).name}"
    with locked("kubernetes-definitions"):
        if not path.exists():
            with zipfile.ZipFile(_module(module, digest)) as archive:
                text = archive.read(f"{module}/{name}")
            partial = path.with_suffix(".partial")
            partial.write_bytes(text)
            partial.rename(path)
    return path


def _module(module: str, digest: str) -> Path:
    """A Go module's archive.

    Raises:
        ProcessError: it can't be had, or is not what it was.
    """
    environment = {
        **os.environ,
        "GOMODCACHE": str(cache_directory("kubernetes", "go")),
        "GOFLAGS": "-modcacherw",
        "GOSUMDB": "off",  # the hash is known here
        "GOTOOLCHAIN": "local",
    }
    told = json.loads(_run(["go", "mod", "download", "-json", module], environment))
    if told["Sum"] != digest:
        raise ProcessError(f"{module} is not what it was: {told['Sum']} and not {digest}")
    return Path(told["Zip"])


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_FETCH_SECONDS,
        cwd="/",
    )
    if done.returncode != 0:
        raise ProcessError(
            f"{' '.join(command[:4])} ended with {done.returncode}: {done.stdout}{done.stderr}"
        )
    return done.stdout


# RabbitMQ's kinds, v1beta1 of the cluster operator (2.x) and of the messaging topology operator
# (1.x).


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def _kind(required: str = "", **fields: Any) -> dict[str, Any]:
    return _object(
        "apiVersion kind metadata spec",
        apiVersion=_TEXT,
        kind=_TEXT,
        metadata=_object("name", name=_TEXT, namespace=_TEXT, labels={"type": "object"}),
        spec=_object(required, **fields),
    )


def _in_cluster(required: str, **fields: Any) -> dict[str, Any]:
    return _kind(
        f"rabbitmqClusterReference {required}",
        rabbitmqClusterReference=_NAMED,
        vhost=_TEXT,
        **fields,
    )


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_FLAG = {"type": "boolean"}
_FREE = {"type": "object"}
_NAMED = _object("name", name=_TEXT, namespace=_TEXT)

_RABBITMQ: Mapping[str, Mapping[str, Any]] = {
    "RabbitmqCluster": _kind(
        replicas=_NUMBER,
        image=_TEXT,
        persistence=_object(storage=_TEXT, storageClassName=_TEXT),
        resources=_object(requests=_FREE, limits=_FREE),
        tls=_object(secretName=_TEXT, caSecretName=_TEXT, disableNonTLSListeners=_FLAG),
        affinity=_object(nodeAffinity=_FREE, podAffinity=_FREE, podAntiAffinity=_FREE),
        # The operator takes no more than so many characters.
        rabbitmq=_object(
            additionalConfig={**_TEXT, "maxLength": 2000}, additionalPlugins={"type": "array"}
        ),
    ),
    "Exchange": _in_cluster(
        "name", name=_TEXT, type=_TEXT, durable=_FLAG, autoDelete=_FLAG, arguments=_FREE
    ),
    "Queue": _in_cluster(
        "name", name=_TEXT, type=_TEXT, durable=_FLAG, autoDelete=_FLAG, arguments=_FREE
    ),
    "Binding": _in_cluster(
        "",
        source=_TEXT,
        destination=_TEXT,
        destinationType={"enum": ["queue", "exchange"]},
        routingKey=_TEXT,
    ),
    "Policy": _in_cluster(
        "name pattern definition",
        name=_TEXT,
        pattern=_TEXT,
        applyTo={"enum": ["queues", "classic_queues", "quorum_queues", "exchanges", "all"]},
        priority=_NUMBER,
        definition=_FREE,
    ),
    "User": _kind(
        "rabbitmqClusterReference",
        rabbitmqClusterReference=_NAMED,
        importCredentialsSecret=_NAMED,
        tags={
            "type": "array",
            "items": {"enum": ["management", "policymaker", "monitoring", "administrator"]},
        },
    ),
    "Permission": _in_cluster(
        "vhost permissions",
        user=_TEXT,
        userReference=_NAMED,
        permissions=_object("configure write read", configure=_TEXT, write=_TEXT, read=_TEXT),
    ),
}


def every(manifests: list[Manifest], kind: str) -> Iterator[Manifest]:
    """The manifests of a kind."""
    return (manifest for manifest in manifests if manifest["kind"] == kind)
