package bridge.engine.api;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.serializers.JacksonMapper;
import java.util.List;

/** How Kestra 2.0 shows an execution: whole but for its outputs, or in light rows. */
final class ExecutionJson {
    private static final List<String> LIGHT = List.of(
        "tenantId", "id", "namespace", "flowId", "flowRevision", "inputs", "labels", "state", "parentId", "originalId",
        "trigger", "scheduleDate", "kind", "loopRun");
    private static final List<String> TASK_RUN = List.of(
        "id", "taskId", "parentTaskRunId", "value", "attempts", "assetEmits", "state", "iteration", "dynamic", "forceExecution");

    private ExecutionJson() {
    }

    /** What a look-up by id shows. */
    static ObjectNode whole(Execution execution) {
        var json = tree(execution);
        json.remove(List.of("outputs", "deleted"));
        json.path("taskRunList").forEach(taskRun -> ((ObjectNode) taskRun).retain(TASK_RUN));
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
        return json.put("url", url(execution));
    }

    static String url(Execution execution) {
        return String.join("/", "/ui", execution.getTenantId(), "executions", execution.getNamespace(), execution.getFlowId(),
            execution.getId());
    }

    private static ObjectNode tree(Execution execution) {
        return JacksonMapper.ofJson().valueToTree(execution);
    }
}
