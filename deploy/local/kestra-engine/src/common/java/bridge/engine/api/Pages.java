package bridge.engine.api;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import io.kestra.core.repositories.ArrayListTotal;
import io.micronaut.data.model.Pageable;
import io.micronaut.data.model.Sort;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.function.Function;

/** Paging as Kestra's search paths take it: {@code page} from 1, {@code size}, {@code sort=field:desc}. */
final class Pages {
    private static final int DEFAULT_SIZE = 10;

    private Pages() {
    }

    static Pageable of(Request request, Function<String, String> columns) {
        int page = request.number("page").orElse(1);
        int size = request.number("size").orElse(DEFAULT_SIZE);
        if (page < 1 || size < 1) {
            throw new IllegalArgumentException("page and size must be greater than or equal to 1");
        }
        var orders = request.queryAll("sort").stream()
            .flatMap(sort -> Arrays.stream(sort.split(",")))
            .map(sort -> order(sort, columns))
            .toList();
        return orders.isEmpty() ? Pageable.from(page, size) : Pageable.from(page, size, Sort.of(orders));
    }

    static Reply reply(ArrayListTotal<?> results) {
        return reply(results, results.getTotal());
    }

    static Reply reply(List<?> results, long total) {
        var page = new LinkedHashMap<String, Object>();
        page.put("results", results);
        page.put("total", total);
        return Reply.ok(page);
    }

    private static Sort.Order order(String sort, Function<String, String> columns) {
        var parts = sort.split(":");
        if (parts.length != 2) {
            throw new IllegalArgumentException("Invalid sort parameter: " + sort);
        }
        var direction = parts[1].equalsIgnoreCase("desc") ? Sort.Order.Direction.DESC : Sort.Order.Direction.ASC;
        return new Sort.Order(columns.apply(parts[0]), direction, false);
    }
}
