package bridge.engine.api;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.utils.UriProvider;
import jakarta.inject.Singleton;
import java.util.List;

/** How Kestra 2.0 shows an execution: whole but for its outputs, or in light rows. */
@Singleton
record ExecutionJson(ObjectMapper mapper, UriProvider uris) {
    private static final List<String> LIGHT = List.of(
        "tenantId", "id", "namespace", "flowId", "flowRevision", "inputs", "labels", "state", "parentId", "originalId",
        "trigger", "scheduleDate", "kind", "loopRun");
    private static final List<String> TASK_RUN = List.of(
        "id", "taskId", "parentTaskRunId", "value", "attempts", "assetEmits", "state", "iteration", "dynamic", "forceExecution");

    /** What a look-up by id shows. */
    ObjectNode whole(Execution execution) {
        var json = changed(execution).put("tenantId", execution.getTenantId());
        json.remove("deleted");
        json.path("taskRunList").forEach(taskRun -> ((ObjectNode) taskRun).retain(TASK_RUN));
        return json;
    }

    /** A row of a search. */
    ObjectNode light(Execution execution) {
        return changed(execution).put("tenantId", execution.getTenantId()).retain(LIGHT);
    }

    /** What is answered once an execution was changed. */
    ObjectNode changed(Execution execution) {
        ObjectNode json = mapper.valueToTree(execution);
        json.remove("outputs");
        return json;
    }

    /** What a create shows: the address in the user interface comes on top. */
    ObjectNode created(Execution execution) {
        return changed(execution).put("url", uris.executionUrl(execution).toString());
    }
}
