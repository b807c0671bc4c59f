package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.executions.LogEntry;
import io.kestra.core.repositories.LogRepositoryInterface;
import io.micronaut.http.HttpParameters;
import jakarta.inject.Singleton;
import java.util.List;
import org.slf4j.event.Level;

/** What an execution logged, by the parameters of Kestra 1.3: {@code minLevel}, {@code taskRunId} or {@code taskId}. */
@Singleton
record LogSearch(LogRepositoryInterface logs) {
    List<LogEntry> find(String id, HttpParameters parameters) {
        var level = parameters.getFirst("minLevel").map(Level::valueOf).orElse(null);
        if (parameters.contains("taskRunId")) {
            return logs.findByExecutionIdAndTaskRunId(TENANT, id, parameters.get("taskRunId"), level);
        }
        if (parameters.contains("taskId")) {
            return logs.findByExecutionIdAndTaskId(TENANT, id, parameters.get("taskId"), level);
        }
        return logs.findByExecutionId(TENANT, id, level);
    }
}
