package bridge.engine.api;

import io.kestra.core.models.QueryFilter;
import io.kestra.core.models.QueryFilter.Field;
import io.kestra.core.models.QueryFilter.Op;
import io.micronaut.http.HttpParameters;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** The flat parameters, such as {@code labels=key:value}, which Kestra 1.3 takes where there are no others. */
final class FlatFilters {
    private static final Map<String, Field> EQUAL = Map.of(
        "q", Field.QUERY, "flowId", Field.FLOW_ID, "triggerExecutionId", Field.TRIGGER_EXECUTION_ID,
        "childFilter", Field.CHILD_FILTER, "timeRange", Field.TIME_RANGE);

    private FlatFilters() {
    }

    static List<QueryFilter> of(HttpParameters parameters) {
        var filters = new ArrayList<QueryFilter>();
        EQUAL.forEach((name, field) ->
            parameters.getFirst(name).ifPresent(value -> filters.add(Filters.filter(field, Op.EQUALS, value))));
        parameters.getFirst("namespace").ifPresent(value -> filters.add(Filters.filter(Field.NAMESPACE, Op.PREFIX, value)));
        parameters.getFirst("startDate").ifPresent(value -> filters.add(Filters.filter(Field.START_DATE, Op.GREATER_THAN, value)));
        parameters.getFirst("endDate").ifPresent(value -> filters.add(Filters.filter(Field.END_DATE, Op.LESS_THAN, value)));
        if (!parameters.getAll("state").isEmpty()) {
            filters.add(Filters.filter(Field.STATE, Op.IN, parameters.getAll("state")));
        }
        if (!parameters.getAll("labels").isEmpty()) {
            filters.add(Filters.filter(Field.LABELS, Op.EQUALS, Labels.map(parameters.getAll("labels"))));
        }
        return filters;
    }
}
