package bridge.engine.http;

import static bridge.engine.api.Api.TENANT;

import bridge.engine.boot.Settings;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpHeaders;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.annotation.RequestFilter;
import io.micronaut.http.annotation.ServerFilter;
import io.micronaut.http.exceptions.HttpStatusException;
import io.micronaut.web.router.RouteMatchUtils;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.List;

/** Lets in the one user of open-source Kestra, to its one tenant, and anyone to the paths that need no user. */
@ServerFilter("/**")
final class Access {
    private static final List<String> OPEN = List.of(
        "/ping", "/health", "/api/v1/executions/webhook/", "/api/v1/main/executions/webhook/");

    private final String expected;

    Access(Settings settings) {
        var credentials = (settings.username() + ":" + settings.password()).getBytes(StandardCharsets.UTF_8);
        this.expected = "Basic " + Base64.getEncoder().encodeToString(credentials);
    }

    /** The refusal, or null to go on. */
    @RequestFilter
    @Nullable
    HttpResponse<?> admit(HttpRequest<?> request) {
        var open = OPEN.stream().anyMatch(request.getPath()::startsWith);
        if (!open && !expected.equals(request.getHeaders().get(HttpHeaders.AUTHORIZATION))) {
            return HttpResponse.unauthorized().header(HttpHeaders.WWW_AUTHENTICATE, "Basic");
        }
        var tenant = RouteMatchUtils.findRouteMatch(request).map(match -> match.getVariableValues().get("tenant"));
        if (!tenant.orElse(TENANT).equals(TENANT)) {
            throw new HttpStatusException(HttpStatus.BAD_REQUEST, "Tenant must be 'main' for OSS version");
        }
        return null;
    }
}
