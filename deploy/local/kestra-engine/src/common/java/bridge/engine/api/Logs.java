package bridge.engine.api;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.models.executions.LogEntry;
import io.micronaut.context.ApplicationContext;
import java.util.stream.Collectors;

/** What an execution logged. */
final class Logs {
    private final LogSearch logs;

    Logs(ApplicationContext context) {
        this.logs = new LogSearch(context);
    }

    void addTo(Router router) {
        router
            .add("GET", "/logs/{id}", request -> Reply.ok(logs.find(request)))
            .add("GET", "/logs/{id}/download", this::download);
    }

    private Reply download(Request request) {
        var lines = logs.find(request).stream().map(entry -> LogEntry.toPrettyString(entry));
        return Reply.text(lines.collect(Collectors.joining("\n")));
    }
}
