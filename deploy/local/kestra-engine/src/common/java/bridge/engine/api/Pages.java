package bridge.engine.api;

import io.micronaut.core.annotation.Nullable;
import io.micronaut.data.model.Pageable;
import io.micronaut.data.model.Sort;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.exceptions.HttpStatusException;
import java.util.List;
import java.util.function.Function;

/** Paging as Kestra's search paths take it: {@code page} from 1, {@code size}, {@code sort=field:desc}. */
final class Pages {
    /** A page, and how many there are in all. */
    record Results(List<?> results, long total) {
    }

    private Pages() {
    }

    static Pageable of(int page, int size, @Nullable List<String> sort, Function<String, String> columns) {
        if (sort == null) {
            return Pageable.from(page, size);
        }
        return Pageable.from(page, size, Sort.of(sort.stream().map(field -> order(field, columns)).toList()));
    }

    private static Sort.Order order(String sort, Function<String, String> columns) {
        var parts = sort.split(":");
        if (parts.length != 2) {
            throw new HttpStatusException(HttpStatus.UNPROCESSABLE_ENTITY, "Invalid sort parameter");
        }
        var column = columns.apply(parts[0]);
        if (column == null) {
            throw new HttpStatusException(HttpStatus.UNPROCESSABLE_ENTITY, "Invalid sort field: " + parts[0]);
        }
        var direction = parts[1].equalsIgnoreCase("desc") ? Sort.Order.Direction.DESC : Sort.Order.Direction.ASC;
        return new Sort.Order(column, direction, false);
    }
}
