package bridge.engine.api;

import io.kestra.core.exceptions.InvalidQueryFiltersException;
import io.kestra.core.models.QueryFilter;
import io.micronaut.http.HttpParameters;
import java.time.Duration;
import java.time.ZonedDateTime;
import java.time.format.DateTimeParseException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The filters of a search, {@code filters[field][OPERATION]=value}, as Kestra's repositories take them. */
final class Filters {
    private static final Pattern FILTER = Pattern.compile("filters\\[(.*?)]\\[(.*?)](?:\\[(.+)])?");

    private final List<QueryFilter> filters = new ArrayList<>();
    /** All labels that share an operation are one filter. */
    private final Map<QueryFilter.Op, Map<String, String>> labels = new LinkedHashMap<>();

    private Filters() {
    }

    /** The filters of a request, each of which the resource must know. */
    static List<QueryFilter> of(HttpParameters parameters, QueryFilter.Resource resource) {
        var parsed = new Filters();
        parameters.forEach((name, values) -> {
            var matcher = FILTER.matcher(name);
            if (matcher.matches()) {
                parsed.add(matcher, values);
            }
        });
        parsed.labels.forEach((operation, value) -> parsed.filters.add(filter(QueryFilter.Field.LABELS, operation, value)));
        var given = parsed.filters.isEmpty() ? FlatFilters.of(parameters) : parsed.filters;
        var filters = given.stream().map(Filters::resolveTimeRange).toList();
        QueryFilter.validateQueryFilters(filters, resource);
        return filters;
    }

    private void add(Matcher matcher, List<String> values) {
        var field = QueryFilter.Field.fromString(matcher.group(1));
        var operation = QueryFilter.Op.valueOf(matcher.group(2));
        var key = matcher.group(3);
        if (field == QueryFilter.Field.LABELS && key != null) {
            labels.computeIfAbsent(operation, op -> new LinkedHashMap<>()).put(key, values.getFirst());
        } else {
            filters.add(filter(field, operation, key != null ? Map.of(key, values.getFirst()) : value(operation, values)));
        }
    }

    private static Object value(QueryFilter.Op operation, List<String> values) {
        if (operation == QueryFilter.Op.IN || operation == QueryFilter.Op.NOT_IN) {
            return List.of(values.getFirst().replaceAll("[\\[\\]]", "").split(","));
        }
        return values.size() == 1 ? values.getFirst() : values;
    }

    static QueryFilter filter(QueryFilter.Field field, QueryFilter.Op operation, Object value) {
        return QueryFilter.builder().field(field).operation(operation).value(value).build();
    }

    /** A time range is a start date reckoned from now. */
    private static QueryFilter resolveTimeRange(QueryFilter filter) {
        if (filter.field() != QueryFilter.Field.TIME_RANGE) {
            return filter;
        }
        try {
            var since = ZonedDateTime.now().minus(Duration.parse(String.valueOf(filter.value())));
            return filter(QueryFilter.Field.START_DATE, QueryFilter.Op.GREATER_THAN_OR_EQUAL_TO, since.toString());
        } catch (DateTimeParseException e) {
            throw new InvalidQueryFiltersException("Invalid duration: " + filter.value());
        }
    }
}
