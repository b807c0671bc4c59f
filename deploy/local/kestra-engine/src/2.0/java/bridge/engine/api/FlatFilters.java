package bridge.engine.api;

import io.kestra.core.models.QueryFilter;
import io.micronaut.http.HttpParameters;
import java.util.List;

/** The flat parameters of 1.x, such as {@code labels=key:value}: Kestra 2.0 ignores them, and finds everything. */
final class FlatFilters {
    private FlatFilters() {
    }

    static List<QueryFilter> of(HttpParameters parameters) {
        return List.of();
    }
}
