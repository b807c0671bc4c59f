package bridge.engine.api;

import bridge.engine.http.Router;
import io.micronaut.context.ApplicationContext;

/** What 1.3 has beside the common routes: nothing. */
final class OwnRoutes {
    private OwnRoutes() {
    }

    static void add(Router router, ApplicationContext context) {
    }
}
