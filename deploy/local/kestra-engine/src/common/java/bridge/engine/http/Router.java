package bridge.engine.http;

import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Pattern;

/** Finds the handler of a path, relative to the tenant; the first route that was added wins. */
public final class Router {
    /** Answers one request. */
    @FunctionalInterface
    public interface Handler {
        Reply handle(Request request) throws Exception;
    }

    record Match(Handler handler, Map<String, String> variables) {
    }

    private record Route(String method, Pattern pattern, List<String> names, Handler handler) {
    }

    private static final Pattern VARIABLE = Pattern.compile("\\{(\\w+)}");

    private final List<Route> routes = new ArrayList<>();

    /** Add a route; {@code path} may hold variables, as in {@code /executions/{id}}. */
    public Router add(String method, String path, Handler handler) {
        var names = VARIABLE.matcher(path).results().map(result -> result.group(1)).toList();
        var pattern = Pattern.compile(VARIABLE.matcher(path).replaceAll("([^/]+)"));
        routes.add(new Route(method, pattern, names, handler));
        return this;
    }

    /** The first segments of all routes, by which a path without a tenant is known. */
    boolean knows(String segment) {
        return routes.stream().anyMatch(route -> route.pattern.pattern().startsWith("/" + segment));
    }

    /** The route of a method and a path; none at all is a 404, none for this method a 405. */
    Match find(String method, String path) {
        var allowed = new ArrayList<String>();
        for (var route : routes) {
            var variables = variables(route, path);
            if (variables.isEmpty()) {
                continue;
            }
            if (route.method.equals(method)) {
                return new Match(route.handler, variables.get());
            }
            allowed.add(route.method);
        }
        if (allowed.isEmpty()) {
            throw new HttpError(404, "");
        }
        throw new HttpError(405, "Method [" + method + "] not allowed for URI [" + path + "]. Allowed methods: " + allowed);
    }

    private static Optional<Map<String, String>> variables(Route route, String path) {
        var matcher = route.pattern.matcher(path);
        if (!matcher.matches()) {
            return Optional.empty();
        }
        var variables = new HashMap<String, String>();
        for (var i = 0; i < route.names.size(); i++) {
            // A plus sign in a path is a plus sign.
            var raw = matcher.group(i + 1).replace("+", "%2B");
            variables.put(route.names.get(i), URLDecoder.decode(raw, StandardCharsets.UTF_8));
        }
        return Optional.of(variables);
    }
}
