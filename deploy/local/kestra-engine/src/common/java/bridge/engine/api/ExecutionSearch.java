package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.models.QueryFilter;
import io.kestra.core.repositories.ExecutionRepositoryInterface.DateFilter;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.micronaut.context.ApplicationContext;

/** The search for executions, by the engine's own repository. */
final class ExecutionSearch {
    private final ExecutionRepositoryInterface repository;

    ExecutionSearch(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
    }

    void addTo(Router router) {
        router.add("GET", "/executions/search", this::search);
    }

    private Reply search(Request request) {
        var filters = Filters.of(request, QueryFilter.Resource.EXECUTION);
        var page = Pages.of(request, repository.sortMapping());
        var found = request.query("dateFilter").isPresent()
            ? repository.find(page, TENANT, filters, dateFilter(request.query("dateFilter").get()))
            : repository.find(page, TENANT, filters);
        return Pages.reply(found.stream().map(ExecutionJson::light).toList(), found.getTotal());
    }

    private static DateFilter dateFilter(String name) {
        try {
            return DateFilter.valueOf(name);
        } catch (IllegalArgumentException e) {
            throw new HttpError(400, "Failed to convert argument [dateFilter] for value [" + name + "]");
        }
    }
}
