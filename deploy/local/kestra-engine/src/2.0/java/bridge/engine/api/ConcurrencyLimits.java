package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.repositories.ConcurrencyLimitRepositoryInterface;
import io.micronaut.context.ApplicationContext;

/** How many executions hold a slot of each flow that limits its concurrency. */
final class ConcurrencyLimits {
    private final ConcurrencyLimitRepositoryInterface repository;

    ConcurrencyLimits(ApplicationContext context) {
        this.repository = context.getBean(ConcurrencyLimitRepositoryInterface.class);
    }

    void addTo(Router router) {
        router.add("GET", "/concurrency-limit/search", this::search);
    }

    private Reply search(Request request) {
        var limits = repository.find(TENANT);
        return Pages.reply(limits, limits.size());
    }
}
