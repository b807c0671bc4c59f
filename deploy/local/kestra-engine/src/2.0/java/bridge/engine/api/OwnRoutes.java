package bridge.engine.api;

import bridge.engine.http.Router;
import io.micronaut.context.ApplicationContext;

/** What 2.0 has beside the common routes. */
final class OwnRoutes {
    private OwnRoutes() {
    }

    static void add(Router router, ApplicationContext context) {
        new Outputs(context).addTo(router);
        new ConcurrencyLimits(context).addTo(router);
    }
}
