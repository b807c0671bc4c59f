package bridge.engine.api;

import io.kestra.core.services.InstanceService;
import io.kestra.core.utils.UriProvider;
import io.kestra.core.utils.VersionProvider;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import java.util.List;
import java.util.Map;

/** What the server says of itself; clients read the version and choose their dialect by it. */
@Controller
record Server(VersionProvider version, InstanceService instance, UriProvider uris) {
    @Get(uri = "/ping", produces = MediaType.TEXT_PLAIN)
    String ping() {
        return "pong";
    }

    @Get("/api/v1/configs")
    Map<String, Object> configs() {
        return Map.ofEntries(
            Map.entry("uuid", instance.fetch()),
            Map.entry("version", version.getVersion()),
            Map.entry("edition", "OSS"),
            Map.entry("url", uris.rootUrl()),
            version.getVersion().startsWith("1.") ? Map.entry("isTemplateEnabled", false) : Map.entry("flowTemplate", ""),
            Map.entry("chartDefaultDuration", "P30D"),
            Map.entry("isCustomDashboardsEnabled", false),
            Map.entry("isAnonymousUsageEnabled", false),
            Map.entry("isUiAnonymousUsageEnabled", false),
            Map.entry("isAiEnabled", false),
            Map.entry("isAiApiKeyConfigured", false),
            Map.entry("isConcurrencyViewEnabled", true),
            Map.entry("isBasicAuthInitialized", true),
            Map.entry("preview", Map.of("initial", 100, "max", 5000)),
            Map.entry("systemNamespace", "system"),
            Map.entry("hiddenLabelsPrefixes", List.of("system.", "internal.")),
            Map.entry("pluginsHash", 0));
    }
}
