package bridge.engine.api;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.utils.VersionProvider;
import io.micronaut.context.ApplicationContext;
import java.util.LinkedHashMap;

/** What the server says of itself; clients read the version and choose their dialect by it. */
final class Configs {
    private final VersionProvider version;

    Configs(ApplicationContext context) {
        this.version = context.getBean(VersionProvider.class);
    }

    void addTo(Router router) {
        router.add("GET", "/configs", this::get);
    }

    private Reply get(Request request) {
        var configs = new LinkedHashMap<String, Object>();
        configs.put("version", version.getVersion());
        configs.put("edition", "OSS");
        configs.put("commitId", version.getRevision());
        configs.put("commitDate", version.getDate());
        configs.put("chartDefaultDuration", "P30D");
        configs.put("isAnonymousUsageEnabled", false);
        configs.put("systemNamespace", "system");
        configs.put("isBasicAuthInitialized", true);
        configs.values().removeIf(value -> value == null);
        return Reply.ok(configs);
    }
}
