"""The operations of Kestra's API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.support.standin.answers import Form, forms, said_of_itself
from tests.support.standin.flows import flow_from, flow_json, typed
from tests.support.standin.lives import Lives
from tests.support.standin.model import (
    JSON,
    LEVELS,
    TERMINAL,
    Answer,
    Behaviour,
    Call,
    Flow,
    Run,
)
from tests.support.standin.search import filters, labels_from, positive, sorted_by
from tests.support.standin.shown import execution_json, log_entries


class Operations(Lives):
    """What Kestra's API does, each operation by its name."""

    def __init__(self, *, version: str, url: str) -> None:
        super().__init__(version=version)
        self.kills: list[str] = []
        self.created: list[Run] = []
        self.any_flow: Behaviour | None = None
        self.url = url

    @property
    def outputs_apart(self) -> bool:
        """Whether outputs have a path of their own; the build of 2.0 that was recorded is older
        than that."""
        return self.series == "2.0" and "SNAPSHOT" not in self.version

    def per_attempt(self) -> Counter[tuple[str, str]]:
        """How often each (job, attempt) was created by a create call."""
        return Counter(run.attempt for run in self.created)

    def _work(self, operation: str, call: Call, *variables: str) -> Answer:
        try:
            value = getattr(self, f"_on_{operation}")(call, *variables)
        except Answer as refused:
            return refused
        return forms(self.series).get(operation, Form()).answer(value)

    def _on_configs(self, _: Call) -> dict[str, Any]:
        return said_of_itself(self.series) | {"version": self.version}

    def _on_create(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        flow = self._flows.get((namespace, flow_id))
        if flow is None and self.any_flow is not None:
            flow = Flow(namespace=namespace, id=flow_id, behaviour=self.any_flow)
        if flow is None:
            raise self._refuse("/executions/contract.flows/nowhere")
        if flow.disabled:
            raise self._refuse("/executions/contract.flows/disabled")
        if call.body:
            kind = call.headers.get("Content-Type", "")
            raise self._refuse("415 POST", (f"[{JSON}]", f"[{kind}]"))
        labels = labels_from(self.series, [value for key, value in call.query if key == "labels"])
        run = self._start(flow, labels, typed(self.series, call.form, flow))
        run.trace = {
            name: call.headers[name]
            for name in ("traceparent", "tracestate")
            if name in call.headers
        }
        self.created.append(run)
        return self._begun(run, flow)

    def _begun(self, run: Run, flow: Flow) -> dict[str, Any]:
        """What is answered to who has an execution created: 1.x doesn't wait for what becomes of
        it."""
        if self._is_one_too_many(run, flow.concurrency or {}):
            run.histories[1:] = []
            self._pass_to(run, "FAILED")
        else:
            self._let_run(run)
        return self._whole(
            run if self.series == "2.0" else replace(run, histories=run.histories[:1])
        )

    def _is_one_too_many(self, run: Run, limits: Mapping[str, Any]) -> bool:
        if limits.get("behavior") != "FAIL":
            return False
        going = [
            one
            for one in self._open.values()
            if (one.namespace, one.flow) == (run.namespace, run.flow)
        ]
        return len(going) > int(limits["limit"])

    def _on_webhook(self, call: Call, namespace: str, flow_id: str, key: str) -> dict[str, Any]:
        flow = self._flows.get((namespace, flow_id))
        triggers = flow.parts.get("triggers", []) if flow else []
        if flow is None or key not in [trigger.get("key") for trigger in triggers]:
            raise self._refuse("/hook/wrong")
        run = self._start(flow, {"system.from": "trigger"}, {})
        run.trigger = {
            "type": "io.kestra.plugin.core.trigger.Webhook",
            "variables": {"body": call.body.decode()},
        }
        return self._begun(run, flow)

    def _on_search(self, call: Call) -> dict[str, Any]:
        page, size = positive(self.series, call, "page", 1), positive(self.series, call, "size", 10)
        found = self._search(filters(self.series, call.query))
        for order in reversed(call.value("sort").split(",") if call.value("sort") else []):
            found = sorted_by(self.series, found, order)
        shown = [self._whole(run) for run in found[(page - 1) * size : page * size]]
        # A page past the end has no rows and, in Kestra, no total either.
        return {"results": shown, "total": len(found) if shown else 0}

    _on_head = _on_search

    def _on_get(self, _: Call, execution_id: str) -> dict[str, Any]:
        return self._whole(self._find(execution_id))

    def _on_delete(self, _: Call, execution_id: str) -> None:
        self.forget(self._find(execution_id).id)

    def _on_kill(self, call: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        if run.state in TERMINAL and call.value("isOnKillCascade", "true") != "true":
            raise self._refuse("kill?isOnKillCascade=false")
        self.kills.append(execution_id)
        run.kills.append(self._now())
        if run.state not in TERMINAL and not self._halted:
            self._kill(run)
        return self._whole(run)

    def _on_resume(self, _: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        self._pass_to(run, "RESTARTED")
        self._in_background(self._end(run, "SUCCESS"))
        return self._whole(run)

    def _on_restart(self, _: Call, execution_id: str) -> dict[str, Any]:
        return self._whole(self.restart(execution_id))

    def _on_replay(self, _: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        flow = self._flows[run.namespace, run.flow]
        again = self._start(
            flow, run.labels | {"system.replay": "true"}, run.inputs, original_id=run.original_id
        )
        again.parent_id = run.id
        return self._begun(again, flow)

    def _on_outputs(self, _: Call, execution_id: str) -> dict[str, Any]:
        return dict(self._find(execution_id).outputs or {})

    def _on_logs(self, call: Call, execution_id: str) -> list[dict[str, Any]]:
        name = "filters[level][GREATER_THAN_OR_EQUAL_TO]" if self.series == "2.0" else "minLevel"
        least = LEVELS.index(call.value(name, "TRACE"))
        run = self.executions.get(execution_id)
        entries = log_entries(run) if run else []
        return [entry for entry in entries if LEVELS.index(entry["level"]) >= least]

    def _on_flow(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        shown = {"triggers": [], **flow_json(self._known(namespace, flow_id))}
        return shown if call.value("source") == "true" else shown | {"source": None}

    def _on_new_flow(self, call: Call) -> dict[str, Any]:
        flow = flow_from(self.series, call.body.decode())
        if (flow.namespace, flow.id) in self._flows:
            raise self._refuse("422 POST /api/v1/main/flows\n\nid: works")
        self._flows[flow.namespace, flow.id] = flow
        return flow_json(flow)

    def _on_save_flow(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        self._known(namespace, flow_id)
        flow = flow_from(self.series, call.body.decode())
        if (flow.namespace, flow.id) != (namespace, flow_id):
            raise self._refuse("422 PUT")
        self._flows[namespace, flow_id] = flow
        return flow_json(flow)

    def _on_delete_flow(self, _: Call, namespace: str, flow_id: str) -> None:
        self._known(namespace, flow_id)
        del self._flows[namespace, flow_id]

    def _known(self, namespace: str, flow_id: str) -> Flow:
        try:
            return self._flows[namespace, flow_id]
        except KeyError:
            raise self._refuse("404 GET /api/v1/main/flows/") from None

    def _on_validate(self, call: Call) -> list[dict[str, Any]]:
        shown: dict[str, Any] = {
            "index": 0,
            "outdated": False,
            "deprecationPaths": [],
            "warnings": [],
            "infos": [],
        }
        try:
            flow = flow_from(self.series, call.body.decode())
        except Answer as answer:
            text = answer.body["message"].removeprefix("Invalid entity: ")
            return [
                {**shown, "namespace": "", "flow": "", "constraints": f"Validation error: {text}"}
            ]
        return [{**shown, "namespace": flow.namespace, "flow": flow.id}]

    def _whole(self, run: Run) -> dict[str, Any]:
        return execution_json(run, self.url, outputs_apart=self.outputs_apart)
