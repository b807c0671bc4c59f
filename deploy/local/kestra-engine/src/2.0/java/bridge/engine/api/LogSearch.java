package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.exceptions.InvalidQueryFiltersException;
import io.kestra.core.models.QueryFilter;
import io.kestra.core.models.executions.LogEntry;
import io.kestra.core.repositories.LogDataStoreInterface;
import io.micronaut.http.HttpParameters;
import jakarta.inject.Singleton;
import java.util.List;
import org.slf4j.event.Level;

/** What an execution logged, by the filters of Kestra 2.0: level, task or task run. */
@Singleton
record LogSearch(LogDataStoreInterface logs) {
    List<LogEntry> find(String id, HttpParameters parameters) {
        var filters = Filters.of(parameters, QueryFilter.Resource.LOG);
        return logs.findByExecutionId(TENANT, id, null).stream()
            .filter(entry -> filters.stream().allMatch(filter -> matches(entry, filter)))
            .toList();
    }

    private static boolean matches(LogEntry entry, QueryFilter filter) {
        return switch (filter.field()) {
            case LEVEL -> level(entry.getLevel(), filter);
            case TASK_ID -> text(entry.getTaskId(), filter);
            case TASK_RUN_ID -> text(entry.getTaskRunId(), filter);
            default -> true;
        };
    }

    private static boolean level(Level level, QueryFilter filter) {
        return switch (filter.operation()) {
            case IN -> list(filter).contains(level.name());
            case NOT_IN -> !list(filter).contains(level.name());
            case GREATER_THAN_OR_EQUAL_TO -> level.toInt() >= level(filter.value()).toInt();
            case LESS_THAN_OR_EQUAL_TO -> level.toInt() <= level(filter.value()).toInt();
            default -> level == level(filter.value());
        };
    }

    private static boolean text(String text, QueryFilter filter) {
        return switch (filter.operation()) {
            case IN -> list(filter).contains(text);
            case NOT_IN -> !list(filter).contains(text);
            case NOT_EQUALS -> !String.valueOf(filter.value()).equals(text);
            default -> String.valueOf(filter.value()).equals(text);
        };
    }

    private static List<?> list(QueryFilter filter) {
        return filter.value() instanceof List<?> values ? values : List.of(filter.value());
    }

    private static Level level(Object name) {
        try {
            return Level.valueOf(String.valueOf(name));
        } catch (IllegalArgumentException e) {
            throw new InvalidQueryFiltersException("Unknown level: " + name);
        }
    }
}
