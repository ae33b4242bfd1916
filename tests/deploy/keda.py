"""What KEDA takes of a ScaledObject, as its documentation (keda.sh, 2.18) names the fields: those that are used here, and no others."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

_COUNT = {"type": "integer", "minimum": 0}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


_TEXT = {"type": "string", "minLength": 1}
_NUMBER_AS_TEXT = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
_FALLBACK_BEHAVIOURS = ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
_PROMETHEUS = _object(
    ("serverAddress", "query", "threshold"),
    serverAddress={"type": "string", "pattern": "^https?://"},
    query=_TEXT,
    threshold=_NUMBER_AS_TEXT,
    activationThreshold=_NUMBER_AS_TEXT,
    ignoreNullValues={"enum": ["true", "false"]},
    authModes=_TEXT,
)
_TRIGGER = _object(
    ("type", "metadata"),
    type={"const": "prometheus"},
    metadata=_PROMETHEUS,
    metricType={"enum": ["Value", "AverageValue"]},
    name=_TEXT,
    authenticationRef=_object(("name",), name=_TEXT),
)
_SPEC = _object(
    ("scaleTargetRef", "triggers"),
    scaleTargetRef=_object(("name",), name=_TEXT, kind=_TEXT, apiVersion=_TEXT),
    pollingInterval=_COUNT,
    cooldownPeriod=_COUNT,
    minReplicaCount=_COUNT,
    maxReplicaCount={"type": "integer", "minimum": 1},
    fallback=_object(
        ("failureThreshold", "replicas"),
        failureThreshold=_COUNT,
        replicas=_COUNT,
        behavior={"enum": _FALLBACK_BEHAVIOURS},
    ),
    advanced=_object(horizontalPodAutoscalerConfig=_object(behavior={"type": "object"}, name=_TEXT)),
    triggers={"type": "array", "minItems": 1, "items": _TRIGGER},
)
SCALED_OBJECT = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata={"type": "object", "required": ["name"]},
    spec=_SPEC,
)


def validate(document: dict[str, Any], version: str) -> None:
    """Check a ScaledObject; raise `ValidationError` of jsonschema. What it hands on to an autoscaler is held to Kubernetes' own schema."""
    jsonschema.validate(document, SCALED_OBJECT)
    spec = document["spec"]
    if spec.get("minReplicaCount", 0) > spec.get("maxReplicaCount", 100):
        raise jsonschema.ValidationError("minReplicaCount is over maxReplicaCount")
    config = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": document["metadata"]["name"]},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]},
            "maxReplicas": spec.get("maxReplicaCount", 100),
            "behavior": config.get("behavior", {}),
        },
    }
    kubernetes_validate.validate(scaler, version, strict=True)
