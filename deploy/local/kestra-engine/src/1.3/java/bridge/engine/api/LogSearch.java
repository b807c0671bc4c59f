package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Request;
import io.kestra.core.models.executions.LogEntry;
import io.kestra.core.repositories.LogRepositoryInterface;
import io.micronaut.context.ApplicationContext;
import java.util.List;
import org.slf4j.event.Level;

/** What an execution logged, by the parameters of Kestra 1.3: {@code minLevel}, {@code taskRunId} or {@code taskId}. */
final class LogSearch {
    private final LogRepositoryInterface logs;

    LogSearch(ApplicationContext context) {
        this.logs = context.getBean(LogRepositoryInterface.class);
    }

    List<LogEntry> find(Request request) {
        var id = request.variable("id");
        var level = request.query("minLevel").map(LogSearch::level).orElse(null);
        if (request.query("taskRunId").isPresent()) {
            return logs.findByExecutionIdAndTaskRunId(TENANT, id, request.query("taskRunId").get(), level);
        }
        if (request.query("taskId").isPresent()) {
            return logs.findByExecutionIdAndTaskId(TENANT, id, request.query("taskId").get(), level);
        }
        return logs.findByExecutionId(TENANT, id, level);
    }

    private static Level level(String name) {
        try {
            return Level.valueOf(name);
        } catch (IllegalArgumentException e) {
            throw new HttpError(400, "Failed to convert argument [minLevel] for value [" + name + "]");
        }
    }
}
