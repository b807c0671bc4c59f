package bridge.engine.api;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.utils.UriProvider;
import jakarta.inject.Singleton;

/** How Kestra 1.3 shows an execution: always whole, with its outputs. */
@Singleton
record ExecutionJson(ObjectMapper mapper, UriProvider uris) {
    /** What a look-up by id shows. */
    Object whole(Execution execution) {
        return execution;
    }

    /** What is answered once an execution was changed. */
    Object changed(Execution execution) {
        return execution;
    }

    /** A row of a search. */
    Object light(Execution execution) {
        return execution;
    }

    /** What a create shows: the address in the user interface comes on top. */
    Object created(Execution execution) {
        return mapper.<ObjectNode>valueToTree(execution).put("url", uris.executionUrl(execution).toString());
    }
}
