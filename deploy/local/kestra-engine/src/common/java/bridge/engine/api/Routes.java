package bridge.engine.api;

import bridge.engine.http.Router;
import io.micronaut.context.ApplicationContext;

/** Every route below the tenant, by resource. A fixed path comes before one with a variable in its place. */
public final class Routes {
    static final String TENANT = "main";

    private Routes() {
    }

    public static Router all(ApplicationContext context) {
        var router = new Router();
        new Configs(context).addTo(router);
        new Flows(context).addTo(router);
        new Webhooks(context).addTo(router);
        new ExecutionSearch(context).addTo(router);
        new ExecutionFiles(context).addTo(router);
        new ExecutionFollow(context).addTo(router);
        new ExecutionActions(context).addTo(router);
        new Executions(context).addTo(router);
        new Logs(context).addTo(router);
        new KeyValues(context).addTo(router);
        OwnRoutes.add(router, context);
        return router;
    }
}
