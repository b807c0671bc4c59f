package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.QueryFilter;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.ExecutionRepositoryInterface.DateFilter;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.QueryValue;
import io.micronaut.validation.Validated;
import jakarta.validation.constraints.Min;
import java.util.List;

/** The search for executions, by the engine's own repository. */
@Controller(Api.EXECUTIONS)
@Validated
class ExecutionSearch {
    private final ExecutionRepositoryInterface repository;
    private final ExecutionJson json;

    ExecutionSearch(ExecutionRepositoryInterface repository, ExecutionJson json) {
        this.repository = repository;
        this.json = json;
    }

    @Get("/search")
    Object searchExecutions(
        HttpRequest<?> request, @QueryValue(defaultValue = "1") @Min(1) int page,
        @QueryValue(defaultValue = "10") @Min(1) int size, @Nullable @QueryValue List<String> sort,
        @Nullable @QueryValue DateFilter dateFilter
    ) {
        var filters = Filters.of(request.getParameters(), QueryFilter.Resource.EXECUTION);
        var pageable = Pages.of(page, size, sort, repository.sortMapping());
        var found = dateFilter == null
            ? repository.find(pageable, TENANT, filters)
            : repository.find(pageable, TENANT, filters, dateFilter);
        return new Pages.Results(found.stream().map(json::light).toList(), found.getTotal());
    }
}
