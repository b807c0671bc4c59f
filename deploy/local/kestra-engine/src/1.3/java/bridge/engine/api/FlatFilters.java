package bridge.engine.api;

import bridge.engine.http.Request;
import io.kestra.core.models.QueryFilter.Field;
import io.kestra.core.models.QueryFilter.Op;
import io.kestra.core.models.QueryFilter;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** The flat parameters, such as {@code labels=key:value}, which Kestra 1.3 takes where there are no others. */
final class FlatFilters {
    private static final Map<String, Field> EQUAL = Map.of(
        "q", Field.QUERY, "flowId", Field.FLOW_ID, "triggerExecutionId", Field.TRIGGER_EXECUTION_ID,
        "childFilter", Field.CHILD_FILTER, "timeRange", Field.TIME_RANGE);

    private FlatFilters() {
    }

    static List<QueryFilter> of(Request request) {
        var filters = new ArrayList<QueryFilter>();
        EQUAL.forEach((name, field) ->
            request.query(name).ifPresent(value -> filters.add(Filters.filter(field, Op.EQUALS, value))));
        request.query("namespace").ifPresent(value -> filters.add(Filters.filter(Field.NAMESPACE, Op.PREFIX, value)));
        request.query("startDate").ifPresent(value -> filters.add(Filters.filter(Field.START_DATE, Op.GREATER_THAN, value)));
        request.query("endDate").ifPresent(value -> filters.add(Filters.filter(Field.END_DATE, Op.LESS_THAN, value)));
        if (!request.queryAll("state").isEmpty()) {
            filters.add(Filters.filter(Field.STATE, Op.IN, request.queryAll("state")));
        }
        if (!request.queryAll("labels").isEmpty()) {
            filters.add(Filters.filter(Field.LABELS, Op.EQUALS, Labels.parse(request.queryAll("labels")).stream()
                .collect(Collectors.toMap(label -> label.key(), label -> label.value()))));
        }
        return filters;
    }
}
