package bridge.engine.api;

import bridge.engine.http.Json;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.kestra.core.models.executions.Execution;

/** How Kestra 1.3 shows an execution: always whole, with its outputs. */
final class ExecutionJson {
    private ExecutionJson() {
    }

    /** What a look-up by id shows. */
    static ObjectNode whole(Execution execution) {
        return Json.mapper().valueToTree(execution);
    }

    /** A row of a search. */
    static ObjectNode light(Execution execution) {
        return whole(execution);
    }

    /** What a create shows: the address in the user interface comes on top. */
    static ObjectNode created(Execution execution) {
        return whole(execution).put("url", Executions.url(execution));
    }
}
