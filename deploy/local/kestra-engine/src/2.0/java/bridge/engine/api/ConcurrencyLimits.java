package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.repositories.ConcurrencyLimitRepositoryInterface;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;

/** How many executions hold a slot of each flow that limits its concurrency. */
@Controller(Api.ROOT + "/concurrency-limit")
record ConcurrencyLimits(ConcurrencyLimitRepositoryInterface repository) {
    @Get("/search")
    Object search() {
        var limits = repository.find(TENANT);
        return new Pages.Results(limits, limits.size());
    }
}
