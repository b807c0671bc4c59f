package bridge.engine.api;

import bridge.engine.http.Json;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.kestra.core.models.executions.Execution;
import java.util.List;
import java.util.stream.Stream;

/** How Kestra 2.0 shows an execution: whole but for its outputs, or in light rows. */
final class ExecutionJson {
    private static final List<String> LIGHT = List.of(
        "tenantId", "id", "namespace", "flowId", "flowRevision", "inputs", "labels", "state", "parentId", "originalId",
        "trigger", "scheduleDate", "kind", "loopRun");
    private static final List<String> TASK_RUN = List.of(
        "id", "taskId", "parentTaskRunId", "value", "attempts", "assetEmits", "state", "iteration", "dynamic", "forceExecution");
    private static final List<String> WHERE = List.of("executionId", "namespace", "flowId");

    private ExecutionJson() {
    }

    /** What a look-up by id shows. */
    static ObjectNode whole(Execution execution) {
        var json = tree(execution);
        json.remove(List.of("outputs", "deleted"));
        retain(json, TASK_RUN);
        return json;
    }

    /** A row of a search. */
    static ObjectNode light(Execution execution) {
        return tree(execution).retain(LIGHT);
    }

    /** What a create shows: the address in the user interface comes on top. */
    static ObjectNode created(Execution execution) {
        var json = tree(execution);
        json.remove("outputs");
        retain(json, Stream.concat(TASK_RUN.stream(), WHERE.stream()).toList());
        return json.put("url", Executions.url(execution));
    }

    private static void retain(ObjectNode execution, List<String> ofTaskRun) {
        execution.path("taskRunList").forEach(taskRun -> ((ObjectNode) taskRun).retain(ofTaskRun));
    }

    private static ObjectNode tree(Execution execution) {
        return Json.mapper().valueToTree(execution);
    }
}
