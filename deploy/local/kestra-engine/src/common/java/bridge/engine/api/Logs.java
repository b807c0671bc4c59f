package bridge.engine.api;

import io.kestra.core.models.executions.LogEntry;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import java.util.List;
import java.util.stream.Collectors;

/** What an execution logged. */
@Controller(Api.ROOT + "/logs/{id}")
record Logs(LogSearch logs) {
    @Get
    List<LogEntry> find(HttpRequest<?> request, String id) {
        return logs.find(id, request.getParameters());
    }

    @Get(uri = "/download", produces = MediaType.TEXT_PLAIN)
    String download(HttpRequest<?> request, String id) {
        return find(request, id).stream().map(entry -> LogEntry.toPrettyString(entry)).collect(Collectors.joining("\n"));
    }
}
