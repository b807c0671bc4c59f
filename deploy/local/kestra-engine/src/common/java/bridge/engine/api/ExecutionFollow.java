package bridge.engine.api;

import bridge.engine.http.Json;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** The state changes of one execution as server-sent events, until it has ended. */
final class ExecutionFollow {
    private final ExecutionRepositoryInterface repository;
    private final FlowRepositoryInterface flows;
    private final Following following;

    ExecutionFollow(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.flows = context.getBean(FlowRepositoryInterface.class);
        this.following = new Following(context);
    }

    void addTo(Router router) {
        router.add("GET", "/executions/{id}/follow", this::follow);
    }

    private Reply follow(Request request) {
        var execution = Executions.find(repository, request.variable("id"));
        var flow = flows.findByExecution(execution);
        return Reply.stream("text/event-stream", Map.of("Cache-Control", "no-cache"), output -> {
            write(output, "start", Map.of("id", execution.getId()));
            for (var event : following.events(execution, flow).toIterable()) {
                write(output, event.getId(), event.getData() == null ? Map.of() : ExecutionJson.whole(event.getData()));
            }
        });
    }

    private static void write(OutputStream output, String id, Object data) throws IOException {
        var event = "data: " + Json.mapper().writeValueAsString(data) + "\nid: " + id + "\n\n";
        output.write(event.getBytes(StandardCharsets.UTF_8));
        output.flush();
    }
}
